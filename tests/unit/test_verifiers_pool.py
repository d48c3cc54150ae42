"""The verifier pool under attack, with real processes: what a bad answer, a dead worker and a dead parent cost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from still_ray.types import Domain, ParsedResponse, RunError, Verdict
from still_ray.verifiers.pool import VerifierPool

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 2.5
HANGS = "9^{9^{9^9}}"
HARD_BUT_RIGHT = (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}")


def item(answer: str, reference: str) -> tuple[ParsedResponse, Domain, str]:
    return ParsedResponse(thought="t", solution=f"\\boxed{{{answer}}}"), Domain.MATH, reference


def judges(pool: VerifierPool) -> list[psutil.Process]:
    return [judge for pid in pool.worker_pids for judge in psutil.Process(pid).children()]


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(2, timeout_s=TIMEOUT_S, memory_mib=256) as pool:
        pool.wait_until_ready()
        yield pool


BOX_BOMB = "\\boxed{" * 100_000 + "5" + "}" * 100_000
MEGABYTES = "so " * 1_700_000


@pytest.mark.parametrize(
    "attack",
    [
        HANGS,
        "(" * 1000 + "6" + ")" * 1000,
        "{" * 1000 + "6" + "}" * 1000,
        r"\sqrt{" * 500 + "6" + "}" * 500,
        "10^{10^{9}}",
        "(x+1)^{5000}(x-1)^{5000}",
        "x^" * 1000 + "6",
        "1,2," * 1000,
        BOX_BOMB[:-1],
        MEGABYTES,
    ],
    ids=lambda text: text[:9],
)
def test_attack_costs_one_timeout_and_its_neighbours_nothing(pool: VerifierPool, attack: str) -> None:
    start = time.monotonic()
    found = pool.judge_many([item(attack, "5"), *[item(*HARD_BUT_RIGHT)] * 3])
    elapsed = time.monotonic() - start
    assert found[0].verdict is not Verdict.CORRECT  # most are too hard; some are read, and wrong
    assert [judgement.verdict for judgement in found[1:]] == [Verdict.CORRECT] * 3
    assert elapsed < TIMEOUT_S + 5.0
    assert pool.judge(*item(*HARD_BUT_RIGHT)).verdict is Verdict.CORRECT


def test_huge_box_is_decided_at_once(pool: VerifierPool) -> None:
    start = time.monotonic()
    assert pool.judge(*item("9+" * 500_000 + "9", "5")).verdict is Verdict.UNPARSABLE
    assert time.monotonic() - start < TIMEOUT_S


@pytest.mark.parametrize(
    "solution", [BOX_BOMB, MEGABYTES + "\\boxed{5}", "\\boxed{5}" + MEGABYTES], ids=lambda text: text[:9]
)
def test_megabytes_around_an_answer_cost_no_more_than_a_timeout(pool: VerifierPool, solution: str) -> None:
    start = time.monotonic()
    found = pool.judge(ParsedResponse(thought=MEGABYTES, solution=solution), Domain.MATH, "5")
    assert time.monotonic() - start < TIMEOUT_S
    assert found.verdict in (Verdict.CORRECT, Verdict.UNPARSABLE)


def test_memory_of_keepers_and_judges_stays_flat(pool: VerifierPool) -> None:
    hard = [item(rf"\int_0^{{{i}}} x dx", rf"\frac{{{i * i}}}{{2}}") for i in range(400)]

    def memory_mib() -> float:
        family = [*map(psutil.Process, pool.worker_pids), *judges(pool)]
        return sum(process.memory_info().rss for process in family) / 2**20

    def judged(items: list[tuple[ParsedResponse, Domain, str]]) -> None:
        assert {judgement.verdict for judgement in pool.judge_many(items)} == {Verdict.CORRECT}

    judged(hard[:150])
    before = memory_mib()
    judged(hard[150:])
    assert memory_mib() - before < 40.0


def test_timeout_names_the_limit_and_the_answer(pool: VerifierPool) -> None:
    found = pool.judge(*item(HANGS, "5"))
    assert (found.verdict, found.extracted, found.detail) == (Verdict.TIMEOUT, HANGS, "no verdict within 2.5 s")


def test_judgements_come_in_order(pool: VerifierPool) -> None:
    answers = [f"x+{number}" for number in range(12)]
    found = pool.judge_many([item(answer, f"{i}+x" if i % 2 else "y") for i, answer in enumerate(answers)])
    assert [judgement.extracted for judgement in found] == answers
    assert [judgement.verdict is Verdict.CORRECT for judgement in found] == [i % 2 == 1 for i in range(12)]


def test_judge_killed_in_the_middle_is_an_error_and_is_replaced(pool: VerifierPool) -> None:
    hanging = pool.submit(*item(HANGS, "5"))
    wait_for(hanging.running)
    busy = judges(pool)
    time.sleep(0.3)
    for judge in busy:
        judge.kill()
    wait_for(lambda: gone(busy))
    found = hanging.result(timeout=10)
    assert found.verdict is Verdict.ERROR
    assert "died: SIGKILL" in found.detail
    found_next = pool.judge_many([item(*HARD_BUT_RIGHT)] * 4)
    assert [f.verdict for f in found_next] == [Verdict.CORRECT] * 4, found_next


def test_keeper_killed_in_the_middle_is_an_error_and_is_replaced() -> None:
    with VerifierPool(1, timeout_s=30) as pool:
        pool.wait_until_ready()
        hanging, waiting = pool.submit(*item(HANGS, "5")), pool.submit(*item(*HARD_BUT_RIGHT))
        wait_for(hanging.running)
        wait_for(lambda: judges(pool))
        family = [psutil.Process(pool.worker_pids[0]), *judges(pool)]
        os.kill(pool.worker_pids[0], signal.SIGKILL)
        assert hanging.result(timeout=10).verdict is Verdict.ERROR
        assert waiting.result(timeout=30).verdict is Verdict.CORRECT
        wait_for(lambda: gone(family))


def test_idle_processes_that_die_cost_no_verdict(pool: VerifierPool) -> None:
    wait_for(lambda: len(judges(pool)) == 2)
    idle = judges(pool)
    for judge in idle:
        judge.kill()
    wait_for(lambda: gone(idle))
    found_next = pool.judge_many([item(*HARD_BUT_RIGHT)] * 4)
    assert [f.verdict for f in found_next] == [Verdict.CORRECT] * 4, found_next
    keepers = [psutil.Process(pid) for pid in pool.worker_pids]
    for keeper in keepers:
        keeper.kill()
    wait_for(lambda: gone(keepers))
    found_next = pool.judge_many([item(*HARD_BUT_RIGHT)] * 4)
    assert [f.verdict for f in found_next] == [Verdict.CORRECT] * 4, found_next


def test_memory_limit_is_an_error_and_no_secret_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    with VerifierPool(1, timeout_s=20, memory_mib=32) as pool:
        pool.wait_until_ready()
        assert "SOME_API_KEY" not in psutil.Process(pool.worker_pids[0]).environ()
        found = pool.judge(*item("2^{10^{9}}", "5"))
        assert found.verdict is Verdict.ERROR
        assert found.detail == "MemoryError" or found.detail.startswith("the verifier process died")
        assert pool.judge(*item(*HARD_BUT_RIGHT)).verdict is Verdict.CORRECT


def test_start_up_does_not_count_against_the_first_answer() -> None:
    with VerifierPool(1, timeout_s=1.0) as pool:
        assert pool.judge(*item("x+1", "1+x")).verdict is Verdict.CORRECT


def test_no_judge_has_to_load_the_algebra_system() -> None:
    with VerifierPool(1, timeout_s=60) as pool:
        pool.wait_until_ready()
        keeper = psutil.Process(pool.worker_pids[0])
        assert keeper.memory_info().rss > 40 * 2**20, "sympy is not in the keeper"
        start = time.monotonic()
        assert pool.judge(*item(r"\int_0^1 x dx", r"\frac{1}{2}")).verdict is Verdict.CORRECT
        assert time.monotonic() - start < 5.0


def test_plain_cases_make_no_round_trip() -> None:
    with VerifierPool(1) as pool:
        for answer, expected in (("5", Verdict.CORRECT), ("6", Verdict.INCORRECT)):
            future = pool.submit(*item(answer, "5"))
            assert future.done()
            assert future.result().verdict is expected


def test_pool_works_from_many_threads(pool: VerifierPool) -> None:
    verdicts: list[Verdict] = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(pool.judge(*item("x+1", "1+x")).verdict)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict.CORRECT] * 8


@pytest.mark.parametrize("busy", [False, True])
def test_close_leaves_no_process_behind_and_does_not_wait_for_an_answer(busy: bool) -> None:
    before = set(psutil.Process().children(recursive=True))
    pool = VerifierPool(1, timeout_s=60)
    pool.wait_until_ready()
    futures = [pool.submit(*item(HANGS, "5")) for _ in range(2)] if busy else []
    if busy:
        wait_for(futures[0].running)
    wait_for(lambda: judges(pool))
    ours = set(psutil.Process().children(recursive=True)) - before
    assert len(ours) == 2
    start = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - start < 4.0
    assert not any(process.is_running() for process in ours)
    assert not busy or (futures[0].result().verdict is Verdict.ERROR and futures[1].cancelled())
    with pytest.raises(RunError, match="closed"):
        pool.submit(*item("x", "y"))


def test_processes_die_with_a_killed_parent() -> None:
    code = (
        "import sys, time\n"
        "from still_ray.types import *\n"
        "from still_ray.verifiers.pool import VerifierPool\n"
        "pool = VerifierPool(1, timeout_s=600)\n"
        "pool.wait_until_ready()\n"
        "pool.submit(ParsedResponse(thought='', solution=r'\\boxed{9^{9^{9^9}}}'), Domain.MATH, '5')\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "ready\n"
            wait_for(lambda: len(psutil.Process(parent.pid).children(recursive=True)) == 2)
            family = psutil.Process(parent.pid).children(recursive=True)
        finally:
            parent.kill()
    wait_for(lambda: gone(family))


def test_worker_that_cannot_start_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("still_ray.verifiers.pool._COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with VerifierPool(1) as pool:
        with pytest.raises(RunError, match="did not start"):
            pool.wait_until_ready()
        found = pool.judge(*item("x", "y"))
        assert found.verdict is Verdict.ERROR
        assert "did not start" in found.detail
