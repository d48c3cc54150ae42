"""How this machine reaches others, as the environment says it: proxies, hosts that need none, and trusted roots.

curl, Python, httpx and gRPC read the same variables in ways of their own: httpx stops at `[::1]` or `fd00::/8` in
no_proxy and knows no network of addresses, and none leaves loopback out by itself.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from still_ray.types import InputError

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")
_SOCKS: Final = ("socks5", "socks5h")
_PORTS: Final = range(1, 65536)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class Route:
    """How requests to one address go.

    Attributes:
        proxy: URL of the proxy, with its credentials; None: directly.
        variable: The environment variable that names it; "" without one.
        tls: What servers are trusted by.
    """

    proxy: str | None = field(repr=False)
    variable: str
    tls: ssl.SSLContext = field(repr=False)


def route_to(url: str, environment: Mapping[str, str] = os.environ) -> Route:
    """How requests to a URL go; those to this machine itself never through a proxy.

    Raises:
        InputError: The environment names a proxy or a file of certificates that cannot be used; names the variable.
    """
    parts = urlsplit(url)
    variable = _proxy_variable(parts, environment)
    proxy = _checked_proxy(variable, environment[variable], parts.hostname or "") if variable else None
    is_secure = "https" in (parts.scheme, urlsplit(proxy or "").scheme)
    return Route(
        proxy=proxy,
        variable=variable,
        tls=_trusted_roots(environment.get("SSL_CERT_FILE", ""), environment.get("SSL_CERT_DIR", ""))
        if is_secure
        else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )


def keep_direct(*hosts: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Rewrites no_proxy, where there are proxies, so that libraries read it alike and go to this machine directly.

    A network of IPv6 addresses, at which httpx stops, is left out of what they see.

    Args:
        hosts: Further names and addresses of this machine.
        environment: What is rewritten.
    """
    if not any(_value(name, environment)[1] for name in _PROXIES):
        return
    entries = dict.fromkeys([*(_spelled(entry) for entry in _no_proxy(environment)), *LOOPBACK, *hosts])
    readable = [entry for entry in entries if entry and not (":" in entry and "/" in entry)]
    environment["no_proxy"] = environment["NO_PROXY"] = "*" if "*" in entries else ",".join(readable)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without brackets, is this machine."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _proxy_variable(parts: SplitResult, environment: Mapping[str, str]) -> str:
    """The variable whose proxy requests go through; "" if they go directly."""
    host = parts.hostname or ""
    if is_loopback(host) or any(_covers(entry, host, parts) for entry in _no_proxy(environment)):
        return ""
    found = (_value(name, environment) for name in (f"{parts.scheme}_proxy", "all_proxy"))
    return next((name for name, value in found if value), "")


def _value(name: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """A variable in the spelling that is set, the lower-case one first, and its value."""
    for spelled in (name, name.upper()):
        if value := environment.get(spelled, "").strip():
            return spelled, value
    return name, ""


def _no_proxy(environment: Mapping[str, str]) -> list[str]:
    return _value("no_proxy", environment)[1].replace(",", " ").lower().split()


def _spelled(entry: str) -> str:
    """An entry of no_proxy as httpx reads it: addresses without brackets, names without a star before the dot."""
    if entry.startswith("[") and entry.endswith("]"):
        return entry[1:-1]
    if entry.startswith("["):  # with a port
        return entry[1:].partition("]")[0]
    return entry.removeprefix("*") if entry.startswith("*.") else entry


def _covers(entry: str, host: str, parts: SplitResult) -> bool:
    """Whether an entry of no_proxy means a host: a name and all below it, an address, or a network; perhaps a port."""
    if entry == "*":
        return True
    name, port = _without_port(entry)
    if port and port != str(parts.port or {"http": 80, "https": 443}.get(parts.scheme)):
        return False
    address = _address(host)
    if address is not None:
        network = _network(name)
        return network is not None and address in network
    name = name.removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _without_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name + (rest if rest.startswith("/") else ""), rest.removeprefix(":") if rest.startswith(":") else ""
    name, _, port = entry.rpartition(":")
    return (name, port) if name and ":" not in name and port.isdigit() else (entry, "")


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.partition("%")[0], strict=False)
    except ValueError:
        return None


def _checked_proxy(variable: str, value: str, host: str) -> str:
    """The URL of a proxy; without a scheme it is an http one, as curl has it."""
    url = value if "://" in value else f"http://{value}"
    shown = _shown(url)
    advice = f"correct or unset it, or name {host} in no_proxy"
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port in _PORTS)
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https", *_SOCKS) or any(map(str.isspace, url)):
        raise InputError(f"{variable} ({shown}): is not the address of a proxy, like http://HOST:3128; {advice}")
    if parts.scheme in _SOCKS and find_spec("socksio") is None:
        raise InputError(f"{variable} ({shown}): a SOCKS proxy needs a package: pip install socksio; or {advice}")
    return url


def _shown(url: str) -> str:
    """A proxy's URL on one line, without its credentials."""
    scheme, _, rest = url.partition("://")
    shown = f"{scheme}://***@{rest.rpartition('@')[2]}" if "@" in rest else url
    return "".join(character if character.isprintable() else "?" for character in shown)


@cache
def _trusted_roots(file: str, folder: str) -> ssl.SSLContext:
    """The certificates of SSL_CERT_FILE or SSL_CERT_DIR, else certifi's."""
    try:
        if file:
            return ssl.create_default_context(cafile=file)
        if folder and Path(folder).is_dir():
            return ssl.create_default_context(capath=folder)
    except OSError as error:  # of a file that holds no certificates too
        reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "holds no certificates"
        raise InputError(f"SSL_CERT_FILE ({file}): {reason}; name a PEM file of certificates, or unset it") from None
    if folder:
        raise InputError(f"SSL_CERT_DIR ({folder}): no such folder; name one of certificates, or unset it")
    import certifi

    return ssl.create_default_context(cafile=certifi.where())
