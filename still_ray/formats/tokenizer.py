"""Loading a model's tokenizer, and the checks of a model directory that need no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from still_ray.types import InputError

NO_WEIGHTS = "no *.safetensors; convert the weights to safetensors, pickle files are not read"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(model: str, *, trust_remote_code: bool = False, weights: bool = True) -> Any:
    """The tokenizer of a model directory or hub id.

    Args:
        model: Which.
        trust_remote_code: As in the recipe.
        weights: Whether the directory must hold the weights too.

    Raises:
        InputError: There is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    check_model_directory(model, weights=weights)
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        missing = "" if Path(model).is_dir() else "is no folder here, and as a hub id "
        raise InputError(f"{model}: {missing}its tokenizer cannot be loaded: {reason}") from None


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
    _check_json(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{model}: no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it beside the model")
    if weights and not any(folder.glob("*.safetensors")):
        raise InputError(f"{model}: {NO_WEIGHTS}")


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from None
