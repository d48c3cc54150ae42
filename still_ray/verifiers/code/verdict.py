"""Verdicts on programs: the last Python block of a solution, run in the sandbox on cases or under assertions.

Cases ("stdio"): the program runs once for each, and what it printed is compared here. Assertions ("assert"): the
program runs in one sandbox and the assertions in another, which asks it for values
(`still_ray.verifiers.code.inside.check`). In neither does the verdict pass through anything that the program can write.

    correct      every case or assertion holds
    incorrect    one does not, or the program crashes, runs out of memory, or prints too much
    timeout      a time limit is reached
    unparsable   the solution has no Python block
    error        no sandbox, a reference that is none, or what only the program could decide
"""

import json
import os
import re
import signal
import textwrap
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import IO, Any, Final

from still_ray.types import Judgement, Verdict
from still_ray.verifiers.code.exchange import Ending, Exchange
from still_ray.verifiers.code.outputs import difference
from still_ray.verifiers.code.sandbox import Job, Run, Sandbox, SandboxLimits, SandboxProcess

_FENCE: Final = re.compile(r"^[ \t]*(`{3,})[ \t]*([^`\n]*?)[ \t\r]*$", re.MULTILINE)
_PYTHON: Final = frozenset({"python", "python3", "py"})
_SHOWN_CHARS: Final = 10_000
_HEAD_CHARS: Final = 200
_SIGNALLED: Final = 128
_LAST_WORDS_S: Final = 0.5
_MIB: Final = 1 << 20


class BadReferenceError(ValueError):
    """The reference is not what a code problem's reference must be."""


@dataclass(frozen=True, kw_only=True)
class CodeQuestion:
    """A program and the reference that it is to satisfy.

    Attributes:
        source: Python source.
        reference: JSON text of a `still_ray.types.CodeReference`.
    """

    source: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class CodeSettings:
    """How programs are run.

    Attributes:
        limits: Of one process; `limits.timeout_s` is for one case, or for all assertions together.
        total_timeout_s: For all cases of one answer together, seconds.
        sandbox: Name or path of bubblewrap; "none": code is not judged.
        sandbox_command: Another sandbox, see `still_ray.verifiers.code.sandbox.Sandbox`.
    """

    limits: SandboxLimits = field(default_factory=SandboxLimits)
    total_timeout_s: float = 60.0
    sandbox: str = "bwrap"
    sandbox_command: tuple[str, ...] | None = None


def last_python_block(solution: str) -> str | None:
    """The source in the last fenced block that says it is Python; without any, in the last that says nothing.

    None if there is no such block, or if the last fence is never closed.
    """
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(solution):
        if opened is None:
            opened = fence
        elif not fence[2] and len(fence[1]) >= len(opened[1]):
            blocks.append((_language(opened[2]), solution[opened.end() + 1 : fence.start()]))
            opened = None
    if opened is not None:
        return None
    labelled = [source for language, source in blocks if language in _PYTHON]
    bare = [source for language, source in blocks if not language]
    found = labelled or bare
    return _dedented(found[-1]) if found else None


def _language(info: str) -> str:
    return (info.split() or [""])[0].strip("{}.").lower()


def _dedented(source: str) -> str:
    """A block inside a list item is indented as a whole."""
    return textwrap.dedent(source) if source.startswith((" ", "\t")) else source


