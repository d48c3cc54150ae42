"""What a model's files say of themselves: whether its weights are there, whole, and those that its config describes.

Only headers are read, of a model in an object store too, and neither torch nor transformers are imported: a folder with
65 GB takes a moment. Format of a safetensors file: 8 bytes with the header's length, little-endian; the header, JSON
that gives each tensor's type, shape and place; the tensors, without gaps.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from still_ray.algo.planning.model import FAMILIES, ModelShape, shape_of_config
from still_ray.formats.tokenizer import json_object
from still_ray.location import Location
from still_ray.types import InputError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES: Final = 1024
"""A pointer of git-lfs is a text of three lines."""
_TEXT_SUFFIXES: Final = (".json", ".txt", ".model", ".jinja", ".py")
"""Of what is read beside the weights. Other files of a folder, e.g. *.bin of another framework, may be pointers."""
_LENGTH_BYTES: Final = 8
_LONGEST_HEADER: Final = 100_000_000
"""Source: the safetensors library refuses longer ones."""
_SHARD: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_DTYPES: Final = frozenset({"auto", "float64", "float32", "float16", "bfloat16"})
_EMBEDDINGS: Final = (".embed_tokens.weight", ".wte.weight", ".word_embeddings.weight", ".tok_embeddings.weight")
_TEXT_MODELS: Final = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a checkpoint.

    Attributes:
        dtype: As safetensors calls it, e.g. "BF16".
        shape: Its sizes.
        file: Name of the file that holds it.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def check_model_files(folder: Path, weights: Location, *, trains: bool, own_code: bool = False) -> dict[str, Tensor]:
    """Checks a model's config and the headers of its weights; returns its tensors by name.

    Args:
        folder: Holds its config and tokenizer on this machine.
        weights: Where its weights are, which is another place for a model in an object store.
        trains: Whether it is to be trained, and not only to be sampled from.
        own_code: Whether Python code that comes with the model may run; then only its files are checked.

    Raises:
        InputError: A file is missing, damaged or a mere pointer; or the model is of a kind that cannot be used.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in _TEXT_SUFFIXES:
            _refuse_pointer(path)
    config = read_config(folder)
    tensors = read_tensors(weights, trains=trains)
    if own_code and "auto_map" in config:
        return tensors
    where = str(folder / "config.json")
    _check_kind(config, where, trains=trains)
    if config.get("quantization_config") is None:
        _check_types(tensors, weights)
        _check_shapes(config, tensors, where, weights)
    return tensors


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        InputError: It cannot be read, or is no JSON object.
    """
    return json_object(folder / "config.json")


# -- headers ----------------------------------------------------------------------------------------------------------


def read_tensors(folder: Location, *, trains: bool) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name, from the headers of its files.

    Args:
        folder: Holds the files.
        trains: Whether transformers has to find them too, which looks for `SINGLE` and `INDEX` alone.

    Raises:
        InputError: A file is missing or damaged.
    """
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        return _indexed(folder, index) | (read_header(single) if single.is_file() else {})
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if single.is_file():
        names = [SINGLE]
    elif trains:
        raise InputError(f"{folder}: holds {names[0]}, but neither {SINGLE} nor {INDEX}; add the index of its files")
    _check_complete(folder, names)
    return {name: tensor for file in names for name, tensor in read_header(folder / file).items()}


