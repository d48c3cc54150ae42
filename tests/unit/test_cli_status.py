"""`still-ray status` before it has found anything: what it asks for, and what it says when nothing is there."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from still_ray.cli.main import app


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("arguments", [[], ["runs/x", "--address", "auto"]])
def test_either_a_folder_or_an_address(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["status", *arguments])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("still-ray: status: give either RUN_DIR or --address ADDRESS")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers(scheme: str) -> None:
    with socket.socket() as held:  # bound and not listening: nobody else can get the port meanwhile
        held.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{held.getsockname()[1]}"
        result = CliRunner().invoke(app, ["status", "--address", address])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"still-ray: --address {address}: nothing answers there")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("address", ["head:port", "head:99999999"])
def test_an_address_that_is_none(address: str) -> None:
    result = CliRunner().invoke(app, ["status", "--address", address])
    assert result.exit_code == 2 and f"--address {address}: " in result.stderr
