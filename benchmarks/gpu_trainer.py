"""Supervised fine-tuning at 4k, 20k and 32k tokens on this machine's GPUs, through the product's own trainer ranks.

    python -m benchmarks.gpu_trainer [--shape auto|0.5B|1.5B|...] [--lengths 4096,20000,32768] [--steps 4]

A Qwen2.5-shaped model of random weights is made here, nothing is downloaded. One rank runs on each GPU, under ZeRO-3,
bfloat16 and gradient checkpointing, with one sequence of full length each. Printed for each length:

    tokens/s, where the baseline is what the devices' peak would give: the ratio is the model FLOP utilisation;
    peak memory of a rank's tensors, where the baseline is what `still-ray plan` says.

FLOPs of a token are 6 x parameters + 6 x layers x width of the queries x length. Source: PaLM, arXiv 2204.02311,
appendix B, whose attention term is halved here because a causal model needs only half of it; an embedding that is only
looked up is left out; what gradient checkpointing computes twice counts once. The peak is the data sheet's for known
devices (bfloat16, dense); for others, and on a CPU, the best of a few large matrix products in the same run.

Not part of `make bench`. `--device cpu` runs the same path with a tiny model, to prove that it works; its figures say
nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.figures import print_figure
from still_ray.algo.placement import resolve_trainer
from still_ray.algo.planning.model import KNOWN_SHAPES, ModelShape
from still_ray.algo.planning.trainer_memory import FRAGMENTATION, RUNTIME_BYTES, Batch, trainer_memory
from still_ray.algo.resolved import ResolvedTrainer
from still_ray.config import OptimizerConfig, TrainerConfig
from still_ray.methods.sft import SFT, SftConfig
from still_ray.trainer.environment import trainer_environment

Device = Literal["cuda", "cpu"]

PEAK_TFLOPS = {
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.05,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
}
"""Dense bfloat16 by a part of the device's name, the first that fits. Source: NVIDIA's data sheets."""

TINY = ModelShape(
    family="qwen2",
    num_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=512,
    tied=True,
    max_positions=32_768,
    attention_bias=True,
)
SHAPES = {"tiny": TINY} | {name.split("-")[1]: shape for name, shape in KNOWN_SHAPES.items()}
WARM_UP_STEPS = 2
_MATMUL = {"cuda": 8192, "cpu": 1024}
_PROMPT_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What rank 0 measured at one length.

    Attributes:
        length: Tokens of a sequence.
        tokens_per_s: Of all ranks, over the steps after the warm-up.
        peak_bytes: Most bytes of tensors on rank 0's device; 0 on a CPU.
    """

    length: int
    tokens_per_s: float
    peak_bytes: int


def flops_per_token(shape: ModelShape, length: int) -> float:
    """Floating-point operations of forward and backward pass for each token of sequences of a length."""
    multiplied = shape.num_parameters - (0 if shape.tied else shape.num_embedding)
    return 6.0 * multiplied + 6.0 * shape.num_layers * shape.query_size * length


def fitting_shape(*, num_devices: int, device_bytes: int, host_bytes: int, length: int) -> str:
    """The largest shape whose trainer fits the devices, and whose bfloat16 weights fit half of the host.

    Raises:
        SystemExit: None does.
    """
    trainer, batch = trainer_config(num_devices, "cuda"), Batch(rows=1, tokens=length)
    room = device_bytes * (1 - FRAGMENTATION) - RUNTIME_BYTES
    for name, shape in reversed(SHAPES.items()):
        needed = trainer_memory(shape, trainer, batch).peak_bytes
        if needed <= room and 2 * shape.num_parameters <= host_bytes / 2:
            return name
    raise SystemExit(f"gpu_trainer: no shape fits {num_devices} x {device_bytes >> 30} GiB at {length} tokens")


def trainer_config(num_workers: int, device: Device) -> ResolvedTrainer:
    """What the 32B recipe says, on so many ranks."""
    on_gpu = device == "cuda"
    config = TrainerConfig(
        num_workers=num_workers,
        zero_stage=3,
        gradient_checkpointing=True,
        logging_steps=1,
        threads=os.cpu_count() or 1,
    )
    return resolve_trainer(config, has_gpus=on_gpu)


def write_checkpoint(shape: ModelShape, folder: Path, device: Device) -> None:
    """Writes a model of random weights with any tokenizer: rows are token ids already."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.tiny_model import write_tokenizer

    write_tokenizer(folder)
    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=258,
        pad_token_id=256,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    Qwen2ForCausalLM(config).save_pretrained(folder)


def run_rank(folder: Path) -> None:
    """One rank: trains a few steps at every length; rank 0 leaves what it measured in the folder."""
    import torch

    from still_ray.trainer.worker import TrainerWorker

    spec: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    device: Device = spec["device"]
    worker = TrainerWorker(trainer_config(spec["num_ranks"], device))
    measured = [asdict(_measured(worker, folder, spec, length)) for length in spec["lengths"]]
    if os.environ["RANK"] == "0":
        peak = peak_flops(device)
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        result = {"measured": measured, "peak_flops": peak, "device_name": name}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    worker.release()


def _measured(worker: Any, folder: Path, spec: dict[str, Any], length: int) -> Measured:
    import torch

    from still_ray.trainer.job import TrainJob
    from still_ray.trainer.methods.sft import TokenizedExample
    from still_ray.types import TrainProgress

    num_steps, num_ranks = WARM_UP_STEPS + spec["steps"], spec["num_ranks"]
    generator = random.Random(length)
    rows = [
        TokenizedExample(
            prompt_ids=tuple(generator.randrange(256) for _ in range(_PROMPT_TOKENS)),
            completion_ids=tuple(generator.randrange(256) for _ in range(length - _PROMPT_TOKENS)),
        )
        for _ in range(num_steps * num_ranks)
    ]
    job = TrainJob(
        name=f"sft-{length}",
        method="sft",
        training_path=SFT.trainer,
        model_path=str(folder / "model"),
        output_dir=str(folder / "trained"),
        settings=SftConfig(
            epochs=1.0,
            global_batch_size=num_ranks,
            per_device_batch_size=1,
            max_length=length,
            optimizer=OptimizerConfig(learning_rate=1e-6),
        ),
        trainer=trainer_config(num_ranks, spec["device"]).asked,
        seed=0,
    )
    ends: list[float] = []

    def at_step(_: TrainProgress) -> None:
        ends.append(time.perf_counter())  # the loss was read: the device is done with the step

    if spec["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    worker.train(job, rows, on_progress=at_step)
    peak = torch.cuda.max_memory_allocated() if spec["device"] == "cuda" else 0
    seconds = ends[-1] - ends[WARM_UP_STEPS - 1]
    return Measured(length=length, tokens_per_s=spec["steps"] * num_ranks * length / seconds, peak_bytes=peak)


def peak_flops(device: Device) -> float:
    """Operations per second of one device: the data sheet's, or measured."""
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
        known = [peak for part, peak in PEAK_TFLOPS.items() if part in name]
        if known:
            return known[0] * 1e12
    return _best_matmul(device)


