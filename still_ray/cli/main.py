"""The commands of `still-ray`, and their exit statuses: 0 done, 2 wrong input, 1 failed, 130 interrupted."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
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

START_AGAIN = "start again with"
"""For commands that keep nothing of an unfinished invocation."""

RunDir = Annotated[
    str | None,
    typer.Option("--run-dir", help="Folder of the run, or s3://BUCKET/PREFIX, gs://…; what is there is resumed."),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="dotted.key=value, any number of times.")]


@app.command()
def demo(
    run_dir: RunDir = None,
    seed: Annotated[int, typer.Option(help="Seed of data, sampling and training.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Run the whole recipe on a tiny world, on this machine: minutes on two CPU cores."""
    from still_ray.cli.run import demo_recipe, run_recipe

    folder = run_dir or f"runs/demo-seed{seed}"
    _guarded(lambda: run_recipe(demo_recipe(), folder, [f"seed={seed}", *(overrides or [])]))


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    run_dir: RunDir = None,
    overrides: Overrides = None,
) -> None:
    """Run a recipe, or resume what its run directory holds."""
    from still_ray.cli.run import run_recipe

    _guarded(lambda: run_recipe(recipe, run_dir or f"runs/{recipe.stem}", overrides or []))


@app.command()
def plan(  # noqa: PLR0917 - typer calls it by keyword
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    cluster: Annotated[
        Path | None, typer.Option(help="Cluster-launcher or KubeRay file; else the options describe the machines.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    devices_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each; 0: this machine's CPU.")] = 0,
    device_memory_gib: Annotated[float, typer.Option(min=0, help="Memory of one GPU, GiB.")] = 80.0,
    host_memory_gib: Annotated[float | None, typer.Option(min=0, help="Host memory of each, GiB.")] = None,
    cpus_per_node: Annotated[int | None, typer.Option(min=1, help="CPUs of each; 12 for each GPU if left out.")] = None,
    disk_gib: Annotated[float | None, typer.Option(min=0, help="Free shared storage, GiB; else not checked.")] = None,
    num_demonstrations: Annotated[
        int | None, typer.Option(min=1, help="Rows to plan with; else those of the file, or the paper's 4,900.")
    ] = None,
    num_problems: Annotated[
        int | None, typer.Option(min=1, help="Rows to plan with; else those of the file, or 5,000.")
    ] = None,
    mean_tokens: Annotated[
        int | None, typer.Option(min=1, help="Mean length of a response; half of the longest if left out.")
    ] = None,
    device_tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Peak of a device; 989 (H100, bfloat16), or 0.1 on a CPU.")
    ] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Model FLOPs utilisation of training, assumed.")] = 0.35,
    sampler_tokens_per_s: Annotated[
        float | None, typer.Option(min=1, help="Of one sampler device; 16,000 over billions of parameters if left out.")
    ] = None,
    solve_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Problems with a correct response in a round, share of them, assumed.")
    ] = 0.5,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(min=0, help="Of one GPU, in any currency; prints what the held GPU-hours cost.")
    ] = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Search placement, replicas and ranks for the fastest split that fits.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Say what a recipe needs (memory, disk, placement, device-hours) and whether it fits; starts nothing."""
    from still_ray.cli.plan.command import PlanOptions
    from still_ray.cli.plan.command import plan as plan_recipe

    options = PlanOptions(
        recipe=recipe,
        cluster=cluster,
        nodes=nodes,
        devices_per_node=devices_per_node,
        device_memory_gib=device_memory_gib,
        host_memory_gib=host_memory_gib,
        cpus_per_node=cpus_per_node,
        disk_gib=disk_gib,
        num_demonstrations=num_demonstrations,
        num_problems=num_problems,
        mean_tokens=mean_tokens,
        device_tflops=device_tflops,
        mfu=mfu,
        sampler_tokens_per_s=sampler_tokens_per_s,
        solve_rate=solve_rate,
        price_per_gpu_hour=price_per_gpu_hour,
        suggest=suggest,
        overrides=tuple(overrides or ()),
        as_json=as_json,
    )
    _guarded(lambda: plan_recipe(options), again=START_AGAIN)


@app.command()
def rehearse(  # noqa: PLR0917 - typer calls it by keyword
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    cluster: Annotated[
        Path | None, typer.Option(help="Cluster-launcher or KubeRay file; else the options describe the machines.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Machines beside the head; as many as needed if left out.")
    ] = None,
    devices_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs of each, declared only; 8 if left out, 0 for a CPU recipe.")
    ] = None,
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="CPUs of each, declared only; 12 for each GPU if left out.")
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems of one round, at most.")] = 40,
    faults: Annotated[
        bool, typer.Option("--faults/--no-faults", help="Kill a replica, a verifier, a sampler node, a trainer rank.")
    ] = True,
    run_dir: Annotated[
        str | None, typer.Option("--run-dir", help="An empty folder; a temporary one if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Run a whole recipe on declared machines with fake engines and trainers, faults and all; about a minute."""
    from still_ray.cli.rehearse.command import RehearseOptions
    from still_ray.cli.rehearse.command import rehearse as rehearse_recipe

    options = RehearseOptions(
        recipe=recipe,
        cluster=cluster,
        nodes=nodes,
        devices_per_node=devices_per_node,
        cpus_per_node=cpus_per_node,
        problems=problems,
        faults=faults,
        run_dir=run_dir,
        overrides=tuple(overrides or ()),
        as_json=as_json,
    )
    _guarded(lambda: rehearse_recipe(options), again=START_AGAIN)


