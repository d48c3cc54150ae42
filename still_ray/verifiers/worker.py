"""The killable side of the verifier pool: ``python -m still_ray.verifiers.worker``, started by `VerifierPool`.

A *keeper* process imports the algebra system once and forks a *judge* from itself. It hands each question on, waits at
most the time limit for the answer, kills a judge that takes longer or fails, and forks the next one: that takes some
milliseconds where a new process would import for a second. The keeper is single-threaded and runs no algebra.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Final, NoReturn

from still_ray.types import Judgement, Verdict
from still_ray.verifiers.judge import MathQuestion, error_judgement, judge_question

_PR_SET_PDEATHSIG: Final = 1
_MIB: Final = 1 << 20
_NEARLY: Final = 0.95
_WARM_UP: Final = (
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\sin x", r"\cos x"),
    (r"(0,9) \cup (9,\infty)", "(0,9]"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ("y=2x+3", "y=2x+4"),
)
"""Comparisons that make sympy load what it loads late, so that no judge pays for it."""

READY: Final = b"ready"


def encoded(record: Judgement | MathQuestion) -> bytes:
    """A record as JSON for the pipe: what comes from a judge of model text is never unpickled."""
    return json.dumps(vars(record)).encode("ascii")


def decoded_judgement(message: bytes) -> Judgement:
    """The judgement in a message."""
    fields = json.loads(message)
    return Judgement(verdict=Verdict(fields["verdict"]), extracted=fields["extracted"], detail=fields["detail"])


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to kill this process when the one that started it is gone (Linux only)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """A forked judge, seen from the keeper."""

    pid: int
    connection: Connection

    def kill(self) -> int:
        """Ends it for good; returns its wait status."""
        self.connection.close()
        os.kill(self.pid, signal.SIGKILL)
        return os.waitpid(self.pid, 0)[1]


class Keeper:
    """Serves one pool thread: a question at a time, in judges that may die.

    Consumes questions from the pipe and produces one judgement for each; waits for the judge, at most the time limit,
    and is unblocked by its answer, its death, or the pool's closing of the pipe.
    """

    def __init__(self, pool: Connection, *, timeout_s: float, memory_mib: int) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        self._judge: _Judge | None = None

    def serve(self) -> None:
        """Answers until the pool closes the pipe."""
        try:
            while True:
                self._living_judge()
                question = self._pool.recv_bytes()
                self._pool.send_bytes(encoded(self._answer(question)))
        except (EOFError, OSError):
            self._stop_judge()

    def _living_judge(self) -> _Judge:
        if self._judge is not None and self._judge.connection.poll(0):  # an idle judge says nothing unless it dies
            self._stop_judge()
        self._judge = self._judge or self._forked()
        return self._judge

    def _stop_judge(self) -> int:
        judge, self._judge = self._judge, None
        return judge.kill() if judge is not None else 0

    def _answer(self, question: bytes) -> Judgement:
        """Asks the judge.

        Raises:
            EOFError: The pool closed the pipe meanwhile.
        """
        extracted = str(json.loads(question)["answer"])
        judge = self._living_judge()
        try:
            judge.connection.send_bytes(question)
            ready = wait([judge.connection, self._pool], self._timeout_s)
            judgement = decoded_judgement(judge.connection.recv_bytes()) if judge.connection in ready else None
        except (EOFError, OSError):
            return self._died(extracted)
        if self._pool in ready:
            raise EOFError
        if judgement is None:
            return self._timed_out(extracted)
        if judgement.verdict is Verdict.ERROR:  # after a MemoryError, say, nothing in it is to be trusted
            self._stop_judge()
        return judgement

    def _timed_out(self, extracted: str) -> Judgement:
        self._stop_judge()
        return Judgement(
            verdict=Verdict.TIMEOUT, extracted=extracted, detail=f"no verdict within {self._timeout_s:g} s"
        )

    def _died(self, extracted: str) -> Judgement:
        code = os.waitstatus_to_exitcode(self._stop_judge())
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return error_judgement(f"the verifier process died: {how}", extracted=extracted)

    def _forked(self) -> _Judge:
        ours, theirs = Pipe()
        keeper_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._pool.close()
            _run_judge(theirs, keeper_pid, self._memory_mib)
        theirs.close()
        return _Judge(pid=pid, connection=ours)


def _run_judge(connection: Connection, keeper_pid: int, memory_mib: int) -> NoReturn:
    """The whole life of a forked judge."""
    try:
        die_with_parent(keeper_pid)
        limit = _limit_memory(memory_mib)
        while True:
            question = MathQuestion(**json.loads(connection.recv_bytes()))
            connection.send_bytes(encoded(_within_memory(judge_question(question), limit)))
    finally:
        os._exit(1)


def _limit_memory(memory_mib: int) -> int:
    """Caps the address space at what it is now and so much more; returns the cap in bytes."""
    if sys.platform != "linux":
        return sys.maxsize
    limit = _address_space_bytes("VmSize") + memory_mib * _MIB
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return limit


def _within_memory(judgement: Judgement, limit: int) -> Judgement:
    """Turns a judgement against an answer into an error if memory ran out: math-verify swallows a MemoryError."""
    against = judgement.verdict in (Verdict.INCORRECT, Verdict.UNPARSABLE)
    if against and limit < sys.maxsize and _address_space_bytes("VmPeak") > _NEARLY * limit:
        return error_judgement("MemoryError: the memory limit was reached", extracted=judgement.extracted)
    return judgement


def _address_space_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _warmed_up() -> bytes:
    """Loads what the first questions need; returns what to tell the pool."""
    judgements = [judge_question(MathQuestion(answer=answer, reference=reference)) for answer, reference in _WARM_UP]
    failure = next((found.detail for found in judgements if found.verdict is Verdict.ERROR), None)
    gc.collect()
    gc.freeze()  # forked judges then share these pages for good
    return READY if failure is None else failure.encode()


def main() -> None:
    """Runs a keeper on an inherited pipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--timeout-s", type=float, required=True)
    parser.add_argument("--memory-mib", type=int, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that owns the pool
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a program that ignores it passes that on, and waiting would fail
    die_with_parent(options.parent_pid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pool = Connection(options.pipe)
    pool.send_bytes(_warmed_up())
    Keeper(pool, timeout_s=options.timeout_s, memory_mib=options.memory_mib).serve()


if __name__ == "__main__":
    main()
