"""Rows prepared per second by `still-ray prepare`, against one process that only reads and parses the same rows.

    python -m benchmarks.bench_prepare [--rows N]

Generates rows with known shares of defects, runs the command in a process of its own, watches its memory, and counts
how many of the planted defects were found (value) and how many there are (baseline). The driver's baseline is the limit
that it shall stay under; that of all processes, Ray's included, the input's size. Stated: a million rows.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.figures import print_figure
from still_ray.formats.responses.markers import parse_response, render_response

DEFAULT_ROWS = 20_000
SHARES = {
    "exact_duplicates": 0.03,
    "near_duplicates": 0.03,
    "broken": 0.005,
    "decontaminate": 0.01,
    "format": 0.01,
    "repetition": 0.01,
    "wrong_answer": 0.01,
    "length": 0.01,
}
NUM_QUESTIONS = 500
SAMPLE_INTERVAL_S = 1.0
SYLLABLES = [start + vowel for start in (*"bcdfghklmnprstvw", "br", "st", "tr", "pl") for vowel in "aeiou"]


class Rows:
    """A stream of rows as JSON Lines, with its planted defects counted."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        draw = self._draw
        self.words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(4000)]
        self.evaluation = [f"What is the {self._text(24)} when {draw.randint(10, 9999)}?" for _ in range(NUM_QUESTIONS)]
        self.planted: Counter[str] = Counter()
        self._earlier: list[dict[str, Any]] = []

    def lines(self, number: int) -> Iterator[str]:
        """So many lines."""
        names, weights = [*SHARES, "none"], [*SHARES.values(), 1 - sum(SHARES.values())]
        for _ in range(number):
            name = self._draw.choices(names, weights)[0]
            if not self._earlier and name.endswith("duplicates"):
                name = "none"
            self.planted[name] += 1
            yield self._line(name) + "\n"

    def _line(self, name: str) -> str:
        if name == "broken":
            return json.dumps(self._row())[:-20]
        if name == "none":
            row = self._row()
            if len(self._earlier) < 10_000:  # noqa: PLR2004 - enough to draw duplicates from
                self._earlier.append(row)
            return json.dumps(row)
        if name == "exact_duplicates":
            return json.dumps(self._draw.choice(self._earlier))
        if name == "near_duplicates":
            return json.dumps(self._nearly(self._draw.choice(self._earlier)))
        return json.dumps(self._defective(name))

    def _defective(self, name: str) -> dict[str, Any]:
        """A row that a filter of one row must drop."""
        row = self._row()
        if name == "decontaminate":
            row["question"] = f"{self._text(5)} {self._draw.choice(self.evaluation)}"
        elif name == "format":
            row["combined_text"] = row["combined_text"].replace("<|end_of_thought|>", "")
        elif name == "repetition":
            row["combined_text"] = self._response(f"{self._text(12)} " * 60, row["answer"])
        elif name == "wrong_answer":
            row["answer"] = str(int(row["answer"]) + 1)
        elif name == "length":
            row["combined_text"] = self._response("Too short.", row["answer"])
        return row

    def _row(self) -> dict[str, Any]:
        draw = self._draw
        answer = str(draw.randint(0, 999_999))
        sentences = [f"{self._text(draw.randint(6, 14)).capitalize()} {draw.randint(0, 999)}." for _ in range(14)]
        thought = "\n\n".join(" ".join(sentences[start : start + 3]) for start in range(0, len(sentences), 3))
        question = f"Find the {self._text(12)} of {draw.randint(0, 10**6)} and {draw.randint(0, 10**6)}."
        domain = draw.choice(("math", "physics", "puzzle"))
        combined = self._response(thought, answer)
        return {"question": question, "combined_text": combined, "domain": domain, "answer": answer}

    def _nearly(self, row: dict[str, Any]) -> dict[str, Any]:
        """The same row with a few words more at one place."""
        text = str(row["combined_text"])
        place = text.index(" ", len(text) // 3)
        return {**row, "combined_text": f"{text[:place]} {self._text(2)}{text[place:]}"}

    def _response(self, thought: str, answer: str) -> str:
        return render_response(thought, f"{self._text(8).capitalize()}.\n\nThe answer is \\boxed{{{answer}}}.")

    def _text(self, number: int) -> str:
        return " ".join(self._draw.choices(self.words, k=number))


def baseline_s(path: Path) -> float:
    """Seconds that one process takes to read the rows and cut their responses, and to do nothing else."""
    started = time.perf_counter()
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            parse_response(row["combined_text"])
    return time.perf_counter() - started


class Peaks(NamedTuple):
    """What a command took.

    Attributes:
        seconds: Wall time.
        driver_bytes: Most that its own process had resident.
        all_bytes: Most that it and all its descendants (Ray's processes) had together, shared memory divided.
    """

    seconds: float
    driver_bytes: int
    all_bytes: int


def watched(command: list[str], log: Path) -> Peaks:
    """Runs a command to its end and samples its memory."""
    started = time.perf_counter()
    driver_bytes = all_bytes = 0
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sys.stderr)
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            driver_bytes = max(driver_bytes, _memory(driver, "rss"))
            family = [driver, *_descendants(driver)]
            all_bytes = max(all_bytes, sum(_memory(member, "pss") for member in family))
            time.sleep(SAMPLE_INTERVAL_S)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Peaks(time.perf_counter() - started, driver_bytes, all_bytes)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process, name: str) -> int:
    try:
        return int(getattr(process.memory_full_info() if name == "pss" else process.memory_info(), name))
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    """Generates, prepares, and prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = Rows(options.seed)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(rows.lines(options.rows))
        questions = "".join(json.dumps({"question": text}) + "\n" for text in rows.evaluation)
        (folder / "evaluation.jsonl").write_text(questions, encoding="utf-8")
        command = [
            sys.executable,
            "-c",
            "from still_ray.cli import main; main()",
            "prepare",
            str(folder / "rows.jsonl"),
            "--json",
        ]
        command += ["--output", str(folder / "out"), "--against", str(folder / "evaluation.jsonl")]
        peaks = watched(command, folder / "report.txt")
        num_bytes = (folder / "rows.jsonl").stat().st_size
        report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
        alone_s = baseline_s(folder / "rows.jsonl")
    print_figure("prepare_wall", value=peaks.seconds, unit="s", baseline=alone_s)
    print_figure(
        "prepare_rows_per_s", value=options.rows / peaks.seconds, unit="rows/s", baseline=options.rows / alone_s
    )
    print_figure("prepare_driver_peak", value=peaks.driver_bytes / (1 << 30), unit="GiB", baseline=1.5)
    print_figure("prepare_all_peak", value=peaks.all_bytes / (1 << 30), unit="GiB", baseline=num_bytes / (1 << 30))
    found = {**{key: value["dropped"] for key, value in report["filters"].items()}, "broken": report["rows"]["broken"]}
    for key in SHARES:
        print_figure(f"prepare_found_{key}", value=found[key], unit="rows", baseline=rows.planted[key])


if __name__ == "__main__":
    main()
