"""What an hour on GPUs has to measure: training, weight sync, starts, sleep and sampling, by the product's own path.

    python -m benchmarks.gpu_hour --run-dir /shared/bench --shape 32B --minutes 60 --output gpu.md
    ray job submit --working-dir . -- python -m benchmarks.gpu_hour --run-dir /shared/bench --shape 32B

Alone on one machine, or as a job on a cluster whose machines share the run directory; all of its GPUs are used. A
Qwen2.5 of random weights is written there once; runs of small recipes then train and serve it. Each session below is
one such run, whose actors stay up from row to row. A row that fails, or takes longer than `--row-minutes`, is printed
and stands in the table with its cause, and the rest of its session goes on in another run. The rows that are worth most
come first, until `--minutes` are over. `--rows sft,elastic` takes only those whose names begin so.

A figure is a JSON line, and its baseline what `still-ray plan` assumes or counts; of training it is the devices' peak,
so that the ratio is the model FLOP utilisation (MFU). The disk needs room for eight times the weights.

Not part of `make bench`. `--device cpu` takes the same rows with a tiny model on two ranks, to prove that they work;
its figures say nothing about GPUs.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu_rows import (
    SIZES,
    Hour,
    Row,
    Table,
    Turn,
    measure_checkpoint_sync,
    measure_elastic,
    measure_engine_start,
    measure_greedy,
    measure_sampling,
    measure_sync,
    measure_training,
)
from benchmarks.gpus import SHAPES, devices_at_hand, fitting_shape, write_model
from still_ray import Recipe, RunError, open_run
from still_ray.algo.placement import resolve_trainer
from still_ray.config import TrainerConfig
from still_ray.config.loading import recipe_from
from still_ray.config.schema import merged
from still_ray.types import StillRayError

_AGAIN_S: Final = 20.0
"""After which a row is interrupted again, should the first interruption have been taken for another failure."""
TRAINER_ALONE: Final[Mapping[str, Any]] = {
    "placement": "dedicated",
    "sampler": {"gpus_per_replica": 0.0, "tensor_parallel_size": 1, "release_while_training": True},
}
"""The group stays up from row to row and has every GPU: replicas would start with the first weight sync, on CPUs."""
SPECULATION: Final[Mapping[str, Any]] = {
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
}
LONG_ROWS: Final[Mapping[str, Any]] = {"gradient_checkpointing": True, "num_mlp_tiles": 8, "offload_activations": True}


class RowTimeoutError(RunError):
    """A row took too long, or the time of all of them is over."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Rows that one run measures.

    Attributes:
        name: Of its folder.
        rows: In order.
        sections: Of the recipe.
        refusal: Why these devices do not allow it; "" if they do.
    """

    name: str
    rows: tuple[Row, ...]
    sections: Mapping[str, Any]
    refusal: str = ""


def sessions(hour: Hour) -> list[Session]:
    """Everything that is measured, what is worth most first."""
    sizes = hour.sizes
    option = partial(measure_sampling, has_options=True)
    return [
        Session(
            name="training",
            sections=TRAINER_ALONE,
            rows=(
                _training("sft", sizes.short, measure=partial(measure_training, keeps=True)),
                _training("sft", sizes.long),
                _training("dpo", sizes.short),
                _training("dpo", sizes.pair),
            ),
        ),
        _sequence_parallel(hour, sizes.long, sizes.longest),
        _elastic(hour),
        _serving(
            hour,
            "engine",
            Row(name="engine", measure=measure_engine_start),
            Row(name="checkpoint", measure=measure_checkpoint_sync),
            Row(name="engine-drawn", measure=measure_sampling),
            Row(name="engine-greedy", measure=measure_greedy),
        ),
        Session(
            name="lora",
            sections={**TRAINER_ALONE, "trainer": {"lora": {}}},
            rows=(_training("sft", sizes.long, prefix="lora-"),),
        ),
        _apart(hour, "broadcast"),
        _serving(
            hour,
            "speculation",
            Row(name="speculation-greedy", measure=measure_greedy),
            Row(name="speculation-drawn", measure=option),
            engine=SPECULATION,
        ),
        Session(
            name="long-rows",
            sections={**TRAINER_ALONE, "trainer": LONG_ROWS},
            rows=(_training("sft", sizes.longest, prefix="long-rows-"),),
        ),
        _apart(hour, "object_store"),
        _serving(hour, "fp8-cache", Row(name="fp8-cache", measure=option), engine={"kv_cache_dtype": "fp8"}),
        _serving(hour, "fp8-weights", Row(name="fp8-weights", measure=option), engine={"quantization": "fp8"}),
        _sequence_parallel(hour, sizes.short),
    ]


def _training(
    method: str, length: int, *, prefix: str = "", name: str = "", measure: Callable[[Turn], None] = measure_training
) -> Row:
    """A row that trains on rows of a length."""
    settings = {"explore": {}, "train": [method], method: {"max_length": length}}
    return Row(name=name or f"{prefix}{method}-{length}", measure=measure, round=settings)


def _sequence_parallel(hour: Hour, *lengths: int) -> Session:
    return Session(
        name="sequence-parallel",
        sections={**TRAINER_ALONE, "trainer": {"sequence_parallel_size": hour.sharing}},
        rows=tuple(_training("sft", length, prefix="sequence-parallel-") for length in lengths),
        refusal="" if hour.sharing > 1 else "needs a number of devices and heads that 2 divides",
    )


def _elastic(hour: Hour) -> Session:
    """Twice, since the first turn starts the trainer group as well."""
    num_replicas = hour.devices.count // hour.devices_per_replica if hour.on_gpu else 1
    return Session(
        name="elastic",
        sections={"placement": "elastic", "sampler": {"num_replicas": num_replicas}},
        rows=tuple(
            _training("sft", hour.sizes.short, name=f"elastic-{turn}", measure=measure_elastic) for turn in (1, 2)
        ),
    )


def _serving(hour: Hour, name: str, *rows: Row, engine: Mapping[str, Any] | None = None) -> Session:
    """One replica; no trainer starts before a stage is trained."""
    return Session(name=name, rows=rows, sections={"placement": "shared", "sampler": {"engine": engine or {}}})


def _apart(hour: Hour, transport: str) -> Session:
    """One replica that stays up beside ranks on the other half of the devices; adapters, so that these hold a 32B."""
    num_ranks = hour.devices.count // 2 if hour.on_gpu else hour.devices.count
    return Session(
        name=transport,
        sections={
            "placement": "dedicated",
            "trainer": {"num_workers": num_ranks, "lora": {}},
            "sync": {"transport": transport},
        },
        rows=(_training("sft", hour.sizes.short, name=transport, measure=measure_sync),),
        refusal="" if num_ranks else "needs two devices",
    )


def recipe_of(hour: Hour, session: Session) -> Recipe:
    """The recipe of a session, a round for each row."""
    sections = merged(_common(hour), {**session.sections, "rounds": [dict(row.round) for row in session.rows]})
    trainer = sections["trainer"]
    batch = trainer["num_workers"] // trainer.get("sequence_parallel_size", 1)
    for method in ("imitate", "sft", "dpo"):
        sections[method] = {**sections[method], "global_batch_size": batch}
    return recipe_from(sections, (), origin=session.name)


def _common(hour: Hour) -> dict[str, Any]:
    sizes, on_gpu = hour.sizes, hour.on_gpu
    training = {
        "epochs": 1.0,
        "per_device_batch_size": 1,
        "max_length": sizes.short,
        "optimizer": {"learning_rate": 1e-4},
    }
    return {
        "name": "gpu-hour",
        "model": {"path": str(hour.model), "max_length": 2 * max(sizes.response, sizes.short)},
        "prompt": {"template": str(hour.folder / "prompt.txt"), "format": "markers"},
        "data": {"tiny_world": {"num_demonstrations": 8, "num_problems": sizes.num_problems, "num_test": 8}},
        "imitate": training,
        "sft": training,
        "dpo": {**training, "scope": "whole"},
        "explore": {"samples_per_problem": 1, "max_tokens": sizes.response},
        "evaluate": {"max_tokens": sizes.response},
        "sampler": {
            "num_replicas": 1,
            "tensor_parallel_size": hour.devices_per_replica,
            "gpus_per_replica": float(hour.devices_per_replica) if on_gpu else 0.0,
            "dtype": "bfloat16" if on_gpu else "float32",
            "max_num_seqs": 64 if on_gpu else 8,
        },
        "trainer": {"num_workers": hour.devices.count, "use_gpu": on_gpu, "bf16": on_gpu, "logging_steps": 1},
        "failures": {"max_replica_restarts": 0, "max_verifier_restarts": 0, "max_trainer_restarts": 0},
    }


# -- the hour ---------------------------------------------------------------------------------------------------------


def measure_all(hour: Hour, wanted: Sequence[str], *, after_each: Callable[[], None]) -> None:
    """Measures the rows whose names begin as asked, until the time is over.

    Args:
        hour: What they share.
        wanted: Beginnings of names; none: all.
        after_each: Called after each session.
    """
    todo = deque(_chosen(sessions(hour), wanted))
    for number in range(sys.maxsize):
        if not todo:
            return
        todo.extendleft(reversed(_attempted(hour, todo.popleft(), number)))
        after_each()


def _chosen(every: Sequence[Session], wanted: Sequence[str]) -> Iterator[Session]:
    for session in every:
        rows = tuple(row for row in session.rows if not wanted or row.name.startswith(tuple(wanted)))
        if rows:
            yield replace(session, rows=rows)


def _attempted(hour: Hour, session: Session, number: int) -> list[Session]:
    """Measures the rows of a session up to the first that fails; returns what is left, to be tried in other runs."""
    if session.refusal:
        for row in session.rows:
            hour.table.failure(row.name, session.refusal)
        return []
    begun = -1  # while actors are launched, nobody knows which row is to blame
    try:
        with (
            alarm(hour) as reset,
            redirect_stdout(sys.stderr),
            open_run(recipe_of(hour, session), hour.folder / f"{number:02d}-{session.name}") as run,
        ):
            begin = partial(Turn, hour=hour, run=run, opened_at=time.monotonic())
            for begun, row in enumerate(session.rows):
                reset()
                row.measure(begin(name=row.name, round=begun + 1, is_first=not begun))
            begun = len(session.rows)
    except (StillRayError, OSError) as error:
        return _after_failure(hour, session, begun, " ".join(str(error).split()))
    return []


def _after_failure(hour: Hour, session: Session, begun: int, cause: str) -> list[Session]:
    """Notes the row that was begun; the others are still to be measured: one by one, where no row was begun."""
    if begun < 0 and len(session.rows) > 1:
        return [replace(session, rows=(row,)) for row in session.rows]
    if begun >= len(session.rows):
        sys.stderr.write(f"{session.name}: after its rows: {cause}\n")
        return []
    hour.table.failure(session.rows[max(begun, 0)].name, cause)
    rest = session.rows[max(begun, 0) + 1 :]
    return [replace(session, rows=rest)] if rest else []


@contextmanager
def alarm(hour: Hour) -> Iterator[Callable[[], None]]:
    """Interrupts what takes longer than a row may; gives what starts the clock anew."""

    def reset() -> None:
        left = hour.deadline - time.monotonic()
        if left <= 0:
            raise RowTimeoutError("the time is over")
        signal.setitimer(signal.ITIMER_REAL, min(left, hour.row_s), _AGAIN_S)

    def interrupt(*_: object) -> None:
        over = time.monotonic() >= hour.deadline
        raise RowTimeoutError("the time is over" if over else f"took longer than {hour.row_s:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        reset()
        yield reset
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _hour_of(asked: argparse.Namespace, table: Table) -> tuple[Hour, str]:
    """Looks at the devices, chooses a shape and writes its model; what rows share, and the name of the shape."""
    deadline = time.monotonic() + 60 * asked.minutes
    folder = Path(asked.run_dir).resolve() / time.strftime("hour-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    (folder / "prompt.txt").write_text("{question}", encoding="utf-8")
    devices = devices_at_hand(asked.device, folder / "ray.log")
    name = asked.shape
    if name == "auto" and asked.device == "cpu":
        name = "tiny"
    elif name == "auto":
        trainer = resolve_trainer(TrainerConfig(num_workers=devices.count), has_gpus=True)
        name = fitting_shape(trainer, device_bytes=devices.num_bytes, length=SIZES["cuda"].long)
    model = folder.parent / f"model-{name}-{asked.device}"
    with redirect_stdout(sys.stderr):
        write_model(SHAPES[name], model, asked.device)
    hour = Hour(
        devices=devices,
        shape=SHAPES[name],
        model=model,
        folder=folder,
        table=table,
        deadline=deadline,
        row_s=60 * asked.row_minutes,
    )
    return hour, name


def main() -> None:
    """Reads the command line; one line and status 1 without a GPU."""
    parser = argparse.ArgumentParser(prog="gpu_hour", description=__doc__)
    parser.add_argument("--run-dir", required=True, help="folder that all machines share")
    parser.add_argument("--shape", choices=["auto", *SHAPES], default="auto", help="of Qwen2.5")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--row-minutes", type=float, default=10.0)
    parser.add_argument("--rows", default="", help="beginnings of names, separated by commas")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, help="file that takes the table")
    asked = parser.parse_args()
    table = Table()
    hour, name = _hour_of(asked, table)
    head = (
        f"{hour.devices.count} x {hour.devices.name}, Qwen2.5-{name} of random weights: "
        f"`python -m benchmarks.gpu_hour {' '.join(sys.argv[1:])}`."
    )

    def write() -> None:
        if asked.output:
            asked.output.write_text(table.page(head), encoding="utf-8")

    measure_all(hour, [name for name in asked.rows.split(",") if name], after_each=write)


if __name__ == "__main__":
    main()
