"""Raw rows for tests of `prepare`: each with the fate that is planted in it."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from still_ray.formats.responses.markers import render_response

EVALUATION = (
    "A farmer has 17 sheep and 23 goats in one field; how many animals graze there after 5 of the goats leave it?"
)
_VOWELS, _CONSONANTS = "aeiou", "bdfgklmnprstv"


class Raw(NamedTuple):
    """A raw row.

    Attributes:
        row: An object, or the text of a line that is none.
        fate: "kept", "broken", or the filter that must drop it.
    """

    row: dict[str, Any] | str
    fate: str


class RawRows:
    """A source of rows that differ from each other, and of rows with one defect."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def words(self, number: int) -> str:
        """Words that can be spoken and mean nothing."""
        draw = self._draw
        made = [
            "".join(draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range(draw.randint(1, 4)))
            for _ in range(number)
        ]
        return " ".join(made)

    def row(self, **columns: Any) -> dict[str, Any]:
        """A good row in the released format."""
        answer = str(self._draw.randint(0, 10**6))
        thought = "\n\n".join(f"{self.words(15)} {n}. Wait, {self.words(8)}." for n in range(6))
        return {
            "question": f"What is the {self.words(8)} of {self._draw.randint(0, 10**6)}?",
            "combined_text": render_response(thought, f"{self.words(6)}. So \\boxed{{{answer}}}."),
            "domain": self._draw.choice(("math", "physics")),
            "answer": answer,
            **columns,
        }

    def defective(self) -> list[Raw]:
        """One row for each defect that a row can have by itself."""
        good = self.row()
        thought = str(good["combined_text"])
        return [
            Raw('{"question": "cut off', "broken"),
            Raw("[1, 2]", "broken"),
            Raw({"unknown": 1}, "broken"),
            Raw(self.row(question="half \ud800 a pair of them"), "broken"),
            Raw({"id": 7, "problem": "What is it?", "answer": "None"}, "broken"),
            Raw(self.row(combined_text=thought.replace("<|end_of_thought|>", "")), "format"),
            Raw(self.row(combined_text="no thought at all"), "format"),
            Raw(self.row(combined_text=render_response("short", "\\boxed{1}")), "length"),
            Raw(
                self.row(combined_text=render_response(f"{self.words(12)} here we are. " * 20, "\\boxed{1}")),
                "repetition",
            ),
            Raw(self.row(combined_text=thought.replace("Wait, ", "等一下我们需要重新计算这个数")), "language"),
            Raw(self.row(combined_text=thought.replace("Wait, ", "\ufffd\ufffd ")), "gibberish"),
            Raw(self.row(question=f"{self.words(3)}: {EVALUATION}"), "decontaminate"),
            Raw(self.row(answer="-1"), "wrong_answer"),
        ]

    def mixture(self, number: int) -> list[Raw]:
        """Good rows, rows of each defect, and duplicates of good rows that come after them."""
        good = [Raw(self.row(id=f"row {n}" if n % 3 else "one name for many"), "kept") for n in range(number)]
        rows = [*good, *self.defective(), *self.defective()]
        self._draw.shuffle(rows)
        for original in good[: number // 4]:
            assert isinstance(original.row, dict)
            spaced = {**original.row, "question": original.row["question"].replace(" ", "  "), "id": "another name"}
            rows.append(Raw(spaced, "exact_duplicates"))
            text = original.row["combined_text"].replace("Wait, ", "Wait, well, ", 1)
            rows.append(Raw({**original.row, "combined_text": text}, "near_duplicates"))
        return rows


def write_lines(path: Path, rows: list[Raw]) -> Path:
    """Rows as JSON Lines."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row, _ in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_damaged_table(path: Path, rows: list[dict[str, Any]], group: int) -> Path:
    """Rows as Parquet in row groups of ten, the pages of one group overwritten."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, compression="zstd")
    content = bytearray(path.read_bytes())
    columns = pq.read_metadata(path).row_group(group)
    for index in range(columns.num_columns):
        column = columns.column(index)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    return path


def fates(rows: list[Raw]) -> dict[str, int]:
    """How many rows have each fate."""
    return dict(Counter(row.fate for row in rows))