class CodeJudge:
    """Judges programs; safe to use from several threads."""

    def __init__(self, settings: CodeSettings | None = None) -> None:
        self._settings = settings or CodeSettings()
        self.sandbox = Sandbox(self._settings.sandbox, self._settings.sandbox_command)

    def judge(self, question: CodeQuestion, *, cancel: int | None = None) -> Judgement:
        """Runs a program and says whether it satisfies its reference.

        Args:
            question: The program and the reference.
            cancel: A descriptor that becomes readable when to stop at once (verdict ERROR).
        """
        problem = self.sandbox.problem()
        if problem is not None:
            return _judgement(question, Verdict.ERROR, f"no sandbox: {problem}")
        try:
            reference = _reference(question.reference)
            if isinstance(reference, str):
                return _Assertions(self.sandbox, self._settings.limits, cancel).judge(question, reference)
            return self._judge_cases(question, reference, cancel)
        except BadReferenceError as error:
            return _judgement(question, Verdict.ERROR, str(error))
        except OSError as error:
            return _judgement(question, Verdict.ERROR, f"no sandbox: {error}")

    def _judge_cases(self, question: CodeQuestion, cases: list["_Case"], cancel: int | None) -> Judgement:
        deadline = time.monotonic() + self._settings.total_timeout_s
        for number, case in enumerate(cases, start=1):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                detail = f"{number - 1} of {len(cases)} cases within {self._settings.total_timeout_s:g} s"
                return _judgement(question, Verdict.TIMEOUT, detail)
            limits = replace(self._settings.limits, timeout_s=min(left_s, self._settings.limits.timeout_s))
            most = 2 * len(case.output) + _MIB
            run = self.sandbox.run(question.source, case.input.encode(), limits, max_stdout_bytes=most, cancel=cancel)
            verdict, detail = _verdict_on_case(run, case.output, limits)
            if verdict is not Verdict.CORRECT:
                return _judgement(question, verdict, f"case {number} of {len(cases)}: {detail}")
        return _judgement(question, Verdict.CORRECT, f"all {len(cases)} cases")


@dataclass(frozen=True, kw_only=True)
class _Case:
    input: str
    output: str


