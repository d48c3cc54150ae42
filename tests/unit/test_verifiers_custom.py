"""A verifier of the user's own, in real judge processes: what it may return, and what it costs when it misbehaves."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from still_ray.types import Domain, FormatDefect, InputError, Judgement, ParsedResponse, Verdict
from still_ray.verifiers.custom import LoadError, check_custom_verifiers, judge_custom, load_verifier
from still_ray.verifiers.judge import CustomQuestion
from still_ray.verifiers.pool import VerifierPool

MODULE = """
import os, time
from still_ray.types import Judgement, Verdict

def judge(solution, reference, question):
    if solution == "hang":
        while True: pass
    if solution == "raise":
        raise KeyError("no\\nsuch")
    if solution == "die":
        os._exit(7)
    if solution == "eat":
        return len(bytearray(1 << 34)) > 0
    if solution == "quit":
        raise SystemExit(0)
    if solution == "pid":
        key = os.environ.get("SOME_API_KEY", "none")
        return Judgement(verdict=Verdict.CORRECT, extracted=str(os.getpid()), detail=key)
    return {
        "bool": solution.endswith("l"),
        "verdict": Verdict.UNPARSABLE,
        "judgement": Judgement(verdict=Verdict.INCORRECT, extracted=reference, detail=question),
        "none": None,
        "number": 1,
        "text": "correct",
        "broken": Judgement(verdict="correct", extracted=3, detail=None),
    }[solution]

class Nested:
    @staticmethod
    def judge(solution, reference, question):
        return True

value = 5
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "my_towns.py").write_text(MODULE, encoding="utf-8")
    (folder / "slow_towns.py").write_text("import time\ntime.sleep(3)\n" + MODULE, encoding="utf-8")
    (folder / "broken_towns.py").write_text("import no_such_module\n", encoding="utf-8")
    (folder / "deadly_towns.py").write_text("import os\nos._exit(3)\n", encoding="utf-8")
    distribution = folder / "towns-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: towns\nVersion: 1.0\n", encoding="utf-8")
    entry = "[still_ray.verifiers]\ntowns = my_towns:judge\n"
    (distribution / "entry_points.txt").write_text(entry, encoding="utf-8")
    sys.path.append(str(folder))
    yield "my_towns:judge"
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def pool(module: str) -> Iterator[VerifierPool]:
    with VerifierPool(1, timeout_s=2.0, memory_mib=256, custom={Domain.EXACT: module, "towns": "towns"}) as pool:
        yield pool


def ask(pool: VerifierPool, solution: str, domain: str = Domain.EXACT) -> Judgement:
    return pool.judge(ParsedResponse(thought="t", solution=solution), domain, "reference", "question")


@pytest.mark.parametrize(
    ("solution", "verdict", "detail"),
    [
        ("bool", Verdict.CORRECT, "said by the verifier"),
        ("verdict", Verdict.UNPARSABLE, "said by the verifier"),
        ("judgement", Verdict.INCORRECT, "question"),
        ("none", Verdict.ERROR, "the verifier returned NoneType, expected bool, Verdict or Judgement"),
        ("number", Verdict.ERROR, "the verifier returned int, expected bool, Verdict or Judgement"),
        ("text", Verdict.ERROR, "the verifier returned str, expected bool, Verdict or Judgement"),
        ("broken", Verdict.ERROR, "the verifier returned Judgement, expected bool, Verdict or Judgement"),
        ("unknown", Verdict.ERROR, "the verifier raised KeyError: 'unknown'"),
        ("raise", Verdict.ERROR, "the verifier raised KeyError: 'no\\nsuch'"),
        ("hang", Verdict.TIMEOUT, "no verdict within 2 s"),
        ("die", Verdict.ERROR, "the verifier process died: exit status 7"),
        ("quit", Verdict.ERROR, "the verifier process died: exit status 1"),
        ("eat", Verdict.ERROR, "the verifier raised MemoryError"),
    ],
)
def test_what_a_verifier_returns_or_does_is_one_of_five_verdicts(
    pool: VerifierPool, solution: str, verdict: Verdict, detail: str
) -> None:
    found = ask(pool, solution)
    assert (found.verdict, found.detail) == (verdict, detail)
    assert ask(pool, "bool").verdict is Verdict.CORRECT


def test_judgement_of_the_users_own_is_passed_on_whole(pool: VerifierPool) -> None:
    found = ask(pool, "judgement", "towns")
    assert found == Judgement(verdict=Verdict.INCORRECT, extracted="reference", detail="question")


def test_other_domains_and_missing_solutions_do_not_reach_it(pool: VerifierPool) -> None:
    assert (
        pool.judge(ParsedResponse(thought="t", solution="\\boxed{x+1}"), Domain.MATH, "1+x").verdict is Verdict.CORRECT
    )
    truncated = ParsedResponse(thought="t", solution="bool", defect=FormatDefect.TRUNCATED)
    assert pool.judge(truncated, Domain.EXACT, "r").verdict is Verdict.UNPARSABLE


