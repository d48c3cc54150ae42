"""A real HTTP server in a thread of the test process: an endpoint whose behaviour a test writes down."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Behaviour = Callable[[int, dict[str, Any]], web.StreamResponse | Awaitable[web.StreamResponse]]
"""Answers the n-th request (from 0) with this body."""


class ThreadedServer:
    """Serves every path with one handler, in an event loop and a thread of its own."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _start(self) -> web.AppRunner:
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", self._handler)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner

    async def _end(self) -> None:
        await self._runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:  # handlers whose client has gone
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class TeacherServer(ThreadedServer):
    """An endpoint that notes what it is sent.

    Attributes:
        bodies: What was asked, in order of arrival.
        headers: The headers that came with it.
        queries: Path and query of each request.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(self._answer)
        self.behaviour = behaviour
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.queries: list[str] = []

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.queries.append(request.path_qs)
        answer = self.behaviour(number, body)
        return answer if isinstance(answer, web.StreamResponse) else await answer


def completion(
    message: dict[str, Any] | str, *, finish_reason: str | None = "stop", tokens: tuple[int, int] | None = (7, 11)
) -> web.Response:
    """A chat completion; `tokens` are those of prompt and answer."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "teacher-2026-01",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", **({"content": message} if isinstance(message, str) else message)},
                "finish_reason": finish_reason,
            }
        ],
    }
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return web.json_response(body)


def failure(status: int, message: str = "not now", *, code: Any = None, **headers: str) -> web.Response:
    """An error in the form that OpenAI and vLLM give it."""
    error = {"error": {"message": message, "type": "error", "code": status if code is None else code}}
    return web.Response(
        status=status,
        text=json.dumps(error),
        content_type="application/json",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
