"""Bubblewrap's command line: what a sandboxed interpreter sees of this machine.

The interpreter, its standard library and shared libraries, read-only; four devices; an empty `/tmp` of limited size. No
`/proc`, no `/etc`, no site-packages, no network, no environment.

Two ways to be nobody. As root, bubblewrap makes no user namespace, and `inside/boot.py` changes to an unprivileged
user before it runs anything: a namespace would map "nobody" to real root, whom process limits do not bind and who
owns root's files. As anybody else, a user namespace without capabilities is all there is, and enough.
"""

import functools
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Final

FLAGS: Final = ("-s", "-S", "-P", "-B")
"""Of the interpreter: no site-packages, no script folder on the path, no byte code written."""

ENVIRONMENT: Final = {
    "HOME": "/tmp",  # noqa: S108 - the sandbox's own
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",  # a verdict is the same each time, whatever the order of a set
    "OMP_NUM_THREADS": "1",
}
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_NEEDED_CAPABILITIES: Final = (6, 7, 21)  # CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
_USELESS_MODULES: Final = ("_tkinter", "readline", "_curses", "nis", "_dbm", "_gdbm", "_test", "_xxtest", "xxlimited")


@functools.cache
def _is_privileged() -> bool:
    """Whether this process is root with what it takes to give root up inside."""
    if os.geteuid() != 0:
        return False
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return all(effective >> number & 1 for number in _NEEDED_CAPABILITIES)


def interpreter() -> str:
    """The path of the real interpreter behind a virtual environment's."""
    return str(Path(sys._base_executable if hasattr(sys, "_base_executable") else sys.executable).resolve())


def bubblewrap_options(tmp_bytes: int) -> list[str]:
    """Everything but the program's name, the system call filter and the command to run.

    Args:
        tmp_bytes: Size of /tmp.
    """
    namespaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if _is_privileged():
        user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        user = ["--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    files = [word for path in _folders_of(_shown_files()) for word in ("--dir", path)]  # bubblewrap's own are 0700
    files += [word for path in _shown_files() for word in ("--ro-bind", path, path)]
    hidden = [word for path in _hidden_directories() for word in ("--tmpfs", path, "--remount-ro", path)]
    devices = [word for path in _DEVICES for word in ("--dev-bind", path, path)]
    tmp = ["--perms", "1777", "--size", str(tmp_bytes), "--tmpfs", "/tmp"]  # noqa: S108 - its own
    environment = [word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)]
    return [
        *("--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"),
        *namespaces,
        *user,
        *("--dir", "/dev"),
        *files,
        *hidden,
        *devices,
        *tmp,
        *("--remount-ro", "/", "--chdir", "/tmp"),  # noqa: S108
        *environment,
    ]


def _folders_of(paths: Iterable[str]) -> list[str]:
    """The folders above these paths, outermost first."""
    folders = {str(folder) for path in paths for folder in Path(path).parents}
    return sorted(folders - {"/"}, key=lambda folder: (folder.count("/"), folder))


@functools.cache
def _hidden_directories() -> tuple[str, ...]:
    """Folders of installed packages inside the standard library's."""
    library = Path(sysconfig.get_path("stdlib"))
    return tuple(str(library / name) for name in ("site-packages", "dist-packages") if (library / name).is_dir())


@functools.cache
def _shown_files() -> tuple[str, ...]:
    """The interpreter, its standard library, and every shared library that the two load."""
    library = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})}
    return (interpreter(), *sorted(library), *sorted(_shared_libraries(library)))


def _shared_libraries(shown: Iterable[str]) -> set[str]:
    """What an interpreter has loaded once it has imported every extension module of the standard library.

    Each by the name under which the loader found it, which is where it will look again.
    """
    modules = [path.name.split(".")[0] for path in Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")]
    wanted = [name for name in modules if not name.startswith(_USELESS_MODULES)]
    command = [interpreter(), *FLAGS, "-W", "ignore", "-c", _LIST_LOADED, *wanted]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout.splitlines()
    inside = tuple(f"{path}/" for path in shown)
    return {path for path in loaded if path.startswith("/") and not path.startswith(inside)}


_LIST_LOADED: Final = """
import contextlib, ctypes, importlib, os, sys
for name in sys.argv[1:]:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
with contextlib.suppress(OSError):
    ctypes.CDLL("libgcc_s.so.1")  # which the C library loads when a thread is ended
class Loaded(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Loaded), ctypes.c_size_t, ctypes.c_void_p)
def show(loaded, size, data):
    print(os.fsdecode(loaded.contents.name or b""))
    return 0
ctypes.CDLL(None).dl_iterate_phdr(show, None)
"""
