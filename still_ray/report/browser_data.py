"""What the trajectory browser shows, as compressed blocks of JSON that the page opens on demand.

The index holds a few numbers for each response and stays in memory; texts come in blocks of neighbouring responses.
Each block is gzip in base64, so that no text of a model stands in the page as it is.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from still_ray.report.facts import PairSource, Response, RunFacts, RunStage, round_files
from still_ray.store.run_directory import RunDirectory
from still_ray.types import RunError, Verdict

MAX_RESPONSES: Final = 20_000
MAX_TEXT_BYTES: Final = 24 * 2**20
"""Of responses, before compression: a page of about 8 MB, which a phone still opens."""
MAX_PAIR_BYTES: Final = 8 * 2**20
BLOCK_BYTES: Final = 192 * 1024
"""Text of one block: opened in a few milliseconds."""
BYTES_PER_TOKEN: Final = 4
OVERHEAD_BYTES: Final = 400
"""Question, answer and punctuation of a response."""
SNIPPET_CHARS: Final = 90
BATCH_ROWS: Final = 256

_KEY_COLUMNS: Final = ("problem_id", "sample_index")
_SHOWN_COLUMNS: Final = ("question", "answer", "response", "extracted", "detail")
_PART_COLUMNS: Final = ("thought", "solution")
TEXT_COLUMNS: Final = (*_KEY_COLUMNS, *_SHOWN_COLUMNS, *_PART_COLUMNS)
PAIR_COLUMNS: Final = ("question", "chosen_thought", "chosen_solution", "rejected_thought", "rejected_solution")

Texts = dict[str, Mapping[str, Any]]
"""The text columns of responses, by the id of the response."""


@dataclass(frozen=True, kw_only=True)
class BrowserData:
    """The blocks of the browser, ready to stand in a page.

    Attributes:
        index: The index block.
        blocks: Text blocks; the index refers to them by number.
        note: How much of the pool is in them; a sentence.
        num_responses: Responses in them.
        num_pairs: Pairs in them.
    """

    index: str
    blocks: tuple[str, ...]
    note: str
    num_responses: int
    num_pairs: int


def browser_data(directory: RunDirectory, facts: RunFacts, *, max_bytes: int = MAX_TEXT_BYTES) -> BrowserData:
    """Chooses responses and pairs and packs them.

    Args:
        directory: Where the texts are.
        facts: The run.
        max_bytes: Text of responses, at most, before compression.
    """
    chosen = choose(facts.rounds, max_bytes=max_bytes)
    texts = {identity: text for number in facts.rounds for identity, text in _texts(directory, number, chosen)}
    rows = sorted((row for row in chosen.values() if row.id in texts), key=lambda row: row[:3])
    stage = next((one for one in reversed(facts.stages) if one.pairs), None)
    pairs = _paired(directory, stage, facts) if stage else []
    packer = _Packer()
    index = {
        "responses": _response_index(rows, texts, facts, packer),
        "pairs": _pair_index(pairs, packer),
        "trained": [one.label for one in _training_stages(facts)],
        "verdicts": [verdict.value for verdict in Verdict],
        "pairStage": stage.label if stage else "",
    }
    return BrowserData(
        index=pack(index),
        blocks=packer.blocks(),
        note=_note(rows, pairs, facts, stage),
        num_responses=len(rows),
        num_pairs=len(pairs),
    )


def pack(value: Any) -> str:
    """A value as JSON, gzip and base64; the same value gives the same text."""
    return base64.b64encode(gzip.compress(_json(value).encode(), compresslevel=6, mtime=0)).decode("ascii")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# -- which responses --------------------------------------------------------------------------------------------------


def choose(
    rounds: Mapping[int, Sequence[Response]], *, max_bytes: int = MAX_TEXT_BYTES, max_responses: int = MAX_RESPONSES
) -> dict[str, Response]:
    """All responses, or a sample that fits: whole problems, in turn from every round and kind of outcome.

    The kind of a problem's outcome is the rarest verdict among its responses, so that what is rare is seen. The same
    pool gives the same sample.

    Args:
        rounds: The pool.
        max_bytes: Text in all, estimated from the numbers of tokens.
        max_responses: Responses in all.
    """
    chosen: dict[str, Response] = {}
    num_bytes = 0
    for group in _in_turn(rounds):
        needed = sum(row.num_tokens * BYTES_PER_TOKEN + OVERHEAD_BYTES for row in group)
        if chosen and (num_bytes + needed > max_bytes or len(chosen) + len(group) > max_responses):
            break
        num_bytes += needed
        chosen |= {row.id: row for row in group}
    return chosen


def _in_turn(rounds: Mapping[int, Sequence[Response]]) -> Iterator[list[Response]]:
    """The responses of one problem in one round at a time, from each stratum in turn."""
    frequency = Counter(row.verdict for responses in rounds.values() for row in responses)
    strata: dict[tuple[int, str], list[list[Response]]] = defaultdict(list)
    for number, responses in rounds.items():
        for group in _groups(responses):
            rarest = min((row.verdict for row in group), key=lambda verdict: (frequency[verdict], verdict))
            strata[number, rarest].append(group)
    queues = deque(deque(sorted(groups, key=_rank)) for _, groups in sorted(strata.items()))
    while queues:
        queue = queues.popleft()
        yield queue.popleft()
        if queue:
            queues.append(queue)


def _groups(responses: Iterable[Response]) -> Iterable[list[Response]]:
    groups: dict[str, list[Response]] = defaultdict(list)
    for row in responses:
        groups[row.problem_id].append(row)
    return groups.values()


def _rank(group: Sequence[Response]) -> str:
    """An order that has nothing to do with what is in the group."""
    return _digest(f"{group[0].round}/{group[0].problem_id}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# -- their texts ------------------------------------------------------------------------------------------------------


def _texts(directory: RunDirectory, number: int, chosen: Mapping[str, Response]) -> Iterator[tuple[str, Any]]:
    """The texts of the chosen responses of a round; a file that is gone was merged meanwhile, which costs its texts."""
    import pyarrow

    from still_ray.store.tables import open_table

    for path in round_files(directory, number):
        try:
            with open_table(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=list(TEXT_COLUMNS)):
                    ids = [
                        f"{number}/{problem}/{sample}"
                        for problem, sample in zip(
                            batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True
                        )
                    ]
                    wanted = [position for position, identity in enumerate(ids) if identity in chosen]
                    rows = batch.take(pyarrow.array(wanted, pyarrow.int64())).to_pylist()
                    yield from zip((ids[position] for position in wanted), rows, strict=True)
        except (OSError, RunError):
            continue


class _Packer:
    """Collects texts into blocks."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._texts: list[Any] = []
        self._num_bytes = 0

    def add(self, text: Sequence[Any]) -> tuple[int, int]:
        """Adds one text; returns its block and its place there."""
        place = len(self._blocks), len(self._texts)
        self._texts.append(text)
        self._num_bytes += sum(len(part) for part in text if isinstance(part, str))
        if self._num_bytes >= BLOCK_BYTES:
            self._close()
        return place

    def blocks(self) -> tuple[str, ...]:
        """All blocks."""
        if self._texts:
            self._close()
        return tuple(self._blocks)

    def _close(self) -> None:
        self._blocks.append(pack(self._texts))
        self._texts, self._num_bytes = [], 0