def _indexed(folder: Location, index: Location) -> dict[str, Tensor]:
    parsed = _json(index, index.read_bytes())
    places = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise InputError(f"{index}: has no weight_map from tensors to files; fetch it again")
    files = sorted(set(places.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{index}: names {missing[0]}, which is not there ({len(missing)} of {len(files)} files lack)")
    tensors = {name: tensor for file in files for name, tensor in read_header(folder / file).items()}
    lost = [name for name, file in places.items() if name not in tensors or tensors[name].file != file]
    if lost:
        raise InputError(f"{index}: says that {places[lost[0]]} holds {lost[0]}, which it does not; fetch both again")
    return tensors


def _check_complete(folder: Location, names: Iterable[str]) -> None:
    """Whether every file of "model-00001-of-00003.safetensors" is there."""
    found = set(names)
    for name in sorted(found):
        if shard := _SHARD.fullmatch(name):
            wanted = [f"{shard[1]}-{number:05d}-of-{shard[3]}.safetensors" for number in range(1, int(shard[3]) + 1)]
            if lacking := [file for file in wanted if file not in found]:
                raise InputError(f"{folder}: {lacking[0]} is not there ({len(lacking)} of {len(wanted)} files lack)")


def read_header(path: Location) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by name.

    Raises:
        InputError: It is no such file, or not whole.
    """
    _refuse_pointer(path)
    size = _size(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > _LONGEST_HEADER:
            raise InputError(f"{path}: is no safetensors file; fetch it again, or convert the weights to safetensors")
        text = file.read(length)
    if len(text) < length:
        raise InputError(f"{path}: is cut off at {size:,} bytes, within its header; fetch it again")
    try:
        entries = json.loads(text)
    except ValueError:
        entries = None
    if not isinstance(entries, dict):
        raise InputError(f"{path}: is no safetensors file: its header is no JSON object; fetch it again")
    return _tensors(path, entries, num_bytes=size - _LENGTH_BYTES - length)


def _tensors(path: Location, entries: Mapping[str, Any], *, num_bytes: int) -> dict[str, Tensor]:
    found, end = {}, 0
    try:
        for name, entry in entries.items():
            if name != "__metadata__":
                found[name] = Tensor(dtype=str(entry["dtype"]), shape=tuple(map(int, entry["shape"])), file=path.name)
                end = max(end, int(entry["data_offsets"][1]))
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(f"{path}: is no safetensors file: its header does not describe tensors") from None
    if end != num_bytes:
        raise InputError(f"{path}: is not whole: {num_bytes:,} of {end:,} bytes of tensors are there; fetch it again")
    return found


def _refuse_pointer(path: Location) -> None:
    if path.is_file() and _size(path) <= _POINTER_BYTES and path.read_bytes().startswith(_POINTER):
        raise InputError(f"{path}: is a pointer of git-lfs and not the file; run git lfs pull in its folder")


def _size(path: Location) -> int:
    return path.stat().st_size if isinstance(path, Path) else path.size()


def _json(path: Location, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from None


# -- config -----------------------------------------------------------------------------------------------------------


def _check_kind(config: Mapping[str, Any], where: str, *, trains: bool) -> None:
    """Whether it is a causal language model that the libraries know, in a form that can be used."""
    kind = str(config.get("model_type"))
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise InputError(f'{where}: key "architectures" must name the model\'s class, e.g. ["Qwen2ForCausalLM"]')
    trainable = _trainable()
    if trains and kind not in trainable:
        raise InputError(f"{where}: model_type {kind!r} is no causal language model that transformers can train")
    known = {name for names in trainable.values() for name in names} | _sampled()
    if str(architectures[0]) not in known:
        raise InputError(f"{where}: architecture {architectures[0]!r} is no causal language model known here")
    dtype = config.get("dtype") or config.get("torch_dtype") or "auto"
    if isinstance(dtype, str) and dtype not in _DTYPES:  # a model of several parts has one for each
        raise InputError(f"{where}: dtype {dtype!r} cannot be used; one of {', '.join(sorted(_DTYPES))} can")
    quantized = config.get("quantization_config")
    if trains and quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise InputError(
            f"{where}: quantization_config ({method}): quantized weights cannot be trained; give the model as it was "
            "before"
        )


@cache
def _trainable() -> dict[str, tuple[str, ...]]:
    """Classes of causal language models in transformers, by model_type."""
    pairs = _literals("transformers", "models/auto/modeling_auto.py").get("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", [])
    return {kind: (names,) if isinstance(names, str) else tuple(names) for kind, names in pairs}


@cache
def _sampled() -> frozenset[str]:
    """Classes that vLLM generates text with; none where it is not installed."""
    tables = _literals("vllm", "model_executor/models/registry.py")
    return frozenset(name for table in _TEXT_MODELS for name in tables.get(table, {}))


def _literals(package: str, file: str) -> dict[str, Any]:
    """The tables of a module, read from its source: importing it would take seconds and load torch."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / file for folder in folders]
    source = next((path.read_text(encoding="utf-8") for path in paths if path.is_file()), "")
    return dict(_assigned(ast.parse(source)))


def _assigned(module: ast.Module) -> Iterator[tuple[str, Any]]:
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value.args[0] if isinstance(node.value, ast.Call) and node.value.args else node.value
            try:
                yield node.targets[0].id, ast.literal_eval(value)
            except ValueError:  # it is no table
                continue


def _check_types(tensors: Mapping[str, Tensor], folder: Location) -> None:
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype not in _FLOATS:
            raise InputError(
                f"{folder / tensor.file}: {name} is of type {tensor.dtype} and config.json names no "
                f"quantization_config; one of {', '.join(sorted(_FLOATS))} is needed"
            )


def _check_shapes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str, folder: Location) -> None:
    """Whether the tensors are those of the config: all of them for the families known here, else the embedding."""
    if config.get("model_type") in FAMILIES:
        wanted = expected_shapes(shape_of_config(config, where=where))
    else:
        wanted = _expected_embedding(config.get("text_config") or config, tensors)
    bare = not any(name.startswith("model.") for name in tensors)  # saved without its head
    for full, shape in wanted.items():
        name = full.removeprefix("model.") if bare else full
        if name not in tensors:
            raise InputError(f"{folder}: holds no {name}, which config.json calls for; fetch the model again")
        if tensors[name].shape != shape:
            found = tensors[name]
            raise InputError(
                f"{folder / found.file}: {name} has the shape {list(found.shape)}, and by config.json {list(shape)}; "
                "they belong to different models"
            )
    _check_num_layers(config, tensors, where)


def _expected_embedding(text: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The embedding of a model of another family, which has as many rows as the vocabulary; none if it has several."""
    names = [name for name in tensors if name.endswith(_EMBEDDINGS)]
    rows = text.get("vocab_size")
    if len(names) != 1 or not isinstance(rows, int):
        return {}
    return {names[0]: (rows, *tensors[names[0]].shape[1:])}


def _check_num_layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> None:
    """More layers than the config names would be left out without a word."""
    if config.get("model_type") not in FAMILIES:
        return
    numbers = [int(match[1]) for name in tensors if (match := re.match(r"(?:model\.)?layers\.(\d+)\.", name))]
    wanted = config["num_hidden_layers"]
    if numbers and max(numbers) >= wanted:
        raise InputError(f"{where}: num_hidden_layers is {wanted}, and the weights have {max(numbers) + 1} layers")


def expected_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Names and sizes of every matrix of a model of `FAMILIES`, as transformers saves them; a tied head left out."""
    hidden, inner, query, kv = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.kv_size
    layer = {
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if shape.attention_bias:
        layer |= {"self_attn.q_proj.bias": (query,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    ends = {"model.embed_tokens.weight": (shape.vocab_size, hidden), "model.norm.weight": (hidden,)}
    head = {} if shape.tied else {"lm_head.weight": (shape.vocab_size, hidden)}
    layers = {f"model.layers.{n}.{name}": size for n in range(shape.num_layers) for name, size in layer.items()}
    return {**ends, **layers, **head}
