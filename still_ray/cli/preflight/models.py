"""The model of a run: its files, templates and lengths, checked before anything heavy starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from still_ray import tiny_world
from still_ray.algo.planning.model import FAMILIES, KNOWN_SHAPES, ModelShape, shape_of_config, trains_embeddings
from still_ray.cli.preflight.files import RunFiles
from still_ray.config import Recipe
from still_ray.formats.chat_template import STAND_IN, ChatTemplate, EndOfTurn, end_of_turn
from still_ray.formats.model_files import Tensor, check_model_files, read_config
from still_ray.formats.prompt import (
    chat_template_of,
    format_of_prompt,
    load_template,
    native_format,
    prompt_as_it_comes,
)
from still_ray.formats.responses.markers import MARKED
from still_ray.formats.responses.plain import PLAIN
from still_ray.formats.responses.table import DecidedFormat, format_named
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
        shape: What its memory follows from; None for a hub id that is not known, whose files are not here.
        format: The response format that it is asked for.
        native: Name of the one that it has by itself, before it is trained.
        chat: Its chat template.
        asks_date: Whether that writes the date into a prompt.
    """

    end: EndOfTurn
    shape: ModelShape | None
    format: DecidedFormat
    native: str
    chat: ChatTemplate
    asks_date: bool = False

    def format_for(self, recipe: Recipe) -> str:
        """Name of the response format of a run: the one that its recipe names, else what was decided."""
        return self.format.name if recipe.prompt.format == "auto" else recipe.prompt.format

    def baseline(self, recipe: Recipe) -> str:
        """The format that the untrained model is asked for in a run, see `Driver`; "" where that is the run's.

        Args:
            recipe: The run's.
        """
        asked = recipe.prompt.model_copy(update={"format": self.format_for(recipe)})
        return "" if prompt_as_it_comes(recipe.prompt, self.native) == asked else self.native


def check_model(backbone: str, recipe: Recipe, *, trains: bool = True) -> CheckedModel:
    """Checks the backbone's files, its chat template and the prompt template.

    Args:
        backbone: Its directory, URI or hub id.
        recipe: The recipe.
        trains: Whether it is to be trained, and not only to be sampled from.

    Raises:
        InputError: Something is wrong with one of them.
    """
    folder, holds_weights = model_folder(backbone)
    check_model_directory(folder, weights=holds_weights)
    shape, own_code = KNOWN_SHAPES.get(backbone), recipe.model.trust_remote_code
    if Path(folder).is_dir():
        tensors = check_model_files(Path(folder), location(backbone), trains=trains, own_code=own_code)
        shape = _told_shape(Path(folder), tensors, own_code=own_code)
    load_template(recipe.prompt.template)
    tokenizer = load_tokenizer(folder, trust_remote_code=own_code, weights=holds_weights)
    shape = shape or shape_by_config(folder, own_code=own_code)
    chat = chat_template_of(tokenizer, recipe.prompt)
    asked = format_of_prompt(chat, recipe.prompt, default=MARKED.name if trains else PLAIN.name)
    check_scopes(recipe, asked.name)
    return CheckedModel(
        end=end_of_turn(chat, folder),
        shape=shape,
        format=asked,
        native=native_format(chat, default=PLAIN.name).name,
        chat=chat,
        asks_date=chat.asks_date,
    )


def check_turns(model: CheckedModel, files: RunFiles) -> None:
    """Whether the chat template takes the turns that demonstrations have, before hours of sampling.

    Raises:
        InputError: It refuses some.
    """
    for file in files.shown:
        for roles in sorted(file.roles):
            try:
                model.chat.prompt_text([{"role": role, "content": STAND_IN} for role in (*roles, "user")])
            except InputError as error:
                raise InputError(f"{file.config.path}: holds chats that the model cannot be asked: {error}") from None


def check_scopes(recipe: Recipe, name: str) -> None:
    """Whether every training method can learn what it is to learn of responses of a format.

    Args:
        recipe: The recipe.
        name: The format's; "auto": nobody knows yet.

    Raises:
        InputError: One is to learn the thought alone, which responses do not have.
    """
    if name == "auto" or format_named(name).has_thought:
        return
    for step in recipe.steps:
        if step.settings.scope == "thought":
            raise InputError(
                f"{step.where}.scope: thought, but responses of the format {name} have none; set it to whole, or "
                "prompt.format to a format with a thought"
            )


