"""One engine in `test_gpu_paths.py` that sleeps, takes other weights when it wakes, and says what its device held.

python -m tests.cuda.sleeping_engine DIRECTORY LEVEL TENSOR_PARALLEL_SIZE
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from still_ray.sampler.engine_settings import engine_environment
from tests.integration.replica_process import settings_of, write
from tests.integration.trainer_rank import PROBES

NUM_TURNS = 3


def main() -> None:
    directory, level, num_ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    settings = replace(settings_of(directory, "sleeper", num_ranks, "cuda"), sleeps=True)
    os.environ.update(engine_environment(settings))
    import torch

    from still_ray.sampler.vllm_sampler import VllmSampler

    def held() -> int:
        """Bytes that are taken of the first device, whoever holds them."""
        free, total = torch.cuda.mem_get_info(0)
        return total - free

    sampler = VllmSampler(settings)
    awake, asleep = [held()], []
    for turn in range(NUM_TURNS):
        sampler.sleep(level)
        asleep.append(held())
        sampler.wake()
        name = ("other", "start")[turn % 2]
        sampler.load_weights([{"transport": "checkpoint", "path": str(directory / name)}], turn + 1)
        awake.append(held())
    woken = sampler.score(PROBES)
    sampler.close()
    fresh = VllmSampler(replace(settings, model_path=str(directory / name)))
    write(directory / "sleeper.json", {"awake": awake, "asleep": asleep, "woken": woken, "fresh": fresh.score(PROBES)})
    fresh.close()


if __name__ == "__main__":
    main()
