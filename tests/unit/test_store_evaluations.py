"""The folder of an evaluation: resumed under the same settings, refused under others; digests of files and models."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from still_ray.location import Location
from still_ray.store import digests
from still_ray.store.digests import file_digest, model_digest, model_files_digest, source_digest
from still_ray.store.evaluations import EvaluationFolder
from still_ray.store.scratch import SCRATCH_VARIABLE
from still_ray.types import InputError
from tests.fakes import make_trajectory

SETTINGS: dict[str, Any] = {
    "model": {"name": "a", "path": "/a", "sha256": "11"},
    "sampling": {"temperature": 0.6, "num_samples": 2},
    "prompt": {"text": "x" * 100},
}


def changed(part: str, **changes: Any) -> dict[str, Any]:
    return {**SETTINGS, part: {**SETTINGS[part], **changes}}


def test_what_was_judged_is_there_after_a_kill_and_a_key_is_taken_once(place: Location) -> None:
    first = EvaluationFolder(place)
    first.open(SETTINGS)
    row = make_trajectory("p1", 0)
    assert first.commit([row, row]) == [row]
    assert first.rows() == [row]
    again = EvaluationFolder(place)  # another process
    again.open(SETTINGS)
    assert set(again.keys()) == {row.key} and again.result() is None
    other = make_trajectory("p1", 1)
    assert again.commit([make_trajectory("p1", 0, response="later"), other]) == [other]
    assert sorted(again.rows(), key=lambda row: row.key) == [row, other]


def test_a_complete_evaluation_has_its_result_and_its_responses_and_nothing_else(place: Location) -> None:
    folder = EvaluationFolder(place)
    folder.open(SETTINGS)
    rows = [make_trajectory("p1", index) for index in range(2)]
    folder.commit(rows)
    result = folder.finish(rows, {"accuracy": 1.0})
    assert EvaluationFolder(place).result() == result
    assert result["accuracy"] == 1.0 and result["raw_outputs"]["num_rows"] == 2
    assert EvaluationFolder(place).raw() == rows
    assert not list((place / "rows").glob("*"))
    assert result["raw_outputs"]["sha256"] == file_digest(place / "eval.parquet").sha256


def test_responses_that_are_not_those_of_the_result_are_refused(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    folder.open(SETTINGS)
    folder.finish([make_trajectory()], {})
    with (tmp_path / "eval.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"eval.parquet: is not the file that eval.json names"):
        folder.raw()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (changed("model", sha256="12"), r'model.sha256 was "11", is now "12"'),
        (changed("sampling", temperature=1.0), r"sampling.temperature was 0.6, is now 1.0"),
        ({**SETTINGS, "versions": {"vllm": "1"}}, r'versions was null, is now {"vllm": "1"}'),
        (changed("prompt", text="y" * 100), r'prompt.text was "x{59}…, is now "y{59}…'),
    ],
)
def test_other_settings_are_refused_in_one_line(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(
        InputError, match=rf"holds an evaluation with other settings \({message}\); give another --outp"
    ):
        EvaluationFolder(tmp_path).open(settings)


def test_nothing_is_refused_before_there_is_a_response(tmp_path: Path) -> None:
    EvaluationFolder(tmp_path).open(SETTINGS)
    EvaluationFolder(tmp_path).open(changed("sampling", temperature=1.0))
    assert json.loads((tmp_path / "settings.json").read_text()) == changed("sampling", temperature=1.0)


def begin(root: Path) -> None:
    """An evaluation that was killed after its first response."""
    folder = EvaluationFolder(root)
    folder.open(SETTINGS)
    folder.commit([make_trajectory()])
    folder.rows()


def test_a_model_that_was_moved_is_the_same_model(tmp_path: Path) -> None:
    begin(tmp_path)
    EvaluationFolder(tmp_path).open(changed("model", path="/b", name="b"))


@pytest.mark.parametrize(("eos", "resumes"), [([345, 343], True), ([343], False)])
def test_a_former_release_stopped_at_the_models_own_eos_alone(tmp_path: Path, eos: list[int], resumes: bool) -> None:
    begin(tmp_path)
    end = {"token": "<|im_end|>", "token_id": 345, "tokenizer_eos_id": 343, "generation_eos_ids": eos}
    now = {**SETTINGS, "end_of_turn": end}
    if resumes:
        EvaluationFolder(tmp_path).open(now)
    else:
        with pytest.raises(InputError, match=r"other settings \(end_of_turn was null"):
            EvaluationFolder(tmp_path).open(now)


def test_a_model_without_a_digest_is_told_by_its_path(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path)
    unknown = {"sha256": None, "path": "org/A"}
    folder.open(changed("model", **unknown))
    folder.finish([make_trajectory()], {})
    EvaluationFolder(tmp_path).open(changed("model", **unknown, name="b"))
    with pytest.raises(InputError, match=r'\(model\.path was "org/A", is now "org/B"\)'):
        EvaluationFolder(tmp_path).open(changed("model", sha256=None, path="org/B"))


def test_a_result_without_settings_is_nobodys_to_resume(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(InputError, match=r"a result without settings\.json beside it; give another --output"):
        EvaluationFolder(tmp_path).open(SETTINGS)


# -- digests ----------------------------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_digest_of_a_model_is_that_of_its_weights_wherever_they_are(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model-2.safetensors").write_bytes(b"bb")
        (tmp_path / folder / "model-1.safetensors").write_bytes(b"a")
        (tmp_path / folder / "config.json").write_text(folder)
    lines = f"model-1.safetensors 1 {sha256(b'a')}\nmodel-2.safetensors 2 {sha256(b'bb')}\n"
    digest = model_digest(str(tmp_path / "one"))
    assert digest is not None and (digest.sha256, digest.num_bytes) == (sha256(lines.encode()), 3)
    assert model_digest(str(tmp_path / "two")) == digest
    (tmp_path / "two" / "model-1.safetensors").write_bytes(b"c")
    assert model_digest(str(tmp_path / "two")) != digest


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.model", "chat_template.jinja"])
def test_what_stands_beside_the_weights_has_a_digest_too(name: str, tmp_path: Path) -> None:
    assert model_files_digest(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    before = model_files_digest(str(tmp_path))
    assert before == sha256(f"tokenizer.json 2 {sha256(b'{}')}\n".encode())
    (tmp_path / "model.safetensors").write_bytes(b"a")
    (tmp_path / "README.md").write_text("words")
    assert model_files_digest(str(tmp_path)) == before
    (tmp_path / name).write_text("1")
    assert model_files_digest(str(tmp_path)) != before


def test_what_a_hub_id_has_beside_its_weights_is_what_was_fetched_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_files_digest("org/model") is None
    commit = "0" * 40
    snapshot = tmp_path / "models--org--model" / "snapshots" / commit
    (tmp_path / "models--org--model" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--model" / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert model_files_digest("org/model") == sha256(f"config.json 2 {sha256(b'{}')}\n".encode())


def test_the_digest_of_a_large_file_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    monkeypatch.setattr(digests, "REMEMBERED_BYTES", 4)
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    before = path.stat()
    assert file_digest(path).sha256 == sha256(b"12345")
    path.write_bytes(b"54321")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(path).sha256 == sha256(b"12345"), "not read again: size and time are the same"
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert file_digest(path).sha256 == sha256(b"54321")


def test_the_digest_of_code_changes_with_any_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text("1")
    before = source_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("1")
    assert source_digest(tmp_path) == before
    single = tmp_path / "single"
    single.write_text("1")
    with_file = source_digest(tmp_path, single)
    assert with_file != before
    single.write_text("2")
    assert source_digest(tmp_path, single) != with_file and source_digest(tmp_path) == before
    (tmp_path / "inner" / "a.py").write_text("2")
    assert source_digest(tmp_path) != before


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: cannot be read: No such file"):
        file_digest(tmp_path / "nowhere")
