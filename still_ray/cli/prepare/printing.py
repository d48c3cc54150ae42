"""The report of a preparation: what went in, what came out, and where the rest went; as JSON and as tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from still_ray import __version__
from still_ray.cli.console.tables import result_console
from still_ray.config.prepare import FILTERS, PrepareConfig
from still_ray.types import RunError

if TYPE_CHECKING:
    from still_ray.prepare.counts import Contents, Counts

MAX_DOMAINS: Final = 20
"""Domains in the printed table; the JSON report has them all."""
KINDS: Final = ("demonstrations", "problems")


def report_of(counts: Counts, config: PrepareConfig, files: Sequence[str]) -> dict[str, Any]:
    """The report as JSON values; the lengths' quantiles are within one percent, all else is exact.

    Raises:
        RunError: Rows in are not rows out, dropped and broken together: a row was lost.
    """
    dropped = {name: counts.num_dropped(name) for name in FILTERS}
    num_out = counts.rows_out.kinds.total()
    if counts.num_rows != num_out + sum(dropped.values()) + counts.num_broken:
        raise RunError(
            f"rows were lost: {counts.num_rows} in, {num_out} out, {sum(dropped.values())} dropped, "
            f"{counts.num_broken} broken"
        )
    return {
        "rows": {"in": counts.num_rows, "out": num_out, "broken": counts.num_broken, "dropped": sum(dropped.values())},
        "out": {kind: counts.rows_out.kinds.get(kind, 0) for kind in KINDS},
        "broken": dict(counts.reasons.most_common()),
        "filters": {name: _filter(name, dropped[name], counts, config) for name in FILTERS},
        "answers": dict(counts.answers.most_common()),
        "domains": {
            "in": dict(counts.rows_in.domains.most_common()),
            "out": dict(counts.rows_out.domains.most_common()),
        },
        "lengths": {"in": _lengths(counts.rows_in), "out": _lengths(counts.rows_out)},
        "damaged_files": [
            {"file": file, "rows_read": counts.read[file], "rows_lost": damaged.num_lost, "why": damaged.why}
            for file, damaged in counts.damaged.items()
        ],
        "broken_rows": [broken.why for broken in counts.broken[:MAX_DOMAINS]],
        "inputs": list(files),
        "recipe": config.model_dump(mode="json"),
        "version": __version__,
    }


def _filter(name: str, number: int, counts: Counts, config: PrepareConfig) -> dict[str, Any]:
    rules: Mapping[str, int] = counts.dropped.get(name, {})
    return {"enabled": getattr(config, name).enabled, "dropped": number, "rules": dict(sorted(rules.items()))}


def _lengths(contents: Contents) -> dict[str, dict[str, float]]:
    from still_ray.prepare.counts import LENGTHS

    return {name: contents.lengths[name].summary() for name in LENGTHS if name in contents.lengths}


def print_report(report: Mapping[str, Any], output: Path, *, as_json: bool) -> None:
    """Prints the report on stdout, as JSON or as tables."""
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        return
    console = result_console()
    for table in (_rows_table(report), _lengths_table(report), _domains_table(report)):
        console.print(table)
    for damaged in report["damaged_files"][:MAX_DOMAINS]:
        console.print(f"damaged file: {damaged['why']}; {damaged['rows_read']:,} rows read", markup=False)
    if report["rows"]["broken"]:
        console.print(f"first broken row: {report['broken_rows'][0]}", markup=False)
    written = [str(output / f"{kind}.parquet") for kind in KINDS if report["out"][kind]]
    console.print(f"written: {', '.join([*written, str(output / 'report.json')])}", markup=False)


def _rows_table(report: Mapping[str, Any]) -> Table:
    """Rows in, each filter's share, rows out."""
    rows = report["rows"]
    table = _table("Rows", "what", "rows", "share", "why")
    share = _shares(rows["in"])
    table.add_row("read", f"{rows['in']:,}", share(rows["in"]), "")
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in report["broken"].items())
    table.add_row("broken", f"{rows['broken']:,}", share(rows["broken"]), reasons)
    if report["damaged_files"]:
        table.add_row("damaged files", f"{len(report['damaged_files']):,}", "", "rows lost in them are broken")
    for name, found in report["filters"].items():
        rules = ", ".join(f"{rule} {number:,}" for rule, number in found["rules"].items())
        table.add_row(name, f"{found['dropped']:,}", share(found["dropped"]), rules if found["enabled"] else "off")
    table.add_section()
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in report["out"].items() if number)
    table.add_row("written", f"{rows['out']:,}", share(rows["out"]), kinds)
    return table


def _shares(total: int) -> Any:
    return lambda number: f"{number / total:.1%}" if total else "-"


def _lengths_table(report: Mapping[str, Any]) -> Table:
    table = _table("Lengths (median and p95 within 1 %)", "what", "min", "median", "mean", "p95", "max")
    for place in ("in", "out"):
        for name, found in report["lengths"][place].items():
            values = [f"{found[column]:,}" for column in ("min", "median", "mean", "p95", "max")]
            table.add_row(f"{name.replace('_', ' ')}, {place}", *values)
    return table


def _domains_table(report: Mapping[str, Any]) -> Table:
    before, after = report["domains"]["in"], report["domains"]["out"]
    table = _table("Domains", "domain", "in", "out")
    for name in list(before)[:MAX_DOMAINS]:
        table.add_row(name, f"{before[name]:,}", f"{after.get(name, 0):,}")
    if len(before) > MAX_DOMAINS:
        table.add_row(f"and {len(before) - MAX_DOMAINS} more", "", "")
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name == "why" else "right")
    return table
