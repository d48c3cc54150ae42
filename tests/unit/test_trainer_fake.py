"""The fake trainer: its steps are counted as the real one's are, its probes are what a fake sampler says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from still_ray.algo.optimizer_steps import num_steps
from still_ray.config import LoraConfig, TrainerConfig
from still_ray.formats.tokenizer import check_model_directory
from still_ray.methods.sft import SFT, SftConfig
from still_ray.sampler.fake import FakeSampler, fake_logprobs
from still_ray.trainer.checkpoint import ADAPTER_FOLDER
from still_ray.trainer.fake import FakeTrainerWorker, fake_probes
from still_ray.trainer.job import TrainJob, TrainOutcome
from still_ray.types import InputError, TrainProgress
from still_ray.weight_sync.proof import Claim, compare, prove

ROWS = [(f"question {i}: a thought and a solution",) for i in range(10)]


def trained(
    folder: Path, rows: Sequence[tuple[str, ...]], *, max_length: int = 20_000, trainer: TrainerConfig | None = None
) -> tuple[TrainOutcome, list[TrainProgress]]:
    """Trains to policy version 3."""
    job = TrainJob(
        name="001-sft",
        method="sft",
        training_path=SFT.trainer,
        model_path="org/model",
        output_dir=str(folder / "checkpoint"),
        settings=SftConfig(epochs=2, global_batch_size=8, max_length=max_length),
        trainer=trainer or TrainerConfig(),
        seed=1,
        probe_sequences=fake_probes(rows, 2, max_tokens=30),
    )
    reports: list[TrainProgress] = []
    worker = FakeTrainerWorker(fake_logprobs, policy_version=3)
    return worker.train(job, rows, on_progress=reports.append), reports


def test_steps_are_those_of_the_real_trainer_and_the_loss_falls(tmp_path: Path) -> None:
    outcome, reports = trained(tmp_path, ROWS)
    assert outcome.result.steps == num_steps(num_rows=10, epochs=2, global_batch_size=8) == 3
    assert [report.step for report in reports] == [1, 2, 3]
    assert outcome.result.share_changed is None, "it has no weights"
    losses = [report.loss for report in reports]
    assert losses == sorted(losses, reverse=True) and losses[-1] == outcome.result.final_loss < losses[0]
    assert reports[-1].epoch == pytest.approx(3 * 8 / 10)


def test_a_stage_of_adapters_leaves_a_folder_for_one_and_another_stage_none(tmp_path: Path) -> None:
    trained(tmp_path / "lora", ROWS, trainer=TrainerConfig(lora=LoraConfig()))
    trained(tmp_path / "whole", ROWS)
    found = [(tmp_path / name / "checkpoint" / ADAPTER_FOLDER).is_dir() for name in ("lora", "whole")]
    assert found == [True, False]


def test_long_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    outcome, _ = trained(tmp_path, [*ROWS, ("x" * 4001,)], max_length=1000)
    assert (outcome.result.num_examples, outcome.result.num_skipped) == (10, 1)
    with pytest.raises(InputError, match="no row to train on; 1 rows exceed max_length"):
        trained(tmp_path, [("x" * 4001,)], max_length=1000)


def test_a_fake_sampler_of_the_version_passes_the_proof_and_another_does_not(tmp_path: Path) -> None:
    outcome, _ = trained(tmp_path, ROWS)
    assert len(outcome.probes) == 2 and all(len(probe.token_ids) == 30 for probe in outcome.probes)
    scores = FakeSampler(name="new", policy_version=3).score([probe.token_ids for probe in outcome.probes])
    assert compare(outcome.probes, scores).max == 0.0
    stale = FakeSampler(name="old", policy_version=2).score([probe.token_ids for probe in outcome.probes])
    with pytest.raises(Exception, match="does not serve policy version 3"):
        prove(Claim(sampler="old", policy_version=3, probes=outcome.probes, tolerance=0.1), stale)


def test_its_checkpoint_cannot_be_taken_for_a_model(tmp_path: Path) -> None:
    trained(tmp_path, ROWS)
    assert "no weights" in (tmp_path / "checkpoint" / "THIS_IS_A_REHEARSAL.txt").read_text()
    with pytest.raises(InputError):
        check_model_directory(str(tmp_path / "checkpoint"))
