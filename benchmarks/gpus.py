"""The devices of a cluster, and a model of random weights that is made for them: nothing is downloaded."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import ray

from still_ray.actors.pool.cluster import connected
from still_ray.algo.planning.model import KNOWN_SHAPES, ModelShape
from still_ray.algo.planning.trainer_memory import FRAGMENTATION, RUNTIME_BYTES, Batch, trainer_memory
from still_ray.algo.resolved import ResolvedTrainer

if TYPE_CHECKING:
    import torch

Kind = Literal["cuda", "cpu"]

PEAK_TFLOPS: Final = {
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

TINY: Final = ModelShape(
    family="qwen2",
    num_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=512,
    tied=False,
    max_positions=32_768,
    attention_bias=True,
    dtype="float32",
)
SHAPES: Final = {"tiny": TINY} | {name.split("-")[1]: shape for name, shape in KNOWN_SHAPES.items()}
CPU_DEVICES: Final = 2
"""What a CPU counts as, so that ranks can share rows and exchange weights."""
INDEX: Final = "model.safetensors.index.json"
_MATMUL: Final = {"cuda": 8192, "cpu": 1024}
_NOISE: Final = 2**24 - 3
"""Random numbers that are drawn; tensors repeat them. A prime, so that no two rows of a matrix are equal."""
_DEVIATION: Final = 0.02
"""Of weights. Source: Qwen2.5's initializer_range."""


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices of a cluster, which are taken to be alike.

    Attributes:
        kind: GPUs, or a CPU that stands for them.
        name: As the driver calls one.
        count: How many there are.
        num_bytes: Memory of one; 0 for a CPU.
        peak_flops: Operations per second of one: the data sheet's (bfloat16, dense), or the best of a few large matrix
            products where there is none.
    """

    kind: Kind
    name: str
    count: int
    num_bytes: int
    peak_flops: float


def devices_at_hand(kind: Kind, log: Path) -> Devices:
    """Looks at one device of the cluster that RAY_ADDRESS names, else of this machine.

    Args:
        kind: What is looked for.
        log: Takes what Ray prints.

    Raises:
        SystemExit: There is no GPU.
    """
    with connected(None, log):
        count = int(ray.cluster_resources().get("GPU", 0)) if kind == "cuda" else CPU_DEVICES
        if not count:
            raise SystemExit("gpu_hour: no GPU found; --device cpu proves the path with a tiny model")
        look = ray.remote(num_cpus=1, num_gpus=1 if kind == "cuda" else 0)(_look)
        name, num_bytes, peak_flops = ray.get(look.remote(kind))
    return Devices(kind=kind, name=name, count=count, num_bytes=num_bytes, peak_flops=peak_flops)


def _look(kind: Kind) -> tuple[str, int, float]:
    """Name, memory and peak of the first device that this process sees."""
    if kind == "cpu":
        return "CPU", 0, _best_matmul(kind)
    import torch

    found = torch.cuda.get_device_properties(0)
    known = [peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in found.name]
    return str(found.name), int(found.total_memory), known[0] if known else _best_matmul(kind)


def _best_matmul(kind: Kind) -> float:
    import torch

    width, dtype = _MATMUL[kind], torch.bfloat16 if kind == "cuda" else torch.float32
    left, right = (torch.randn(width, width, dtype=dtype, device=kind) for _ in range(2))

    def product() -> None:
        torch.matmul(left, right)
        if kind == "cuda":
            torch.cuda.synchronize()

    return 2.0 * width**3 / min(_seconds(product) for _ in range(10))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fitting_shape(trainer: ResolvedTrainer, *, device_bytes: int, length: int) -> str:
    """The largest shape of which all weights can be trained.

    Args:
        trainer: The ranks, one a device.
        device_bytes: Memory of a device.
        length: Tokens of a row, one a rank.

    Raises:
        SystemExit: None can.
    """
    room = device_bytes * (1 - FRAGMENTATION) - RUNTIME_BYTES
    for name, shape in reversed(SHAPES.items()):
        if trainer_memory(shape, trainer, Batch(rows=1, tokens=length)).peak_bytes <= room:
            return name
    raise SystemExit(
        f"gpu_hour: no shape fits {trainer.num_workers} x {device_bytes >> 30} GiB at {length} tokens; name one"
    )


# -- a model of random weights ----------------------------------------------------------------------------------------


def write_model(shape: ModelShape, folder: Path, kind: Kind) -> None:
    """Writes a Qwen2 of random weights, a layer at a time, unless it is there already: its index is the last file."""
    if (folder / INDEX).exists():
        return
    import torch
    from safetensors.torch import save_file

    _write_tokenizer(shape, folder)
    model = _without_weights(shape, folder, torch.bfloat16 if kind == "cuda" else torch.float32)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not (shape.tied and "lm_head" in name)}
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)) * _DEVIATION
    places: dict[str, str] = {}
    for number, names in enumerate(_by_layer(tensors)):
        file = f"model-{number:05d}.safetensors"
        save_file({name: _filled(name, tensors[name], noise) for name in names}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _write_tokenizer(shape: ModelShape, folder: Path) -> None:
    """Bytes and markers, as the tests have them; every other id of the model is a word of its own, never encoded."""
    from tests.tiny_model import write_tokenizer

    size = write_tokenizer(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] |= {f"Ġw{number}": number for number in range(size, shape.vocab_size)}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def _without_weights(shape: ModelShape, folder: Path, dtype: torch.dtype) -> Any:
    """Writes the configuration; the model has shapes and no memory."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

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
        architectures=["Qwen2ForCausalLM"],
        dtype=dtype,
    )
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=258, pad_token_id=256).save_pretrained(folder)
    with torch.device("meta"):
        return Qwen2ForCausalLM(config).to(dtype)


def _by_layer(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    """Names of the tensors of each layer, and of what is outside of layers, which makes a file each."""
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(name.partition("layers.")[2].partition(".")[0] or name, []).append(name)
    yield from groups.values()


def _filled(name: str, tensor: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Random numbers from a place on that the name decides: an LM head that is its embedding repeats the last token."""
    import torch

    if name.endswith("norm.weight"):
        return torch.ones_like(tensor, device="cpu")
    first = zlib.crc32(name.encode()) % len(noise)
    repeated = noise.to(tensor.dtype).repeat(-(-(first + tensor.numel()) // len(noise)))
    return repeated[first : first + tensor.numel()].view(tensor.shape).clone()
