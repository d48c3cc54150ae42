"""The only rank of a GPU trainer in `test_gpu_paths.py`: trains two steps, says what it saw, and broadcasts if asked.

python -m tests.cuda.trainer_process DIRECTORY NUM_RECEIVERS TRAINER_CONFIG_AS_JSON
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from still_ray.algo.placement import resolve_trainer
from still_ray.config.methods import method_named
from still_ray.config.schema import TrainerConfig
from still_ray.trainer.job import TrainJob
from still_ray.types import TrainProgress
from tests.integration.replica_process import DEADLINE_S, write
from tests.integration.trainer_rank import PROBES, SFT, examples


def main() -> None:
    directory, num_receivers = Path(sys.argv[1]), int(sys.argv[2])
    trainer = TrainerConfig.model_validate_json(sys.argv[3])
    import torch

    from still_ray.trainer.worker import TrainerWorker

    worker = TrainerWorker(resolve_trainer(trainer, has_gpus=True))
    job = TrainJob(
        name="sft",
        method="sft",
        training_path=method_named("sft").trainer,
        model_path=str(directory / "start"),
        output_dir=str(directory / "sft"),
        settings=SFT,
        trainer=trainer,
        seed=3,
        probe_sequences=PROBES,
    )
    progress: list[TrainProgress] = []
    torch.cuda.reset_peak_memory_stats()
    outcome = worker.train(job, examples(), on_progress=progress.append)
    parameter = next(worker.model.parameters())
    write(
        directory / "trainer.json",
        {
            "losses": [record.loss for record in progress],
            "probes": [asdict(probe) for probe in outcome.probes],
            "dtype": str(parameter.dtype),
            "checkpointing": worker.model.is_gradient_checkpointing,
            "peak_bytes": torch.cuda.max_memory_allocated(),
        },
    )
    if num_receivers:
        _broadcast(worker.model, directory, num_receivers)
    worker.release()


def _broadcast(model: object, directory: Path, num_receivers: int) -> None:
    import torch
    from torch import nn

    from still_ray.weight_sync.member import Sender
    from still_ray.weight_sync.zero_source import ZeroSource

    assert isinstance(model, nn.Module)
    device = torch.device("cuda", torch.cuda.current_device())
    source = ZeroSource(model, device=device)
    sender = Sender(
        "127.0.0.1",
        num_receivers=num_receivers,
        backend="nccl",
        device=device,
        timeout_s=DEADLINE_S,
        cancelled=lambda: False,
    )
    layouts = [[asdict(spec) for spec in specs] for specs in source.layouts()]
    write(directory / "meeting.json", {"rendezvous": asdict(sender.rendezvous), "layouts": layouts})
    sender.send(source.iter_packed())


if __name__ == "__main__":
    main()
