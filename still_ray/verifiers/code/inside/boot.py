"""The first thing that runs inside the sandbox: takes a job from stdin, sets the limits, and becomes that job.

Its whole text is the argument of ``python -c``. The job is everything that is sent before the program's own input: its
length in 8 bytes, then a marshalled dictionary (this side trusts the sender, and marshal needs no import).
"""

import marshal
import os
import resource
import sys
import types
from typing import Any, Final

NAME: Final = "program.py"


def main() -> None:
    """Runs one job."""
    job: dict[str, Any] = marshal.loads(_exactly(int.from_bytes(_exactly(8), "little")))  # noqa: S302
    _limit(job["limits"])
    if os.getuid() == 0:  # otherwise the sandbox has seen to it
        _become(job["uid"])
    os.chdir("/tmp")  # noqa: S108 - the sandbox's own
    os.write(2, job["token"])  # says that everything above is done; what runs from here on is not to be believed
    if job["role"] == "program":
        _run_program(job["source"])
    else:
        _run_module(job["modules"], job["role"], job["source"])


def _exactly(size: int) -> bytes:
    """So many bytes of stdin and not one more: what follows belongs to the program."""
    parts = bytearray()
    while len(parts) < size:
        part = os.read(0, min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError("the job ends early")
        parts += part
    return bytes(parts)


def _limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (limit, limit))


def _become(uid: int) -> None:
    """Gives up root for good, and with it every capability."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _run_program(source: str) -> None:
    """Runs a whole program, as Python would run its file."""
    sys.argv = [NAME]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(source, NAME, "exec"), module.__dict__)  # noqa: S102 - this is what the sandbox is for


def _run_module(modules: dict[str, str], role: str, source: str) -> None:
    """Runs one of our modules: `serve` or `check`; stdin and stdout lead to the other one, and nobody else has them."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    for name, text in modules.items():
        module = types.ModuleType(name)
        module.__path__ = []
        sys.modules[name] = module
        exec(compile(text, name, "exec"), module.__dict__)  # noqa: S102
    sys.modules[role].main(source, requests, replies)


if __name__ == "__main__":
    main()
