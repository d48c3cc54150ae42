"""One replica in `test_trainer_ranks.py`: a real vLLM engine that takes part in the ranks' broadcast.

python -m tests.integration.replica_process DIRECTORY NAME TENSOR_PARALLEL_SIZE RANK_OFFSET [cuda]
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from still_ray.algo.placement import resolve_sampler
from still_ray.config.schema import SamplerConfig
from still_ray.sampler.engine_settings import Device, EngineSettings, engine_environment
from still_ray.sampler.protocol import SamplerDeadError
from still_ray.weight_sync import checkpoint
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.rendezvous import Rendezvous
from still_ray.weight_sync.transports.broadcast import Broadcast
from tests.integration.trainer_rank import PROBES

DEADLINE_S = 300.0


def awaited(path: Path) -> Any:
    """The JSON file, as soon as it is there; whoever writes it moves it to its place."""
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.1)
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> None:
    """Writes a JSON file that others wait for."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.rename(path)


def refusal(sampler: Any) -> str:
    """How the engine answers an update that no worker can read; the next one must be taken all the same."""
    try:
        sampler.load_weights([{"transport": "pigeon"}], 1)
    except SyncError as error:
        return str(error)
    return "no error"


def lost_shard(sampler: Any, directory: Path) -> dict[str, Any]:
    """Loads the checkpoint again, of which the second rank keeps nothing; returns digests and scores."""
    sampler._engine.collective_rpc(keep_old_shard, args=(str(directory / "start"),))
    digests = sampler.load_weights([{"transport": "checkpoint", "path": str(directory / "sharded")}], 2)
    return {"digests": digests, "scores": sampler.score(PROBES)}


def keep_old_shard(worker: Any, old: str) -> None:
    """From here on the second rank takes every update in, and loads another checkpoint instead."""
    if worker.rank == 1:
        model = worker.weight_transfer_engine.model
        load = model.load_weights

        def load_old(tensors: Iterable[Any]) -> Any:
            deque(tensors, maxlen=0)
            return load(checkpoint.iterate(Path(old)))

        model.load_weights = load_old


def end_of_a_worker(sampler: Any, heard: queue.SimpleQueue[str]) -> dict[str, str]:
    """Kills one worker of an idle tensor-parallel engine; returns what its owner and the next caller hear."""
    workers = [child for child in psutil.Process().children(recursive=True) if "Worker_TP1" in child.name()]
    workers[0].kill()
    owner = heard.get(timeout=60)
    try:
        sampler.score(PROBES)
    except SamplerDeadError as error:
        return {"owner": owner, "caller": str(error)}
    return {"owner": owner, "caller": "no error"}


def settings_of(directory: Path, name: str, num_ranks: int, device: Device) -> EngineSettings:
    on_gpu = device == "cuda"
    return EngineSettings(
        model_path=str(directory / "start"),
        name=name,
        sampler=resolve_sampler(
            SamplerConfig(
                max_num_seqs=4,
                tensor_parallel_size=num_ranks,
                dtype="bfloat16" if on_gpu else "auto",
                gpu_memory_utilization=0.3,
            ),
            has_gpus=on_gpu,
        ),
        max_model_len=128,
        seed=0,
        device=device,
    )


def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    num_ranks, rank_offset = int(sys.argv[3]), int(sys.argv[4])
    device: Device = "cuda" if sys.argv[5:] == ["cuda"] else "cpu"
    settings = settings_of(directory, name, num_ranks, device)
    os.environ.update(engine_environment(settings))
    from still_ray.sampler.vllm_sampler import VllmSampler

    heard: queue.SimpleQueue[str] = queue.SimpleQueue()
    sampler = VllmSampler(settings, on_dead=lambda error: heard.put(str(error)))
    seen: dict[str, Any] = {"before": sampler.score(PROBES), "refusal": refusal(sampler)}
    meeting = awaited(directory / "meeting.json")
    rendezvous = Rendezvous(**meeting["rendezvous"])
    broadcast = Broadcast("broadcast")
    update = broadcast.payload(rendezvous, meeting["layouts"], rank_offset=rank_offset, timeout_s=DEADLINE_S)
    digests = sampler.load_weights([update], 1)
    seen |= {"version": sampler.policy_version, "after": sampler.score(PROBES), "digests": digests}
    if num_ranks > 1:
        seen["lost_shard"] = lost_shard(sampler, directory)
        seen["death"] = end_of_a_worker(sampler, heard)
    write(directory / f"{name}.json", seen)
    sampler.close()


if __name__ == "__main__":
    main()