def test_it_runs_in_a_process_of_its_own_without_secrets(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    with VerifierPool(1, custom={"towns": module}) as pool:
        found = ask(pool, "pid", "towns")
        assert found.detail == "none"
        assert found.extracted not in (str(os.getpid()), *map(str, pool.worker_pids), None)
    assert "my_towns" not in sys.modules


def test_loading_does_not_count_against_an_answer(module: str) -> None:
    with VerifierPool(1, timeout_s=1.0, custom={Domain.EXACT: "slow_towns:judge"}) as pool:
        assert ask(pool, "bool").verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("broken_towns:judge", "No module named 'no_such_module'"),
        ("deadly_towns:judge", "loading the verifier ended the process"),
        ("my_towns:no_such", "no attribute 'no_such'"),
        ("my_towns:value", "no function but int"),
    ],
)
def test_verifier_that_cannot_be_loaded_is_an_error_each_time(module: str, path: str, reason: str) -> None:
    with VerifierPool(1, custom={Domain.EXACT: path}) as pool:
        for _ in range(2):
            found = ask(pool, "bool")
            assert (found.verdict, reason in found.detail) == (Verdict.ERROR, True), found
        assert (
            pool.judge(ParsedResponse(thought="t", solution="\\boxed{x}"), Domain.MATH, "x").verdict is Verdict.CORRECT
        )


@pytest.mark.parametrize("path", ["my_towns:judge", "my_towns.judge", "my_towns:Nested.judge", "towns"])
def test_paths_that_name_a_verifier(module: str, path: str) -> None:
    check_custom_verifiers({Domain.MATH: path})


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module:judge", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("my_towns:no_such", "has no attribute 'no_such'"),
        ("my_towns:value", "my_towns:value is no function but int"),
        ("villages", "neither package.module:function nor an entry point of still_ray.verifiers"),
        ("broken_towns.judge", "No module named 'no_such_module'"),
        ("deadly_towns.judge", "ended its process with status 3"),
        (":", "neither package.module:function"),
    ],
)
def test_wrong_path_is_named_before_anything_starts(module: str, path: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        check_custom_verifiers({Domain.MATH: path})
    assert str(error.value).startswith("verifier.custom.math: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_loading_in_this_process_says_why_it_cannot() -> None:
    with pytest.raises(LoadError, match="no_such_module:judge cannot be loaded: ModuleNotFoundError"):
        load_verifier("no_such_module:judge")
    assert load_verifier("os.path.join") is os.path.join
    question = CustomQuestion(domain=Domain.EXACT, solution="a", reference="b", question="c")
    assert judge_custom(lambda *texts: texts == ("a", "b", "c"), question).verdict is Verdict.CORRECT


def run_verify(folder: Path, *options: str, domain: str = "custom") -> subprocess.CompletedProcess[str]:
    row = {"id": 1, "domain": domain, "answer": "x", "response": "<|begin_of_thought|>t<|end_of_thought|>"}
    row["response"] = str(row["response"]) + "<|begin_of_solution|>bool<|end_of_solution|>"
    (folder / "in.jsonl").write_text(json.dumps(row), encoding="utf-8")
    program = "from still_ray.cli import main; main()"
    command = [sys.executable, "-c", program, "verify", "in.jsonl", "--output", "out.jsonl", *options]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_command_takes_a_verifier_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(MODULE, encoding="utf-8")
    done = run_verify(tmp_path, "--verifier", "custom=here:judge", "--set", "verifier.timeout_s=9")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["verdict"] == "correct"
    assert done.stdout == "correct 1\nwritten: out.jsonl\n"


@pytest.mark.parametrize("setting", ["--verifier=physics_units={}", "--set=verifier.custom.physics_units={}"])
def test_a_domain_of_ones_own_needs_no_other_name(tmp_path: Path, setting: str) -> None:
    (tmp_path / "here.py").write_text(MODULE, encoding="utf-8")
    unnamed = run_verify(tmp_path, "--verifier=custom=here:judge", domain="physics_units")
    assert unnamed.returncode == 2
    assert 'in.jsonl, row 1: key "domain" is "physics_units", expected one of: math, choice' in unnamed.stderr
    assert "verifier.custom: {physics_units: package.module:function}" in unnamed.stderr
    done = run_verify(tmp_path, setting.format("here:judge"), domain="physics_units")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["verdict"] == "correct"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--verifier", "custom=not_here:judge"), "verifier.custom.custom: not_here:judge cannot be loaded"),
        (("--verifier", "custom"), "--verifier custom: must be DOMAIN=package.module:function"),
        (("--verifier", "maths=x:y"), "verifier.custom.maths: x:y cannot be loaded"),
        (("--verifier", "my town=x:y"), "String should match pattern"),
        (("--set", "verifier.timeout=9"), "verifier.timeout: unknown key; did you mean timeout_s?"),
    ],
)
def test_command_names_what_is_wrong_in_one_line(tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    start = time.monotonic()
    done = run_verify(tmp_path, *options)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()
    assert time.monotonic() - start < 60
