"""The first pass over a piece of the input: read, convert, filter, and leave behind what the second pass needs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from still_ray.boxed import last_boxed
from still_ray.config.prepare import PrepareConfig
from still_ray.formats.adapters import AdaptedDemonstration, adapt_row
from still_ray.formats.chats import EARLIER_TURNS
from still_ray.formats.responses.markers import render_response
from still_ray.formats.responses.reading import Defect
from still_ray.latex import spelled_alike
from still_ray.prepare.counts import NO_REFERENCE, OTHER_REASON, Broken, Counts, Damaged, Samples, cut_text
from still_ray.prepare.filters.chain import first_drop, row_checks
from still_ray.prepare.filters.length import check_tokens
from still_ray.prepare.filters.overlap import EvaluationIndex
from still_ray.prepare.filters.row import Drop, RowTexts
from still_ray.prepare.filters.words import Hashes
from still_ray.prepare.minhash import band_hashes, cut_signatures, signature
from still_ray.rows import Piece, SourceRow, read_piece
from still_ray.store.atomic import write_atomically
from still_ray.types import InputError, Judgement, ParsedResponse, Problem, Verdict
from still_ray.values import check_fields
from still_ray.verifiers.pool import VerifierPool

BATCH_ROWS: Final = 256
SHARD_SCHEMA: Final = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("id", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("question", pa.string()),
        pa.field("combined_text", pa.string()),
        pa.field(EARLIER_TURNS, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        pa.field("answer", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("level", pa.int64()),
        pa.field("source_file", pa.string()),
        pa.field("source_row", pa.int64()),
        pa.field("thought_chars", pa.int64()),
        pa.field("solution_chars", pa.int64()),
        pa.field("response_tokens", pa.int64()),
    ]
)
DEMONSTRATIONS: Final = "demonstrations"
PROBLEMS: Final = "problems"

_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_SETTING: Final = re.compile(r"\s+|\$|(?<!\\)[{}]|\.$")
_WRONG: Final = frozenset({Verdict.INCORRECT, Verdict.UNPARSABLE})
_UNJUDGED: Final = frozenset({Verdict.TIMEOUT, Verdict.ERROR})

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SiftSettings:
    """What is the same for every piece.

    Attributes:
        config: Filters and thresholds.
        index: The evaluation sets; None without any.
        folder: Where shards go; every process must see it.
        strict: Stop a piece at its first broken row.
    """

    config: PrepareConfig
    index: EvaluationIndex | None
    folder: Path
    strict: bool


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The files of one piece, named by its place in the input.

    Attributes:
        folder: Their folder.
        index: The piece's place, from 0.
        source: The file that the piece is of.
    """

    folder: Path
    index: int
    source: str

    def file(self, name: str) -> Path:
        """A file of the shard: rows.parquet, or keys.npy, bands.npy, cut.npy."""
        return self.folder / f"part-{self.index:06d}.{name}"


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A row that no filter has dropped so far."""

    source_row: int
    texts: RowTexts
    columns: dict[str, Any]
    reference: Problem | None = None


class Sifter:
    """Sifts pieces; one lives in each worker process and keeps a verifier process once it needs one."""

    def __init__(self, settings: SiftSettings) -> None:
        self._settings = settings
        self._config = settings.config
        self._own = settings.config.wrong_answer.custom
        self._checks = row_checks(settings.config, settings.index)
        self._pool: VerifierPool | None = None
        length = settings.config.length
        self._tokenizer = _tokenizer(length.tokenizer) if length.tokenizer else None

    def sift(self, index: int, piece: Piece) -> Counts:
        """Sifts the piece at this place of the input and leaves its shard; a second time it leaves the same."""
        config = self._config
        counts = Counts(samples=Samples(number=config.sample_per_filter, seed=config.seed))
        shard = Shard(folder=self._settings.folder, index=index, source=piece.path)
        keys = _Keys(config)
        write_atomically(shard.file("rows.parquet"), lambda path: self._write_rows(path, piece, counts, keys))
        keys.write(shard)
        return counts

    def close(self) -> None:
        """Ends the verifier process."""
        if self._pool is not None:
            self._pool.close()

    def _write_rows(self, path: Path, piece: Piece, counts: Counts, keys: _Keys) -> None:
        with pq.ParquetWriter(path, SHARD_SCHEMA, compression="lz4") as writer:
            for batch in _batches(read_piece(piece), BATCH_ROWS):
                kept = self._sifted(piece.path, batch, counts)
                if kept:
                    writer.write_table(pa.Table.from_pylist([row.columns for row in kept], SHARD_SCHEMA))
                    keys.add(kept)
                if counts.num_broken and self._settings.strict:
                    return

    def _sifted(self, path: str, rows: list[SourceRow], counts: Counts) -> list[_Kept]:
        for row in rows:
            _count(path, row, counts)
        looked_at = (self._first_look(path, row, counts) for row in rows)
        kept = [row for row in looked_at if row is not None]
        return self._judged(self._with_tokens(kept, counts), counts)

    def _first_look(self, path: str, row: SourceRow, counts: Counts) -> _Kept | None:
        """Converts a row and asks the filters that need nothing else; None if it goes."""
        try:
            kept, defect = self._converted(path, row)
        except InputError as error:
            broken = Broken(path, row.number, str(error), error.reason or OTHER_REASON)
            counts.add_broken(broken, _num_rows(row), self._config.max_broken_named)
            return None
        columns = kept.columns
        lengths = None if defect else _lengths(columns)
        counts.rows_in.add(columns["kind"], columns["domain"], lengths or {})
        drop = Drop("format", defect.value, defect.value) if defect else first_drop(kept.texts, self._checks)
        if drop is None:
            return kept
        _dropped(kept, drop, counts)
        return None

    def _converted(self, path: str, row: SourceRow) -> tuple[_Kept, Defect | None]:
        """A row in the columns of a shard, and what is wrong with its format.

        Raises:
            InputError: The row is broken.
        """
        if row.fields is None or row.broken:
            raise InputError(row.broken, reason=row.reason)
        where = f"{path}, row {row.number}"
        adapted = adapt_row(
            row.fields,
            kind=self._config.kind,
            fields=self._config.fields,
            where=where,
            own=self._own,
            general=self._config.general,
        )
        if isinstance(adapted, Problem):
            kept, defect = _of_problem(adapted, path, row.number), None
        else:
            kept, defect = _of_demonstration(adapted, path, row.number), adapted.defect
            if defect is None and self._lacks_box(kept.texts):
                defect = Defect.NO_BOX
        check_fields(kept.columns, where)  # a chat may be JSON within a text, which was not looked into before
        if defect is not None and not self._config.format.enabled:
            raise InputError(f"{where}: the response is not a thought followed by a solution: {defect.value}")
        return kept, defect

    def _lacks_box(self, texts: RowTexts) -> bool:
        settings = self._config.format
        return settings.enabled and settings.require_box and last_boxed(texts.solution) is None

    def _with_tokens(self, rows: list[_Kept], counts: Counts) -> list[_Kept]:
        """Counts tokens, if there is a tokenizer, and drops what has too few or too many."""
        if self._tokenizer is None or not rows:
            return rows
        encodings = self._tokenizer.encode_batch(
            [row.columns["combined_text"] or "" for row in rows], add_special_tokens=False
        )
        kept = []
        for row, encoding in zip(rows, encodings, strict=True):
            if row.columns["kind"] == DEMONSTRATIONS:
                row.columns["response_tokens"] = len(encoding.ids)
            drop = (
                check_tokens(len(encoding.ids), self._config.length) if row.columns["kind"] == DEMONSTRATIONS else None
            )
            if drop is None or not self._config.length.enabled:
                kept.append(row)
            else:
                _dropped(row, drop, counts)
        return kept

    def _judged(self, rows: list[_Kept], counts: Counts) -> list[_Kept]:
        """Drops demonstrations whose answer is wrong, where there is a reference."""
        settings = self._config.wrong_answer
        if without := sum(row.reference is None and row.columns["kind"] == DEMONSTRATIONS for row in rows):
            counts.answers[NO_REFERENCE] += without
        if not settings.enabled or all(row.reference is None for row in rows):
            return rows
        if self._pool is None:
            self._pool = VerifierPool(1, settings.timeout_s, settings.memory_mib, custom=self._own)
        pool = self._pool
        futures = [None if row.reference is None else _submit(pool, row, row.reference) for row in rows]
        kept = []
        for row, future in zip(rows, futures, strict=True):
            if future is not None:
                judgement = future.result()
                counts.answers[judgement.verdict.value] += 1
                if judgement.verdict in _WRONG or (judgement.verdict in _UNJUDGED and not settings.keep_unjudged):
                    detail = f"{judgement.detail}; found {judgement.extracted}, reference {row.columns['answer']}"
                    _dropped(row, Drop("wrong_answer", judgement.verdict.value, detail), counts)
                    continue
            kept.append(row)
        return kept


class _Keys:
    """What tells duplicates: gathered for the rows of a shard, written beside them."""

    def __init__(self, config: PrepareConfig) -> None:
        self._exact, self._near = config.exact_duplicates, config.near_duplicates
        self._keys: list[tuple[int, int, int]] = []
        self._bands = [np.zeros((0, self._near.bands), np.uint64)]
        self._cut = [np.zeros((0, self._near.num_permutations), np.uint8)]

    def add(self, rows: Sequence[_Kept]) -> None:
        """Notes rows, in order."""
        for row in rows:
            self._keys.append((self._content_key(row), _hash(row.columns["kind"], row.columns["id"]), row.source_row))
        if self._near.enabled:
            signatures = [self._signature(row.texts) for row in rows]
            apart = np.array([self._apart(row) for row in rows], np.uint64)
            self._bands.append(band_hashes(signatures, self._near.bands, apart))
            self._cut.append(cut_signatures(signatures, self._near.num_permutations))

    def write(self, shard: Shard) -> None:
        """Writes keys (content, id and source row of each row), hashes (band by band) and cut signatures."""
        keys = np.array(self._keys, np.uint64).reshape(-1, 3)
        bands = np.ascontiguousarray(np.concatenate(self._bands).T)
        for name, array in (("keys", keys), ("bands", bands), ("cut", np.concatenate(self._cut))):
            _save(shard.file(f"{name}.npy"), array)

    def _signature(self, texts: RowTexts) -> Hashes:
        words = texts.words if self._near.scope == "whole" else texts.question_words
        return signature(words, shingle=self._near.shingle, num_permutations=self._near.num_permutations)

    def _apart(self, row: _Kept) -> int:
        """Rows with other values of this are never near-duplicates; a row with another reference is another problem."""
        numbers = _NUMBER.findall(spelled_alike(row.texts.question)) if self._near.same_numbers else []
        return _hash(row.columns["kind"], _plain_answer(row.columns["answer"] or ""), *numbers)

    def _content_key(self, row: _Kept) -> int:
        texts, columns = row.texts, row.columns
        parts = [texts.question]
        if self._exact.scope == "whole":
            parts += [texts.thought, texts.solution]
            parts += [columns["answer"]] if columns["kind"] == PROBLEMS else []
        return _hash(columns["kind"], *(" ".join(part.split()) for part in parts))


def _count(path: str, row: SourceRow, counts: Counts) -> None:
    counts.num_rows += _num_rows(row)
    if row.damage is None:
        counts.read[path] += 1
    else:
        counts.add_damaged(path, Damaged(num_lost=row.damage.num_lost, why=row.broken))


def _num_rows(row: SourceRow) -> int:
    """The rows that a row stands for: damage of unknown extent counts as one."""
    return 1 if row.damage is None or row.damage.num_lost is None else row.damage.num_lost


def _of_demonstration(adapted: AdaptedDemonstration, path: str, number: int) -> _Kept:
    shown, reference = adapted.shown, adapted.reference
    columns = {
        "kind": DEMONSTRATIONS,
        "id": shown.id,
        "domain": shown.domain,
        "question": shown.question,
        "combined_text": render_response(shown.thought, shown.solution) if shown.thought else shown.solution,
        EARLIER_TURNS: [vars(turn) for turn in shown.turns] or None,
        "answer": reference.answer if reference else None,
        "source_file": path,
        "source_row": number,
        "thought_chars": len(shown.thought),
        "solution_chars": len(shown.solution),
    }
    asked = "\n\n".join((*(turn.content for turn in shown.turns), shown.question))
    texts = RowTexts(asked, shown.thought, shown.solution)
    return _Kept(source_row=number, texts=texts, columns=columns, reference=reference)


def _of_problem(problem: Problem, path: str, number: int) -> _Kept:
    columns = {
        "kind": PROBLEMS,
        "id": problem.id,
        "domain": problem.domain,
        "question": problem.question,
        "answer": problem.answer,
        "subject": problem.subject,
        "level": problem.level,
        "source_file": path,
        "source_row": number,
    }
    return _Kept(source_row=number, texts=RowTexts(problem.question), columns=columns)


def _plain_answer(answer: str) -> str:
    """An answer without what only sets it: the spelling of LaTeX, spaces, braces, dollar signs, small letters."""
    return _SETTING.sub("", spelled_alike(answer).strip()).casefold()


def _lengths(columns: dict[str, Any]) -> dict[str, int | None]:
    if columns["kind"] == PROBLEMS:
        return {"question_chars": len(columns["question"])}
    thought, solution = columns["thought_chars"], columns["solution_chars"]
    return {
        "question_chars": len(columns["question"]),
        "thought_chars": thought,
        "solution_chars": solution,
        "response_chars": thought + solution,
    }


def _submit(pool: VerifierPool, row: _Kept, reference: Problem) -> Future[Judgement]:
    parsed = ParsedResponse(thought=row.texts.thought, solution=row.texts.solution)
    return pool.submit(parsed, reference.domain, reference.answer, reference.question)


def _dropped(row: _Kept, drop: Drop, counts: Counts) -> None:
    counts.drop(drop.filter, drop.rule, sample_row(row.columns, drop.rule, drop.detail))


def sample_row(columns: dict[str, Any], rule: str, detail: str) -> dict[str, Any]:
    """A dropped row as it is written for inspection."""
    return {
        "source_file": columns["source_file"],
        "source_row": columns["source_row"],
        "rule": rule,
        "detail": detail,
        "question": cut_text(columns["question"]),
        "response": cut_text(columns.get("combined_text") or ""),
        "answer": columns.get("answer"),
    }


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode("utf-8"), digest_size=8).digest())


def _save(path: Path, array: NDArray[Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    write_atomically(path, write)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)