def _reference(text: str) -> "list[_Case] | str":
    """The cases, or the assertion code.

    Raises:
        BadReferenceError: It is neither.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and fields.get("kind") == "assert" and isinstance(fields.get("code"), str):
        return str(fields["code"])
    cases = fields.get("cases") if isinstance(fields, dict) and fields.get("kind") == "stdio" else None
    if not isinstance(cases, list) or not cases:
        raise BadReferenceError(
            'the reference is neither {"kind": "stdio", "cases": [...]} nor {"kind": "assert", "code"}'
        )
    return [_case(case, number) for number, case in enumerate(cases, start=1)]


def _case(fields: Any, number: int) -> _Case:
    texts = [fields.get(key) if isinstance(fields, dict) else None for key in ("input", "output")]
    if not all(isinstance(text, str) for text in texts):
        raise BadReferenceError(f'case {number} of the reference needs texts "input" and "output"')
    try:
        "".join(map(str, texts)).encode()
    except UnicodeEncodeError:
        raise BadReferenceError(f"case {number} of the reference is no Unicode text") from None
    return _Case(input=str(texts[0]), output=str(texts[1]))


def _verdict_on_case(run: Run, expected: str, limits: SandboxLimits) -> tuple[Verdict, str]:
    early = _verdict_on_ending(run.ending, run.started, run.stderr, limits)
    if early is not None:
        return early
    if run.status:
        return _verdict_on_status(run.status, run.stderr)
    found = difference(run.stdout, expected)
    return (Verdict.CORRECT, "") if found is None else (Verdict.INCORRECT, found)


def _verdict_on_ending(ending: Ending, started: bool, said: bytes, limits: SandboxLimits) -> tuple[Verdict, str] | None:
    """The verdict where a sandbox did not start or did not end by itself; None where it did."""
    if ending is Ending.CANCELLED:
        return Verdict.ERROR, "stopped: the pool was closed"
    if not started:
        return Verdict.ERROR, f"the sandbox did not start: {_last_line(said) or ending.value}"
    if ending is Ending.TIMEOUT:
        return Verdict.TIMEOUT, f"not finished within {limits.timeout_s:g} s"
    return (Verdict.INCORRECT, "printed too much") if ending is Ending.OVERFLOW else None


def _verdict_on_status(status: int, stderr: bytes) -> tuple[Verdict, str]:
    """What a program's failure means.

    The system call filter lets no program send itself a signal, or exit with a status that looks like one.
    """
    if status == _SIGNALLED + signal.SIGKILL:
        return Verdict.ERROR, "killed from outside"
    if status == _SIGNALLED + signal.SIGXCPU:
        return Verdict.TIMEOUT, "used up its CPU time"
    if status > _SIGNALLED:
        return Verdict.INCORRECT, f"crashed: signal {status - _SIGNALLED}"
    return Verdict.INCORRECT, f"failed with status {status}: {_last_line(stderr)}"


def _last_line(stderr: bytes) -> str:
    lines = stderr[-4096:].decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1][:_HEAD_CHARS] if lines else ""


class _Assertions:
    """One judgement by assertion code: two sandboxes, joined by two pipes.

    The checker is started first and has read its job before the program exists, so the program cannot write the job.
    """

    def __init__(self, sandbox: Sandbox, limits: SandboxLimits, cancel: int | None) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._exchange = Exchange(time.monotonic() + limits.timeout_s, limits.output_mib * _MIB, cancel)

    def judge(self, question: CodeQuestion, code: str) -> Judgement:
        """Runs both sides until the checker has spoken."""
        check, serve = Job(role="check", source=code), Job(role="serve", source=question.source)
        with ExitStack() as stack:
            to_checker, to_program = stack.enter_context(_Pipe()), stack.enter_context(_Pipe())
            checker = stack.enter_context(self._start(to_checker, to_program))
            self._exchange.send(to_checker.feed(), check.message(self._limits))
            ending = self._exchange.go_on()
            if ending is not Ending.DONE:
                nothing = (False, b"")
                return _judgement(question, *self._verdict(ending, nothing, nothing, checker))
            program = stack.enter_context(self._start(to_program, to_checker))
            self._exchange.send(to_program.feed(), serve.message(self._limits))
            to_checker.close()  # each side must see the end of the other
            to_program.close()
            report, complaints = self._exchange.receive(checker.stderr), self._exchange.receive(program.stderr)
            ending = self._exchange.go_on(until=[checker.stderr])
            words = check.split(bytes(report)), serve.split(bytes(complaints))
            return _judgement(question, *self._verdict(ending, *words, program))

    def _start(self, requests: "_Pipe", replies: "_Pipe") -> SandboxProcess:
        stdin, stdout = requests.reader.fileno(), replies.writer.fileno()
        return self._sandbox.start(self._limits, stdin=stdin, stdout=stdout)

    def _verdict(
        self, ending: Ending, check: tuple[bool, bytes], serve: tuple[bool, bytes], program: SandboxProcess
    ) -> tuple[Verdict, str]:
        """The checker's word, unless something else comes first.

        Args:
            ending: How the exchange ended.
            check: Whether the checker ran, and what it said.
            serve: Whether the program ran, and what it printed to stderr.
            program: The program's sandbox.
        """
        verdict, detail = _reported(check[1])
        if check[0] and ending is Ending.DONE and verdict is Verdict.ERROR:  # maybe before the program was there
            return verdict, detail
        for runs, said in (check, serve):
            early = _verdict_on_ending(ending, runs, said, self._limits)
            if early is not None:
                return early
        if verdict is Verdict.INCORRECT and (status := program.ended(time.monotonic() + _early_end(detail))):
            died, how = _verdict_on_status(status, serve[1])
            return died, f"{detail}: {how}"
        return verdict, detail


def _early_end(detail: str) -> float:
    """How long to wait for the exit status of a program: only one that ended by itself has one that matters."""
    return _LAST_WORDS_S if "the program ended" in detail else 0.0


def _reported(said: bytes) -> tuple[Verdict, str]:
    """The checker's word."""
    try:
        verdict, detail = json.loads(said)
        return Verdict(verdict), str(detail)
    except (ValueError, TypeError):
        return Verdict.ERROR, "the assertion code ended its own process"


class _Pipe:
    """A pipe between two sandboxed processes."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.reader: IO[bytes] = os.fdopen(reader, "rb", buffering=0)
        self.writer: IO[bytes] = os.fdopen(writer, "wb", buffering=0)

    def feed(self) -> IO[bytes]:
        """Another way into it: not blocking here must not make it so for the process that writes there too."""
        path, flags = f"/proc/self/fd/{self.writer.fileno()}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
        return os.fdopen(os.open(path, flags), "wb", buffering=0)

    def close(self) -> None:
        """Closes both ends here. May be called twice."""
        self.reader.close()
        self.writer.close()

    def __enter__(self) -> "_Pipe":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _judgement(question: CodeQuestion, verdict: Verdict, detail: str) -> Judgement:
    source = question.source
    shown = source if len(source) <= _SHOWN_CHARS else source[:_HEAD_CHARS] + "…"
    return Judgement(verdict=verdict, extracted=shown, detail=" ".join(detail.split())[:_HEAD_CHARS])