def with_format(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a response format that is decided, for those who sample and train."""
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"format": name})})


def format_notes(model: CheckedModel) -> tuple[str, ...]:
    """A line that says which response format was decided on, and by what."""
    return (f"responses have the format {model.format.name} (prompt.format): {model.format.why}",)


def adapter_notes(recipe: Recipe, model: CheckedModel) -> tuple[str, ...]:
    """A line where adapters are to learn delimiters of which each is one token, which the model may never have seen."""
    lora, shape = recipe.trainer.lora, model.shape
    if lora is None or shape is None or trains_embeddings(lora, shape.num_parameters):
        return ()
    given = format_named(model.format_for(recipe)).delimiters
    single = [text for text in given if len(model.chat.tokenizer.encode(text, add_special_tokens=False)) == 1]
    if not single:
        return ()
    return (
        f"each of {', '.join(single)} is one token, and adapters do not change its embedding: if the model has never "
        "been trained on it, it will not learn it (trainer.lora.embeddings: true)",
    )


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


def _told_shape(folder: Path, tensors: Mapping[str, Tensor], *, own_code: bool) -> ModelShape | None:
    """What a model's memory follows from; None where its architecture says it in another way than is known here."""
    try:
        return model_shape(folder, tensors, own_code=own_code)
    except InputError:
        if read_config(folder).get("model_type") in FAMILIES:
            raise
        return None  # named policy: any architecture runs; one that nobody can size is not sized


def model_shape(folder: Path, tensors: Mapping[str, Tensor] | None, *, own_code: bool = False) -> ModelShape:
    """What a model's memory follows from: its config, and of a family without a formula the headers of its weights.

    Args:
        folder: Holds its config.json.
        tensors: Of its weights; None: they are not here.
        own_code: Whether Python code that comes with the model may run, to complete its config.

    Raises:
        InputError: The config lacks a number, or nobody can count its parameters.
    """
    config, where = read_config(folder), str(folder / "config.json")
    if config.get("model_type") in FAMILIES or tensors is None:
        return shape_of_config(config, where=where)
    counted = sum(tensor.num_elements for tensor in tensors.values())
    return shape_of_config(_completed(config, folder, own_code=own_code), where=where, counted=counted)


def shape_of(model: str) -> ModelShape:
    """The shape of a backbone: of its config.json, or known by its hub id.

    Raises:
        InputError: It is neither here nor known.
    """
    backbone = Path(resolve_backbone(model))
    if not backbone.is_dir():
        if model in KNOWN_SHAPES:
            return KNOWN_SHAPES[model]
        raise InputError(
            f"model.path: {model} is no directory here, and the shapes known without a download are those of "
            f"{', '.join(KNOWN_SHAPES)}"
        )
    holds_weights = any(
        backbone.glob("*.safetensors")
    )  # a plan of a family that is known needs no more than the config
    return model_shape(backbone, check_model_files(backbone, backbone, trains=True) if holds_weights else None)


def shape_by_config(model: str, *, own_code: bool) -> ModelShape | None:
    """What memory follows from, of a model on the hub whose weights are fetched by the replicas.

    Args:
        model: A hub id, or a folder.
        own_code: Whether Python code that comes with the model may run.

    Returns:
        None for a family whose parameters do not follow from its config.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=own_code).to_dict()
    except ValueError:  # a model_type that transformers does not know
        return None
    return shape_of_config(config, where=model) if config.get("model_type") in FAMILIES else None


def _completed(config: dict[str, Any], folder: Path, *, own_code: bool) -> dict[str, Any]:
    """A config with the defaults of its class, which a file may leave out; as it is where only vLLM knows the class."""
    from transformers import AutoConfig

    if "auto_map" in config and not own_code:
        return config
    try:
        whole = AutoConfig.from_pretrained(folder, trust_remote_code=own_code, local_files_only=True)
    except ValueError:  # a model_type that transformers does not know
        return config
    text: dict[str, Any] = whole.get_text_config().to_dict()
    return {**text, "dtype": text.get("dtype") or config.get("dtype") or config.get("torch_dtype")}


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
