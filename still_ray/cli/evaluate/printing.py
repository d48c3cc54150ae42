"""What `evaluate` prints, and the file of its comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from still_ray.algo.evaluation.comparison import LEVEL, Comparison, ModelResult, compare_models
from still_ray.cli.console.tables import result_console
from still_ray.facts import Estimate, EvaluationFacts, evaluation_from_json
from still_ray.location import Location
from still_ray.store.atomic import read_json, write_json
from still_ray.store.scratch import short_digest
from still_ray.types import SCHEMA_VERSION, Verdict

COMPARISON = "comparison.json"

Result = Mapping[str, Any]


def print_results(results: Sequence[Result], output: Location) -> None:
    """Prints one line for each result, pass@k where there are several samples, and lengths by level and subject."""
    console = result_console()
    for result in results:
        console.print(_headline(result), markup=False)
    console.print(_table(results))
    for result in results:
        if _facts(result).num_samples > 1:
            console.print(_pass_table(result))
        if len(results) == 1:
            for kind in ("level", "subject"):
                if len(result[f"by_{kind}"]) > 1:
                    console.print(_group_table(kind, result[f"by_{kind}"]))
    console.print(f"written: {output}", markup=False)


def compared(results: Sequence[Result], output: Location) -> list[Comparison]:
    """Compares every model with the first and writes the comparisons; see `comparison_place`."""
    by_benchmark: dict[str, list[ModelResult]] = {}
    for result in results:
        of_model = ModelResult(
            model=result["model"]["name"], num_samples=_facts(result).num_samples, correct=result["correct_by_problem"]
        )
        by_benchmark.setdefault(result["benchmark"]["name"], []).append(of_model)
    comparisons = compare_models(by_benchmark)
    written = {
        "schema_version": SCHEMA_VERSION,
        "level": LEVEL,
        "correction": "Holm, over all comparisons of this file",
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "models": {result["model"]["name"]: result["model"] for result in results},
        "benchmarks": {result["benchmark"]["name"]: result["benchmark"] for result in results},
        "settings_that_differ": differing_settings(results),
    }
    place = comparison_place(written, output)
    write_json(place, written)
    result_console().print(f"written: {place}", markup=False)
    return comparisons


def comparison_place(written: Mapping[str, Any], output: Location) -> Location:
    """Where comparisons go: comparison.json, unless that one has a model or a benchmark that these have not.

    Then it is comparison-DIGEST.json, by the names of the models, in their order, and of the benchmarks: the file of
    other comparisons in the same folder stays.
    """
    place = output / COMPARISON
    there = read_json(place) or {}
    names = {part: list(written[part]) for part in ("models", "benchmarks")}
    if all(set(there.get(part, ())) <= set(asked) for part, asked in names.items()):
        return place
    return output / f"{place.stem}-{short_digest(json.dumps(names))[:8]}{place.suffix}"


def differing_settings(results: Sequence[Result]) -> list[str]:
    """Settings in which the models were not treated alike, e.g. "prompt.sha256" where each has its own prompt."""
    keys = [("prompt", "sha256"), *(("sampling", key) for key in results[0]["sampling"])]
    return [".".join(key) for key in keys if len({str(result[key[0]][key[1]]) for result in results}) > 1]


def print_comparisons(comparisons: Sequence[Comparison], differing: Sequence[str]) -> None:
    """Prints each comparison, what its test allows to say, and in what the models were not treated alike."""
    console = result_console()
    table = Table(title=f"against {comparisons[0].first}, paired over problems", title_justify="left")
    for heading in ("benchmark", "model", "difference", "95 % interval", "better on", "worse on", "p", "p (Holm)"):
        table.add_column(heading, justify="left" if heading in ("benchmark", "model") else "right")
    for pair in comparisons:
        low, high = pair.ci95
        table.add_row(
            *(pair.benchmark, pair.second, f"{pair.difference:+.1%}", f"{low:+.1%} - {high:+.1%}"),
            *(str(pair.only_second), str(pair.only_first), f"{pair.p_value:.3g}", f"{pair.p_value_corrected:.3g}"),
        )
    console.print(table)
    for pair in comparisons:
        console.print(
            f"{pair.benchmark}: {_finding(pair)} (p = {pair.p_value_corrected:.3g}, {pair.test})", markup=False
        )
    if differing:
        console.print(f"not the same for all models: {', '.join(differing)}", markup=False)


def _finding(pair: Comparison) -> str:
    if pair.finding == "second is better":
        return f"{pair.second} is better than {pair.first}"
    if pair.finding == "first is better":
        return f"{pair.first} is better than {pair.second}"
    return f"no difference shown between {pair.first} and {pair.second}"


def _facts(result: Result) -> EvaluationFacts:
    return evaluation_from_json(result, where=f"eval.json of {_title(result)}")


def _title(result: Result) -> str:
    return f"{result['model']['name']} on {result['benchmark']['name']}"


def _headline(result: Result) -> str:
    found = _facts(result)
    low, high = found.ci95
    asked = f"{found.num_problems} problems" + (f" x {found.num_samples} samples" if found.num_samples > 1 else "")
    return (
        f"{_title(result)}: accuracy {found.accuracy:.1%} [{low:.1%}, {high:.1%}] on {asked}, "
        f"mean thought {found.mean_thought_tokens:.1f} tokens, truncated {found.truncation_rate:.1%}"
    )


def _table(results: Sequence[Result]) -> Table:
    table = Table(title="verdicts", title_justify="left")
    for heading in ("model", "benchmark", *(verdict.value for verdict in Verdict), "truncated"):
        table.add_column(heading, justify="left" if heading in ("model", "benchmark") else "right")
    for result in results:
        found = _facts(result)
        counts = [str(found.verdicts[verdict.value]) for verdict in Verdict]
        table.add_row(result["model"]["name"], result["benchmark"]["name"], *counts, str(found.num_truncated))
    return table


def _pass_table(result: Result) -> Table:
    found = _facts(result)
    num_samples = found.num_samples
    table = Table(title=_title(result), title_justify="left")
    for heading in ("figure", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    rows = [(f"avg@{num_samples}", Estimate(value=found.accuracy, ci95=found.ci95))]
    rows += [(f"pass@{k}", found.pass_at_k[str(k)]) for k in shown_ks(num_samples)]
    if found.majority:
        rows.append((f"majority@{num_samples}", found.majority))
    for name, estimate in rows:
        low, high = estimate.ci95
        table.add_row(name, f"{estimate.value:.1%}", f"{low:.1%} - {high:.1%}")
    return table


def shown_ks(num_samples: int) -> list[int]:
    """The powers of two up to the number of samples, and that number; eval.json has every k."""
    powers = [2**exponent for exponent in range(num_samples.bit_length()) if 2**exponent < num_samples]
    return [*powers, num_samples]


def _group_table(kind: str, groups: Mapping[str, Result]) -> Table:
    table = Table(title=f"by {kind}", title_justify="left")
    for heading in (kind, "problems", "accuracy", "95 % interval", "mean thought", "truncated"):
        table.add_column(heading, justify="left" if heading == kind else "right")
    for name, group in groups.items():
        low, high = group["ci95"]
        table.add_row(
            *(name, str(group["num_problems"]), f"{group['accuracy']:.1%}", f"{low:.1%} - {high:.1%}"),
            *(f"{group['mean_thought_tokens']:.1f} tokens", str(group["num_truncated"])),
        )
    return table