@app.command()
def status(
    run_dir: Annotated[str | None, typer.Argument(metavar="[RUN_DIR]", help="Folder of a run, or its URI.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The runs on a cluster instead: HOST:PORT, ray://HOST:PORT, or auto on one of its nodes."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say where a run stands, while it goes on or afterwards; or which runs go on at a cluster."""
    from still_ray.cli.status import status as say_status

    _guarded(lambda: say_status(run_dir, address, as_json=as_json), again=START_AGAIN)


@app.command()
def report(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="Folder of a run, or its URI.")],
    output: Annotated[
        str | None, typer.Option(metavar="FILE.html", help="The file; report.html in the run directory if left out.")
    ] = None,
) -> None:
    """Write one HTML file about a run: results, exploration, training, times, lineage, and every trajectory to read."""
    from still_ray.cli.report import report as write_report

    _guarded(lambda: write_report(run_dir, output), again=START_AGAIN)


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(metavar="INPUT.jsonl", help="Rows with id, domain, answer, response.")],
    output: Annotated[Path, typer.Option(help="Where the verdicts go, one row each, in order.")],
    verifiers: Annotated[
        list[str] | None,
        typer.Option("--verifier", help="DOMAIN=package.module:function, a verifier of your own; any number of times."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="verifier.key=value, e.g. verifier.timeout_s=10.")
    ] = None,
) -> None:
    """Judge responses against references."""
    from still_ray.cli.verify import verify_responses

    _guarded(lambda: verify_responses(source, output, verifiers or [], overrides or []), again=START_AGAIN)


@app.command()
def evaluate(  # noqa: PLR0917 - typer calls it by keyword
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="HF model directory, its URI, or hub id; or NAME=MODEL. Several are compared with the first."
        ),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            help="Known name (docs/evaluate.md), file of problems, or hub:OWNER/NAME[:CONFIG[:SPLIT]]; several."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the results, resumed; evaluations/MODEL/BENCHMARK if left out.")
    ] = None,
    benchmarks_dir: Annotated[
        Path | None, typer.Option(help="Folder of benchmark files, found by name; else STILL_RAY_BENCHMARKS.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="Prompt template; else each model's own, else the default.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest response, tokens; 20,000 where the model allows.")
    ] = None,
    num_problems: Annotated[int | None, typer.Option(help="Only the first so many problems.")] = None,
    samples: Annotated[int | None, typer.Option(help="Responses to each problem; 1, greedy, if left out.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Default 0 for one sample, 0.6 for several.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default 1 if greedy, else 0.95.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of samples and of the order of options; default 42.")] = None,
    repeat: Annotated[
        str | None, typer.Option(help="Do a result again (its folder or eval.json) and say whether it matches.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Evaluate models on benchmarks, compare them, or repeat a result."""
    from still_ray.cli.evaluate.command import evaluate_models
    from still_ray.cli.evaluate.repeat import repeat_result
    from still_ray.cli.evaluate.request import EvaluateOptions

    options = EvaluateOptions(
        models=tuple(model or ()),
        benchmarks=tuple(benchmark or ()),
        output=output,
        benchmarks_dir=benchmarks_dir,
        prompt=prompt,
        max_tokens=max_tokens,
        num_problems=num_problems,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        repeat=repeat,
        overrides=tuple(overrides or ()),
    )
    _guarded(lambda: evaluate_models(options) if repeat is None else repeat_result(options))


@app.command()
def distill(  # noqa: PLR0917 - typer calls it by keyword
    questions: Annotated[Path, typer.Option(help="Questions, with references where there are.")],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="The teacher's name there.")],
    output: Annotated[Path, typer.Option(help="Folder of the results; what is there is resumed.")],
    recipe: Annotated[Path | None, typer.Option(help="Settings, see jobs/distill.yaml; defaults if left out.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the API key; else OPENAI_API_KEY, if set.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, any number of times.")] = None,
) -> None:
    """Collect a teacher's long-form thoughts from an OpenAI-compatible endpoint, or resume."""
    from still_ray.cli.distill import DistillOptions
    from still_ray.cli.distill import distill as distill_teacher

    options = DistillOptions(
        questions=questions,
        endpoint=endpoint,
        model=model,
        output=output,
        recipe=recipe,
        api_key_env=api_key_env,
        overrides=tuple(overrides or ()),
        as_json=as_json,
    )
    _guarded(lambda: distill_teacher(options))


@app.command()
def prepare(  # noqa: PLR0917 - typer calls it by keyword
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="JSON Lines, JSON, CSV, Parquet, or a `datasets` directory."),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the prepared data and the report.")],
    recipe: Annotated[Path | None, typer.Option(help="Filters and thresholds, e.g. jobs/prepare.yaml.")] = None,
    against: Annotated[list[Path] | None, typer.Option(help="Evaluation set that no row may overlap with.")] = None,
    field: Annotated[list[str] | None, typer.Option(help="NAME=COLUMN, e.g. question=prompt.")] = None,
    samples: Annotated[int | None, typer.Option(help="Dropped rows written for each filter.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first broken row.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Read, clean, filter, deduplicate and decontaminate rows; counts by reason."""
    from still_ray.cli.prepare.command import PrepareOptions, prepare_rows

    options = PrepareOptions(
        inputs=tuple(inputs),
        output=output,
        recipe=recipe,
        against=tuple(against or ()),
        fields=tuple(field or ()),
        samples=samples,
        strict=strict,
        force=force,
        as_json=as_json,
        overrides=tuple(overrides or ()),
    )
    _guarded(lambda: prepare_rows(options), again=START_AGAIN)


@app.command()
def ablate(
    matrix: Annotated[Path, typer.Argument(metavar="MATRIX.yaml", help="Runs, seeds and rows, see docs/ablate.md.")],
    run_dir: RunDir = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Say what would be computed and what shared; start nothing.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Run every row of a table over several seeds, or resume; common stages are computed once."""
    from still_ray.cli.ablate.command import AblateOptions
    from still_ray.cli.ablate.command import ablate as run_matrix

    options = AblateOptions(matrix=matrix, run_dir=run_dir, plan=plan_only, overrides=tuple(overrides or ()))
    _guarded(lambda: run_matrix(options))


def main() -> None:
    """Entry point of the console script."""
    try:
        status = app(standalone_mode=False)
    except USAGE_ERROR as error:
        text = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        typer.echo(f"still-ray: {text}; see still-ray --help", err=True)
        status = 2
    except typer.Abort:
        status = 130
    _leave(status if isinstance(status, int) else 0)


def _leave(status: int) -> NoReturn:
    """Ends the program; of one that failed the line that says why stays the last.

    What Ray's threads and other finalizers would print while Python ends, mostly tracebacks of an interrupt, is of no
    use any more, and another Ctrl-C has nothing left to interrupt.
    """
    if status:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, or a pipe that nobody reads any more
                stream.flush()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)
        os.close(sink)
    sys.exit(status)


def _guarded(command: Callable[[], None], *, again: str = "resume with") -> None:
    """Turns the errors that a person can act on into one line and an exit status.

    Args:
        command: What to do.
        again: What the same command line will do after an end that was not its own.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _settle_environment()
        command()
    except typer.Exit:
        raise
    except InputError as error:
        _fail(str(error), 2)
    except StillRayError as error:
        _fail(f"{error}; {again}: {_command_line()}", 1)
    except KeyboardInterrupt:
        _fail(f"interrupted; {again}: {_command_line()}", 130)
    except Exception as error:
        from still_ray.store.atomic import is_full_disk

        if isinstance(error, OSError) and is_full_disk(error):
            _fail(f"{error.filename or 'a file'}: cannot be written: {error.strerror}; {again}: {_command_line()}", 1)
        traceback.print_exc()
        _fail(f"unexpected {type(error).__name__}, traceback above; {again}: {_command_line()}", 1)


def _settle_environment() -> None:
    """Before any library reads it: what every command can go on with although a variable stands in the way."""
    from still_ray.network import keep_direct
    from still_ray.store.scratch import settle_home, settle_temporary_folders

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names and paths may hold what the terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    keep_direct()
    for note in filter(None, (settle_temporary_folders(), settle_home())):
        typer.echo(f"still-ray: {note}", err=True)


def _fail(text: str, status: int) -> NoReturn:
    typer.echo(f"still-ray: {' '.join(text.splitlines())}", err=True)
    raise typer.Exit(status)


def _command_line() -> str:
    from still_ray.cli.preflight.provenance import this_command

    return this_command()


def _interrupt(number: int, frame: FrameType | None) -> Any:
    """`ray job stop` and cluster managers send SIGTERM; it ends a run like Ctrl-C does."""
    raise KeyboardInterrupt
