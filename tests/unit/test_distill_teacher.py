"""The client against a real HTTP server: what it sends, and what it makes of every kind of answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from still_ray.config.distill import DistillConfig
from still_ray.distill.endpoint import Endpoint
from still_ray.distill.retry import AttemptError, Consequence
from still_ray.distill.teacher import OpenAiTeacher, Reply, request_body
from tests.teacher_server import TeacherServer, ThreadedServer, completion, failure

CONFIG = DistillConfig(timeout_s=30.0, max_tokens=50)
HASTY = CONFIG.model_copy(update={"timeout_s": 0.5})


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies at which nobody answers, spellings that httpx stops at, no certificates: nothing to a server here."""
    for name, value in {
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "ALL_PROXY": "socks5://127.0.0.1:9",
        "no_proxy": "[::1],fd00::/8,*.local",
        "SSL_CERT_FILE": "/nonexistent/ca.pem",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_API_KEY", "k-0123456789")


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer(lambda number, body: completion("text")) as running:
        yield running


def asked(server: ThreadedServer, config: DistillConfig = CONFIG) -> Reply:
    async def ask() -> Reply:
        async with OpenAiTeacher(Endpoint.from_address(server.url), "m", config) as teacher:
            return await teacher.ask("What is 2+2?", 5)

    return asyncio.run(ask())


def error_of(server: ThreadedServer, config: DistillConfig = CONFIG) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        asked(server, config)
    return caught.value


def test_what_is_sent(server: TeacherServer) -> None:
    asked(server)
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "What is 2+2?"}],
            "max_tokens": 50,
            "temperature": 0.6,
            "top_p": 0.95,
            "seed": 5,
        }
    ]
    assert server.queries == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == "Bearer k-0123456789"


def test_a_teacher_elsewhere_is_asked_by_way_of_the_proxy(
    server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://someone:s3cr3t-word@").removesuffix("/v1"))

    async def ask() -> Reply:
        async with OpenAiTeacher(Endpoint.from_address("http://teacher.example/v1"), "m", CONFIG) as teacher:
            return await teacher.ask("What is 2+2?", 5)

    assert asyncio.run(ask()).content == "text"
    assert server.headers[0]["Host"] == "teacher.example"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(AttemptError, match=r"by way of the proxy that http_proxy names") as refusal:
        asyncio.run(ask())
    assert refusal.value.reason == "no connection"


def test_what_is_null_is_not_sent_and_what_is_extra_is() -> None:
    config = DistillConfig(
        temperature=None,
        top_p=None,
        send_seed=False,
        system_prompt="Think.",
        max_tokens=9,
        max_tokens_key="max_completion_tokens",
        extra_body={"reasoning_effort": "high"},
    )
    assert request_body("m", config, "Why?", 5) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Think."}, {"role": "user", "content": "Why?"}],
        "max_completion_tokens": 9,
        "reasoning_effort": "high",
    }


THINKING_PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "step "}, {"type": "text", "text": "one"}]},
    {"type": "text", "text": "so 4"},
]


@pytest.mark.parametrize(
    ("message", "reasoning", "content"),
    [
        ("so 4", "", "so 4"),
        ({"content": "so 4", "reasoning_content": "step one"}, "step one", "so 4"),
        ({"content": "so 4", "reasoning": "step one"}, "step one", "so 4"),
        ({"content": "so 4", "reasoning": None, "reasoning_content": ""}, "", "so 4"),
        ({"content": None, "reasoning": "step one"}, "step one", ""),
        ({"content": THINKING_PARTS}, "step one", "so 4"),
        ({"content": [{"type": "text", "text": "so "}, {"type": "text", "text": "4"}]}, "", "so 4"),
        ({"content": "so \ud800 4"}, "", "so \N{REPLACEMENT CHARACTER} 4"),
        ({"content": "so \ud83d\ude00"}, "", "so \N{GRINNING FACE}"),
    ],
)
def test_where_the_reasoning_is(server: TeacherServer, message: Any, reasoning: str, content: str) -> None:
    server.behaviour = lambda number, body: completion(message)
    reply = asked(server)
    assert (reply.reasoning, reply.content) == (reasoning, content)
    assert (reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("stop", 7, 11)
    assert (reply.served_model, reply.response_id) == ("teacher-2026-01", "chatcmpl-1")


def test_an_endpoint_that_drips_blank_lines_before_its_answer(server: TeacherServer) -> None:
    server.behaviour = lambda number, body: web.Response(text="\n\n\n" + str(completion("late").text))
    assert asked(server).content == "late"


def test_an_endpoint_that_counts_no_tokens_and_gives_no_finish_reason(server: TeacherServer) -> None:
    server.behaviour = lambda number, body: completion("text", tokens=None, finish_reason=None)
    reply = asked(server)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.finish_reason) == (None, None, "")


@pytest.mark.parametrize(("status", "error"), [(201, None), (200, None), (200, {}), (200, "")])
def test_an_answer_is_one_whatever_kind_of_success_and_whatever_empty_error_comes_with_it(
    server: TeacherServer, status: int, error: Any
) -> None:
    body = {**json.loads(str(completion("so 4").text)), "error": error}
    server.behaviour = lambda number, asked_for: web.json_response(body, status=status)
    assert asked(server).content == "so 4"


