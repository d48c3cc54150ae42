"""Benchmarks by name, file and data set: where they are found, and their rows as problems."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from still_ray.formats.benchmarks import (
    FOLDER_VARIABLE,
    KNOWN,
    BenchmarkSource,
    benchmark_problems,
    find_benchmarks,
    holds_problems,
    written_out,
)
from still_ray.formats.problems import read_problems
from still_ray.types import Domain, InputError, Problem
from still_ray.verifiers.options import options_of

GPQA = {
    "Record ID": "rec1",
    "Question": "Which is the\nlargest?",
    "Correct Answer": "four \n",
    "Incorrect Answer 1": "one",
    "Incorrect Answer 2": "two",
    "Incorrect Answer 3": "three",
    "Subdomain": "Arithmetic",
    "Explanation": "count",
}


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problems_of(source: BenchmarkSource, seed: int = 42) -> list[Problem]:
    return list(benchmark_problems(source, seed=seed))


# -- finding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "file", "name"),
    [
        ("AIME 2024", "AIME24.jsonl", "AIME24"),
        ("aime24", "aime_2024.parquet", "AIME24"),
        ("AIME25", "AIME-2025.json", "AIME25"),
        ("math-oai", "MATH_OAI.jsonl", "MATH-OAI"),
        ("MATH-OAI", "math500.jsonl.gz", "MATH-OAI"),
        ("GPQA diamond", "gpqa_diamond.csv", "GPQA-diamond"),
        ("OlymMATH-EN-HARD", "OlymMATH-EN-HARD.jsonl", "OlymMATH-EN-HARD"),
    ],
)
def test_a_name_is_found_in_the_folder_however_it_is_written(
    asked: str, file: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).touch()
    (tmp_path / "other.jsonl").touch()
    (found,) = find_benchmarks(asked, tmp_path)
    assert (found.name, found.source) == (name, str(tmp_path / file))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert find_benchmarks(asked, None) == [found]


def test_the_name_itself_comes_before_any_other_name(tmp_path: Path) -> None:
    (tmp_path / "gpqa").mkdir()  # the whole set, beside its hardest part
    for name in ("gpqa.csv", "gpqa_diamond.csv"):
        (tmp_path / name).touch()
    (found,) = find_benchmarks("GPQA", tmp_path)
    assert found.source == str(tmp_path / "gpqa_diamond.csv")


def test_two_files_of_one_name_are_not_chosen_from(tmp_path: Path) -> None:
    for name in ("AIME24.jsonl", "aime_24.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"several could be AIME24: AIME24\.jsonl, aime_24\.parquet; give the one by"):
        find_benchmarks("AIME24", tmp_path)


@pytest.mark.parametrize("asked", ["AIME24", "OlymMATH-EN-HARD"])
def test_a_folder_of_results_is_not_taken_for_the_benchmark(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / asked).mkdir(parents=True)
    (tmp_path / f"{asked}.jsonl").touch()
    monkeypatch.chdir(tmp_path / "here")
    (found,) = find_benchmarks(asked, tmp_path)
    assert found.source == str(tmp_path / f"{asked}.jsonl")
    (meant,) = find_benchmarks(f"./{asked}", tmp_path)
    assert meant.source == str(tmp_path / "here" / asked)


def test_a_name_of_several_benchmarks_stands_for_all_of_them(tmp_path: Path) -> None:
    for name in ("OlymMATH-EN-EASY", "OlymMATH-EN-HARD"):
        (tmp_path / f"{name}.jsonl").touch()
    assert [found.name for found in find_benchmarks("olymmath", tmp_path)] == ["OlymMATH-EN-EASY", "OlymMATH-EN-HARD"]


def test_a_name_without_a_file_is_a_data_set_of_the_hub(tmp_path: Path) -> None:
    for known in KNOWN:
        (found,) = find_benchmarks(known.name, tmp_path)
        assert found.source.startswith("hub:") and found.name == known.name
        assert find_benchmarks(found.source, None) == [found], "a result can name it again"


def test_a_file_of_the_users_own_has_its_name_and_a_known_ones_is_judged_like_it(tmp_path: Path) -> None:
    mine, gpqa = tmp_path / "My tests (2).jsonl", tmp_path / "gpqa_diamond.jsonl"
    for path in (mine, gpqa):
        path.touch()
    assert find_benchmarks(str(mine), None) == [BenchmarkSource(name="My-tests-2", source=str(mine))]
    (found,) = find_benchmarks(str(gpqa), None)
    assert found.domain == "choice"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("nowhere.jsonl", r"^nowhere\.jsonl: no such file$"),
        ("a/b", "a/b: no such file"),
        ("AIME 1999", "neither a file nor a known benchmark; known are MATH-OAI, AIME24, .*OlymMATH"),
        ("hub:a:b:c:d", "hub:OWNER/NAME:CONFIG:SPLIT is expected"),
    ],
)
def test_what_is_not_there_is_named(asked: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        find_benchmarks(asked, tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder; --benchmarks-dir"):
        find_benchmarks("AIME24", tmp_path / "nowhere")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=f"nowhere: no such folder; {FOLDER_VARIABLE}"):
        find_benchmarks("AIME24", None)


# -- rows -------------------------------------------------------------------------------------------------------------


def test_files_of_problems_are_read_as_they_are_and_others_are_not(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "plain.jsonl", [{"problem": "1+1?", "solution": r"\boxed{2}"}])
    other = write_lines(tmp_path / "other.jsonl", [{"Prompt": "1+1?", "ground_truth": 2}])
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"problem": "1+1?", "answer": "2"}]))
    sources = {path: BenchmarkSource(name="x", source=str(path)) for path in (plain, other, array)}
    assert [holds_problems(source) for source in sources.values()] == [True, True, False]
    for source in sources.values():
        (problem,) = problems_of(source)
        assert (problem.question, problem.answer, problem.domain) == ("1+1?", "2", Domain.MATH)


def test_options_in_columns_are_shuffled_by_seed_and_stand_behind_the_question(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "g.jsonl", [{**GPQA, "Record ID": f"rec{n}"} for n in range(40)])
    source = BenchmarkSource(name="GPQA-diamond", source=str(path), domain="choice")
    problems = problems_of(source)
    for problem in problems:
        options = options_of(problem.question)
        assert sorted(options.values()) == ["four", "one", "three", "two"]
        assert options[problem.answer] == "four" and problem.domain is Domain.CHOICE
        assert problem.question.startswith("Which is the\nlargest?\n\n(A) ") and problem.subject == "Arithmetic"
    assert {problem.answer for problem in problems} == {*"ABCD"}
    assert problems_of(source) == problems != problems_of(source, seed=1)
    one = write_lines(tmp_path / "one.jsonl", [{**GPQA, "Record ID": "rec7"}])
    assert problems_of(BenchmarkSource(name="one", source=str(one))) == problems[7:8], "whatever is beside it"


def test_comma_separated_values_with_options_in_columns(tmp_path: Path) -> None:
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, GPQA.keys())
        writer.writeheader()
        writer.writerow(GPQA)
    (found,) = find_benchmarks("GPQA", tmp_path)
    (problem,) = problems_of(found)
    assert options_of(problem.question)[problem.answer] == "four" and not holds_problems(found)
    path.write_text("Question\n")
    with pytest.raises(InputError, match=r"gpqa_diamond\.csv: the file is empty"):
        problems_of(found)


def test_the_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    rows = [{**GPQA, "Record ID": f"rec{n}"} for n in range(8)]
    turned = [dict(reversed(row.items())) for row in rows]
    paths = [write_lines(tmp_path / name, lines) for name, lines in (("a.jsonl", rows), ("b.jsonl", turned))]
    first, second = (problems_of(BenchmarkSource(name="g", source=str(path))) for path in paths)
    assert first == second


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\f", "\x1c", "\r\n"])
def test_a_row_of_comma_separated_values_ends_where_the_format_says(sign: str, tmp_path: Path) -> None:
    path = tmp_path / "g.csv"
    question = f"Which{sign}is the largest?"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, GPQA.keys())
        writer.writeheader()
        writer.writerow({**GPQA, "Question": question, "Record ID": "with,comma" + sign.strip("\r\n")})
    (problem,) = problems_of(BenchmarkSource(name="g", source=str(path)))
    assert problem.question.startswith(question)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Question": " "}, '"Question" must be a text that is not blank'),
        ({"Incorrect Answer 1": "four"}, "2 to 26 different options are expected, found 3"),
        ({"Correct Answer": None}, 'row 1: missing key "Correct Answer"'),
    ],
)
def test_options_that_make_no_question(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "g.jsonl", [{**GPQA, **changes}])
    with pytest.raises(InputError, match=message):
        problems_of(BenchmarkSource(name="g", source=str(path)))


def test_a_letter_is_a_choice_where_the_benchmark_is_one(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "GPQA.jsonl", [{"problem": "Which? (A) x (B) y", "solution": r"\boxed{B}"}])
    (found,) = find_benchmarks("gpqa", tmp_path)
    (problem,) = problems_of(found)
    assert (problem.domain, problem.answer) == (Domain.CHOICE, "B")
    (by_file,) = find_benchmarks(str(path), None)
    assert (by_file.source, by_file.domain) == (found.source, "choice")


def test_what_is_written_out_is_read_back_as_the_same_problems(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "g.jsonl", [GPQA, {**GPQA, "Record ID": "rec2", "Question": "Wie groß?\u2028"}])
    source = BenchmarkSource(name="g", source=str(path))
    written = tmp_path / "written.jsonl"
    written.write_text(written_out(iter(problems_of(source))), encoding="utf-8")
    assert list(read_problems(written)) == problems_of(source)


def test_a_row_that_is_no_problem_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"Prompt": "1+1?", "ground_truth": 2}, {"Prompt": "2+2?"}])
    with pytest.raises(InputError, match=r"x\.jsonl, row 2: "):
        problems_of(BenchmarkSource(name="x", source=str(path)))


@pytest.mark.parametrize("form", ["saved", "loadable"])
def test_directories_of_the_datasets_package(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `save_to_disk` wrote, and what `load_dataset` finds in a folder, the way it finds a hub's data set."""
    datasets = pytest.importorskip("datasets")
    rows = [{"Problem": f"{n}+{n}?", "Answer": str(2 * n), "ID": f"2024-{n}"} for n in range(3)]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    if form == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "AIME24")
        (source,) = find_benchmarks("AIME24", tmp_path)
        assert source.source == str(tmp_path / "AIME24")
    else:
        write_lines(tmp_path / "data" / "train.jsonl", rows)
        (source,) = find_benchmarks(f"hub:{tmp_path / 'data'}::train", None)
        assert source.name == "data"
    assert [(problem.question, problem.answer) for problem in problems_of(source)] == [
        (f"{n}+{n}?", str(2 * n)) for n in range(3)
    ]


def test_a_data_set_that_cannot_be_loaded_is_one_line_with_a_way_out(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_lines(tmp_path / "data" / "train.jsonl", [GPQA])
    source = BenchmarkSource(name="x", source=f"hub:{tmp_path / 'data'}::nowhere")
    with pytest.raises(InputError, match=r"data::nowhere: the data set cannot be loaded: .*nowhere.*--benchmarks-dir"):
        problems_of(source)


@pytest.mark.parametrize(
    ("asked", "counts"), [("MATH-OAI", [500]), ("AIME 2024", [30]), ("AIME25", [30]), ("OlymMATH", [100, 100])]
)
def test_the_published_files_are_found_and_read(asked: str, counts: list[int]) -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / "MATH_OAI.jsonl").exists():
        pytest.skip("the published files are not beside the project")
    sources = find_benchmarks(asked, folder)
    assert all(holds_problems(source) for source in sources)
    assert [sum(1 for _ in read_problems(source.source)) for source in sources] == counts
