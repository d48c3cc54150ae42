"""What `evaluate` is asked: models and benchmarks, found, checked and given their digests before anything starts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from still_ray.algo.placement import AtHand, resolve
from still_ray.cli.preflight.evaluated import EvaluatedBenchmark, EvaluatedModel
from still_ray.cli.preflight.library_arguments import check_library_arguments
from still_ray.cli.preflight.machines import finds_gpus, settled_lengths, this_machine
from still_ray.cli.preflight.models import (
    CheckedModel,
    check_model,
    date_notes,
    end_of_turn_notes,
    format_notes,
    model_folder,
    resolve_backbone,
    with_date,
    with_format,
)
from still_ray.config import Recipe
from still_ray.config.loading import recipe_from
from still_ray.formats.benchmarks import (
    BenchmarkSource,
    benchmark_problems,
    find_benchmarks,
    holds_problems,
    written_out,
)
from still_ray.formats.problems import validate_problems
from still_ray.formats.prompt import prompt_beside_model
from still_ray.formats.tokenizer import check_model_directory
from still_ray.location import Location, location
from still_ray.store.atomic import write_text
from still_ray.store.digests import file_digest, text_digest
from still_ray.store.run_directory import RunDirectory
from still_ray.types import InputError
from still_ray.verifiers.custom import check_custom_verifiers

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The command's options; see `still-ray evaluate --help`."""

    models: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    output: str | None = None
    benchmarks_dir: Path | None = None
    prompt: Path | None = None
    max_tokens: int | None = None
    num_problems: int | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    repeat: str | None = None
    overrides: tuple[str, ...] = ()


def planned_models(options: EvaluateOptions) -> list[EvaluatedModel]:
    """The models, each with its recipe.

    Raises:
        InputError: A model or an option is wrong, or two models are called the same.
    """
    models = [_model(text, options) for text in options.models]
    _require_different([model.name for model in models], what="models", advice="--model NAME=DIR")
    return models


def check_models(models: Sequence[EvaluatedModel]) -> dict[str, CheckedModel]:
    """Loads their tokenizers, prompts and verifiers, which takes seconds.

    Returns:
        What was found, by backbone.

    Raises:
        InputError: One is wrong.
    """
    checked = {model.backbone: check_model(model.backbone, model.recipe, trains=False) for model in models}
    check_custom_verifiers(models[0].recipe.verifier.custom)
    return checked


def settled_models(
    models: Sequence[EvaluatedModel], checked: Mapping[str, CheckedModel]
) -> tuple[list[EvaluatedModel], list[str]]:
    """The models with what their recipes leave to them and to this machine, and what a person should know of it.

    Raises:
        InputError: A model does not fit the machine as its recipe asks.
    """
    settled, notes = [], []
    for model in _with_alike_replicas(models, checked):
        recipe, at_hand, said = settled_lengths(model.recipe, checked[model.backbone].shape, trains=False)
        settled.append(replace(model, recipe=recipe, at_hand=at_hand))
        unasked = check_library_arguments(recipe, has_gpus=finds_gpus(at_hand), trains=False, updates=len(models) > 1)
        notes += [f"{model.name}: {note}" for note in (*said, *unasked)]
    return settled, notes


def _with_alike_replicas(
    models: Sequence[EvaluatedModel], checked: Mapping[str, CheckedModel]
) -> Sequence[EvaluatedModel]:
    """The models with one number of replicas, which serve them in turn: as many as each of them may have."""
    if len(models) == 1:
        return models
    machine = this_machine()
    found = []
    for model in models:
        at_hand = AtHand(shape=checked[model.backbone].shape, machine=machine)
        settled = resolve(model.recipe, has_gpus=finds_gpus(at_hand), at_hand=at_hand, trains=False)
        found.append(settled.sampler.num_replicas)
    changes = {"num_replicas": min(found)}
    recipes = [
        model.recipe.model_copy(update={"sampler": model.recipe.sampler.model_copy(update=changes)}) for model in models
    ]
    return [replace(model, recipe=recipe) for model, recipe in zip(models, recipes, strict=True)]


def dated_models(
    models: Sequence[EvaluatedModel], checked: Mapping[str, CheckedModel], directory: RunDirectory
) -> list[EvaluatedModel]:
    """The models with their response formats, and the day that their chat templates are told, see `with_date`.

    Raises:
        InputError: What the folder says of the day is none.
    """

    def settled(model: EvaluatedModel) -> Recipe:
        found = checked[model.backbone]
        return with_format(with_date(model.recipe, directory, asks=found.asks_date), found.format.name)

    return [replace(model, recipe=settled(model)) for model in models]


