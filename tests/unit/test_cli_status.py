"""Addresses where no cluster is: what `still-ray status` and a run say, and that they say it at once."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from still_ray.actors.pool.cluster import _initialized, settled_address
from still_ray.algo.stages import plan_stages
from still_ray.cli.main import app
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import InputError, RunError
from tests.fakes import make_recipe
from tests.teacher_server import TeacherServer, completion

PLAN = plan_stages(make_recipe(rounds=[{}]))


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


@pytest.mark.parametrize("address", ["head:port", "head:99999999", "head", "local", "", "gcs://head:6379", "a b:1"])
def test_an_address_that_is_none(address: str) -> None:
    result = CliRunner().invoke(app, ["status", "--address", address])
    assert result.exit_code == 2 and f"--address ({address}): is no address of a cluster" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_run_whose_cluster_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match=f"nothing answers at {address} .*; see that RAY_ADDRESS"):
            _initialized({"address": settled_address()})


@pytest.mark.parametrize("nothing", ["", " ", "local", " local "])
def test_an_address_that_says_nothing_is_as_none(nothing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody after this reads it either: Ray would join whatever it finds on this machine, or look for long."""
    monkeypatch.setenv("RAY_ADDRESS", nothing)
    assert settled_address() == ""
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://head:8265", "this is the address for jobs (ray job submit --address)"),
        ("https://head/", "this is the address for jobs"),
        ("ray://head:10001", "a run's driver must be on a machine of the cluster"),
        ("head", "is no address of a cluster; give HOST:PORT"),
        ("gcs://head:6379", "is no address of a cluster"),
        ("head:99999999", "is no address of a cluster"),
    ],
)
def test_an_address_that_no_run_can_join(address: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError) as refusal:
        settled_address()
    assert str(refusal.value).startswith(f"RAY_ADDRESS ({address}): {told}")


def test_the_dashboards_address_without_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    with TeacherServer(lambda number, body: completion("a page")) as server:  # whatever speaks HTTP
        address = server.url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InputError, match="the dashboard answers there: this is the address for jobs"):
            settled_address()


# -- from a run directory ---------------------------------------------------------------------------------------------

COMMAND = "still-ray run r.yaml --run-dir 'a b'"


@pytest.mark.parametrize(
    ("status", "first", "lines"),
    [
        ("interrupted", "interrupted: stage 001-explore, round 1, policy version 1, ", [f"resume with: {COMMAND}"]),
        ("failed", "failed: stage 001-explore, ", ["cause: no room for replica-0", f"resume with: {COMMAND}"]),
        (
            "running",
            "killed: stage 001-explore, ",
            ["its process ended without a word: killed, or its machine was lost", f"resume with: {COMMAND}"],
        ),
        ("complete", "complete: stage 001-sft, ", []),
    ],
)
def test_a_run_that_is_over_says_how_and_what_resumes_it(
    status: str, first: str, lines: list[str], tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path)
    store = RunStore(directory, PLAN, command=COMMAND)
    store.begin(PLAN[2], 1)
    if status == "complete":
        store.end(2)
    elif status != "running":
        store.stop("failed" if status == "failed" else "interrupted", "no room for replica-0" * (status == "failed"))
    said = CliRunner().invoke(app, ["status", str(tmp_path)]).stdout.splitlines()
    assert said[0].startswith(first) and said[1 : 1 + len(lines)] == lines
    assert lines or "resume" not in " ".join(said)
    for_programs = json.loads(CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).stdout)
    assert for_programs["status"] == first.partition(":")[0] and for_programs["command"] == COMMAND
