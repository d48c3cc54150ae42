"""The tables that commands print on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from still_ray.algo.stages import newest_trained, plan_stages
from still_ray.config import Recipe
from still_ray.facts import EvaluationFacts, SummaryLine
from still_ray.formats.prompt import PLACEHOLDER, TEMPLATE_FILE
from still_ray.location import Location, ObjectPath
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore, read_summary

PLAIN_WIDTH = 120


def result_console() -> Console:
    """A console on stdout for results; a pipe or a file gets lines wide enough for every table."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def print_final_table(directory: RunDirectory, recipe: Recipe) -> None:
    """Prints the stages of a run and how to load what it made."""
    console = result_console()
    console.print(stage_table(read_summary(directory)))
    plan = plan_stages(recipe)
    newest = newest_trained(plan, RunStore(directory, plan).completed())
    if newest is not None:
        print_loading(console, directory.checkpoint(newest))


def stage_table(lines: Sequence[SummaryLine]) -> Table:
    """One row for each evaluated stage."""
    num_samples = max((line.evaluation.num_samples for line in lines), default=1)
    how = "greedy" if num_samples == 1 else f"avg@{num_samples}"
    table = Table(title=f"Held-out accuracy, {how}", title_justify="left")
    changed = any(line.share_changed is not None for line in lines)
    headings = ["stage", "policy", "accuracy", "95 % interval", "problems", "mean thought", "truncated"]
    asked = any(line.forgetting is not None for line in lines)
    further = [*(["general"] if asked else []), *(["weights changed"] if changed else [])]
    for heading in (*headings, *further, "time"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for line in lines:
        name = f"{line.name}, {line.baseline}" if line.in_form else line.name
        further_cells = [*([_general(line)] if asked else []), *([_changed(line)] if changed else [])]
        table.add_row(*_cells(name, line, line.evaluation), *further_cells, _seconds(line))
        if line.in_form is not None:
            table.add_row(*_cells(f"{line.name}, as trained", line, line.in_form))
    return table


def _cells(name: str, line: SummaryLine, found: EvaluationFacts) -> tuple[str, ...]:
    low, high = found.ci95
    return (
        name,
        f"v{line.policy_version}",
        f"{found.accuracy:.1%}",
        f"{low:.1%} - {high:.1%}",
        str(found.num_problems),
        f"{found.mean_thought_tokens:.1f} tokens",
        f"{found.truncation_rate:.1%}",
    )


def _seconds(line: SummaryLine) -> str:
    return f"{line.seconds:.0f} s"


def _general(line: SummaryLine) -> str:
    """Accuracy on the general problems; with a sign where the stage has forgotten some."""
    found = line.forgetting
    return "" if found is None else f"{found.evaluation.accuracy:.1%}{' forgets' if found.alarm else ''}"


def _changed(line: SummaryLine) -> str:
    """Share of the weights that a stage changed; of stages that trained nothing or do not say it, none."""
    return "" if line.share_changed is None else f"{line.share_changed:.1%}"


def print_loading(console: Console, checkpoint: Location) -> None:
    """The checkpoint, code that loads it, and how it is prompted; one in an object store has to be fetched first."""
    console.print(f"\ncheckpoint: {checkpoint}", markup=False)
    prompt = (
        f"  prompt:        it was trained on questions in the words of {checkpoint / TEMPLATE_FILE}: elsewhere, put "
        f"each question in the place of {PLACEHOLDER}, or behind the text, and send that as the user's turn"
    )
    if isinstance(checkpoint, ObjectPath):
        console.print(f"  still-ray:     still-ray evaluate --model '{checkpoint}' --benchmark FILE", markup=False)
        console.print(prompt, markup=False)
        return
    console.print(f'  vLLM:          llm = vllm.LLM("{checkpoint}")', markup=False)
    console.print(
        f'  transformers:  model = transformers.AutoModelForCausalLM.from_pretrained("{checkpoint}")', markup=False
    )
    console.print(prompt, markup=False)