def notes_of(models: Sequence[EvaluatedModel], checked: Mapping[str, CheckedModel]) -> list[str]:
    """What a person should know of the models."""
    ends = [note for backbone, model in checked.items() for note in end_of_turn_notes(backbone, model.end)]
    asked = [(model, date_notes(model.recipe, asks=checked[model.backbone].asks_date)) for model in models]
    formats = [f"{model.name}: {note}" for model in models for note in format_notes(checked[model.backbone])]
    return ends + formats + [f"{model.name}: {note}" for model, notes in asked for note in notes]


def planned_sources(options: EvaluateOptions) -> list[BenchmarkSource]:
    """Where the benchmarks are.

    Raises:
        InputError: One is not found, or two are called the same.
    """
    sources = [one for asked in options.benchmarks for one in find_benchmarks(asked, options.benchmarks_dir)]
    _require_different([source.name for source in sources], what="benchmarks", advice="files with different names")
    return sources


def read_benchmark(
    source: BenchmarkSource, folder: Location, *, seed: int, own: Collection[str] = ()
) -> EvaluatedBenchmark:
    """A benchmark ready to be read; its problems are written into the folder, where they have another form.

    Raises:
        InputError: The source cannot be read, or a row is wrong.
    """
    if holds_problems(source):
        index = validate_problems(source.source, own=own)
        digest = file_digest(location(source.source))
        return EvaluatedBenchmark(source, source.source, index, digest, None, None)
    text = written_out(benchmark_problems(source, seed=seed, own=own))
    path = folder / f"{source.name}-{text_digest(text)[:8]}.jsonl"
    if not path.exists():
        write_text(path, text)
    index = validate_problems(path, own=own)
    written = file_digest(path)
    digest = file_digest(location(source.source)) if _is_file(source) else written
    return EvaluatedBenchmark(source, str(path), index, digest, written, seed)


def default_output(models: Sequence[EvaluatedModel], sources: Sequence[BenchmarkSource]) -> Path:
    """Where results go that were given no place."""
    if len(models) == len(sources) == 1:
        return Path("evaluations") / models[0].name / sources[0].name
    return Path("evaluations")


def model_name(text: str) -> str:
    """A short name for a model: the last part of its path, with the run's where that says more."""
    parts = [part for part in re.split(r"[/\\:]+", text.partition("?")[0]) if part]
    parts = parts[:-1] if parts[-1:] == ["checkpoint"] and len(parts) > 1 else parts
    within_run = parts[-2:-1] == ["rounds"] and len(parts) > 2  # noqa: PLR2004
    name = f"{parts[-3]}-{parts[-1]}" if within_run else parts[-1] if parts else text
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _model(text: str, options: EvaluateOptions) -> EvaluatedModel:
    named = None if Path(text).exists() else _NAMED.fullmatch(text)
    name, given = (named[1], named[2]) if named else ("", text)
    backbone = resolve_backbone(given)
    folder, holds_weights = model_folder(backbone)
    check_model_directory(folder, weights=holds_weights)
    relative = Path(given)
    label = name or model_name(str(relative.resolve()) if relative.is_dir() else given)
    return EvaluatedModel(label, backbone, _recipe(options, given, backbone))


def _recipe(options: EvaluateOptions, given: str, backbone: str) -> Recipe:
    """A recipe that only evaluates: the model's own prompt, the published settings where the model allows them."""
    names_format = any(text.startswith("prompt.format=") for text in options.overrides)
    prompt = prompt_beside_model(location(backbone), names_format=names_format)
    if options.prompt:
        prompt = {**prompt, "template": str(options.prompt.resolve())}
    asked = {
        "max_tokens": options.max_tokens,
        "num_problems": options.num_problems,
        "num_samples": options.samples,
        "temperature": None if options.temperature is None else float(options.temperature),
        "top_p": None if options.top_p is None else float(options.top_p),
        "seed": options.seed,
    }
    raw: dict[str, Any] = {
        "name": "evaluate",
        "model": {"path": given},
        "prompt": prompt,
        "data": dict.fromkeys(("demonstrations", "problems", "test"), "benchmark"),
        "evaluate": {key: value for key, value in asked.items() if value is not None},
        "rounds": [],
    }
    return recipe_from(raw, options.overrides, origin="evaluate")


def _is_file(source: BenchmarkSource) -> bool:
    return not source.source.startswith("hub:") and location(source.source).is_file()


def _require_different(names: Sequence[str], *, what: str, advice: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two {what} are called {twice}, and so would be their results; give {advice}")
