"""The model of a run: its files, templates and lengths, checked before anything heavy starts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from still_ray import tiny_world
from still_ray.algo.placement import resolve_sampler
from still_ray.algo.planning.model import KNOWN_SHAPES
from still_ray.algo.planning.sampler_memory import longest_cached
from still_ray.cli.preflight.machines import may_have_gpus
from still_ray.config import Recipe, SamplerConfig
from still_ray.formats.model_files import check_model_files, read_config
from still_ray.formats.prompt import EndOfTurn, asks_date, check_chat_template, end_of_turn, load_template
from still_ray.formats.tokenizer import NO_WEIGHTS, check_model_directory, load_tokenizer
from still_ray.location import ObjectPath, is_uri, location
from still_ray.store.atomic import write_text
from still_ray.store.cache import local_model
from still_ray.store.run_directory import RunDirectory
from still_ray.types import InputError

BUILTIN_BACKBONE = "builtin:tiny"
BACKBONE = Path(tiny_world.__file__).parent / "backbone"


def resolve_backbone(model: str) -> str:
    """The model directory, URI or hub id behind `model.path`."""
    if model == BUILTIN_BACKBONE:
        return str(BACKBONE)
    return str(Path(model).resolve()) if Path(model).is_dir() else model


@dataclass(frozen=True, kw_only=True)
class CheckedModel:
    """What a model's files say of it.

    Attributes:
        end: What ends a response; `end_of_turn_notes` says what a person should know of it.
        num_parameters: How many it has; 0 for a hub id that is not known, whose files are not here.
        asks_date: Whether its chat template writes the date into a prompt.
    """

    end: EndOfTurn
    num_parameters: int
    asks_date: bool = False


def check_model(backbone: str, recipe: Recipe, *, trains: bool = True) -> CheckedModel:
    """Checks the backbone's files, its chat template and the prompt template, and that its sequences can be sampled.

    Args:
        backbone: Its directory, URI or hub id.
        recipe: The recipe.
        trains: Whether it is to be trained, and not only to be sampled from.

    Raises:
        InputError: Something is wrong with one of them.
    """
    folder, holds_weights = model_folder(backbone)
    check_model_directory(folder, weights=holds_weights)
    num_parameters = KNOWN_SHAPES[backbone].num_parameters if backbone in KNOWN_SHAPES else 0
    if Path(folder).is_dir():
        own_code = recipe.model.trust_remote_code
        tensors = check_model_files(Path(folder), location(backbone), trains=trains, own_code=own_code)
        num_parameters = sum(tensor.num_elements for tensor in tensors.values())
        check_length(Path(folder), recipe)
    load_template(recipe.prompt.template)
    tokenizer = load_tokenizer(folder, trust_remote_code=recipe.model.trust_remote_code, weights=holds_weights)
    check_chat_template(tokenizer)
    end = end_of_turn(tokenizer, folder)
    return CheckedModel(end=end, num_parameters=num_parameters, asks_date=asks_date(tokenizer))


def with_date(recipe: Recipe, directory: RunDirectory, *, asks: bool) -> Recipe:
    """The recipe with the day that a chat template is told: its own, else that on which the directory was begun.

    Args:
        recipe: The recipe.
        directory: Where the day is kept, so that the prompts of a run that goes on tomorrow are those of today.
        asks: Whether the model's chat template asks for the date; without that there is none to keep.

    Raises:
        InputError: What is kept is no day.
    """
    if not asks or recipe.prompt.date is not None:
        return recipe
    path = directory.prompt_date
    if not path.exists():
        write_text(path, f"{date.today().isoformat()}\n")
    try:
        day = date.fromisoformat(path.read_text(encoding="utf-8").strip()).isoformat()
    except ValueError:
        raise InputError(f"{path}: is no day as YYYY-MM-DD, which a chat template is told; set prompt.date") from None
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"date": day})})


def date_notes(recipe: Recipe, *, asks: bool) -> tuple[str, ...]:
    """A line where a chat template is told the date."""
    return (f"its chat template asks for the date and is told {recipe.prompt.date} throughout",) if asks else ()


def end_of_turn_notes(model: str, end: EndOfTurn) -> tuple[str, ...]:
    """A line where the model's own eos is not the token that ends a turn of its chat template."""
    if not end.differs:
        return ()
    own = ", ".join(str(token_id) for token_id in end.model_eos_ids) or "missing"
    return (
        f"{model}: its chat template ends a turn with {end.token} ({end.token_id}), its own eos is {own}: responses "
        "stop at each of them, and trained checkpoints name them all",
    )


def fitting_length(folder: Path, sampler: SamplerConfig) -> int | None:
    """Longest sequence that CPU replicas of a model can hold, tokens; None if they may run on GPUs, or nobody can tell.

    Raises:
        InputError: Its config.json is none.
    """
    if resolve_sampler(sampler, has_gpus=may_have_gpus()).on_gpu:
        return None
    return longest_cached(read_config(folder), sampler)


def check_length(folder: Path, recipe: Recipe) -> None:
    """Whether CPU replicas can hold one whole sequence, without which vLLM does not start.

    Raises:
        InputError: They cannot.
    """
    length, fits = recipe.model.max_length, fitting_length(folder, recipe.sampler)
    if fits is not None and length > fits:
        gib = recipe.sampler.kv_cache_gib
        raise InputError(
            f"model.max_length: a sequence of {length:,} tokens does not fit the KV cache of {gib} GiB, which holds "
            f"{fits:,}; lower it, or raise sampler.kv_cache_gib"
        )


def model_folder(backbone: str) -> tuple[str, bool]:
    """Where the driver may read a model's configuration and tokenizer, and whether its weights are there too.

    Of a model in an object store the weights are looked for but not fetched: replicas and trainers do that.

    Raises:
        InputError: There is no such model, or no weights in its place.
    """
    folder = local_model(backbone, weights=False)
    place = location(backbone) if is_uri(backbone) else None
    if not isinstance(place, ObjectPath):
        return folder, True
    if not any(place.glob("*.safetensors")):
        raise InputError(f"{backbone}: {NO_WEIGHTS}")
    return folder, False
