"""`distill`: long-form thoughts from a teacher behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from still_ray.cli.console.progress import ConsoleProgress
from still_ray.cli.console.tables import result_console
from still_ray.cli.preflight.provenance import package_versions
from still_ray.cli.preflight.ray_job import check_kept
from still_ray.config.distill import load_distill_config
from still_ray.config.loading import dump_recipe
from still_ray.distill.endpoint import Endpoint
from still_ray.distill.journal import Journal
from still_ray.distill.questions import read_questions
from still_ray.distill.retry import AttemptError, Consequence
from still_ray.distill.run import Distillation, Status, pending, unjudged
from still_ray.distill.tables import DEMONSTRATIONS_FILE, RAW_FILE, report_of, write_tables
from still_ray.distill.task import Task, check_budget, check_same_task, load_prompt
from still_ray.distill.teacher import OpenAiTeacher
from still_ray.store.atomic import write_json, write_text
from still_ray.store.run_directory import RunDirectory
from still_ray.types import InputError
from still_ray.verifiers.custom import check_custom_verifiers
from still_ray.verifiers.pool import VerifierPool

ResultT = TypeVar("ResultT")

SETTINGS_FILE = "distill.yaml"
JOURNAL_FILE = "journal.jsonl"
REPORT_FILE = "report.json"
MOST_REASONS = 3


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """The command's options; see `still-ray distill --help`."""

    questions: Path
    endpoint: str
    model: str
    output: Path
    recipe: Path | None
    api_key_env: str | None
    overrides: tuple[str, ...]
    as_json: bool


def distill(options: DistillOptions) -> None:
    """Asks for what the output folder lacks, then makes its tables and its report anew.

    Raises:
        InputError: An option, a setting or a question is wrong, or the folder holds answers to other requests.
        RunError: The endpoint brought no more answers.
    """
    _check_model(options.model)
    config = load_distill_config(options.recipe, options.overrides)
    check_custom_verifiers(config.verifier_custom, key="verifier_custom")
    endpoint = Endpoint.from_address(options.endpoint, options.api_key_env)
    task = Task(
        config=config,
        source=read_questions(options.questions, own=config.verifier_custom),
        model=options.model,
        endpoint=endpoint.public,
        prompt=load_prompt(config.prompt),
    )
    directory, root = RunDirectory(options.output), options.output.resolve()
    check_kept(root, option="--output")
    _check_folder(root)
    directory.create()
    with directory.locked(), Journal(root / JOURNAL_FILE) as journal:
        check_same_task(task, journal.ledger, str(options.output))
        check_budget(task, journal.ledger)
        _remove_leftovers(root)
        facts = {"model": task.model, "questions": _shown(options.questions), "endpoint": task.endpoint}
        write_text(root / SETTINGS_FILE, dump_recipe(config, {**facts, **package_versions()}))
        _Invocation(task, endpoint, journal, root).carry_out(as_json=options.as_json)


def _check_model(name: str) -> None:
    if not name.strip() or not name.isprintable():  # what is no UTF-8 on the command line is not printable either
        raise InputError("--model: must be the teacher's name at the endpoint: printable UTF-8 text, not blank")


def _check_folder(folder: Path) -> None:
    """Every folder of this command has a journal; tables without one are somebody else's."""
    if (folder / JOURNAL_FILE).exists():
        return
    others = [path.name for path in (folder / REPORT_FILE, *sorted(folder.glob("*.parquet"))) if path.exists()]
    if others:
        raise InputError(f"{folder}: holds the output of another command ({others[0]}); give another --output")


def _remove_leftovers(folder: Path) -> None:
    """Removes what a killed process was writing; the lock says that nobody else writes here."""
    for name in (RAW_FILE, DEMONSTRATIONS_FILE, REPORT_FILE, SETTINGS_FILE):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink()


def _shown(path: Path) -> str:
    """A path on one line of UTF-8, whatever its name."""
    return "".join(character if character.isprintable() else "?" for character in str(path))


