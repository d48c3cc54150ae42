"""The teacher's address: what requests need of it, and what of it may be shown."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from still_ray.network import Route, route_to
from still_ray.types import InputError

DEFAULT_KEY_VARIABLE: Final = "OPENAI_API_KEY"
CHAT_PATH: Final = "/chat/completions"
HIDDEN: Final = "***"

_EXAMPLE: Final = "http://localhost:8000/v1"
_SHORTEST_SECRET: Final = 8
_ADDRESS: Final = re.compile(r"(?P<scheme>\w+://)(?P<user>[^/?#]*@)?(?P<rest>[^?#]*)(?P<query>\?.*)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible endpoint.

    Attributes:
        url: Where requests go, with the query that the address had and without user and password.
        public: Scheme, host, port and path: what provenance, reports and errors show.
        headers: Authorization: the address's user and password, or else the key.
        key_variable: The environment variable that the key is taken from.
        secrets: Texts that must not be written down.
        route: By way of which proxy, and trusting whom.
    """

    url: str = field(repr=False)
    public: str
    headers: dict[str, str] = field(repr=False)
    key_variable: str
    secrets: tuple[str, ...] = field(repr=False)
    route: Route

    @classmethod
    def from_address(cls, address: str, key_variable: str | None = None) -> Self:
        """Takes an address apart and the key from the environment.

        Args:
            address: E.g. "http://localhost:8000/v1"; user, password and query are allowed.
            key_variable: Which environment variable holds the key; None: OPENAI_API_KEY, if it is set.

        Raises:
            InputError: The address is none, the key is missing or cannot be sent, or the environment names a proxy or
                certificates that cannot be used.
        """
        parts = _checked(address)
        key = _key(key_variable)
        host = parts.netloc.rpartition("@")[2]
        path = parts.path.rstrip("/").removesuffix(CHAT_PATH)
        headers = _authorization(parts, key)
        hidden = [key, *_spellings(parts.username), *_spellings(parts.password), *_query_values(parts)]
        hidden += [value.rpartition(" ")[2] for value in headers.values()]
        url = urlunsplit((parts.scheme, host, path + CHAT_PATH, parts.query, ""))
        route = route_to(url)
        hidden += _spellings(urlsplit(route.proxy or "").password)
        return cls(
            url=url,
            public=urlunsplit((parts.scheme, host, path, "", "")),
            headers=headers,
            key_variable=key_variable or DEFAULT_KEY_VARIABLE,
            secrets=tuple(sorted({text for text in hidden if len(text) >= _SHORTEST_SECRET}, key=len, reverse=True)),
            route=route,
        )

    def redact(self, text: str) -> str:
        """The text without this endpoint's secrets, should a server send them back.

        Secrets of fewer than 8 characters are left: "EMPTY" is the usual key of a server that wants none, and would be
        cut out of ordinary words.
        """
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text


def without_credentials(argument: str) -> str:
    """An argument of a command line; in an address, user, password and query are hidden."""
    return _ADDRESS.sub(_hidden, argument, count=1)


def _hidden(address: re.Match[str]) -> str:
    user, query = f"{HIDDEN}@" if address["user"] else "", f"?{HIDDEN}" if address["query"] else ""
    return f"{address['scheme']}{user}{address['rest']}{query}"


def _checked(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(character.isspace() or not character.isprintable() for character in address):
        raise InputError(f"--endpoint: is not the address of an endpoint, which is like {_EXAMPLE}")
    return parts


def _key(variable: str | None) -> str:
    value = os.environ.get(variable or DEFAULT_KEY_VARIABLE, "").strip()
    if variable is not None and not value:
        raise InputError(f"--api-key-env {variable}: no such environment variable; export it or leave this out")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise InputError(f"${variable or DEFAULT_KEY_VARIABLE}: holds no key, which is printable ASCII without spaces")
    return value


def _spellings(text: str | None) -> tuple[str, ...]:
    return () if text is None else (text, unquote(text))


def _query_values(parts: SplitResult) -> list[str]:
    raw = [pair.partition("=")[2] for pair in parts.query.split("&")]
    return raw + [value for _, value in parse_qsl(parts.query, keep_blank_values=True)]


def _authorization(parts: SplitResult, key: str) -> dict[str, str]:
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {"Authorization": f"Bearer {key}"} if key else {}