def _response_index(rows: Sequence[Response], texts: Texts, facts: RunFacts, packer: _Packer) -> dict[str, Any]:
    """Columns of numbers; problems are named once."""
    problems = list(dict.fromkeys(row.problem_id for row in rows))
    place = {problem: number for number, problem in enumerate(problems)}
    first = {row.problem_id: row for row in reversed(rows)}
    used = _uses(facts)
    verdicts = [verdict.value for verdict in Verdict]
    where = [packer.add(_shown(texts[row.id])) for row in rows]
    return {
        "problems": [
            [
                problem,
                _snippet(texts[first[problem].id]["question"]),
                first[problem].domain,
                facts.inputs.problem_levels.get(problem),
            ]
            for problem in problems
        ],
        "problem": [place[row.problem_id] for row in rows],
        "round": [row.round for row in rows],
        "sample": [row.sample_index for row in rows],
        "verdict": [verdicts.index(row.verdict) for row in rows],
        "truncated": [int(row.is_truncated) for row in rows],
        "policy": [row.policy_version for row in rows],
        "tokens": [row.num_tokens for row in rows],
        "thought": [row.thought_tokens for row in rows],
        "perplexity": [_short(row.perplexity) for row in rows],
        "used": [used.get(row.id, []) for row in rows],
        "block": [block for block, _ in where],
        "at": [at for _, at in where],
    }