class _Invocation:
    """One call of the command, on a folder that it holds the lock of."""

    def __init__(self, task: Task, endpoint: Endpoint, journal: Journal, folder: Path) -> None:
        self._task = task
        self._endpoint = endpoint
        self._journal = journal
        self._folder = folder
        self._distillation: Distillation | None = None

    def carry_out(self, *, as_json: bool) -> None:
        with ConsoleProgress(None) as progress:
            progress.begun("distill", self._title())
            try:
                if self._is_complete():
                    progress.noted("complete already: nothing to ask; raise samples_per_question to go on")
                else:
                    _interruptible(self._ask(progress))
            finally:
                self._note_failures(progress)
                report = self._written_report()
        if self._distillation is not None and self._distillation.error is not None:
            raise self._distillation.error
        _print(report, self._folder, as_json=as_json)

    def _title(self) -> str:
        done, wanted = len(self._journal.ledger.answers), self._task.num_samples
        known = f", {done} of them known already" if done else ""
        return f"{len(self._task.source.questions)} questions, {wanted} samples{known}; from {self._task.endpoint}"

    def _is_complete(self) -> bool:
        nothing = next(pending(self._task, self._journal), None) is None
        return nothing and (not self._verifies() or next(unjudged(self._task, self._journal), None) is None)

    def _verifies(self) -> bool:
        return self._task.config.verify and any(question.answer for question in self._task.source.questions)

    async def _ask(self, progress: ConsoleProgress) -> None:
        with self._pool() as pool:
            async with OpenAiTeacher(self._endpoint, self._task.model, self._task.config) as teacher:
                self._distillation = Distillation(
                    self._task,
                    teacher,
                    self._journal,
                    pool=pool,
                    on_progress=lambda: self._show(progress),
                    on_failure=lambda error: self._note_failure(error, progress),
                )
                await self._distillation.run()

    @contextlib.contextmanager
    def _pool(self) -> Iterator[VerifierPool | None]:
        config = self._task.config
        if not self._verifies():
            yield None
            return
        own = config.verifier_custom
        with VerifierPool(config.verifier_processes, config.verifier_timeout_s, custom=own) as pool:
            yield pool

    def _note_failure(self, error: AttemptError, progress: ConsoleProgress) -> None:
        """Says at once why requests fail, the first time for each reason; what ends the run is said at its end."""
        follows = {
            Consequence.RETRY: f"asked again after a wait, at most {self._task.config.max_attempts} times",
            Consequence.REFUSED: "not asked again",
        }.get(error.consequence)
        if follows:
            progress.noted(f"a request failed, and is {follows}: {error}")

    def _note_failures(self, progress: ConsoleProgress) -> None:
        """The same with the numbers, once no more is asked."""
        ran = self._distillation
        if ran is None:
            return
        for reason, number in ran.failures.most_common():
            requests = "1 request" if number == 1 else f"{number:,} requests"
            progress.noted(f"{requests} failed with {ran.first_failures[reason]}")

    def _show(self, progress: ConsoleProgress) -> None:
        ledger, config = self._journal.ledger, self._task.config
        done = len(ledger.answers)
        failed = ledger.outcomes.total() - ledger.num_answered
        progress.advanced(
            done,
            self._task.num_samples,
            {
                "answers": f"{done - len(ledger.refused)}/{self._task.num_samples}",
                "requests": _of_limit(ledger.num_requests, config.max_requests),
                "failed": f"{failed}{self._reasons()}",
                "tokens": _of_limit(ledger.charged_tokens - ledger.in_flight_tokens, config.max_total_tokens),
            },
        )

    def _reasons(self) -> str:
        """Why requests of this invocation failed, the commonest reasons."""
        common = self._distillation.failures.most_common(MOST_REASONS) if self._distillation is not None else ()
        return f" ({', '.join(reason for reason, _ in common)})" if common else ""

    def _written_report(self) -> dict[str, Any]:
        """The tables first, so that a report is never of more than they hold."""
        ran = self._distillation
        counts = write_tables(self._folder, self._task, self._journal)
        status = ran.status if ran is not None else Status.COMPLETE if self._is_complete() else Status.INTERRUPTED
        report = report_of(self._task, self._journal, counts, status=status, given_up=ran.given_up if ran else {})
        write_json(self._folder / REPORT_FILE, report)
        return report


def _of_limit(number: int, limit: int | None) -> str:
    return f"{number:,}" if limit is None else f"{number:,}/{limit:,}"


def _interruptible(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Runs a coroutine that SIGTERM ends as Ctrl-C does: between two steps, never within one.

    Raises:
        KeyboardInterrupt: Either came.
    """

    async def watched() -> ResultT:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    before = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(report: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 - the command's result
        return
    console = result_console()
    console.print(_table(report))
    for line in _advice(report):
        console.print(line, markup=False)
    console.print(f"written: {folder / DEMONSTRATIONS_FILE}", markup=False)


def _table(report: dict[str, Any]) -> Table:
    table = Table(title="Distillation", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    requests, tokens = report["requests"], report["tokens"]
    rows: list[tuple[str, Any]] = [
        ("samples answered", f"{report['samples_answered']:,} of {report['samples_wanted']:,}"),
        ("questions without a reference", report["questions_without_reference"]),
        ("demonstrations", report["demonstrations"]),
        ("questions with a demonstration", f"{report['questions_with_demonstration']:,} of {report['questions']:,}"),
        *((f"dropped: {reason}", count) for reason, count in report["dropped"].items()),
        *((f"verdict: {verdict}", count) for verdict, count in report["verdicts"].items()),
        ("requests", _of_limit(requests["sent"], requests["limit"])),
        *((f"requests: {outcome}", count) for outcome, count in requests["outcomes"].items()),
        ("requests: end unknown", requests["end_unknown"]),
        ("tokens", _of_limit(tokens["charged"], tokens["limit"])),
        ("tokens: assumed, not reported", tokens["assumed"]),
    ]
    for name, count in rows:
        table.add_row(name, f"{count:,}" if isinstance(count, int) else count)
    return table


def _advice(report: dict[str, Any]) -> Iterator[str]:
    """What to do about what is missing."""
    missing = report["samples_wanted"] - report["samples_answered"] - report["samples_refused"]
    if report["status"] == Status.BUDGET.value:
        yield (
            f"the budget is spent, {missing} samples are not asked; the same command with a larger max_requests or "
            "max_total_tokens goes on"
        )
    if report["given_up"]:
        first = report["given_up"][0]
        yield f"{len(report['given_up'])} samples were given up, e.g. {first['id']}: {first['why']}"
        yield "the same command tries them again"
