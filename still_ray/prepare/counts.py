"""What a preparation counts, piece by piece; counts of parts add up to those of the whole in any order."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from still_ray.prepare.histogram import Histogram

LENGTHS = ("question_chars", "thought_chars", "solution_chars", "response_chars", "response_tokens")
MAX_SAMPLE_CHARS = 20_000
"""A longer text is cut in a sample of dropped rows."""


NO_REFERENCE = "no reference"
"""Instead of a verdict, of demonstrations whose row names no answer or one that says nothing."""
OTHER_REASON = "a wrong or missing value"
"""Of a broken row whose reason has no name of its own, see `still_ray.values.Flaw`."""


class Broken(NamedTuple):
    """A row that could not be read.

    Attributes:
        file: Its file.
        row: Its number there.
        why: What is wrong, naming both.
        reason: The same in few words, by which such rows are counted.
    """

    file: str
    row: int
    why: str
    reason: str = OTHER_REASON


@dataclass(kw_only=True)
class Damaged:
    """A file of which a part cannot be read at all.

    Attributes:
        num_lost: Rows in that part; None where nobody can tell.
        why: What is wrong where it begins, naming file and row.
    """

    num_lost: int | None
    why: str

    def merge(self, other: Damaged) -> None:
        """Adds the damage of a later part of the file."""
        known = self.num_lost is not None and other.num_lost is not None
        self.num_lost = (self.num_lost or 0) + (other.num_lost or 0) if known else None


@dataclass(kw_only=True)
class Samples:
    """Of each filter's dropped rows those of least rank, a hash of seed and source: the same for any parallelism.

    Attributes:
        number: How many of each filter.
        seed: Of the ranks.
        kept: By filter, pairs of a negated rank and the row as it is written, as a heap.
    """

    number: int
    seed: int
    kept: dict[str, list[tuple[int, dict[str, Any]]]] = field(default_factory=dict)

    def offer(self, name: str, row: dict[str, Any]) -> None:
        """Takes a dropped row if its rank is among the least so far; it needs `source_file` and `source_row`."""
        text = f"{self.seed}\0{name}\0{row['source_file']}\0{row['source_row']}"
        rank = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        self._take(name, (-rank, row))

    def merge(self, other: Samples) -> None:
        """Adds the samples of another part."""
        for name, rows in other.kept.items():
            for ranked in rows:
                self._take(name, ranked)

    def of(self, name: str) -> list[dict[str, Any]]:
        """The sample of a filter, in source order."""
        rows = [row for _, row in self.kept.get(name, [])]
        return sorted(rows, key=lambda row: (row["source_file"], row["source_row"]))

    def _take(self, name: str, ranked: tuple[int, dict[str, Any]]) -> None:
        heap = self.kept.setdefault(name, [])
        if len(heap) < self.number:
            heapq.heappush(heap, ranked)
        elif heap and ranked[0] > heap[0][0]:
            heapq.heapreplace(heap, ranked)


@dataclass(kw_only=True)
class Contents:
    """Lengths and domains of a set of rows.

    Attributes:
        lengths: Histograms by name, see `LENGTHS`.
        domains: Rows by domain.
        kinds: Rows by kind, "demonstrations" or "problems".
    """

    lengths: dict[str, Histogram] = field(default_factory=dict)
    domains: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, domain: str, lengths: dict[str, int | None]) -> None:
        """Counts a row."""
        self.kinds[kind] += 1
        self.domains[domain] += 1
        for name, value in lengths.items():
            if value is not None:
                self.lengths.setdefault(name, Histogram()).add(value)

    def merge(self, other: Contents) -> None:
        """Adds the rows of another part."""
        self.kinds.update(other.kinds)
        self.domains.update(other.domains)
        for name, histogram in other.lengths.items():
            self.lengths.setdefault(name, Histogram()).merge(histogram)


@dataclass(kw_only=True)
class Counts:
    """What happened to rows.

    Attributes:
        samples: Of what was dropped.
        num_rows: Rows read.
        num_broken: Rows that could not be read.
        broken: The first of them, at least one.
        reasons: All of them by reason.
        read: Rows by file, without those that damage has lost.
        damaged: The damaged files.
        dropped: Rows by filter and rule.
        answers: Demonstrations by the verdict on their answer, and those without a reference.
        rows_in: Contents of the rows that could be read.
        rows_out: Contents of the rows written.
    """

    samples: Samples
    num_rows: int = 0
    num_broken: int = 0
    broken: list[Broken] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, Damaged] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    rows_in: Contents = field(default_factory=Contents)
    rows_out: Contents = field(default_factory=Contents)

    def add_broken(self, broken: Broken, number: int, max_broken: int) -> None:
        """Counts so many rows that cannot be read, for one reason; names it unless enough are named."""
        self.num_broken += number
        self.reasons[broken.reason] += number
        if len(self.broken) < max(1, max_broken):  # one is named at least: it is what an error says
            self.broken.append(broken)

    def add_damaged(self, file: str, damaged: Damaged) -> None:
        """Notes that a part of a file is lost."""
        if file in self.damaged:
            self.damaged[file].merge(damaged)
        else:
            self.damaged[file] = Damaged(num_lost=damaged.num_lost, why=damaged.why)

    def drop(self, name: str, rule: str, row: dict[str, Any]) -> None:
        """Counts a dropped row and offers it as a sample."""
        self.dropped.setdefault(name, Counter())[rule] += 1
        self.samples.offer(name, row)

    def merge(self, other: Counts, max_broken: int) -> None:
        """Adds the counts of another part, naming no more broken rows than this."""
        self.num_rows += other.num_rows
        self.num_broken += other.num_broken
        self.reasons.update(other.reasons)
        self.broken += other.broken[: max(0, max(1, max_broken) - len(self.broken))]
        self.read.update(other.read)
        for file, damaged in other.damaged.items():
            self.add_damaged(file, damaged)
        for name, rules in other.dropped.items():
            self.dropped.setdefault(name, Counter()).update(rules)
        self.answers.update(other.answers)
        self.samples.merge(other.samples)
        self.rows_in.merge(other.rows_in)
        self.rows_out.merge(other.rows_out)

    def num_dropped(self, name: str) -> int:
        """Rows that a filter dropped."""
        return self.dropped.get(name, Counter()).total()


def cut_text(text: str) -> str:
    """A text as it stands in a sample."""
    return text if len(text) <= MAX_SAMPLE_CHARS else text[:MAX_SAMPLE_CHARS] + " [cut]"
