"""Tries what a sandbox must not allow; prints "contained" or what was possible. `SETTINGS` is put in front of it."""

import contextlib
import os
import resource
import socket
import sys
import threading
from typing import Any

SETTINGS: dict[str, Any] = globals().get("SETTINGS", {})


def works(attempt: Any) -> bool:
    """Whether it raises nothing."""
    try:
        attempt()
    except (OSError, RuntimeError, AttributeError):
        return False
    return True


def connect() -> None:
    """Connects to a server of the other side."""
    with socket.create_connection(tuple(SETTINGS["address"]), timeout=2):
        pass


def start_too_many() -> None:
    """Starts one thread more than the limit allows."""
    stop = threading.Event()
    threads = []
    try:
        for _ in range(SETTINGS["threads"]):
            threads.append(threading.Thread(target=stop.wait))
            threads[-1].start()
    finally:
        stop.set()


def fork() -> None:
    """Starts a process."""
    if os.fork() == 0:
        os._exit(0)
    with contextlib.suppress(OSError):
        os.wait()


def write(path: str) -> None:
    """Makes a file."""
    with open(path, "x", encoding="ascii") as file:  # noqa: PTH123 - quicker to load than pathlib
        file.write("x")


def is_limited(name: str) -> bool:
    """Whether a limit of the process is set for good."""
    return resource.getrlimit(getattr(resource, name))[1] != resource.RLIM_INFINITY


def found() -> str:
    """The first thing that is not contained."""
    tried = {
        "a file of the host can be read": lambda: open(SETTINGS["secret"], encoding="ascii").close(),  # noqa: PTH123
        "a server of the host can be reached": connect,
        "a process can be started": fork,
        "too many threads can be started": start_too_many,
        "the root folder can be written": lambda: write("/written"),
        "the interpreter's folder can be written": lambda: write(os.path.dirname(os.__file__) + "/written"),  # noqa: PTH120
        "root can be had again": lambda: os.setuid(0),
    }
    for what, attempt in tried.items():
        if works(attempt):
            return what
    if os.getuid() == 0:
        return "it runs as root"
    if set(os.environ) - set(SETTINGS["environment"]) - {"PWD", "LC_CTYPE"}:
        return f"the environment has {sorted(os.environ)}"
    unlimited = [n for n in ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_NOFILE") if not is_limited(n)]
    return f"without limit: {unlimited}" if unlimited else "contained"


sys.stdout.write(found() + "\n")
