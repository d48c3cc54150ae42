"""The two passes of a preparation, without Ray: every row ends where it must, however the input is cut."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from still_ray.actors.prepare import check_damage, reason
from still_ray.cli.prepare.printing import print_report, report_of
from still_ray.config.prepare import PrepareConfig
from still_ray.formats.demonstrations import read_demonstrations
from still_ray.formats.file_splits import count_newlines, cut_files, with_first_rows
from still_ray.formats.problems import read_problems
from still_ray.formats.responses.markers import render_response
from still_ray.prepare.counts import OTHER_REASON, Counts, Damaged, Samples
from still_ray.prepare.filters.overlap import build_index
from still_ray.prepare.merge import resolve_duplicates, write_kept
from still_ray.prepare.sift import Shard, Sifter, SiftSettings
from still_ray.types import RunError
from tests.raw_rows import EVALUATION, Raw, RawRows, fates, write_damaged_table, write_lines

BACKBONE = Path(__file__).parents[2] / "still_ray" / "tiny_world" / "backbone"


def prepared(
    files: list[Path], folder: Path, block_bytes: int = 1 << 20, **changes: Any
) -> tuple[Counts, dict[str, Any]]:
    """Both passes in this process; the counts and the report."""
    config = PrepareConfig.model_validate(changes)
    folder.mkdir()
    index = build_index([EVALUATION], config.decontaminate)
    sifter = Sifter(SiftSettings(config=config, index=index, folder=folder, strict=False))
    pieces = cut_files(files, block_bytes)
    pieces = with_first_rows(pieces, [count_newlines(piece) for piece in pieces])
    counts = Counts(samples=Samples(number=config.sample_per_filter, seed=config.seed))
    for index_of_piece, piece in enumerate(pieces):
        counts.merge(sifter.sift(index_of_piece, piece), config.max_broken_named)
    sifter.close()
    shards = [Shard(folder=folder, index=number, source=piece.path) for number, piece in enumerate(pieces)]
    for part in write_kept(config, shards, resolve_duplicates(config, shards), folder):
        counts.merge(part, config.max_broken_named)
    return counts, report_of(counts, config, [str(path) for path in files])


def found(report: dict[str, Any]) -> dict[str, int]:
    """Rows by fate, as a report tells."""
    dropped = {name: entry["dropped"] for name, entry in report["filters"].items()}
    everything = {"kept": report["rows"]["out"], "broken": report["rows"]["broken"], **dropped}
    return {name: number for name, number in everything.items() if number}


@pytest.fixture(scope="module")
def mixture() -> list[Raw]:
    return RawRows(3).mixture(40)


def test_every_row_ends_where_it_must(tmp_path: Path, mixture: list[Raw]) -> None:
    path = write_lines(tmp_path / "rows.jsonl", mixture)
    counts, report = prepared([path], tmp_path / "out")
    assert found(report) == fates(mixture)
    assert report["rows"] == {"in": len(mixture), "out": 40, "broken": 10, "dropped": len(mixture) - 50}
    reasons = ("not valid JSON", "not an object", "half of a surrogate pair", "no answer", OTHER_REASON)
    assert report["broken"] == dict.fromkeys(reasons, 2)
    assert {broken.row for broken in counts.broken} == {n for n, raw in enumerate(mixture, 1) if raw.fate == "broken"}
    for name, number in fates(mixture).items():
        if name not in ("kept", "broken"):
            rows = [sample["source_row"] for sample in counts.samples.of(name)]
            assert len(rows) == min(number, 10)
            assert {mixture[row - 1].fate for row in rows} == {name}


def test_what_is_kept_is_read_back_in_input_order_with_its_source(tmp_path: Path, mixture: list[Raw]) -> None:
    path = write_lines(tmp_path / "rows.jsonl", mixture)
    prepared([path], tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "demonstrations.parquet")
    expected = [number for number, raw in enumerate(mixture, start=1) if raw.fate == "kept"]
    assert table["source_row"].to_pylist() == expected
    assert set(table["source_file"].to_pylist()) == {str(path)}
    shown = list(read_demonstrations(tmp_path / "out" / "demonstrations.parquet"))
    assert [one.question for one in shown] == [mixture[number - 1].row["question"] for number in expected]  # type: ignore[index]
    assert len({one.id for one in shown}) == len(shown)  # though a third of the rows had one name
    assert sum(one.id == "one name for many" for one in shown) == 1


def test_the_size_of_a_block_changes_nothing(tmp_path: Path, mixture: list[Raw]) -> None:
    path = write_lines(tmp_path / "rows.jsonl", mixture)
    results = []
    for block_bytes in (700, 10_000, 1 << 20):
        counts, report = prepared([path], tmp_path / str(block_bytes), block_bytes)
        table = pq.read_table(tmp_path / str(block_bytes) / "demonstrations.parquet")
        samples = {name: counts.samples.of(name) for name in counts.dropped}
        results.append((report, table.to_pylist(), samples, counts.broken))
    assert results[0] == results[2]
    assert results[1] == results[2]


def test_of_duplicates_the_first_in_input_order_stays(tmp_path: Path) -> None:
    rows = RawRows(5)
    first, other = rows.row(), rows.row()
    files = [write_lines(tmp_path / f"{n}.jsonl", [Raw(row, "")]) for n, row in enumerate((first, other, first))]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        given = [files[place] for place in order]
        counts, _ = prepared(given, tmp_path / f"out{order}")
        kept = pq.read_table(tmp_path / f"out{order}" / "demonstrations.parquet")["source_file"].to_pylist()
        twin = next(path for path in given if path != files[1])
        assert kept == [str(path) for path in given if path in (twin, files[1])]
        assert counts.samples.of("exact_duplicates")[0]["detail"] == f"repeats {twin}, row 1"


@pytest.mark.parametrize("name", ["length", "repetition", "language", "gibberish", "decontaminate", "wrong_answer"])
def test_a_filter_that_is_off_drops_nothing(tmp_path: Path, name: str) -> None:
    rows = RawRows(7).defective()
    path = write_lines(tmp_path / "rows.jsonl", rows)
    off = {"wrong_answer", name}  # without the former no verifier process has to start
    changes: dict[str, Any] = {switched: {"enabled": False} for switched in off}
    _, report = prepared([path], tmp_path / "out", **changes)
    assert found(report) == fates([raw._replace(fate="kept") if raw.fate in off else raw for raw in rows])


def test_demonstrations_whose_answer_says_nothing_are_kept_and_counted_as_without_a_reference(tmp_path: Path) -> None:
    answers = (None, float("nan"), float("inf"), "None", "nan", " ")
    rows = [Raw(RawRows(seed).row(answer=answer), "kept") for seed, answer in enumerate(answers)]
    path = write_lines(tmp_path / "rows.jsonl", [*rows, Raw(RawRows(9).row(), "kept")])
    _, report = prepared([path], tmp_path / "out")
    assert report["rows"]["out"] == len(answers) + 1
    assert report["answers"] == {"no reference": len(answers), "correct": 1}


def test_without_the_format_filter_a_row_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    rows = [Raw(RawRows(7).row(combined_text="no thought"), "broken"), Raw(RawRows(8).row(), "kept")]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    counts, report = prepared([path], tmp_path / "out", format={"enabled": False})
    assert found(report) == fates(rows)
    assert counts.broken[0].why == f"{path}, row 1: the response is not a thought followed by a solution: no_thought"


def test_a_box_can_be_required(tmp_path: Path) -> None:
    text = str(RawRows(7).row()["combined_text"]).replace("\\boxed", "")
    path = write_lines(tmp_path / "rows.jsonl", [Raw({**RawRows(7).row(), "combined_text": text, "answer": None}, "")])
    assert found(prepared([path], tmp_path / "a")[1]) == {"kept": 1}
    _, report = prepared([path], tmp_path / "b", format={"require_box": True})
    assert report["filters"]["format"]["rules"] == {"no_box": 1}


def test_other_numbers_make_another_problem(tmp_path: Path) -> None:
    """Near-duplicate questions with other numbers stay; asked to compare words alone, all but the first go."""
    text = "A tank holds {} litres of water and loses two of them every hour; when is it empty if nobody fills it? "
    rows = [Raw({"problem": text.format(n) + RawRows(1).words(60), "answer": 7}, "kept") for n in range(100, 110)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    _, report = prepared([path], tmp_path / "a")
    assert report["out"] == {"demonstrations": 0, "problems": 10}
    _, report = prepared([path], tmp_path / "b", near_duplicates={"same_numbers": False})
    assert report["out"] == {"demonstrations": 0, "problems": 1}


def test_another_spelling_makes_no_other_problem(tmp_path: Path) -> None:
    """Nor another demonstration; numbers and references are compared through the spelling of LaTeX, too."""
    twice = [
        (r"What is $\frac{1}{2}(x+2)$ for $x=12{,}000$?", r"\frac{3}{2}"),
        (r"What is $\displaystyle\frac12\left(x+2\right)$ for \(x = 12,000\)?", r"$\tfrac32$"),
    ]
    rows = [Raw({"problem": question, "answer": answer}, "") for question, answer in twice]
    path = write_lines(tmp_path / "problems.jsonl", rows)
    assert found(prepared([path], tmp_path / "a")[1]) == {"kept": 1, "near_duplicates": 1}
    formula = r" So $\frac{p}{q} \cdot r \leq \sqrt{2}$ holds."
    text = str(RawRows(7).row()["combined_text"]).replace(". ", "." + formula + " ")
    other = text.replace(r"\frac", r"\dfrac").replace(r"\cdot", r"\times").replace(r"\leq", "≤").replace("{2}", "2")
    shown = [Raw({**RawRows(7).row(), "combined_text": version}, "") for version in (text, other)]
    path = write_lines(tmp_path / "shown.jsonl", shown)
    off = {"enabled": False}
    report = prepared([path], tmp_path / "b", wrong_answer=off, repetition=off, near_duplicates={"threshold": 0.99})[1]
    assert found(report) == {"kept": 1, "near_duplicates": 1}


def test_other_references_make_another_problem(tmp_path: Path) -> None:
    """One word in seventy is other; what tells the problems apart is the reference, not how it is set."""
    text = "A box holds red and blue marbles, and one is drawn. {} What is the chance that it is {}?"
    words = RawRows(1).words(60)
    answers = [("red", r"$\frac{1}{2}$"), ("blue", r"\frac{1}{3}"), ("scarlet", r"\dfrac{1}{2}")]
    rows = [Raw({"problem": text.format(words, name), "answer": answer}, "") for name, answer in answers]
    path = write_lines(tmp_path / "problems.jsonl", rows)
    table = prepared([path], tmp_path / "a")[1]
    assert found(table) == {"kept": 2, "near_duplicates": 1}
    raw = RawRows(2).row(answer=None)
    raw["combined_text"] = raw["combined_text"].replace("boxed", "fbox")
    off = {"enabled": False}
    shown = [Raw({**raw, "question": text.format(words, name), "answer": answer}, "") for name, answer in answers]
    path = write_lines(tmp_path / "shown.jsonl", shown)
    assert found(prepared([path], tmp_path / "b", wrong_answer=off)[1]) == {"kept": 2, "near_duplicates": 1}


def test_damaged_files_are_counted_with_what_they_lost(tmp_path: Path) -> None:
    rows = [RawRows(n).row() for n in range(30)]
    table = write_damaged_table(tmp_path / "rows.parquet", rows, group=1)
    packed = tmp_path / "more.jsonl.gz"
    packed.write_bytes(
        gzip.compress("".join(json.dumps(RawRows(n).row()) + "\n" for n in range(40, 90)).encode())[:-900]
    )
    counts, report = prepared([table, packed], tmp_path / "out", max_broken_named=0, wrong_answer={"enabled": False})
    first, second = report["damaged_files"]
    assert (first["file"], first["rows_read"], first["rows_lost"]) == (str(table), 20, 10)
    assert (second["file"], second["rows_lost"]) == (str(packed), None)
    assert 0 < second["rows_read"] < 50
    assert report["rows"]["broken"] == 11
    assert report["rows"]["in"] == 31 + second["rows_read"]
    assert len(counts.broken) == 1  # what a strict run says


def test_damage_in_several_pieces_of_a_file_is_one_damaged_file(tmp_path: Path) -> None:
    path = write_damaged_table(tmp_path / "rows.parquet", [RawRows(n).row() for n in range(30)], group=1)
    write_damaged_table(tmp_path / "other.parquet", [RawRows(n).row() for n in range(30)], group=2)
    _, report = prepared([path], tmp_path / "out", 1, wrong_answer={"enabled": False})
    assert [(one["rows_read"], one["rows_lost"]) for one in report["damaged_files"]] == [(20, 10)]
    parts = [Counts(samples=Samples(number=0, seed=0)) for _ in range(3)]
    for part, lost in zip(parts, (3, 4, None), strict=True):
        part.add_damaged("f", Damaged(num_lost=lost, why=f"{lost}"))
    parts[0].merge(parts[1], 0)
    assert parts[0].damaged == {"f": Damaged(num_lost=7, why="3")}
    parts[0].merge(parts[2], 0)
    assert parts[0].damaged["f"].num_lost is None


def test_damage_is_an_error_unless_it_is_allowed() -> None:
    counts = Counts(samples=Samples(number=0, seed=0))
    notes: list[str] = []
    check_damage(counts, notes.append, allowed=False)
    counts.add_damaged("a.gz", Damaged(num_lost=None, why="a.gz, row 5: the file is damaged from here on: end"))
    counts.add_damaged("b", Damaged(num_lost=2, why="b, row 9: the file is damaged from here to row 10: x"))
    counts.read.update({"a.gz": 4, "b": 1234})
    with pytest.raises(RunError) as caught:
        check_damage(counts, notes.append, allowed=False)
    assert str(caught.value) == (
        "a.gz, row 5: the file is damaged from here on: end (1 more damaged); "
        "--set allow_damaged=true takes what can be read"
    )
    check_damage(counts, notes.append, allowed=True)
    assert notes[:2] == notes[2:]
    assert notes[1].endswith("b, row 9: the file is damaged from here to row 10: x; 1,234 rows read, 2 lost")


def test_a_failed_task_is_named_by_its_own_error() -> None:
    advice = "To change retry attempts, backoff, or which errors are retried, configure `ray.data.DataContext`."
    root = ValueError("the tokenizer is\nno tokenizer")
    outer = RuntimeError(f"An exception was raised.\n{advice}")
    outer.__cause__ = ray.exceptions.RayTaskError("f", f"Traceback:\nValueError: x\n{advice}", root)
    assert reason(outer) == "ValueError: the tokenizer is no tokenizer"
    assert reason(RuntimeError(f"it broke\n{advice}")) == "RuntimeError: it broke"
    text = "ray::Map(_sift)()\n  File x\nOSError: disk full\n\nThe above exception was the direct cause of\n\nUDF."
    dropped = ray.exceptions.RayTaskError(
        "f", f"{text}\n{advice}", ray.exceptions.UserCodeException(f"UDF failed.\n{advice}")
    )
    assert reason(dropped) == "OSError: disk full"
    killed = ray.exceptions.WorkerCrashedError()
    assert reason(killed).startswith("The worker died unexpectedly")


@pytest.mark.parametrize("named", [0, 5])
def test_the_printed_report_has_broken_rows_and_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: int
) -> None:
    table = write_damaged_table(tmp_path / "rows.parquet", [RawRows(n).row() for n in range(30)], group=1)
    _, report = prepared([table], tmp_path / "out", max_broken_named=named, wrong_answer={"enabled": False})
    print_report(report, tmp_path, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "damaged files" in shown
    assert "the file is damaged from here to row 20" in shown
    assert "first broken row: " in shown


def test_problems_and_demonstrations_of_one_input_go_to_files_of_their_own(tmp_path: Path) -> None:
    rows = [RawRows(2).row(), {"problem": "What is the sum of 2 and 3?", "answer": "5", "level": 2, "subject": "Sums"}]
    path = write_lines(tmp_path / "rows.jsonl", [Raw(row, "kept") for row in rows])
    _, report = prepared([path], tmp_path / "out")
    assert report["out"] == {"demonstrations": 1, "problems": 1}
    (problem,) = read_problems(tmp_path / "out" / "problems.parquet")
    assert (problem.answer, problem.level, problem.subject) == ("5", 2, "Sums")
    assert len(list(read_demonstrations(tmp_path / "out" / "demonstrations.parquet"))) == 1


def test_answers_that_nobody_can_judge_are_counted_and_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    """The power tower takes the algebra system longer than any limit."""
    thought = RawRows(4).row()["combined_text"].split("<|begin_of_thought|>")[1].split("<|end_of_thought|>")[0]
    response = render_response(thought.strip(), r"So \boxed{9^{9^{9^{9}}}-9^{9^{9^{8}}}}.")
    row = {"question": "How large is this number?", "combined_text": response, "answer": r"\sqrt{2}+\frac{1}{3}"}
    path = write_lines(tmp_path / "rows.jsonl", [Raw(row, "kept")])
    limits = {"timeout_s": 1.0, "memory_mib": 1024}
    _, kept = prepared([path], tmp_path / "a", wrong_answer=limits)
    assert kept["rows"]["out"] == 1
    assert sum(kept["answers"].get(name, 0) for name in ("timeout", "error")) == 1
    _, dropped = prepared([path], tmp_path / "b", wrong_answer={**limits, "keep_unjudged": False})
    assert dropped["filters"]["wrong_answer"]["dropped"] == 1


def test_tokens_are_counted_with_a_tokenizer(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [Raw(RawRows(6).row(), "kept")])
    length = {"tokenizer": str(BACKBONE / "tokenizer.json")}
    _, report = prepared([path], tmp_path / "a", length=length)
    tokens = report["lengths"]["out"]["response_tokens"]["max"]
    assert tokens > 100
    _, report = prepared([path], tmp_path / "b", length={**length, "max_response_tokens": tokens - 1})
    assert report["filters"]["length"] == {"enabled": True, "dropped": 1, "rules": {"too_many_tokens": 1}}


def test_a_report_whose_rows_do_not_add_up_is_refused() -> None:
    counts = Counts(samples=Samples(number=1, seed=1), num_rows=3, num_broken=1)
    with pytest.raises(RunError, match="rows were lost: 3 in, 0 out, 0 dropped, 1 broken"):
        report_of(counts, PrepareConfig(), [])


def test_samples_are_the_same_however_they_are_gathered() -> None:
    rows = [{"source_file": "f", "source_row": n} for n in range(50)]
    whole, left, right = (Samples(number=5, seed=9) for _ in range(3))
    for number, row in enumerate(rows):
        whole.offer("length", row)
        (left if number % 3 else right).offer("length", row)
    right.merge(left)
    assert right.of("length") == whole.of("length")
    other = Samples(number=5, seed=10)
    for row in rows:
        other.offer("length", row)
    assert other.of("length") != whole.of("length")
    assert json.loads(json.dumps(whole.of("length"))) == whole.of("length")
