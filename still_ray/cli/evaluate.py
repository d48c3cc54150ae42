"""`evaluate`: one model on one benchmark, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from still_ray.algo.evaluation import EvaluationSummary
from still_ray.cli.commands import package_versions
from still_ray.cli.job import check_kept
from still_ray.cli.preflight import RunFiles, check_model, check_verifiers, model_folder, resolve_backbone
from still_ray.cli.progress import ConsoleProgress
from still_ray.cli.tables import result_console
from still_ray.config import Recipe
from still_ray.config.loading import recipe_from
from still_ray.formats.problems import validate_problems
from still_ray.formats.prompt import TEMPLATE_FILE
from still_ray.formats.tokenizer import check_model_directory
from still_ray.location import Location, is_uri, location
from still_ray.store.atomic import write_json
from still_ray.store.run_directory import RunDirectory
from still_ray.store.tables import write_table
from still_ray.types import InputError, Trajectory


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The command's options; see `still-ray evaluate --help`."""

    model: str
    benchmark: str
    output: str | None
    prompt: Path | None
    max_tokens: int | None
    num_problems: int | None
    overrides: tuple[str, ...]


def evaluate_model(options: EvaluateOptions) -> None:
    """Evaluates, writes eval.json and eval.parquet, and prints the summary.

    Raises:
        InputError: The model, the benchmark or an option is wrong.
        RunError: The evaluation failed.
    """
    backbone = resolve_backbone(options.model)
    folder, holds_weights = model_folder(backbone)
    check_model_directory(folder, weights=holds_weights)
    index = validate_problems(options.benchmark)
    recipe = _recipe(options, backbone, folder)
    check_model(backbone, recipe)
    check_verifiers(recipe.verifier)
    output = RunDirectory(options.output or Path("evaluations") / location(options.benchmark).stem)
    check_kept(output.root, option="--output")
    output.create(option="--output")
    from still_ray.actors.session import RunInputs
    from still_ray.actors.session import evaluate_model as evaluate_on_ray

    files = RunFiles(demonstrations_path="", problems=index, test=index, num_demonstrations=0, num_leaked=0)
    inputs = RunInputs(recipe=recipe, backbone=backbone, data=files, test_ids=index.ids)
    with ConsoleProgress(None) as progress:
        rows, summary = evaluate_on_ray(inputs, output, progress)
    write_table(output.root / "eval.parquet", rows, Trajectory)
    facts = {"model": backbone, "benchmark": options.benchmark, "prompt": recipe.prompt.template}
    write_json(output.root / "eval.json", {**asdict(summary), **facts, "versions": package_versions()})
    _print(summary, output.root)


def _recipe(options: EvaluateOptions, backbone: str, folder: str) -> Recipe:
    """A recipe that only evaluates: the model's own length, prompt and the defaults of everything else."""
    length = _given_length(options.overrides) or model_length(folder)
    benchmark = options.benchmark if is_uri(options.benchmark) else str(Path(options.benchmark).resolve())
    template = options.prompt.resolve() if options.prompt else _own_template(backbone)
    max_tokens = max(1, min(20_000, length // 2)) if options.max_tokens is None else options.max_tokens
    raw = {
        "name": "evaluate",
        "model": {"path": options.model, "max_length": length},
        "prompt": {"template": str(template) if template else None},
        "data": dict.fromkeys(("demonstrations", "problems", "test"), benchmark),
        "evaluate": {"max_tokens": max_tokens, "num_problems": options.num_problems},
        "rounds": [],
    }
    return recipe_from(raw, options.overrides, origin="evaluate")


def _own_template(backbone: str) -> Location | None:
    path = location(backbone) / TEMPLATE_FILE
    return path if path.is_file() else None


def _given_length(overrides: Sequence[str]) -> int | None:
    """The value of --set model.max_length=N; what is no number is refused with the other overrides."""
    values = [text.partition("=")[2] for text in overrides if text.startswith("model.max_length=")]
    return int(values[-1]) if values and values[-1].isdigit() else None


def model_length(backbone: str) -> int:
    """Longest sequence that a model's config allows, or the recipe's default for a hub id.

    Raises:
        InputError: The config names none.
    """
    import json

    path = Path(backbone) / "config.json"
    if not path.is_file():
        return 30_000
    config = json.loads(path.read_text(encoding="utf-8"))
    length = config.get("max_position_embeddings") if isinstance(config, dict) else None
    if not isinstance(length, int):
        raise InputError(f"{path}: max_position_embeddings is missing; give --set model.max_length=N")
    return length


def _print(summary: EvaluationSummary, output: Location) -> None:
    console = result_console()
    low, high = summary.ci95
    console.print(
        f"accuracy {summary.accuracy:.1%} [{low:.1%}, {high:.1%}] on {summary.num_problems} problems, mean thought "
        f"{summary.mean_thought_tokens:.1f} tokens, truncated {summary.truncation_rate:.1%}"
    )
    table = Table(title="verdicts", title_justify="left")
    table.add_column("verdict")
    table.add_column("responses", justify="right")
    for verdict, count in summary.verdicts.items():
        table.add_row(verdict, str(count))
    console.print(table)
    console.print(f"written: {output}", markup=False)
