"""Verdicts from processes that can be killed: a bad answer costs at most its own time limit.

`pebble.ProcessPool` would be the ready-made choice, but its whole pool breaks when an idle worker dies, its workers
import the main module of the program again (in a Ray actor: all of ray), and a new worker imports sympy anew. Here each
thread of the pool owns one keeper process (see `still_ray.verifiers.worker`), and the two share nothing with others.
Programs go from the thread straight to a sandbox, which is killed at a time limit of its own.

    submit ─► judge_at_a_glance ─► Future, already done
                     │ MathQuestion, CustomQuestion, CodeQuestion
                     ▼
                   queue ─► thread ─pipe─► keeper ─fork, pipe─► judge (killed at the time limit)
                               └──► bubblewrap ─► program (likewise)
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Set
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Final, Self

from still_ray.config import VerifierConfig
from still_ray.types import Judgement, ParsedResponse, RunError
from still_ray.verifiers.code.sandbox import SandboxLimits
from still_ray.verifiers.code.verdict import CodeJudge, CodeQuestion, CodeSettings
from still_ray.verifiers.custom import LOAD_TIMEOUT_S
from still_ray.verifiers.environment import worker_environment
from still_ray.verifiers.judge import CustomQuestion, MathQuestion, Question, error_judgement, judge_at_a_glance
from still_ray.verifiers.worker import READY, decoded_judgement, encoded, extracted_from

START_TIMEOUT_S: Final = 120.0
_GRACE_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 3.0

_Task = tuple[Question, Future[Judgement]]


class VerifierPool:
    """Judges responses, in killable processes where that may take long; safe to use from several threads.

    Args:
        processes: How many answers are compared at the same time.
        timeout_s: Time for one answer that is no program, seconds; start-up does not count.
        memory_mib: Address space that comparing one answer may take, MiB.
        code: Sandbox and limits of programs; None: the defaults.
        custom: Verifiers of the user's own by domain, see `still_ray.verifiers.custom`.
    """

    def __init__(
        self,
        processes: int = 1,
        timeout_s: float = 5.0,
        memory_mib: int = 1024,
        *,
        code: CodeSettings | None = None,
        custom: Mapping[str, str] | None = None,
    ) -> None:
        self._code = CodeJudge(code)
        self._custom = dict(custom or {})
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._closed = False
        self._closing, self._close = Pipe(duplex=False)
        self._keepers = [_KeeperProcess(self._closing, timeout_s, memory_mib, self._custom) for _ in range(processes)]
        self._threads = [threading.Thread(target=self._work, args=(keeper,), daemon=True) for keeper in self._keepers]
        for thread in self._threads:
            thread.start()

    @classmethod
    def from_config(cls, config: VerifierConfig, *, processes: int | None = None) -> Self:
        """The pool that a recipe asks for.

        Args:
            config: The recipe's section.
            processes: Instead of the recipe's.
        """
        code = config.code
        limits = SandboxLimits(
            timeout_s=code.timeout_s,
            memory_mib=code.memory_mib,
            threads=code.threads,
            output_mib=code.output_mib,
            tmp_mib=code.tmp_mib,
        )
        settings = CodeSettings(
            limits=limits,
            total_timeout_s=code.total_timeout_s,
            sandbox=code.sandbox,
            sandbox_command=code.sandbox_command,
        )
        return cls(
            processes=processes or config.processes_per_worker,
            timeout_s=config.timeout_s,
            memory_mib=config.memory_mib,
            code=settings,
            custom=config.custom,
        )

    @property
    def own_domains(self) -> Set[str]:
        """The domains that have a verifier of the user's own."""
        return self._custom.keys()

    def submit(self, parsed: ParsedResponse, domain: str, reference: str, question: str = "") -> Future[Judgement]:
        """Starts to judge a response; the future never raises for a bad answer, and may be done on return.

        Raises:
            RunError: The pool is closed.
        """
        if self._closed:
            raise RunError("the verifier pool is closed")
        future: Future[Judgement] = Future()
        glance = judge_at_a_glance(parsed, domain, reference, question, custom=self._custom)
        if isinstance(glance, Judgement):
            future.set_result(glance)
        else:
            self._tasks.put((glance, future))
        if self._closed:  # by another thread, just now
            self._cancel_queued()
        return future

    def judge(self, parsed: ParsedResponse, domain: str, reference: str, question: str = "") -> Judgement:
        """Judges one response and waits for it."""
        return self.submit(parsed, domain, reference, question).result()

    def judge_many(self, items: Iterable[tuple[ParsedResponse, str, str]]) -> list[Judgement]:
        """Judges responses side by side; the judgements come in the order of the items."""
        return [future.result() for future in [self.submit(*item) for item in items]]

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until every process has loaded the algebra system.

        Raises:
            RunError: One did not start, or not in time.
        """
        deadline = time.monotonic() + timeout_s
        for keeper in self._keepers:
            if not keeper.started.wait(max(0.0, deadline - time.monotonic())):
                raise RunError(f"a verifier process did not start within {timeout_s:g} s")
            if keeper.failure:
                raise RunError(f"a verifier process did not start: {keeper.failure}")

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the keepers that are alive; their judges are their children."""
        return [keeper.pid for keeper in self._keepers if keeper.pid is not None]

    def close(self) -> None:
        """Ends every process; what is queued or being judged is cancelled or an ERROR. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._close.close()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._cancel_queued()
        self._closing.close()

    def _cancel_queued(self) -> None:
        while not self._tasks.empty():
            task = self._tasks.get()
            if task is not None:
                task[1].cancel()

    def _work(self, keeper: "_KeeperProcess") -> None:
        """A thread of the pool: consumes tasks, resolves their futures, and ends its process with itself."""
        try:
            keeper.start()
            while (task := self._tasks.get()) is not None and not self._closed:
                question, future = task
                if future.set_running_or_notify_cancel():
                    future.set_result(self._answer(question, keeper))
            if task is not None:
                task[1].cancel()
        finally:
            keeper.stop()

    def _answer(self, question: Question, keeper: "_KeeperProcess") -> Judgement:
        try:
            if isinstance(question, CodeQuestion):
                return self._code.judge(question, cancel=self._closing.fileno())
            return keeper.ask(question)
        except Exception as error:  # named policy: the thread goes on, and whoever waits gets a verdict
            return error_judgement(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _KeeperProcess:
    """One keeper seen from its thread; replaced whenever it is found dead.

    Attributes:
        started: Set when the first start has ended, well or badly.
        failure: Why the last start failed; "" if it did not.
    """

    def __init__(self, closing: Connection, timeout_s: float, memory_mib: int, custom: Mapping[str, str]) -> None:
        self.started = threading.Event()
        self.failure = ""
        self._closing = closing
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        self._custom = custom
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._warm = False

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Starts the process and waits until it is warm; `failure` tells if it is not."""
        try:
            self._launch()
            message = self._received(START_TIMEOUT_S).decode(errors="replace")
            self.failure = "" if message == READY.decode() else message
            self._warm = True
        except (OSError, EOFError) as error:
            self.failure = f"{type(error).__name__}: {error}"
        if self.failure:
            self.stop()
        self.started.set()

    def ask(self, question: MathQuestion | CustomQuestion) -> Judgement:
        """Has one question judged; a keeper that died since the last one is replaced first."""
        if self._pipe is None or self._pipe.poll(0):  # an idle keeper says nothing unless it dies
            self.stop()
            self.start()
        extracted = extracted_from(question)
        if self._pipe is None:
            return error_judgement(f"the verifier process did not start: {self.failure}", extracted=extracted)
        loading_s = LOAD_TIMEOUT_S if self._custom else 0.0
        try:
            self._pipe.send_bytes(encoded(question))
            return decoded_judgement(self._received(loading_s + self._timeout_s + _GRACE_S))
        except (OSError, EOFError, ValueError) as error:
            self.stop()
            reason = f"the verifier process died: {type(error).__name__} {error}"
            return error_judgement(reason, extracted=extracted)

    def stop(self) -> None:
        """Ends the process: it ends its judge and itself when the pipe closes."""
        process, self._process = self._process, None
        if process is not None and not self._warm:  # it has no judge yet
            process.kill()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is not None:
            _wait_or_kill(process)

    def _received(self, timeout_s: float) -> bytes:
        """The keeper's next message.

        Raises:
            EOFError: It died, or the pool is being closed.
            TimeoutError: It said nothing for so long.
        """
        assert self._pipe is not None
        ready = wait([self._pipe, self._closing], timeout_s)
        if self._closing in ready:
            raise EOFError("the pool was closed")
        if not ready:
            raise TimeoutError(f"no word within {timeout_s:g} s")
        return self._pipe.recv_bytes()

    def _launch(self) -> None:
        ours, theirs = Pipe()
        self._pipe, self._warm = ours, False
        try:
            self._process = subprocess.Popen(
                [*_COMMAND, *self._options(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=worker_environment(with_working_directory=bool(self._custom)),
            )
        finally:
            theirs.close()

    def _options(self, pipe: int) -> list[str]:
        values = {
            "--pipe": pipe,
            "--parent-pid": os.getpid(),
            "--timeout-s": self._timeout_s,
            "--memory-mib": self._memory_mib,
            "--custom": json.dumps(self._custom),
        }
        return [text for option, value in values.items() for text in (option, str(value))]


_COMMAND: Final = (sys.executable, "-P", "-m", "still_ray.verifiers.worker")


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
