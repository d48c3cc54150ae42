"""`still-ray distill` against a real HTTP server: what it asks, what it leaves behind, how it resumes and ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from aiohttp import web
from typer.testing import CliRunner, Result

from still_ray.cli.main import app
from still_ray.formats.demonstrations import read_demonstrations, validate_demonstrations
from tests.teacher_server import TeacherServer, completion, failure

PROBLEMS = [
    {"id": "sum", "problem": "What is 2+2?", "answer": "4"},
    {"id": "open", "question": "Why is the sky blue?", "domain": "physics"},
    {"id": "power", "question": "What is 2^3?", "solution": r"It is \boxed{8}.", "domain": "physics"},
]
ANSWERS = {"2+2": "4", "sky": "scattering", "2^3": "8"}

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def right_answer(number: int, body: dict[str, Any]) -> web.Response:
    """A teacher that reasons in a field of its own, in other words for every seed, and is always right."""
    question = body["messages"][-1]["content"]
    answer = next(answer for part, answer in ANSWERS.items() if part in question)
    thought = f"Seed {body['seed']}.\n\nWait, let me check."
    return completion({"reasoning_content": thought, "content": rf"So \boxed{{{answer}}}."})


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer(right_answer) as running:
        yield running


@pytest.fixture
def invoke(tmp_path: Path, server: TeacherServer, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs the command with quick back-off on the three problems, into the folder "out"."""
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "questions.jsonl", PROBLEMS)

    def run(*settings: str, **options: str) -> Result:
        given = {"questions": "questions.jsonl", "endpoint": server.url, "model": "teacher", "output": "out", **options}
        arguments = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)]
        quick = ("first_backoff_s=0.01", "samples_per_question=2", *settings)
        return CliRunner().invoke(app, ["distill", *arguments, *(text for one in quick for text in ("--set", one))])

    return run