@pytest.mark.parametrize(
    ("error", "consequence"),
    [
        ({"code": 401}, Consequence.WRONG_SETTINGS),
        ({"code": "400"}, Consequence.REFUSED),
        ({"code": "insufficient_quota"}, Consequence.STOP),
        ({"code": "overloaded"}, Consequence.RETRY),
    ],
)
def test_what_an_error_with_status_200_means_follows_from_its_code(
    server: TeacherServer, error: Any, consequence: Consequence
) -> None:
    server.behaviour = lambda number, body: web.json_response({"error": error})
    assert error_of(server).consequence is consequence


@pytest.mark.parametrize(
    ("said", "count"),
    [
        (0, 0),
        (11, 11),
        (50.0, 50),
        (10**9, 10**9),
        (10**9 + 1, None),
        (10**25, None),
        (1e25, None),
        (50.5, None),
        (-1, None),
        (-1.0, None),
        (True, None),
        ("11", None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_what_a_count_of_tokens_can_be(server: TeacherServer, said: Any, count: int | None) -> None:
    body = {**json.loads(str(completion("so 4").text)), "usage": {"prompt_tokens": 7, "completion_tokens": said}}
    server.behaviour = lambda number, asked_for: web.json_response(body)
    reply = asked(server)
    assert (reply.prompt_tokens, reply.completion_tokens) == (7, count)
    assert isinstance(reply.completion_tokens, int | None)


@pytest.mark.parametrize(
    ("response", "reason", "may_have_cost", "retry_after_s"),
    [
        (failure(429, "slow down", Retry_After="3"), "429", False, 3.0),
        (failure(503), "503", False, None),
        (web.Response(status=500, text="<html>Internal"), "500", False, None),
        (web.Response(text="<html>Welcome"), "malformed", True, None),
        (web.Response(text='{"choices": [{"message": {"content": "cut'), "malformed", True, None),
        (web.Response(text="[" * 100_000), "malformed", True, None),
        (web.json_response({"choices": []}), "malformed", True, None),
        (web.json_response({"choices": [{"text": "of the older kind"}]}), "malformed", True, None),
        (completion("half", finish_reason="abort"), "finish abort", True, None),
        (completion("half", finish_reason="ERROR"), "finish error", True, None),
        (web.json_response({"error": "overloaded"}), "502", True, None),
        (web.json_response({"error": {"message": "hm", "code": 200}}), "502", True, None),
        (web.json_response({"error": {"message": "hm", "code": "000"}}), "502", True, None),
        (web.json_response({"error": {}}), "malformed", True, None),
        (web.Response(status=202), "malformed", True, None),
        (web.json_response({"error": {"message": "host is busy", "code": 429}}), "429", True, None),
        (web.json_response({"error": {"message": "host is gone"}}), "502", True, None),
    ],
)
def test_what_is_worth_another_attempt(
    server: TeacherServer, response: web.Response, reason: str, may_have_cost: bool, retry_after_s: float | None
) -> None:
    server.behaviour = lambda number, body: response
    error = error_of(server)
    assert (error.reason, error.may_have_cost, error.retry_after_s) == (reason, may_have_cost, retry_after_s)
    assert error.consequence is Consequence.RETRY


def test_a_connection_that_is_dropped_in_the_middle_of_the_answer() -> None:
    async def dropping(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": ')
        assert request.transport is not None
        request.transport.abort()
        return response

    with ThreadedServer(dropping) as running:
        error = error_of(running)
    assert (error.reason, error.may_have_cost, error.consequence) == ("connection lost", True, Consequence.RETRY)


def test_a_slow_endpoint(server: TeacherServer) -> None:
    async def slow(number: int, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(5)
        return completion("late")

    server.behaviour = slow
    error = error_of(server, HASTY)
    assert (error.reason, error.detail, error.may_have_cost) == ("timeout", "no answer within 0.5 s", True)


def test_nobody_listens(server: TeacherServer) -> None:
    with TeacherServer(server.behaviour) as gone:
        pass
    error = error_of(gone)
    assert (error.reason, error.may_have_cost, error.consequence) == ("no connection", False, Consequence.RETRY)


def test_what_an_endpoint_says_cannot_steer_the_terminal(server: TeacherServer) -> None:
    server.behaviour = lambda number, body: failure(500, "\x1b[2Jgone\r\n\tand " + "x" * 1000)
    detail = error_of(server).detail
    assert detail.startswith("[2Jgone and xxx")
    assert (len(detail), detail.isprintable()) == (300, True)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_the_endpoint_sends_back_is_not_passed_on(server: TeacherServer, status: int) -> None:
    server.behaviour = lambda number, body: failure(status, "the key k-0123456789\nis wrong")
    error = error_of(server)
    assert str(error) == f"{status}: the key *** is wrong"
    server.behaviour = lambda number, body: web.Response(
        status=status, text=json.dumps({"Authorization": "k-0123456789"})
    )
    assert "k-0123456789" not in str(error_of(server))
