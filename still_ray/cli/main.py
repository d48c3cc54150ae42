"""The commands of `still-ray`, and their exit statuses: 0 done, 2 wrong input, 1 failed, 130 interrupted."""

from __future__ import annotations

import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from still_ray.types import InputError, StillRayError

app = typer.Typer(
    name="still-ray",
    help="Imitate, explore and self-improve (STILL-2, arXiv 2412.09413) as a Ray system.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for unknown commands, options and missing arguments; it exports only the subclass."""

RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run; a run that is there is resumed.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="dotted.key=value, any number of times.")]


@app.command()
def demo(
    run_dir: RunDir = None,
    seed: Annotated[int, typer.Option(help="Seed of data, sampling and training.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Run the whole recipe on a tiny world, on this machine: minutes on two CPU cores."""
    from still_ray.cli.commands import demo_recipe, run_recipe

    folder = run_dir or Path("runs") / f"demo-seed{seed}"
    _guarded(lambda: run_recipe(demo_recipe(), folder, [f"seed={seed}", *(overrides or [])]))


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    run_dir: RunDir = None,
    overrides: Overrides = None,
) -> None:
    """Run a recipe, or resume what its run directory holds."""
    from still_ray.cli.commands import run_recipe

    _guarded(lambda: run_recipe(recipe, run_dir or Path("runs") / recipe.stem, overrides or []))


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say where a run stands, while it goes on or afterwards."""
    from still_ray.cli.status import print_status

    _guarded(lambda: print_status(run_dir, as_json=as_json))


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(metavar="INPUT.jsonl", help="Rows with id, domain, answer, response.")],
    output: Annotated[Path, typer.Option(help="Where the verdicts go, one row each, in order.")],
) -> None:
    """Judge responses against references."""
    from still_ray.cli.commands import verify_responses

    _guarded(lambda: verify_responses(source, output))


@app.command()
def evaluate(  # noqa: PLR0917 - typer calls it by keyword
    model: Annotated[str, typer.Option(help="HF model directory or hub id.")],
    benchmark: Annotated[Path, typer.Option(help="Problems with references, JSON Lines or Parquet.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; evaluations/BENCHMARK if left out.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="Prompt template; else the model's own, else the default.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest response, tokens.")] = None,
    num_problems: Annotated[int | None, typer.Option(help="Only the first so many problems.")] = None,
    overrides: Overrides = None,
) -> None:
    """Evaluate a model greedily on a benchmark and count verdicts by kind."""
    from still_ray.cli.evaluate import EvaluateOptions, evaluate_model

    options = EvaluateOptions(
        model=model,
        benchmark=benchmark,
        output=output,
        prompt=prompt,
        max_tokens=max_tokens,
        num_problems=num_problems,
        overrides=tuple(overrides or ()),
    )
    _guarded(lambda: evaluate_model(options))


def main() -> None:
    """Entry point of the console script."""
    try:
        status = app(standalone_mode=False)
    except USAGE_ERROR as error:
        text = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        typer.echo(f"still-ray: {text}; see still-ray --help", err=True)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _guarded(command: Callable[[], None]) -> None:
    """Turns the errors that a person can act on into one line and an exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        command()
    except InputError as error:
        _fail(str(error), 2)
    except StillRayError as error:
        _fail(f"{error}\nresume with: {_this_command()}", 1)
    except KeyboardInterrupt:
        _fail(f"interrupted; resume with: {_this_command()}", 130)
    except Exception as error:
        traceback.print_exc()
        _fail(f"unexpected {type(error).__name__}, traceback above\nresume with: {_this_command()}", 1)


def _fail(text: str, status: int) -> NoReturn:
    typer.echo(f"still-ray: {text}", err=True)
    raise typer.Exit(status)


def _this_command() -> str:
    return shlex.join(["still-ray", *sys.argv[1:]])


def _interrupt(number: int, frame: FrameType | None) -> Any:
    """`ray job stop` and cluster managers send SIGTERM; it ends a run like Ctrl-C does."""
    raise KeyboardInterrupt
