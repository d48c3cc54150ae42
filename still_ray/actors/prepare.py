"""`still-ray prepare` on Ray: a Ray Data pipeline sifts the pieces of the input, two tasks bring them together.

consumes     pieces of the input files
produces     one file of demonstrations and one of problems, in input order, and the counts of all rows
waits for    the sifters; then the task that finds duplicates; then the one that writes
unblocked by the end of a piece: the driver holds counts and samples, never the rows

    pieces ─► Ray Data: Sifter (one a process) ─► shards on disk ─► resolve_duplicates ─► write_kept ─► DIR
                     └─ counts, in input order ─► driver              └─ fates of the rows ─┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import ray
import ray.data

from still_ray.actors.pool.cluster import connected
from still_ray.actors.sampling.problems import configure_data
from still_ray.formats.file_splits import count_newlines, needs_counting, with_first_rows
from still_ray.prepare.counts import Counts, Samples
from still_ray.prepare.merge import resolve_duplicates, write_kept
from still_ray.prepare.sift import Shard, Sifter, SiftSettings
from still_ray.rows import Form, Piece
from still_ray.types import InputError, RunError

COUNT_HERE_BYTES = 256 << 20
"""So much text is counted in the driver, within a second; more by tasks."""


_BOILERPLATE = (
    "To change retry attempts",
    "To ignore this exception",
    "To adjust the kill threshold",
    "Refer to the doc",
)
"""How lines of advice begin that Ray adds to errors; none of them says what happened."""

_CAUSED = "The above exception was the direct cause"


class PrepareProgress(Protocol):
    """What a person is told while it goes on."""

    def begun(self, name: str, title: str) -> None:
        """A part of the work begins."""

    def advanced(self, done: float, total: float, facts: Mapping[str, str]) -> None:
        """So much of it is done."""

    def noted(self, text: str) -> None:
        """Something happened that a person should see."""


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """What is to be prepared.

    Attributes:
        pieces: The input, in order.
        settings: Filters; the shards go into its folder, and so do the output files.
    """

    pieces: Sequence[Piece]
    settings: SiftSettings


def prepare(job: PrepareJob, progress: PrepareProgress) -> Counts:
    """Runs the preparation; leaves demonstrations.parquet and problems.parquet, as far as there are any, in the folder.

    Returns:
        The counts of all rows.

    Raises:
        InputError: A row is broken and the settings are strict.
        RunError: A task failed, or a file is damaged and the settings do not allow it.
    """
    with connected(None, job.settings.folder / "ray.log") as cluster:
        configure_data()
        try:
            return _prepared(job, progress)
        except (ray.exceptions.RayError, ray.exceptions.UserCodeException) as error:
            raise RunError(f"a task of the preparation failed: {reason(error)}; logs in {cluster.logs}") from error


def _prepared(job: PrepareJob, progress: PrepareProgress) -> Counts:
    config = job.settings.config
    counts = Counts(samples=Samples(number=config.sample_per_filter, seed=config.seed))
    pieces = _numbered(job.pieces, progress)
    progress.begun("read", f"reading and filtering {_num_files(pieces)} file(s)")
    done, total = 0, sum(piece.num_bytes for piece in pieces)
    for index, part in enumerate(_sifted(pieces, job.settings)):
        counts.merge(part, config.max_broken_named)
        if job.settings.strict and counts.num_broken:
            raise InputError(counts.broken[0].why)
        done += pieces[index].num_bytes
        num_kept = counts.num_rows - counts.num_broken - sum(map(counts.num_dropped, counts.dropped))
        progress.advanced(done, total, {"rows": f"{counts.num_rows:,}", "kept": f"{num_kept:,}"})
    check_damage(counts, progress.noted, allowed=config.allow_damaged)
    _merged(job, pieces, counts, progress)
    return counts


def check_damage(counts: Counts, noted: Callable[[str], None], *, allowed: bool) -> None:
    """Says which files are damaged and how much of each was read.

    Raises:
        RunError: There are any, which is not allowed: what they have lost may be most of them.
    """
    for file, damaged in counts.damaged.items():
        lost = "an unknown number" if damaged.num_lost is None else f"{damaged.num_lost:,}"
        noted(f"damaged file: {damaged.why}; {counts.read[file]:,} rows read, {lost} lost")
    if counts.damaged and not allowed:
        first = next(iter(counts.damaged.values()))
        others = f" ({len(counts.damaged) - 1} more damaged)" if len(counts.damaged) > 1 else ""
        raise RunError(f"{first.why}{others}; --set allow_damaged=true takes what can be read")


def _numbered(pieces: Sequence[Piece], progress: PrepareProgress) -> list[Piece]:
    """Counts lines where a file is cut, so that every row keeps its number."""
    if not needs_counting(pieces):
        return list(pieces)
    if sum(piece.num_bytes for piece in pieces) <= COUNT_HERE_BYTES:
        return with_first_rows(pieces, [count_newlines(piece) for piece in pieces])
    progress.begun("count", "counting lines")
    dataset = _dataset(pieces, "prepare: count lines").map(_count)
    num_newlines = []
    for row in dataset.iter_rows():
        num_newlines.append(int(row["newlines"]))
        progress.advanced(len(num_newlines), len(pieces), {"blocks": f"{len(num_newlines)}/{len(pieces)}"})
    return with_first_rows(pieces, num_newlines)


def _sifted(pieces: Sequence[Piece], settings: SiftSettings) -> Iterator[Counts]:
    """The counts of each piece, in input order."""
    held = ray.put(settings)  # once, with its index of the evaluation sets
    dataset = _dataset(pieces, "prepare: sift").map(_sift, fn_args=(held,), num_cpus=1)
    for row in dataset.iter_rows():
        yield row["counts"]


def _dataset(pieces: Sequence[Piece], name: str) -> ray.data.Dataset:
    """One block for each piece."""
    rows = [{"index": index, **vars(piece), "form": piece.form.value} for index, piece in enumerate(pieces)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.set_name(name)
    return dataset


def _merged(job: PrepareJob, pieces: Sequence[Piece], counts: Counts, progress: PrepareProgress) -> None:
    """Finds duplicates and writes the rest, each in one task."""
    config, folder = job.settings.config, job.settings.folder
    shards = [Shard(folder=folder, index=index, source=piece.path) for index, piece in enumerate(pieces)]
    progress.begun("dedup", "finding duplicates")
    fates = ray.remote(resolve_duplicates).options(name="prepare: dedup").remote(config, shards)
    ray.wait([fates])
    progress.begun("write", "writing")
    write = ray.remote(num_returns="streaming")(write_kept).options(name="prepare: write")
    for index, reference in enumerate(write.remote(config, shards, fates, folder), start=1):
        counts.merge(ray.get(reference), config.max_broken_named)
        facts = {"rows": f"{sum(counts.rows_out.kinds.values()):,}"}
        progress.advanced(index, len(shards), facts)


def _sift(row: dict[str, Any], settings: Any) -> dict[str, Any]:
    return {"counts": _sifter(settings).sift(int(row["index"]), _piece(row))}


@lru_cache(maxsize=1)
def _sifter(settings: Any) -> Sifter:
    """The sifter of this worker process, which Ray gives one piece after another.

    Not an actor of Ray Data, for which Ray 2.60 prints a warning on every start (ray issue 53727).
    """
    return Sifter(ray.get(settings))


def _count(row: dict[str, Any]) -> dict[str, Any]:
    return {"newlines": count_newlines(_piece(row))}


def _piece(row: dict[str, Any]) -> Piece:
    fields = {name: value for name, value in row.items() if name != "index"}
    return Piece(**{**fields, "form": Form(fields["form"])})


def _num_files(pieces: Sequence[Piece]) -> int:
    return len({piece.path for piece in pieces})


def reason(error: BaseException) -> str:
    """What the error says that was the first, under those that Ray has put around it."""
    chain = [error]
    while isinstance(inner := getattr(chain[-1], "cause", None) or chain[-1].__cause__, BaseException):
        chain.append(inner)
    if not isinstance(chain[-1], ray.exceptions.RayError):
        return f"{type(chain[-1]).__name__}: {' '.join(_lines(chain[-1]))}".removesuffix(": ")
    tracebacks = [one for one in chain if isinstance(one, ray.exceptions.RayTaskError)]
    if not tracebacks:
        return next(iter(_lines(chain[-1])), type(chain[-1]).__name__)
    # Ray Data drops the error of its user's code and keeps the text of its traceback, which names it in the last line.
    return _lines(tracebacks[-1])[-1]


def _lines(error: BaseException) -> list[str]:
    """The lines of an error, of several that caused each other the first one's, without Ray's advice."""
    lines = [line.strip() for line in str(error).partition(_CAUSED)[0].splitlines()]
    return [line for line in lines if line and not line.startswith(_BOILERPLATE)]


__all__ = ["PrepareJob", "PrepareProgress", "check_damage", "prepare", "reason"]
