"""Loading a model's tokenizer, and the checks of a model directory that need no weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from still_ray.causes import worded
from still_ray.location import Location
from still_ray.network import route_to
from still_ray.types import InputError

NO_WEIGHTS = "no *.safetensors; convert the weights to safetensors, pickle files are not read"
HUB = "https://huggingface.co"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(model: str, *, trust_remote_code: bool = False, weights: bool = True) -> Any:
    """The tokenizer of a model directory or hub id.

    Args:
        model: Which.
        trust_remote_code: As in the recipe.
        weights: Whether the directory must hold the weights too.

    Raises:
        InputError: There is none, or it cannot be loaded, or the environment names a proxy that cannot be used.
    """
    from transformers import AutoTokenizer

    check_model_directory(model, weights=weights)
    if not Path(model).is_dir() and os.environ.get("HF_HUB_OFFLINE", "0") == "0":
        route_to(os.environ.get("HF_ENDPOINT") or HUB)  # httpx stops at a wrong proxy with an error of its own
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # of files that are not as they should be
        missing = "" if Path(model).is_dir() else "is no folder here, and as a hub id "
        raise InputError(f"{model}: {missing}its tokenizer cannot be loaded: {worded(error)}") from None


def generation_eos_ids(model: str) -> tuple[int, ...]:
    """The eos of a model's generation_config.json, or of its config.json where that one names none.

    Args:
        model: A model directory or hub id.

    Raises:
        InputError: One of the files is not JSON, or its eos_token_id is neither a token id nor a list of them.
    """
    for name in ("generation_config.json", "config.json"):
        path = _file_of(model, name)
        if path is not None and (ids := _eos_ids(path)):
            return ids
    return ()


def vocabulary_size(model: str) -> int | None:
    """Rows of a model's embedding by its config.json; None where that does not say.

    Args:
        model: A model directory or hub id.
    """
    path = _file_of(model, "config.json")
    size = None if path is None else _of_text_model(json_object(path), "vocab_size")
    return size if isinstance(size, int) else None


def _of_text_model(config: dict[str, Any], key: str) -> Any:
    """A key of a config.json; models that also see images nest those of their language model."""
    text = config.get("text_config")
    return config.get(key, text.get(key) if isinstance(text, dict) else None)


def _eos_ids(path: Path) -> tuple[int, ...]:
    found = _of_text_model(json_object(path), "eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise InputError(f"{path}: eos_token_id is {json.dumps(found)}; a token id or a list of token ids is needed")
    return tuple(ids)


def _file_of(model: str, name: str) -> Path | None:
    """A file of a model directory, or of a hub id, which is fetched if it is not here; None if it cannot be had."""
    if Path(model).is_dir():
        return Path(model) / name if (Path(model) / name).is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        model, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if found is None else Path(found)


def check_model_directory(model: str, *, weights: bool = True) -> None:
    """Looks at the files of a local model directory; a hub id passes, since nothing is downloaded here.

    Args:
        model: Which.
        weights: Whether it must hold the weights too.

    Raises:
        InputError: The directory is missing or lacks config, weights or tokenizer.
    """
    folder = Path(model)
    if not folder.is_absolute() and not folder.exists():
        return  # a hub id
    if not folder.is_dir():
        raise InputError(f"{model}: no such model directory; give a HF model directory, a hub id or builtin:tiny")
    if not (folder / "config.json").is_file():
        raise InputError(f"{model}: no config.json; a HF model directory is needed")
    json_object(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{model}: no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it beside the model")
    if weights and not any(folder.glob("*.safetensors")):
        raise InputError(f"{model}: {NO_WEIGHTS}")


def json_object(path: Location) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no JSON object")
    return content
