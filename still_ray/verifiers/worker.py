"""The killable side of the verifier pool: ``python -m still_ray.verifiers.worker``, started by `VerifierPool`.

A *keeper* process imports the algebra system once and forks a *judge* from itself. It hands each question on, waits at
most the time limit for the answer, kills a judge that takes longer or fails, and forks the next one: that takes some
milliseconds where a new process would import for a second. The keeper is single-threaded and runs no algebra.

Verifiers of the user's own are loaded by each judge when it starts, never by the keeper. Loading has a time limit of
its own, and its memory does not count against an answer.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Final, NoReturn

from still_ray.types import Judgement, Verdict
from still_ray.verifiers.custom import LOAD_TIMEOUT_S, CustomVerifier, LoadError, judge_custom, load_verifier
from still_ray.verifiers.judge import CustomQuestion, MathQuestion, error_judgement, judge_question

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
    (r"\int_0^1 x dx", r"\frac{1}{2}"),
    (r"\int \cos x dx", r"\sin x"),
    (r"\int_1^2 \frac{1}{x} dx + \sqrt{3}", r"\ln 2 + \sqrt{3}"),
    (r"\lim_{x \to 0} \frac{\sin x}{x}", "1"),
)
"""Comparisons that load what is loaded late, sympy above all, so that no judge pays for it."""

READY: Final = b"ready"


def encoded(record: Judgement | MathQuestion | CustomQuestion) -> bytes:
    """A record as JSON for the pipe: what comes from a judge of model text is never unpickled."""
    return json.dumps(vars(record)).encode("ascii")


def decoded_question(message: bytes) -> MathQuestion | CustomQuestion:
    """The question in a message."""
    fields = json.loads(message)
    return CustomQuestion(**fields) if "domain" in fields else MathQuestion(**fields)


def extracted_from(question: MathQuestion | CustomQuestion) -> str | None:
    """What a judgement without a verdict of its own shows as the answer."""
    return question.answer if isinstance(question, MathQuestion) else None


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

    def __init__(
        self, pool: Connection, *, timeout_s: float, memory_mib: int, custom: Mapping[str, str] | None = None
    ) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        self._custom: Mapping[str, str] = custom or {}
        self._load_failure = ""
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
        extracted = extracted_from(decoded_question(question))
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

    def _timed_out(self, extracted: str | None) -> Judgement:
        self._stop_judge()
        return Judgement(
            verdict=Verdict.TIMEOUT, extracted=extracted, detail=f"no verdict within {self._timeout_s:g} s"
        )

    def _died(self, extracted: str | None) -> Judgement:
        code = os.waitstatus_to_exitcode(self._stop_judge())
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return error_judgement(f"the verifier process died: {how}", extracted=extracted)

    def _forked(self) -> _Judge:
        """A new judge that has loaded the user's verifiers; where that fails as a whole, it is not tried again."""
        judge = self._forked_once()
        if self._custom and not self._load_failure:
            self._load_failure = _loading_problem(judge.connection)
            if self._load_failure:
                judge.kill()
                return self._forked_once()
        return judge

    def _forked_once(self) -> _Judge:
        ours, theirs = Pipe()
        keeper_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._pool.close()
            _run_judge(theirs, keeper_pid, self._memory_mib, _Custom(paths=self._custom, failure=self._load_failure))
        theirs.close()
        return _Judge(pid=pid, connection=ours)


def _loading_problem(judge: Connection) -> str:
    """Waits for a judge that loads; "" once it has."""
    try:
        if not judge.poll(LOAD_TIMEOUT_S):
            return f"the verifier is not loaded within {LOAD_TIMEOUT_S:g} s"
        judge.recv_bytes()
    except (EOFError, OSError):
        return "loading the verifier ended the process"
    return ""


@dataclass(frozen=True, kw_only=True)
class _Custom:
    """The user's verifiers: paths by domain, and why none is to be loaded ("" if they are)."""

    paths: Mapping[str, str]
    failure: str

    def loaded(self) -> dict[str, CustomVerifier | str]:
        """The verifiers, or why there is none."""
        return {domain: self.failure or _loaded(path) for domain, path in self.paths.items()}


def _loaded(path: str) -> CustomVerifier | str:
    try:
        return load_verifier(path)
    except LoadError as error:
        return str(error)


def _run_judge(connection: Connection, keeper_pid: int, memory_mib: int, custom: _Custom) -> NoReturn:
    """The whole life of a forked judge."""
    try:
        die_with_parent(keeper_pid)
        verifiers = custom.loaded()
        if verifiers and not custom.failure:
            connection.send_bytes(READY)
        limit = _limit_memory(memory_mib)
        while True:
            question = decoded_question(connection.recv_bytes())
            connection.send_bytes(encoded(_within_memory(_judged(question, verifiers), limit)))
    finally:
        os._exit(1)


def _judged(question: MathQuestion | CustomQuestion, verifiers: Mapping[str, CustomVerifier | str]) -> Judgement:
    if isinstance(question, MathQuestion):
        return judge_question(question)
    verifier = verifiers[question.domain]
    return error_judgement(verifier) if isinstance(verifier, str) else judge_custom(verifier, question)


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
    if "math_verify" not in sys.modules:
        failure = "no comparison of the warm-up needs math-verify, so each judge would load it anew"
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
    parser.add_argument("--custom", type=json.loads, default={})
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that owns the pool
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a program that ignores it passes that on, and waiting would fail
    die_with_parent(options.parent_pid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pool = Connection(options.pipe)
    pool.send_bytes(_warmed_up())
    Keeper(pool, timeout_s=options.timeout_s, memory_mib=options.memory_mib, custom=options.custom).serve()


if __name__ == "__main__":
    main()
