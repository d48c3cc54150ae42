"""The teacher: what a run asks of one, and the client of an OpenAI-compatible endpoint.

httpx without the openai package: one POST, and every attempt must be seen, counted and paid for here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from still_ray.config.distill import DistillConfig
from still_ray.distill.counts import token_count
from still_ray.distill.endpoint import Endpoint
from still_ray.distill.retry import AttemptError, consequence_of, parsed_retry_after
from still_ray.network import Route

if TYPE_CHECKING:
    import httpx

_UNFINISHED: Final = ("abort", "error")
"""Finish reasons with which vLLM ends what it could not complete."""

_ERROR_STATUS: Final = re.compile(r"[45][0-9]{2}")
_MAX_DETAIL_CHARS: Final = 300
_CONNECT_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the teacher answered.

    Attributes:
        reasoning: The reasoning that came in a field of its own; "" if there was none.
        content: The message's text.
        finish_reason: Why it ended, in the endpoint's word; "" if it gave none.
        prompt_tokens: As the endpoint counts them; None if it does not say.
        completion_tokens: Likewise, reasoning included.
        served_model: The model that the endpoint says it was; "" if it does not say.
        response_id: The endpoint's name of the answer; "" if it gave none.
    """

    reasoning: str
    content: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    served_model: str = ""
    response_id: str = ""


class Teacher(Protocol):
    """Answers one prompt at a time, several side by side."""

    async def ask(self, prompt: str, seed: int) -> Reply:
        """Makes one attempt.

        Args:
            prompt: The user turn.
            seed: Seed of this sample.

        Raises:
            AttemptError: It brought no answer.
        """


class OpenAiTeacher:
    """The chat-completions API, as vLLM and hosted models serve it."""

    def __init__(self, endpoint: Endpoint, model: str, config: DistillConfig) -> None:
        """Opens no connection yet.

        Args:
            endpoint: Where.
            model: The model's name there.
            config: Sampling settings, time limit and concurrency.
        """
        import httpx

        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs addresses with their query
        self._endpoint = endpoint
        self._model = model
        self._config = config
        connections = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)  # the whole attempt has its own limit
        route = endpoint.route
        self._client = httpx.AsyncClient(
            headers=endpoint.headers,
            timeout=timeout,
            limits=connections,
            trust_env=False,  # the route has read the environment
            verify=route.tls,
            proxy=_proxy(route),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, prompt: str, seed: int) -> Reply:
        """See `Teacher`."""
        response = await self._posted(request_body(self._model, self._config, prompt, seed))
        try:
            body = json.loads(response.content)
        except (ValueError, RecursionError):
            body = None
        if not response.is_success:
            raise self._failure(response, body)
        return reply_of(body, self._endpoint)

    async def _posted(self, body: Mapping[str, Any]) -> httpx.Response:
        """The response, whatever it says; one time limit for all of it, since some endpoints drip blank lines."""
        import httpx

        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await self._client.post(self._endpoint.url, json=body)
        except TimeoutError:
            detail = f"no answer within {self._config.timeout_s:g} s"
            raise AttemptError("timeout", detail, may_have_cost=True) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            variable = self._endpoint.route.variable
            way = f" (by way of the proxy that {variable} names)" if variable else ""
            raise AttemptError("no connection", _one_line(error, self._endpoint) + way) from None
        except httpx.RequestError as error:
            raise AttemptError("connection lost", _one_line(error, self._endpoint), may_have_cost=True) from None

    def _failure(self, response: httpx.Response, body: Any) -> AttemptError:
        message, code = _error_of(body)
        status = response.status_code
        wait_s = parsed_retry_after(response.headers.get("retry-after"), datetime.now(UTC))
        detail = _one_line(message or response.text or response.reason_phrase, self._endpoint)
        return AttemptError(str(status), detail, consequence_of(status, code), retry_after_s=wait_s)