def write_questions(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return found


def raw(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "out" / "raw.parquet").to_pylist()
    return rows


def test_every_sample_is_asked_once_judged_and_kept_with_its_provenance(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    result = invoke("keep=correct_or_unverified", "max_tokens=100")
    assert result.exit_code == 0, result.output
    rows = raw(tmp_path)
    wanted = [(name, index) for name in ("sum", "open", "power") for index in (0, 1)]
    assert [(row["question_id"], row["sample_index"]) for row in rows] == wanted
    assert {row["question_id"]: row["verdict"] for row in rows} == {"sum": "correct", "open": None, "power": "correct"}
    assert sorted(row["seed"] for row in rows) == sorted(body["seed"] for body in server.bodies)
    assert len({row["seed"] for row in rows}) == 6
    for row in rows:
        assert (row["model"], row["served_model"], row["endpoint"]) == ("teacher", "teacher-2026-01", server.url)
        assert (row["temperature"], row["top_p"], row["max_tokens"]) == (0.6, 0.95, 100)
        assert (row["prompt_tokens"], row["completion_tokens"], row["finish_reason"]) == (7, 11, "stop")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["created_at"])
    shown = list(read_demonstrations(tmp_path / "out" / "demonstrations.parquet"))
    assert [(one.id, one.domain) for one in shown[::2]] == [
        ("sum/0", "math"),
        ("open/0", "physics"),
        ("power/0", "physics"),
    ]
    assert shown[0].thought == f"Seed {rows[0]['seed']}.\n\nWait, let me check."
    assert shown[0].solution == r"So \boxed{4}."
    columns = set(pq.read_schema(tmp_path / "out" / "demonstrations.parquet").names)
    assert columns >= {"model", "endpoint", "temperature", "top_p", "max_tokens", "seed", "created_at", "verdict"}
    assert report(tmp_path)["requests"]["outcomes"] == {"answered": 6}
    assert report(tmp_path)["questions_without_reference"] == 1
    assert report(tmp_path)["tokens"] == {"charged": 108, "limit": None, "prompt": 42, "completion": 66, "assumed": 0}


def test_only_correct_well_formed_and_new_texts_become_demonstrations(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    def behaviour(number: int, body: dict[str, Any]) -> web.Response:
        if "sky" in body["messages"][-1]["content"]:
            return completion({"reasoning": "Light.", "content": "Scattering."})
        if "2^3" in body["messages"][-1]["content"]:
            return completion({"reasoning": "2*3.", "content": r"\boxed{6}"})
        return completion({"reasoning": "2+2.", "content": r"\boxed{4}"}, finish_reason=["stop", "length"][number == 0])

    server.behaviour = behaviour
    result = invoke("samples_per_question=3", "concurrency=1")
    assert result.exit_code == 0, result.output
    assert report(tmp_path)["dropped"] == {
        "not verified": 3,
        "verdict incorrect": 3,
        "truncated: the token limit was reached": 1,
        "the same text as an earlier sample": 1,
    }
    assert validate_demonstrations(tmp_path / "out" / "demonstrations.parquet").ids == ("sum/1",)
    assert {row["id"]: row["verdict"] for row in raw(tmp_path)}["sum/0"] == "unparsable"


def test_a_complete_folder_is_left_alone_and_grows_when_more_is_wanted(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    assert invoke().exit_code == 0
    before = (tmp_path / "out" / "journal.jsonl").read_bytes()
    again = invoke()
    assert again.exit_code == 0
    assert "complete already" in again.stderr
    assert (tmp_path / "out" / "journal.jsonl").read_bytes() == before
    assert invoke("samples_per_question=3").exit_code == 0
    assert len(server.bodies) == 9
    assert len({body["seed"] for body in server.bodies}) == 9
    assert len(raw(tmp_path)) == 9
    shrunk = invoke()
    assert shrunk.exit_code == 2
    assert "may grow, not shrink" in shrunk.stderr


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("temperature=0.1", "temperature"),
        ("top_p=null", "top_p"),
        ("max_tokens=7", "max_tokens"),
        ("seed=1", "seed"),
        ("system_prompt=Think.", "system_prompt"),
        ("prompt=builtin:markers", "prompt"),
        ("extra_body={a: 1}", "extra_body"),
    ],
)
def test_what_is_asked_may_not_change_within_a_folder(
    invoke: Invoke, server: TeacherServer, setting: str, key: str
) -> None:
    assert invoke("samples_per_question=1").exit_code == 0
    result = invoke(setting)
    assert result.exit_code == 2
    assert f"holds answers to other requests: {key} differs" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(server.bodies) == 3


def test_another_teacher_or_other_questions_need_another_folder(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke().exit_code == 0
    assert "--model differs (was 'teacher', is 'other')" in invoke(model="other").stderr
    write_questions(tmp_path / "more.jsonl", [*PROBLEMS, {"question": "1+1?", "answer": 2}])
    assert "--questions differs" in invoke(questions="more.jsonl").stderr


def test_the_same_questions_in_another_file_and_another_address_of_the_teacher_go_on(
    invoke: Invoke, tmp_path: Path, server: TeacherServer
) -> None:
    assert invoke("max_requests=2").exit_code == 0
    write_questions(tmp_path / "copy.json", PROBLEMS)
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    assert invoke(questions="copy.json", endpoint=f"{elsewhere}/chat/completions/").exit_code == 0
    assert Counter(row["endpoint"] for row in raw(tmp_path)) == {server.url: 2, elsewhere: 4}


def test_failures_are_retried_as_the_same_request_and_counted(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    failures = {0: failure(429, Retry_After="0"), 1: failure(500), 3: web.Response(text="<html>"), 4: failure(503)}

    def behaviour(number: int, body: dict[str, Any]) -> web.Response:
        return failures.get(number) or right_answer(number, body)

    server.behaviour = behaviour
    result = invoke()
    assert result.exit_code == 0, result.output
    outcomes = {"answered": 6, "429": 1, "500": 1, "malformed": 1, "503": 1}
    assert report(tmp_path)["requests"] == {"sent": 10, "limit": None, "outcomes": outcomes, "end_unknown": 0}
    assert len(server.bodies) == 10
    assert len({json.dumps(body, sort_keys=True) for body in server.bodies}) == 6
    assert sum(row["attempts"] for row in raw(tmp_path)) == 10


def test_the_budget_in_requests_holds_over_all_invocations(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    server.behaviour = lambda number, body: failure(500) if number % 2 else right_answer(number, body)
    first = invoke("max_requests=5", "concurrency=2")
    assert first.exit_code == 0
    assert len(server.bodies) == 5
    assert "the budget is spent" in first.stdout
    assert invoke("max_requests=5").exit_code == 0
    assert len(server.bodies) == 5
    assert report(tmp_path)["status"] == "budget spent"
    assert invoke("max_requests=500").exit_code == 0
    assert (report(tmp_path)["status"], len(raw(tmp_path))) == ("complete", 6)
    assert report(tmp_path)["requests"]["sent"] == len(server.bodies)


def test_the_budget_in_tokens_counts_a_lost_attempt_as_its_longest_answer(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    server.behaviour = lambda number, body: web.Response(text="{") if number == 0 else right_answer(number, body)
    assert invoke("max_tokens=1000", "max_total_tokens=2700", "concurrency=4").exit_code == 0
    tokens = report(tmp_path)["tokens"]
    assert 1000 < tokens["assumed"] < 1400
    assert tokens["charged"] == tokens["assumed"] + 18 * len(raw(tmp_path)) <= 2700
    assert report(tmp_path)["status"] in ("complete", "budget spent")


def test_answers_are_judged_later_without_asking_again(invoke: Invoke, server: TeacherServer, tmp_path: Path) -> None:
    assert invoke("verify=false", "keep=all").exit_code == 0
    assert report(tmp_path)["verdicts"] == {"not verified": 6}
    assert invoke().exit_code == 0
    assert report(tmp_path)["verdicts"] == {"correct": 4, "not verified": 2}
    assert len(server.bodies) == 6


def test_as_many_requests_are_in_flight_as_are_allowed(invoke: Invoke, server: TeacherServer) -> None:
    in_flight, most = 0, 0

    async def behaviour(number: int, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.05)
        in_flight -= 1
        return right_answer(number, body)

    server.behaviour = behaviour
    assert invoke("concurrency=3", "samples_per_question=5").exit_code == 0
    assert most == 3


def test_a_question_that_always_fails_is_given_up_and_tried_again_by_the_next_invocation(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    def behaviour(number: int, body: dict[str, Any]) -> web.Response:
        return failure(502, "bad luck") if "sky" in body["messages"][-1]["content"] else right_answer(number, body)

    server.behaviour = behaviour
    result = invoke("max_attempts=3")
    assert result.exit_code == 0, result.output
    assert report(tmp_path)["given_up"] == [{"id": f"open/{index}", "why": "502: bad luck"} for index in (0, 1)]
    assert (report(tmp_path)["status"], len(raw(tmp_path)), len(server.bodies)) == ("samples given up", 4, 4 + 2 * 3)
    stopped = invoke("max_attempts=3", "max_given_up=0")
    assert stopped.exit_code == 1
    assert "journal.jsonl" in stopped.stderr
    assert "resume with: still-ray" in stopped.stderr
    server.behaviour = right_answer
    assert invoke().exit_code == 0
    assert (report(tmp_path)["status"], len(raw(tmp_path))) == ("complete", 6)


def test_a_refused_question_is_recorded_and_not_asked_again(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    def behaviour(number: int, body: dict[str, Any]) -> web.Response:
        return (
            failure(400, r"not \boxed{4}") if "2+2" in body["messages"][-1]["content"] else right_answer(number, body)
        )

    server.behaviour = behaviour
    assert invoke("keep=all").exit_code == 0
    first = report(tmp_path)
    assert first["dropped"] == {"refused by the endpoint": 2}
    assert (first["samples_answered"], first["samples_refused"]) == (4, 2)
    assert first["verdicts"] == {"not verified": 2, "correct": 2}
    assert [row["content"] for row in raw(tmp_path)][:2] == [r"400: not \boxed{4}"] * 2
    assert [row["verdict"] for row in raw(tmp_path)] == [None] * 4 + ["correct"] * 2
    assert first["requests"]["outcomes"] == {"answered": 4, "refused": 2}
    again = invoke("keep=all")
    assert (again.exit_code, "complete already" in again.stderr, len(server.bodies)) == (0, True, 6)
    assert report(tmp_path) == first
    with (tmp_path / "out" / "journal.jsonl").open("a") as journal:  # as older versions wrote it
        judged = {"question_id": "sum", "sample_index": 0, "verdict": "correct", "extracted": "4", "detail": ""}
        journal.write(json.dumps({"event": "judged", **judged}) + "\n")
    assert invoke("keep=all").exit_code == 0
    assert (report(tmp_path), raw(tmp_path)[0]["verdict"]) == (first, None)


def test_five_refusals_wait_for_what_is_in_flight_and_an_answer_lets_the_run_go_on(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    seen_in_doubt = 0

    async def behaviour(number: int, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal seen_in_doubt
        while len(server.bodies) < 6:
            await asyncio.sleep(0.001)
        if number < 5:
            return failure(400, "too long")
        await asyncio.sleep(0.3)
        seen_in_doubt = seen_in_doubt or len(server.bodies)
        return right_answer(number, body)

    server.behaviour = behaviour
    result = invoke("samples_per_question=4", "concurrency=6")
    assert result.exit_code == 0, result.output
    assert seen_in_doubt <= 10  # four went out for the first four refusals, and none for the fifth
    assert report(tmp_path)["status"] == "complete"
    assert report(tmp_path)["requests"]["outcomes"] == {"answered": 7, "refused": 5}


def test_five_refusals_end_the_run_if_what_is_in_flight_is_not_answered_either(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    async def behaviour(number: int, body: dict[str, Any]) -> web.StreamResponse:
        while len(server.bodies) < 6:
            await asyncio.sleep(0.001)
        if number < 5:
            return failure(400, "too long")
        await asyncio.sleep(0.2)
        return failure(503)

    server.behaviour = behaviour
    result = invoke("samples_per_question=4", "concurrency=6")
    sent = len(server.bodies)
    assert (result.exit_code, sent <= 10) == (2, True)
    assert "no request was answered: 400: too long" in result.stderr
    assert report(tmp_path)["status"] == "failed"
    assert report(tmp_path)["requests"]["outcomes"] == {"400": 5, "503": sent - 5}


def test_an_endpoint_that_answers_nothing_is_no_success_however_few_samples_there_are(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    server.behaviour = lambda number, body: failure(503, "down")
    result = invoke("max_attempts=2")
    assert (result.exit_code, result.stdout, len(server.bodies)) == (1, "", 12)
    assert "no request was answered, 6 samples were given up, the last one: 503: down" in result.stderr
    lines = [line.strip().split("  ", 1)[-1].strip() for line in result.stderr.splitlines()]
    at_once = lines.index("a request failed, and is asked again after a wait, at most 2 times: 503: down")
    assert not any("failed 12" in line for line in lines[:at_once])
    assert lines.index("12 requests failed with 503: down") > at_once
    assert (report(tmp_path)["status"], len(report(tmp_path)["given_up"])) == ("failed", 6)
    server.behaviour = right_answer
    assert invoke("max_attempts=2").exit_code == 0
    assert report(tmp_path)["status"] == "complete"


def test_a_count_of_tokens_that_cannot_be_is_taken_for_none(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    server.behaviour = lambda number, body: completion(
        {"reasoning": f"Seed {body['seed']}.", "content": "So."}, tokens=(7, 10**25 if number == 0 else 11)
    )
    assert invoke("keep=all", "concurrency=1").exit_code == 0
    first = report(tmp_path)
    tokens = first["tokens"]
    assert (tokens["prompt"], tokens["completion"]) == (7 * 6, 11 * 5)
    assert 20_000 < tokens["assumed"] < 20_400
    assert [row["completion_tokens"] for row in raw(tmp_path)].count(None) == 1
    path = tmp_path / "out" / "journal.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    poisoned = next(event for event in events if event["event"] == "answered")
    poisoned.update(completion_tokens=10**25, charged_tokens=10**25 + 7)  # as older versions wrote it
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    result = invoke("keep=all")
    assert result.exit_code == 0, result.output
    assert report(tmp_path) == first


def test_a_multiple_choice_question_is_judged_by_its_options(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    question = "Which is 2+2?\n(A) 3\n(B) 4\n(C) 5"
    write_questions(tmp_path / "choices.jsonl", [{"question": question, "answer": "B", "domain": "choice"}])
    assert invoke("samples_per_question=1", questions="choices.jsonl").exit_code == 0
    assert [row["content"] for row in raw(tmp_path)] == [r"So \boxed{4}."]
    assert report(tmp_path)["verdicts"] == {"correct": 1}


@pytest.mark.parametrize("name", ["report.json", "problems.parquet"])
def test_the_output_of_another_command_is_left_alone(
    invoke: Invoke, server: TeacherServer, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("precious")
    result = invoke()
    assert (result.exit_code, result.stdout, server.bodies) == (2, "", [])
    assert f"/out: holds the output of another command ({name}); give another --output" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, "precious")]


def test_what_a_killed_process_was_writing_is_removed(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke().exit_code == 0
    left = [".raw.parquet.123.tmp", ".demonstrations.parquet.123.tmp", ".report.json.4.tmp", ".distill.yaml.4.tmp"]
    for name in (*left, ".notes.tmp"):
        (tmp_path / "out" / name).touch()
    assert invoke().exit_code == 0
    assert [path.name for path in (tmp_path / "out").glob(".*.tmp")] == [".notes.tmp"]


def test_an_endpoint_that_refuses_everything_is_wrong_input_and_settings_may_change_then(
    invoke: Invoke, server: TeacherServer
) -> None:
    server.behaviour = lambda number, body: (
        failure(400, "max_tokens is too large") if body["max_tokens"] > 100 else right_answer(number, body)
    )
    result = invoke("concurrency=1")
    assert result.exit_code == 2
    assert "max_tokens is too large" in result.stderr
    assert len(server.bodies) == 5
    assert invoke("max_tokens=100").exit_code == 0


@pytest.mark.parametrize(
    ("response", "exit_code", "word"),
    [
        (failure(401), 2, "--api-key-env"),
        (failure(404), 2, "--model"),
        (failure(307, Location="http://elsewhere"), 2, "307"),
        (failure(429, code="insufficient_quota"), 1, "answers no more"),
        (failure(402), 1, "answers no more"),
    ],
)
def test_what_no_retry_can_mend_ends_the_run(
    invoke: Invoke, server: TeacherServer, response: web.Response, exit_code: int, word: str
) -> None:
    server.behaviour = lambda number, body: response
    result = invoke("concurrency=1")
    assert result.exit_code == exit_code, result.output
    assert word in result.stderr
    assert len(server.bodies) == 1
    assert result.stdout == ""


def test_an_endpoint_that_asks_for_hours_stops_the_run(invoke: Invoke, server: TeacherServer) -> None:
    server.behaviour = lambda number, body: failure(429, Retry_After="7200")
    result = invoke("concurrency=1")
    assert (result.exit_code, len(server.bodies)) == (1, 1)
    assert "asks to wait 7200 s, more than max_retry_after_s (600)" in result.stderr


def test_an_interrupt_is_resumable_and_counts_what_was_in_flight(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    async def behaviour(number: int, body: dict[str, Any]) -> web.StreamResponse:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
        return right_answer(number, body)

    server.behaviour = behaviour
    result = invoke("concurrency=1")
    assert result.exit_code == 130
    assert "interrupted; resume with: still-ray" in result.stderr
    assert (report(tmp_path)["status"], len(raw(tmp_path))) == ("interrupted", 3)
    assert report(tmp_path)["requests"] == {"sent": 4, "limit": None, "outcomes": {"answered": 3}, "end_unknown": 1}
    assert invoke("concurrency=1").exit_code == 0
    assert (report(tmp_path)["status"], len(raw(tmp_path)), len(server.bodies)) == ("complete", 6, 7)


def test_an_interrupt_settles_refusals_that_waited_for_a_first_answer(
    invoke: Invoke, server: TeacherServer, tmp_path: Path
) -> None:
    async def behaviour(number: int, body: dict[str, Any]) -> web.StreamResponse:
        if number < 2:
            return failure(400, "too long")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
        return right_answer(number, body)

    server.behaviour = behaviour
    assert invoke("concurrency=1").exit_code == 130
    assert report(tmp_path)["requests"] == {"sent": 3, "limit": None, "outcomes": {"400": 2}, "end_unknown": 1}


SECRETS = ("k-0123456789abcdef", "pass-w0rd-in-address", "query-secret-77", "somebody-known")


def test_no_credentials_anywhere_whatever_the_endpoint_says(
    invoke: Invoke, server: TeacherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def echoing(number: int, body: dict[str, Any]) -> web.Response:
        told = " ".join([*SECRETS, server.headers[number]["Authorization"], server.queries[number]])
        if number in (0, 1):
            return failure([500, 401][number], told)
        return completion({"reasoning": told, "content": rf"{told} \boxed{{4}}"})

    server.behaviour = echoing
    monkeypatch.setenv("TEACHER_KEY", SECRETS[0])
    address = server.url.replace("://", f"://{SECRETS[3]}:{SECRETS[1]}@") + f"?key={SECRETS[2]}"
    monkeypatch.setattr("sys.argv", ["still-ray", "distill", "--endpoint", address])
    results = [invoke("concurrency=1", endpoint=address, api_key_env="TEACHER_KEY") for _ in range(2)]
    assert [result.exit_code for result in results] == [2, 0]
    assert server.queries[0] == f"/v1/chat/completions?key={SECRETS[2]}"
    assert server.headers[0]["Authorization"].startswith("Basic ")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) >= 5
    encoded = server.headers[0]["Authorization"].removeprefix("Basic ")
    texts = [result.output for result in results] + [path.read_bytes().decode(errors="replace") for path in written]
    texts += [str(row) for row in raw(tmp_path)]
    assert not [secret for secret in (*SECRETS, encoded) for text in texts if secret in text]
    assert Counter(row["endpoint"] for row in raw(tmp_path)) == {server.url: 6}


def test_the_resume_command_of_a_failed_run_hides_the_credentials_of_the_address(
    invoke: Invoke, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.behaviour = lambda number, body: failure(402)
    monkeypatch.setattr("sys.argv", ["still-ray", "distill", "--endpoint", "https://me:secret@host:8/v1?key=hidden"])
    result = invoke()
    assert "resume with: still-ray distill --endpoint 'https://***@host:8/v1?***'" in result.stderr


def test_the_key_is_sent_as_a_bearer_token(
    invoke: Invoke, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-0123456789")
    assert invoke("samples_per_question=1").exit_code == 0
    assert server.headers[0]["Authorization"] == "Bearer k-0123456789"


def test_the_settings_of_a_folder_are_a_recipe_for_another(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("Consider: {question}")
    assert invoke("prompt=ask.txt", "extra_body={chat_template_kwargs: {thinking: true}}").exit_code == 0
    settings = tmp_path / "out" / "distill.yaml"
    assert yaml.safe_load(settings.read_text())["samples_per_question"] == 2
    result = invoke(recipe=str(settings))
    assert (result.exit_code, "complete already" in result.stderr) == (0, True)


def test_json_on_stdout_is_the_report(invoke: Invoke, tmp_path: Path, server: TeacherServer) -> None:
    base = ["distill", "--questions", "questions.jsonl", "--endpoint", server.url, "--model", "teacher"]
    result = CliRunner().invoke(app, [*base, "--output", "out", "--json", "--set", "samples_per_question=1"])
    assert json.loads(result.stdout) == report(tmp_path)


@pytest.mark.parametrize(
    ("options", "settings", "line"),
    [
        ({"endpoint": "localhost:8000/v1"}, [], "--endpoint: is not the address of an endpoint"),
        ({"endpoint": "http://me:topsecret1@h:x/v1"}, [], "--endpoint: is not the address of an endpoint"),
        ({"api_key_env": "NOWHERE_SET"}, [], "--api-key-env NOWHERE_SET: no such environment variable"),
        ({"questions": "nowhere.jsonl"}, [], "nowhere.jsonl: no such file"),
        ({}, ["temperatur=1"], "--set: temperatur: unknown key; did you mean temperature?"),
        ({}, ["verify=false"], "--set: keep: correct needs verify: true"),
        ({}, ["extra_body={seed: 1}"], "--set: extra_body may not hold seed"),
        ({}, ["prompt=nowhere.txt"], "/nowhere.txt: the prompt template cannot be read"),
        ({}, ["extra_body={since: 2024-01-01}"], "--set: extra_body must hold JSON values only"),
        ({}, ["max_total_tokens=100", "max_tokens=50"], "max_total_tokens is 100, but one request reserves 362: max_"),
        ({"model": "m\udcff"}, [], "--model: must be the teacher's name at the endpoint"),
        ({"model": " "}, [], "--model: must be the teacher's name at the endpoint"),
        ({"output": "questions.jsonl/out"}, [], "questions.jsonl/out: cannot be written to"),
    ],
)
def test_wrong_input_is_said_in_one_line(
    invoke: Invoke, server: TeacherServer, options: dict[str, str], settings: list[str], line: str
) -> None:
    result = invoke(*settings, **options)
    assert (result.exit_code, result.stdout, server.bodies) == (2, "", [])
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "topsecret1" not in result.stderr
