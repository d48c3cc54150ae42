"""Addresses where no cluster is: what `still-ray status` and a run say, and that they say it at once."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from still_ray.actors.cluster import _initialized
from still_ray.cli.main import app
from still_ray.types import RunError


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


@pytest.mark.parametrize("address", ["head:port", "head:99999999", "head", "local"])
def test_an_address_that_is_none(address: str) -> None:
    result = CliRunner().invoke(app, ["status", "--address", address])
    assert result.exit_code == 2 and f"--address {address}: " in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_run_whose_cluster_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match=f"nothing answers at {address} .*; see that RAY_ADDRESS"):
            _initialized({})