def _proxy(route: Route) -> httpx.Proxy | None:
    import httpx

    if route.proxy is None:
        return None
    return httpx.Proxy(route.proxy, ssl_context=route.tls if route.proxy.startswith("https://") else None)


def request_body(model: str, config: DistillConfig, prompt: str, seed: int) -> dict[str, Any]:
    """One chat completion; settings that are null are left to the endpoint."""
    messages = [{"role": "user", "content": prompt}]
    if config.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    settings = {"temperature": config.temperature, "top_p": config.top_p, "seed": seed if config.send_seed else None}
    given = {key: value for key, value in settings.items() if value is not None}
    return {
        "model": model,
        "messages": messages,
        config.max_tokens_key: config.max_tokens,
        **given,
        **config.extra_body,
    }


def reply_of(body: Any, endpoint: Endpoint) -> Reply:
    """Reads the body of a response with status 200 or another that says success.

    Raises:
        AttemptError: It is not a chat completion, or one that the endpoint did not finish, or an error after all.
    """
    if isinstance(body, dict) and body.get("error"):  # beside an answer, some send an empty one
        raise _error_with_status_200(body, endpoint)
    choice = _first(body.get("choices")) if isinstance(body, dict) else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise AttemptError("malformed", "the body is not a chat completion", may_have_cost=True)
    finish_reason = _text(choice.get("finish_reason"))
    if finish_reason.casefold() in _UNFINISHED:
        raise AttemptError(
            f"finish {finish_reason.casefold()}", "the endpoint did not finish the answer", may_have_cost=True
        )
    reasoning, content = _parts(message)
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    return Reply(
        reasoning=endpoint.redact(reasoning),
        content=endpoint.redact(content),
        finish_reason=endpoint.redact(finish_reason),
        prompt_tokens=token_count(usage.get("prompt_tokens")),
        completion_tokens=token_count(usage.get("completion_tokens")),
        served_model=endpoint.redact(_text(body.get("model"))),
        response_id=endpoint.redact(_text(body.get("id"))),
    )


def _error_with_status_200(body: Mapping[str, Any], endpoint: Endpoint) -> AttemptError:
    """Routers in front of several hosts answer 200 and put the host's status into the body; without it, try again."""
    message, code = _error_of(body)
    status = int(code) if _ERROR_STATUS.fullmatch(code) else int(HTTPStatus.BAD_GATEWAY)
    return AttemptError(str(status), _one_line(message, endpoint), consequence_of(status, code), may_have_cost=True)


def _error_of(body: Any) -> tuple[str, str]:
    """Message and code of an error body, "" where it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return _text(error.get("message")), str(error.get("code") or "")
    return _text(error), ""


def _parts(message: Mapping[str, Any]) -> tuple[str, str]:
    """Reasoning and text of a message; either may be a list of parts."""
    thinking, content = _joined(message.get("content"))
    fields = [_joined(message.get(key))[1] for key in ("reasoning_content", "reasoning")]
    return next((text for text in (*fields, thinking) if text.strip()), ""), content


def _joined(value: Any) -> tuple[str, str]:
    """Thinking parts and text parts of a content that is a text or a list of parts."""
    if not isinstance(value, list):
        return "", _text(value)
    parts = [part for part in value if isinstance(part, dict)]
    thinking = "".join(_joined(part.get("thinking"))[1] for part in parts if part.get("type") == "thinking")
    return thinking, "".join(_text(part.get("text")) for part in parts)


def _one_line(text: str | Exception, endpoint: Endpoint) -> str:
    """What somebody else says, for a terminal and a log: redacted, printable, short."""
    said = endpoint.redact(str(text)) or (type(text).__name__ if isinstance(text, Exception) else "no reason given")
    printable = "".join(character if character.isprintable() else " " for character in said)
    return " ".join(printable.split())[:_MAX_DETAIL_CHARS]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _text(value: Any) -> str:
    """A text that can be stored: half a surrogate pair, which JSON allows, becomes U+FFFD. Anything else is ""."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else ""
