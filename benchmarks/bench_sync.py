"""Bringing a vLLM replica to new weights of 1 GB, against copying as many bytes in memory.

    python -m benchmarks.bench_sync --megabytes 1000 --repeats 3

A Qwen2 of random float32 weights, made here, is trained for one step by a rank of ZeRO-3 in a session with one CPU
replica. `object_store`: the trainer gathers the weights, takes their digests and packs them into Ray's object store;
the replica loads them from there. `checkpoint`: the replica loads the files that the trainer wrote. Each ends in its
proof: the digests of what arrived, and the probes, scored before and after. Printed for each: seconds until the weights
are loaded, and with the scoring, whose time is that of a sync that finds the replica up to date. Baselines of the same
run: numpy's copy of as many bytes; safetensors' read of the same file, every tensor copied. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.bench_explore import DEMO, imitation
from benchmarks.figures import print_figure
from benchmarks.scripts.sample import read_lines
from still_ray import OpenRun, Recipe, TrainOrder, load_recipe, open_run
from still_ray.store.policy import POLICY_FILE, read_policy_record, write_policy_record
from still_ray.types import SyncReport

HIDDEN, INTERMEDIATE, FLOAT32_BYTES = 1024, 4096, 4
LAYER_BYTES = FLOAT32_BYTES * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)
WEIGHTS = "model.safetensors"
COPIES = 100
"""What the version of a copied checkpoint is above its original's."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One turn; seconds.

    Attributes:
        publish_s: Until the trainer's weights were in the object store.
        store_s: The sync that loads them, with its proof.
        files_s: The sync that loads the checkpoint, with its proof.
        proof_s: A sync that loads nothing.
        memcpy_s: Copying as many bytes.
        read_s: Reading the checkpoint's file.
    """

    publish_s: float
    store_s: float
    files_s: float
    proof_s: float
    memcpy_s: float
    read_s: float


def write_model(folder: Path, megabytes: int) -> None:
    """Writes a Qwen2 of random weights with the tiny world's tokenizer."""
    import torch

    from still_ray.tiny_world.build_backbone import BuildSettings, new_model
    from still_ray.tiny_world.tokenizer import build_tokenizer, write_tokenizer

    torch.manual_seed(0)
    layers = max(1, round(megabytes * 10**6 / LAYER_BYTES))
    tokenizer = build_tokenizer()
    write_tokenizer(tokenizer, folder)
    settings = BuildSettings(hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_layers=layers)
    new_model(tokenizer, settings).save_pretrained(folder)


def recipe_of(model: Path) -> Recipe:
    """The demo's on this model, with imitation of one step."""
    imitate = {"epochs": 1, "global_batch_size": 2, "per_device_batch_size": 1, "optimizer.learning_rate": 1e-3}
    sections = {
        "model.path": model,
        "rounds": [],
        "sync.transport": "object_store",
        "sampler.num_replicas": 1,
        "trainer.num_workers": 1,
        "data.tiny_world": json.dumps({"num_demonstrations": 2, "num_problems": 20, "num_test": 20}),
        **{f"imitate.{name}": value for name, value in imitate.items()},
    }
    return load_recipe(str(DEMO), [f"{name}={value}" for name, value in sections.items()])


def turn(run: OpenRun, first: TrainOrder, number: int, metrics: Path) -> Measured:
    """Trains a version, brings the replica to it in both ways, and copies as many bytes."""
    version = number + 1
    stage = replace(first.stage, policy_version=version)
    order = replace(first, stage=stage, seed=number, checkpoint=f"{first.checkpoint}-{number}")
    run.ports.sync.sync(0, run.backbone)  # what a version is told from: all of them are trained alike
    run.ports.trainer.train(order, progress=run.ports.progress)
    stored = synced(run, version, order.checkpoint, "object_store")
    proof = synced(run, version, order.checkpoint)
    with renumbered(Path(order.checkpoint), version + COPIES) as copied:
        run.ports.sync.sync(0, run.backbone)
        files = synced(run, version + COPIES, str(copied), "checkpoint")
    measured = Measured(
        publish_s=publish_seconds(metrics),
        store_s=stored.seconds,
        files_s=files.seconds,
        proof_s=proof.seconds,
        memcpy_s=memcpy_seconds(stored.num_bytes),
        read_s=read_seconds(Path(order.checkpoint) / WEIGHTS),
    )
    sys.stderr.write(f"{measured}\n")
    shutil.rmtree(order.checkpoint)
    return measured


def synced(run: OpenRun, version: int, checkpoint: str, transport: str = "") -> SyncReport:
    """Brings the replica to a version.

    Raises:
        SystemExit: The weights came in another way than they should, or nothing proves that they did.
    """
    report = run.ports.sync.sync(version, checkpoint)
    if (transport and report.transport != transport) or not report.num_digests or report.weak:
        raise SystemExit(f"bench_sync: wanted {transport}, with a clear proof: {report}")
    return report


@contextmanager
def renumbered(checkpoint: Path, version: int) -> Iterator[Path]:
    """The same checkpoint as another version, which the trainer does not offer."""
    record = read_policy_record(checkpoint)
    assert record
    copied = checkpoint.with_name(f"{checkpoint.name}-copied")
    shutil.copytree(checkpoint, copied, copy_function=os.link, ignore=shutil.ignore_patterns(POLICY_FILE))
    write_policy_record(copied, replace(record, policy_version=version))
    yield copied
    shutil.rmtree(copied)


def publish_seconds(metrics: Path) -> float:
    """Of the last stage."""
    return float([e["value"] for e in read_lines(metrics) if e["name"] == "sync/publish_seconds"][-1])


def memcpy_seconds(num_bytes: int) -> float:
    """A copy to memory that is there already."""
    import numpy as np

    source, target = np.ones(num_bytes, dtype=np.uint8), np.zeros(num_bytes, dtype=np.uint8)
    target.fill(2)
    started = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - started


def read_seconds(file: Path) -> float:
    """Every tensor of a file, copied out of it; the system has the file in memory."""
    from safetensors.torch import load_file

    started = time.perf_counter()
    for tensor in load_file(file).values():
        tensor.clone()
    return time.perf_counter() - started


def print_medians(turns: Sequence[Measured]) -> None:
    """Each way with and without the scoring of the probes."""
    ways = {
        "object_store": ([one.publish_s + one.store_s for one in turns], [one.memcpy_s for one in turns]),
        "checkpoint": ([one.files_s for one in turns], [one.read_s for one in turns]),
    }
    for name, (whole, baseline) in ways.items():
        bare = [seconds - one.proof_s for seconds, one in zip(whole, turns, strict=True)]
        for figure, seconds in ((f"sync_{name}_without_probes", bare), (f"sync_{name}", whole)):
            print_figure(figure, value=statistics.median(seconds), unit="s", baseline=statistics.median(baseline))


def measure(megabytes: int, repeats: int) -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", megabytes)
        with open_run(recipe_of(folder / "model"), folder / "run") as run:
            first = imitation(run)
            turns = [turn(run, first, number, folder / "run" / "metrics.jsonl") for number in range(repeats)]
    print_medians(turns)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="of weights")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    measure(arguments.megabytes, arguments.repeats)


if __name__ == "__main__":
    main()