def _shown(text: Mapping[str, Any]) -> list[Any]:
    """What the page shows of a response, and where its parts are."""
    return [*(text[name] for name in _SHOWN_COLUMNS), cuts_of(*(text[name] for name in ("response", *_PART_COLUMNS)))]


def cuts_of(response: str, thought: str, solution: str) -> list[int]:
    """Start and end of the thought and then of the solution within a response; equal ones: there is none.

    A run's response format has cut them out, so they stand there in this order, whatever parts them.

    Returns:
        Positions in UTF-16 units, which JavaScript counts.
    """
    start = response.find(thought) if thought else -1
    end = start + len(thought) if start >= 0 else 0
    first = response.rfind(solution, end) if solution else -1
    last = first + len(solution) if first >= 0 else 0
    return [
        len(response[: max(place, 0)].encode("utf-16-le", "surrogatepass")) // 2 for place in (start, end, first, last)
    ]


def _training_stages(facts: RunFacts) -> list[RunStage]:
    return [stage for stage in facts.stages if stage.sources]


def _uses(facts: RunFacts) -> dict[str, list[int]]:
    """Which training stages used a response, by their number; a pair's sides as well."""
    used: dict[str, list[int]] = defaultdict(list)
    for number, stage in enumerate(_training_stages(facts)):
        for identity in {identity for row in stage.sources for identity in row.ids}:
            used[identity].append(number)
    return used


def _snippet(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= SNIPPET_CHARS else line[: SNIPPET_CHARS - 1] + "…"


def _short(perplexity: float) -> float:
    return float(f"{perplexity:.5g}")


# -- pairs ------------------------------------------------------------------------------------------------------------


def _paired(directory: RunDirectory, stage: RunStage, facts: RunFacts) -> list[tuple[PairSource, list[str]]]:
    """Pairs of a stage with their texts: all, or as many as fit."""
    from still_ray.store.tables import open_table

    wanted = _chosen_pairs(stage, facts)
    assert stage.method is not None, "who has pairs has a method that made them"
    with open_table(directory.rounds / stage.name / stage.method.table) as file:
        at, found = 0, []
        for batch in file.iter_batches(BATCH_ROWS, columns=list(PAIR_COLUMNS)):
            rows = range(at, at + batch.num_rows)
            found += [
                (stage.pairs[number], [row[name] for name in PAIR_COLUMNS])
                for number, row in zip(rows, batch.to_pylist(), strict=True)
                if number in wanted
            ]
            at += batch.num_rows
    return found


def _chosen_pairs(stage: RunStage, facts: RunFacts) -> set[int]:
    tokens = {row.id: row.num_tokens for responses in facts.rounds.values() for row in responses}
    chosen: set[int] = set()
    num_bytes = 0
    for number in sorted(range(len(stage.pairs)), key=lambda number: _digest(stage.pairs[number].chosen_id)):
        pair = stage.pairs[number]
        both = tokens.get(pair.chosen_id, 0) + tokens.get(pair.rejected_id, 0)
        num_bytes += both * BYTES_PER_TOKEN + OVERHEAD_BYTES
        if chosen and num_bytes > MAX_PAIR_BYTES:
            break
        chosen.add(number)
    return chosen


def _pair_index(pairs: Sequence[tuple[PairSource, list[str]]], packer: _Packer) -> list[list[Any]]:
    index = []
    for pair, text in pairs:
        block, at = packer.add(text)
        perplexities = [_short(pair.chosen_perplexity), _short(pair.rejected_perplexity)]
        names = [pair.problem_id, pair.chosen_id, pair.rejected_id, _snippet(text[0])]
        index.append([*names, *perplexities, block, at])
    return index


def _note(rows: Sequence[Response], pairs: Sequence[Any], facts: RunFacts, stage: RunStage | None) -> str:
    """How much of the pool is here."""
    total = sum(len(responses) for responses in facts.rounds.values())
    if len(rows) == total:
        text = f"All {total:,} responses of the pool are here."
    else:
        text = (
            f"Showing {len(rows):,} of {total:,} responses, so that the page stays small: whole problems, in turn from "
            "every round and every kind of outcome, the rare ones first. All are in the run directory."
        )
    if stage is None:
        return text
    of = f"All {len(pairs):,}" if len(pairs) == len(stage.pairs) else f"Showing {len(pairs):,} of {len(stage.pairs):,}"
    return f"{text} {of} preference pairs of {stage.label}."
