"""What the environment says of proxies and certificates: who goes through which, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from still_ray.network import is_loopback, keep_direct, route_to
from still_ray.types import InputError

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST.", "box.localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"],
)
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_loopback_never_goes_through_a_proxy(host: str, variable: str) -> None:
    """Not even through one that is no address."""
    for proxy in (PROXY, "socks5://127.0.0.1:9", "http://[", "nonsense://x"):
        assert route_to(f"http://{host}:8000/v1", {variable: proxy}).proxy is None


def test_what_only_begins_like_loopback_is_another_host() -> None:
    assert not any(map(is_loopback, ("localhost.example", "128.0.0.1", "127.0.0.1.example", "::2", "")))


@pytest.mark.parametrize(
    ("url", "environment", "variable", "proxy"),
    [
        ("http://h/", {"http_proxy": PROXY}, "http_proxy", PROXY),
        ("http://h/", {"HTTP_PROXY": PROXY}, "HTTP_PROXY", PROXY),
        ("http://h/", {"HTTP_PROXY": "http://other:1", "http_proxy": PROXY}, "http_proxy", PROXY),
        ("http://h/", {"http_proxy": "proxy.example:3128"}, "http_proxy", PROXY),
        ("http://h/", {"https_proxy": PROXY}, "", None),
        ("https://h/", {"https_proxy": PROXY, "all_proxy": "http://a"}, "https_proxy", PROXY),
        ("https://h/", {"ALL_PROXY": PROXY}, "ALL_PROXY", PROXY),
        ("https://h/", {"http_proxy": "", "https_proxy": " ", "all_proxy": ""}, "", None),
    ],
)
def test_which_variable_names_the_proxy(url: str, environment: dict[str, str], variable: str, proxy: str) -> None:
    route = route_to(url, environment)
    assert (route.variable, route.proxy) == (variable, proxy)


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("*", "http://h/", True),
        ("h", "http://h/", True),
        ("H", "http://h/", True),
        ("a, h ,b", "http://h/", True),
        ("a h", "http://h/", True),
        ("example", "http://x.example/", True),
        (".example", "http://x.example/", True),
        (".example", "http://example/", True),
        ("*.local", "http://box.local:8000/v1", True),
        ("*.local", "http://local.example/", False),
        ("ample", "http://example/", False),
        ("h:8000", "http://h:8000/", True),
        ("h:8000", "http://h:9000/", False),
        ("h:80", "http://h/", True),
        ("10.1.2.3", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.1.2.3:8000", "http://10.1.2.3:8000/", True),
        ("fd00::/8", "http://[fd12::7]:8000/", True),
        ("[fd00::]/8", "http://[fd12::7]:8000/", True),
        ("fd00::/8", "http://[fe80::7]/", False),
        ("[fd12::7]", "http://[fd12::7]/", True),
        ("[fd12::7]:80", "http://[fd12::7]/", True),
        ("FD12:0::7", "http://[fd12::7]/", True),
        ("not-a-network/8", "http://10.1.2.3/", False),
        ("", "http://h/", False),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_whom_no_proxy_names(no_proxy: str, url: str, direct: bool, variable: str) -> None:
    assert (route_to(url, {"http_proxy": PROXY, variable: no_proxy}).proxy is None) == direct


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("socks5://127.0.0.1:1080", "pip install socksio"),
        ("socks4://127.0.0.1:1080", "is not the address of a proxy"),
        ("http://", "is not the address of a proxy"),
        ("http://h:99999", "is not the address of a proxy"),
        ("http://[::1", "is not the address of a proxy"),
        ("ftp://h", "is not the address of a proxy"),
        ("a b", "is not the address of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(value: str, told: str) -> None:
    given = value.replace("://", "://someone:s3cr3t@") if "//" in value and value != "http://" else value
    with pytest.raises(InputError) as refusal:
        route_to("https://h.example/v1", {"ALL_PROXY": given})
    text = str(refusal.value)
    assert text.startswith("ALL_PROXY (") and told in text and "name h.example in no_proxy" in text
    assert len(text.splitlines()) == 1 and "s3cr3t" not in text


def test_certificates_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    for value, told in ((tmp_path / "absent.pem", "No such file"), (tmp_path / "text.pem", "holds no certificates")):
        with pytest.raises(InputError, match=rf"^SSL_CERT_FILE \({value}\): {told}"):
            route_to("https://h/", {"SSL_CERT_FILE": str(value)})
    with pytest.raises(InputError, match=r"^SSL_CERT_DIR \(/absent\): no such folder"):
        route_to("https://h/", {"SSL_CERT_DIR": "/absent"})
    route_to("http://127.0.0.1/", {"SSL_CERT_FILE": "/absent"})  # nobody has to be trusted


SPELLINGS = "[::1],fd00::/8,*.local,10.0.0.0/8 h:80,[fd12::7]:80,,.x"


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_libraries_read_a_rewritten_no_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx, with which models are downloaded, is the one that stops at some spellings."""
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelled in (variable, variable.upper()):
            monkeypatch.delenv(spelled, raising=False)
    monkeypatch.setenv(name, PROXY)
    monkeypatch.setenv("NO_PROXY", SPELLINGS)
    with pytest.raises(httpx.InvalidURL):
        httpx.Client()
    environment = {name: PROXY, "NO_PROXY": SPELLINGS}
    keep_direct("10.20.30.40", environment=environment)
    assert environment["no_proxy"] == environment["NO_PROXY"]
    monkeypatch.setenv("no_proxy", environment["no_proxy"])
    monkeypatch.setenv("NO_PROXY", environment["NO_PROXY"])
    client = httpx.Client()
    for host in ("127.0.0.1", "localhost", "[::1]", "10.20.30.40", "box.local", "a.x"):
        transport = client._transport_for_url(httpx.URL(f"http://{host}/"))
        assert transport is client._transport, host
    assert (
        client._transport_for_url(httpx.URL("https://else.example/")) is not client._transport or name == "http_proxy"
    )


def test_without_a_proxy_nothing_is_rewritten() -> None:
    environment = {"no_proxy": SPELLINGS, "http_proxy": ""}
    keep_direct("10.20.30.40", environment=environment)
    assert environment == {"no_proxy": SPELLINGS, "http_proxy": ""}


def test_no_proxy_for_anybody_stays_so() -> None:
    environment = {"no_proxy": "a,*", "http_proxy": PROXY}
    keep_direct(environment=environment)
    assert environment["no_proxy"] == "*"