def _best_matmul(device: Device) -> float:
    import torch

    width = _MATMUL[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(width, width, dtype=dtype, device=device) for _ in range(2))

    def product() -> None:
        torch.matmul(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    return 2.0 * width**3 / min(_seconds(product) for _ in range(10))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def start_ranks(folder: Path, num_ranks: int, device: Device) -> list[subprocess.Popen[bytes]]:
    """One process a device, each of which sees that one alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = os.environ | trainer_environment(trainer_config(num_ranks, device), use_gpu=device == "cuda")
    base |= {"WORLD_SIZE": str(num_ranks), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_ranks)))).split(",")
    if device == "cuda":
        return [_rank(folder, base | {"RANK": str(r), "CUDA_VISIBLE_DEVICES": visible[r]}) for r in range(num_ranks)]
    return [_rank(folder, base | {"RANK": str(rank)}) for rank in range(num_ranks)]


def _rank(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_trainer", "--rank-of", str(folder)], env=environment, stdout=sys.stderr
    )


def all_end_well(ranks: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Waits for the ranks; when one fails, ends the others, which would wait for it."""
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(0.5)
    for rank in ranks:
        rank.kill()
    return not any(rank.wait() for rank in ranks)


def print_figures(shape_name: str, num_ranks: int, result: dict[str, Any], device: Device) -> None:
    """Prints what was measured, against the peak and against the plan."""
    shape = SHAPES[shape_name]
    for measured in (Measured(**each) for each in result["measured"]):
        name = f"sft_{shape_name}_{measured.length}_tokens_on_{num_ranks}_x_{result['device_name'].replace(' ', '_')}"
        at_peak = num_ranks * result["peak_flops"] / flops_per_token(shape, measured.length)
        print_figure(name, value=measured.tokens_per_s, unit="tokens/s", baseline=at_peak)
        if measured.peak_bytes:
            batch = Batch(rows=1, tokens=measured.length)
            planned = trainer_memory(shape, trainer_config(num_ranks, device), batch).peak_bytes
            gib = 2.0**30
            print_figure(f"{name}_memory", value=measured.peak_bytes / gib, unit="GiB", baseline=planned / gib)


def measure(shape_name: str, lengths: Sequence[int], *, steps: int, device: Device, num_ranks: int) -> None:
    """Makes the model, runs the ranks, prints the figures.

    Raises:
        SystemExit: A rank failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redirect_stdout(sys.stderr):  # what libraries say on their way in; stdout holds figures alone
            write_checkpoint(SHAPES[shape_name], folder / "model", device)
        spec = {"lengths": list(lengths), "steps": steps, "num_ranks": num_ranks, "device": device}
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        ranks = start_ranks(folder, num_ranks, device)
        if not all_end_well(ranks):
            raise SystemExit("gpu_trainer: a rank failed, see above")
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        print_figures(shape_name, num_ranks, result, device)


def main() -> None:
    """Reads the command line; one line and status 1 without a GPU."""
    parser = argparse.ArgumentParser(prog="gpu_trainer")
    parser.add_argument("--shape", choices=["auto", *SHAPES], default="auto")
    parser.add_argument("--lengths", default="")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank_of:
        run_rank(asked.rank_of)
    elif asked.device == "cpu":
        shape = "tiny" if asked.shape == "auto" else asked.shape
        measure(shape, _lengths(asked.lengths or "128,256"), steps=asked.steps, device="cpu", num_ranks=1)
    else:
        _measure_on_gpus(asked.shape, _lengths(asked.lengths or "4096,20000,32768"), steps=asked.steps)


def _lengths(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _measure_on_gpus(shape: str, lengths: Sequence[int], *, steps: int) -> None:
    import psutil
    import torch

    num_devices = torch.cuda.device_count()
    if not num_devices:
        raise SystemExit("gpu_trainer: no GPU found; --device cpu proves the path with a tiny model")
    if shape == "auto":
        device_bytes = min(torch.cuda.get_device_properties(i).total_memory for i in range(num_devices))
        host_bytes = psutil.virtual_memory().available
        shape = fitting_shape(
            num_devices=num_devices, device_bytes=device_bytes, host_bytes=host_bytes, length=max(lengths)
        )
    measure(shape, lengths, steps=steps, device="cuda", num_ranks=num_devices)


if __name__ == "__main__":
    main()
