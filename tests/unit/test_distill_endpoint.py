"""What of an endpoint's address is sent, and what of it is shown."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.distill.endpoint import Endpoint, without_credentials
from still_ray.types import InputError

SECRET = st.text("ABCDEFGHJKLMNPQRSTUVWXYZ23456789-_~", min_size=8, max_size=20)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("address", "url", "public"),
    [
        ("http://h:8000/v1", "http://h:8000/v1/chat/completions", "http://h:8000/v1"),
        ("https://h/v1/", "https://h/v1/chat/completions", "https://h/v1"),
        ("https://h", "https://h/chat/completions", "https://h"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions", "https://h/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/v1"),
        ("https://a:b@h/v1?api-version=1#x", "https://h/v1/chat/completions?api-version=1", "https://h/v1"),
    ],
)
def test_where_requests_go_and_what_is_shown(address: str, url: str, public: str) -> None:
    endpoint = Endpoint.from_address(address)
    assert (endpoint.url, endpoint.public) == (url, public)


@given(user=SECRET, password=SECRET, value=SECRET, fragment=SECRET)
def test_no_credential_is_shown(user: str, password: str, value: str, fragment: str) -> None:
    address = f"https://{user}:{password}@host.example:8443/v1?key={value}&n#{fragment}"
    endpoint = Endpoint.from_address(address)
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    echo = f"you sent {user} {password}, {pair} and ?key={value}"
    for text in (endpoint.public, repr(endpoint), str(endpoint), endpoint.redact(echo), without_credentials(address)):
        assert not any(secret in text for secret in (user, password, value, pair))
    assert endpoint.headers == {"Authorization": f"Basic {pair}"}


def test_percent_encoded_credentials_are_sent_decoded_and_hidden_in_both_spellings() -> None:
    endpoint = Endpoint.from_address("https://me:p%40ss%2Fword-1@h/v1?key=a%20b%20c%20d%20e")
    assert base64.b64decode(endpoint.headers["Authorization"].split()[1]) == b"me:p@ss/word-1"
    assert endpoint.redact("p@ss/word-1 p%40ss%2Fword-1 a b c d e a%20b%20c%20d%20e") == "*** *** *** ***"


def test_the_key_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Endpoint.from_address("http://h/v1").headers == {}
    monkeypatch.setenv("OPENAI_API_KEY", "k-default-1\n")
    monkeypatch.setenv("OTHER_KEY", "k-other-22")
    assert Endpoint.from_address("http://h/v1").headers == {"Authorization": "Bearer k-default-1"}
    named = Endpoint.from_address("http://h/v1", "OTHER_KEY")
    assert named.headers == {"Authorization": "Bearer k-other-22"}
    assert "k-other-22" not in repr(named)


def test_a_key_that_is_none_is_not_cut_out_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert Endpoint.from_address("http://h/v1").redact("the set is EMPTY") == "the set is EMPTY"


@pytest.mark.parametrize("key", ["two words-of-a-key", "clé-secrète-0", "with\x07bell-0000", "line\nbreak-00"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError) as error:
        Endpoint.from_address("http://h/v1")
    assert key not in str(error.value)
    assert "$OPENAI_API_KEY" in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "h/v1",
        "ftp://me:topsecret@h/v1",
        "http:///v1",
        "http://h:port/v1",
        "http://me:topsecret@h:99999/",
        "http://h/ v1",
    ],
)
def test_what_is_no_address_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(InputError, match="is not the address of an endpoint") as error:
        Endpoint.from_address(address)
    assert "topsecret" not in str(error.value)
