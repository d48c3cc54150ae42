"""Folders of this machine that stand in for those that the environment names and nothing can be written to."""

from __future__ import annotations

import os
import pwd
import socket
import tempfile
from pathlib import Path

import pytest

from still_ray.store.scratch import LONGEST_FOLDER_BYTES, SCRATCH_VARIABLE, settle_home, settle_temporary_folders
from still_ray.types import InputError

RAY_SOCKET = f"ray/session_2026-11-30_05-36-10_123456_{2**22}/sockets/plasma_store"
VARIABLES = ("HOME", "USER", "TMPDIR", "RAY_TMPDIR", SCRATCH_VARIABLE)


@pytest.fixture(autouse=True)
def kept_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is changed here comes back: monkeypatch remembers what it has set."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "/")
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))


def long_folder(tmp_path: Path) -> Path:
    folder = tmp_path / ("数" * 20) / ("x" * 40)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_rays_sockets_fit_into_a_folder_whose_own_name_is_too_long(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = long_folder(tmp_path)
    monkeypatch.setenv(name, str(folder))
    for _ in range(2):  # the second process finds the link
        assert settle_temporary_folders() == ""
        assert Path(os.environ[name]).resolve() == folder.resolve(), "the files are where they shall be"
        monkeypatch.setenv(name, str(folder))
    settle_temporary_folders()
    path = Path(os.environ[name]) / RAY_SOCKET
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    if name == "TMPDIR":
        assert Path(tempfile.mkdtemp()).resolve().parent == folder.resolve()


def test_a_folder_that_is_just_short_enough_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        folder = Path(root) / ("x" * (LONGEST_FOLDER_BYTES - len(root) - 1))
        folder.mkdir()
        monkeypatch.setenv("TMPDIR", str(folder))
        assert settle_temporary_folders() == "" and os.environ["TMPDIR"] == str(folder)
        path = folder / RAY_SOCKET
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


@pytest.mark.parametrize("value", ["/proc/none", "/etc/passwd", "relative"])
def test_a_folder_for_temporary_files_that_is_none_is_said_and_not_used(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", value)
    assert settle_temporary_folders() == f"TMPDIR ({value}) is no folder that can be written to: it is not used"
    assert "TMPDIR" not in os.environ


def test_an_empty_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "")  # to Ray, a folder beside whatever runs
    assert settle_temporary_folders() == "" and "TMPDIR" not in os.environ


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null", "/etc/passwd/x"])
def test_a_home_that_cannot_be_written_to_is_replaced_and_said(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    note = settle_home()
    assert note == f"HOME ({home}) cannot be written to: caches and tokens go to {tmp_path}/scratch/home"
    (Path.home() / ".cache").mkdir()
    assert settle_home() == "", "the processes that this one starts have a good one"


def test_what_libraries_read_at_home_stays_in_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws/credentials").write_text("key")
    (home / ".cache/huggingface").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(
        os, "access", lambda path, mode: mode == os.R_OK and path.exists()
    )  # a super-user may write anywhere
    for _ in range(2):
        assert settle_home().startswith(f"HOME ({home}) cannot be written to")
        assert (Path.home() / ".aws/credentials").read_text() == "key"
        assert (Path.home() / ".cache/huggingface").resolve() == home / ".cache/huggingface"
        assert not (Path.home() / ".ray").exists()
        monkeypatch.setenv("HOME", str(home))


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_home_it_is_the_one_that_the_system_knows(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv("HOME", value)
    known = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert settle_home() == "" and Path.home() == known


def test_a_user_whom_the_system_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that run under any number: torch and Ray ask for the user's name."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert settle_home() == f"HOME (not set) cannot be written to: caches and tokens go to {tmp_path}/scratch/home"
    assert os.environ["USER"] == f"uid-{os.getuid()}"


def test_no_folder_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv(SCRATCH_VARIABLE, "/proc/scratch")
    with pytest.raises(InputError, match=f"give another {SCRATCH_VARIABLE}"):
        settle_home()
