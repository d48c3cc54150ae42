"""Verdicts on programs: what is run, what counts as the same output, and assertions that no program can forge."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.types import Domain, Judgement, ParsedResponse, Verdict
from still_ray.verifiers.code.inside import codec
from still_ray.verifiers.code.outputs import difference
from still_ray.verifiers.code.sandbox import Sandbox, SandboxLimits
from still_ray.verifiers.code.seccomp import system_call_filter
from still_ray.verifiers.code.verdict import CodeJudge, CodeQuestion, CodeSettings, last_python_block
from still_ray.verifiers.judge import judge
from still_ray.verifiers.pool import VerifierPool

ROOT = Path(__file__).parents[2]
PROBLEM = Sandbox().problem()
needs_sandbox = pytest.mark.skipif(PROBLEM is not None, reason=f"no sandbox here: {PROBLEM}")
JUDGE = CodeJudge(CodeSettings(limits=SandboxLimits(timeout_s=5.0, memory_mib=256, output_mib=1), total_timeout_s=20))
HASTY = CodeJudge(CodeSettings(limits=SandboxLimits(timeout_s=1.5, memory_mib=256), total_timeout_s=2.5))


def on_cases(source: str, *cases: tuple[str, str], by: CodeJudge = JUDGE) -> Judgement:
    reference = {"kind": "stdio", "cases": [{"input": given, "output": wanted} for given, wanted in cases]}
    return by.judge(CodeQuestion(source=dedent(source), reference=json.dumps(reference)))


def asserted(source: str, assertions: str, by: CodeJudge = JUDGE) -> Judgement:
    reference = {"kind": "assert", "code": dedent(assertions)}
    return by.judge(CodeQuestion(source=dedent(source), reference=json.dumps(reference)))


# What is run


@pytest.mark.parametrize(
    ("solution", "source"),
    [
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```py\nprint(1)\n```\ntext", "print(1)\n"),
        ("```Python3\nprint(1)\n```", "print(1)\n"),
        ("``` python\nprint(1)\n```", "print(1)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("```python\n1\n```\nbetter:\n```python\n2\n```", "2\n"),
        ("```python\n1\n```\nIt prints\n```\n3\n```", "1\n"),
        ("```python\n1\n```\n```bash\nls\n```", "1\n"),
        ("```\n1\n```\n```text\n3\n```", "1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("1. So:\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1\n"),
        ("```python\r\nprint(1)\r\n```\r\n", "print(1)\r\n"),
        ("```python\nprint(1)", None),
        ("```python\n1\n```\n```python\n2", None),
        ("```java\nint x;\n```", None),
        ("print(1)", None),
        ("", None),
    ],
)
def test_last_python_block_of_a_solution(solution: str, source: str | None) -> None:
    assert last_python_block(solution) == source


@pytest.mark.parametrize("unit", ["```", "```python\n", "`", "```\n", "``` ", "~~~\n```py\nx\n"])
def test_megabytes_of_fences_take_linear_time(unit: str) -> None:
    start = time.perf_counter()
    last_python_block(unit * (1_000_000 // len(unit)))
    assert time.perf_counter() - start < 5.0


# What counts as the same output


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3\n", "3", True),
        ("3", "3\n\n", True),
        ("a  \nb\t\n\n\n", "a\nb", True),
        ("a\r\nb\r\n", "a\nb\n", True),
        ("", "", True),
        ("a\n\nb", "a\nb", False),
        (" a", "a", False),
        ("a b", "a  b", False),
        ("A", "a", False),
        ("1 2", "1\n2", False),
        ("0.333333333", "0.3333333333", True),
        ("0.3333", "0.3333333333", False),
        ("3", "3.0", True),
        ("x = 0.5000001", "x = 0.5", True),
        ("y = 0.5000001", "x = 0.5", False),
        ("1000000007", "1000000008", False),
        ("1000000007.0", "1000000008", False),
        ("123456789012.5", "123456789012.6", True),
        ("1e-9", "0.0", True),
        ("nan", "0.0", False),
        ("inf", "1e999", False),
        ("0x10", "16.0", False),
        ("1_0", "10.0", False),
        ("9" * 500, "9" * 499 + ".0", False),
    ],
)
def test_output_that_counts_as_the_same(printed: str, expected: str, same: bool) -> None:
    assert (difference(printed.encode(), expected) is None) == same


@settings(deadline=None)
@given(st.text(), st.text())
def test_every_output_is_itself_and_differences_go_both_ways_for_words(left: str, right: str) -> None:
    left, right = left.replace("\ud800", ""), right.replace("\ud800", "")
    assert difference(left.encode("utf-8", "replace"), left.encode("utf-8", "replace").decode()) is None
    if left.strip() != right.strip() and not any(char.isdigit() for char in left + right):
        assert difference(left.encode("utf-8", "replace"), right.encode("utf-8", "replace").decode()) is not None or (
            [line.rstrip() for line in left.rstrip().split("\n")]
            == [line.rstrip() for line in right.rstrip().split("\n")]
        )


def test_difference_names_the_line() -> None:
    assert difference(b"1\n2\n", "1\n3\n") == "line 2 is '2', expected '3'"
    assert difference(b"1\n", "1\n2\n") == "1 lines, expected 2"
    assert difference(b"\xff", "x") == "line 1 is '\ufffd', expected 'x'"


# Verdicts on cases

ADDS = "print(sum(map(int, input().split())))"


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "verdict", "detail"),
    [
        (ADDS, Verdict.CORRECT, "all 2 cases"),
        ("print(3)", Verdict.INCORRECT, "case 2 of 2: line 1 is '3', expected '9'"),
        ("import sys; print(sum(map(int, sys.stdin.read().split())))", Verdict.CORRECT, "all 2 cases"),
        ("print(sum(int(x) for line in open(0) for x in line.split()))", Verdict.CORRECT, "all 2 cases"),
        ("if __name__ == '__main__': print(sum(map(int, input().split())))", Verdict.CORRECT, "all 2 cases"),
        (ADDS + "\nraise SystemExit", Verdict.CORRECT, "all 2 cases"),
        (ADDS + "\nimport os; os._exit(0)", Verdict.INCORRECT, "0 lines, expected 1"),
        (ADDS + "\nraise SystemExit(1)", Verdict.INCORRECT, "failed with status 1"),
        (ADDS + "\n1 / 0", Verdict.INCORRECT, "ZeroDivisionError"),
        ("print(3", Verdict.INCORRECT, "SyntaxError"),
        ("", Verdict.INCORRECT, "0 lines, expected 1"),
        ("import numpy", Verdict.INCORRECT, "No module named 'numpy'"),
        ("x = bytearray(1 << 30)", Verdict.INCORRECT, "MemoryError"),
        ("import ctypes; ctypes.string_at(0)", Verdict.INCORRECT, "crashed: signal 11"),
        ("import os; os._exit(137)", Verdict.INCORRECT, "crashed: signal 11"),
        ("import os\nwhile True: os.write(1, b'x' * 9999)", Verdict.INCORRECT, "printed too much"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')", Verdict.INCORRECT, "line 1 is '\ufffd\ufffd'"),
        ("print('\\ud800')", Verdict.INCORRECT, "UnicodeEncodeError"),
        ("x = '\ud800'", Verdict.INCORRECT, "UnicodeEncodeError"),
        ("\x00", Verdict.INCORRECT, "null bytes"),
    ],
)
def test_verdicts_on_cases(source: str, verdict: Verdict, detail: str) -> None:
    found = on_cases(source, ("1 2\n", "3\n"), ("4 5", "9"))
    assert (found.verdict, detail in found.detail) == (verdict, True), found
    assert found.extracted == source


@needs_sandbox
def test_common_imports_threads_deep_recursion_and_files_of_its_own() -> None:
    source = """
        import bisect, collections, copy, dataclasses, datetime, decimal, enum, fractions, functools, heapq, itertools
        import json, math, operator, os, queue, random, re, statistics, string, sys, textwrap, threading, time, typing
        import array, asyncio, hashlib, io, pathlib, sqlite3, struct, tempfile, unicodedata, zlib, concurrent.futures
        sys.setrecursionlimit(10 ** 6)
        threading.stack_size(64 << 20)
        def depth(n):
            return 0 if n == 0 else 1 + depth(n - 1)
        def main():
            with tempfile.TemporaryFile("w+") as file:
                file.write("x" * 1000)
                file.seek(0)
                print(depth(20000), len(file.read()), math.gcd(12, 18), sorted({"b", "a"}))
        thread = threading.Thread(target=main)
        thread.start()
        thread.join()
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            print(list(pool.map(abs, [-1, 2])), asyncio.run(asyncio.sleep(0, "slept")), "ü½🦉")
        """
    found = on_cases(source, ("", "20000 1000 6 ['a', 'b']\n[1, 2] slept ü½🦉"))
    assert found.verdict is Verdict.CORRECT, found


@needs_sandbox
def test_large_input_and_output_pass() -> None:
    numbers = "\n".join(map(str, range(300_000)))
    source = "import sys\nfor line in sys.stdin: print(line, end='')"
    assert on_cases(source, (numbers, numbers)).verdict is Verdict.CORRECT
    assert on_cases("print(1)", (numbers * 5, "1")).verdict is Verdict.CORRECT  # it reads none of its input
    assert on_cases("print('x' * 2_000_000)", ("", "x" * 2_000_000)).verdict is Verdict.CORRECT


@needs_sandbox
def test_time_limits_of_a_case_and_of_all_cases() -> None:
    start = time.monotonic()
    found = on_cases("while True: pass", ("", "1"), ("", "2"), by=HASTY)
    assert (found.verdict, found.detail) == (Verdict.TIMEOUT, "case 1 of 2: not finished within 1.5 s")
    assert time.monotonic() - start < 3.0
    found = on_cases("import time; time.sleep(0.9); print(1)", *[("", "1")] * 5, by=HASTY)
    assert found.verdict is Verdict.TIMEOUT
    assert on_cases("import time; time.sleep(100)", ("", "1"), by=HASTY).verdict is Verdict.TIMEOUT


@needs_sandbox
def test_order_of_a_set_is_the_same_each_time() -> None:
    source = "print({'a', 'b', 'c', 'd', 'e', 'f'})"
    sandbox = Sandbox()
    first, second = (sandbox.run(source, b"", SandboxLimits()).stdout for _ in range(2))
    assert first == second


@needs_sandbox
@pytest.mark.parametrize(
    "reference",
    [
        "",
        "[]",
        "{}",
        '{"kind": "stdio"}',
        '{"kind": "stdio", "cases": []}',
        '{"kind": "stdio", "cases": [{"input": "1"}]}',
        '{"kind": "stdio", "cases": [{"input": "1", "output": 1}]}',
        '{"kind": "stdio", "cases": [{"input": "\\ud800", "output": "1"}]}',
        '{"kind": "assert"}',
        '{"kind": "assert", "code": 5}',
        '{"kind": "tests", "code": "assert True"}',
        "[" * 100_000,
    ],
)
def test_bad_reference_is_an_error(reference: str) -> None:
    found = JUDGE.judge(CodeQuestion(source="print(1)", reference=reference))
    assert found.verdict is Verdict.ERROR
    assert "reference" in found.detail


# Without a sandbox


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CodeSettings(sandbox="none"), "no sandbox: the recipe says so"),
        (CodeSettings(sandbox="/no/such/bwrap"), "no sandbox: /no/such/bwrap: No such file or directory"),
        (CodeSettings(sandbox="false"), "no sandbox: it does not start"),
        (CodeSettings(sandbox_command=("false",)), "no sandbox: it does not start"),
        (CodeSettings(sandbox_command=("env",)), "no sandbox: "),
    ],
)
def test_without_a_sandbox_the_verdict_is_an_error_and_never_a_pass(code: CodeSettings, reason: str) -> None:
    judge_ = CodeJudge(code)
    for found in (on_cases(ADDS, ("1 2", "3"), by=judge_), asserted("x = 1", "assert x == 1", by=judge_)):
        assert found.verdict is Verdict.ERROR
        assert found.detail.startswith(reason), found


def test_probe_finds_a_sandbox_that_contains_nothing(tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    wrapper = tmp_path / "open-sandbox"
    wrapper.write_text(f'#!/bin/sh\nshift\nexec {python} "$@"\n', encoding="ascii")
    wrapper.chmod(0o755)
    problem = Sandbox(command=[str(wrapper)]).problem()
    assert problem is not None
    assert "the probe failed" in problem or "it does not contain programs" in problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs an interpreter that anybody can read")
def test_sandbox_holds_for_another_user_than_root(tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # pytest's own is root's
        Path(folder).chmod(0o755)
        copy = Path(folder) / "still_ray"
        shutil.copytree(ROOT / "still_ray" / "verifiers", copy / "verifiers", ignore=shutil.ignore_patterns("*.pyc"))
        (copy / "__init__.py").touch()
        program = (
            "from still_ray.verifiers.code.sandbox import *\n"
            "print(Sandbox().problem(), Sandbox().run('print(6 * 7)', b'', SandboxLimits()).stdout)\n"
        )
        command = [
            "setpriv",
            "--reuid",
            "12345",
            "--regid",
            "12345",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            program,
        ]
        environment = {"PYTHONPATH": folder, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    if "SyntaxError" in done.stderr or "ImportError" in done.stderr:
        pytest.skip("the system's Python is too old")
    if "No permissions" in done.stdout or "namespace" in done.stdout:
        pytest.skip(f"this machine forbids user namespaces: {done.stdout.strip()}")
    assert done.stdout == "None b'42\\n'\n", done


def test_machine_without_known_system_calls_has_no_filter() -> None:
    assert system_call_filter("sparc64") is None
    for machine in ("x86_64", "aarch64"):
        compiled = system_call_filter(machine)
        assert compiled is not None
        assert len(compiled) % 8 == 0
        assert len(compiled) // 8 < 4096  # what the kernel takes


# Assertions

ADD = "def add(a, b): return a + b"


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "assertions"),
    [
        (ADD, "assert add(1, 2) == 3"),
        (ADD, "from solution import add\nassert add(1, 2) == 3"),
        (ADD, "import solution\nassert solution.add(1, 2) == 3"),
        (
            ADD,
            "def check(f):\n    assert f(1, 2) == 3\n    assert f('a', 'b') == 'ab'\ncheck(add)",
        ),
        (ADD, "def test_add():\n    assert add(1, 2) == 3"),
        (ADD, "for i in range(50):\n    assert add(i, i) == 2 * i, f'{i}'"),
        (ADD, "assert [add(*pair) for pair in [(1, 2), (3, 4)]] == [3, 7]"),
        (ADD, "assert add(a=1, b=2) == 3"),
        (ADD, "assert add(10 ** 5000, 1) == 10 ** 5000 + 1"),
        (ADD, "assert add([1], [2]) == [1, 2] and add((1,), (2,)) == (1, 2)"),
        (ADD, "try:\n    add(1, 'a')\nexcept TypeError:\n    pass\nelse:\n    assert False"),
        ("add = lambda a, b: a + b", "assert add(1, 2) == 3"),
        ("print('noise', flush=True)\n" + ADD + "\nprint(add(1, 1))", "print('x')\nassert add(1, 2) == 3"),
        ("if __name__ == '__main__': input()\n" + ADD, "assert add(1, 2) == 3"),
        ("find = max", "assert find([1, 3, 2]) == 3"),
        ("from math import gcd as f", "assert f(12, 18) == 6"),
        ("def sum(a, b): return 6", "assert sum(10, 15) == 6"),
        (
            "def f(): return {1: (2, {3}), 'x': [None, True, 0.5, b'y', 1j, frozenset({1})]}",
            "assert f() == {1: (2, {3}), 'x': [None, True, 0.5, b'y', 1j, frozenset({1})]}",
        ),
        (
            "def f(x): return x",
            "for x in (float('inf'), '\\ud800', range(3), ..., bytearray(b'x')):\n    assert f(x) == x",
        ),
        (
            "from fractions import Fraction\ndef f(): return Fraction(1, 3)",
            "from fractions import Fraction\nassert f() * 3 == 1 and f() == Fraction(1, 3)",
        ),
        (
            "import datetime, decimal, collections\ndef f():\n return [datetime.date(2024, 2, 29), "
            "decimal.Decimal('1.10'), collections.deque([1]), collections.Counter('aab')]",
            "import datetime, decimal, collections\nassert f() == [datetime.date(2024, 2, 29), decimal.Decimal('1.1'),"
            " collections.deque([1]), {'a': 2, 'b': 1}]",
        ),
        (
            "import math\ndef area(r): return math.pi * r * r",
            "assert math.isclose(area(1), 3.14159, abs_tol=1e-4)\nassert round(area(1), 2) == 3.14\nassert area(1) > 3",
        ),
        (
            "def rotate(m):\n    m[0][0] = 9\n    m.append([3])",
            "m = [[1], [2]]\nrow = m[0]\nrotate(m)\nassert m == [[9], [2], [3]] and row == [9]",
        ),
        (
            "def fill(d, s):\n    d['k'] = 1\n    s.add(5)",
            "d, s = {}, {1}\nassert fill(d, s) is None\nassert d == {'k': 1} and s == {1, 5}",
        ),
        (
            "def apply(f, items): return [f(x) for x in items]",
            "assert apply(lambda x: x * 2, [1]) == [2]\nassert apply(str, [1]) == ['1'] and apply(len, [[1]]) == [1]",
        ),
        (
            "def safe(f):\n    try: return f()\n    except ZeroDivisionError: return 'caught'",
            "assert safe(lambda: 1 / 0) == 'caught'",
        ),
        (
            "def primes(n):\n    for i in range(2, n): yield i",
            "assert list(primes(5)) == [2, 3, 4]\nassert sum(primes(4)) == 5",
        ),
        (
            "class Solution:\n    def twoSum(self, nums, target):\n        return [0, 1]",
            "assert Solution().twoSum([2, 7], 9) == [0, 1]",
        ),
        (
            "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
            "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)",
            "s = Stack()\ns.push(1)\ns.push(2)\nassert len(s) == 2 and s.pop() == 2 and s.items == [1]\n"
            "try:\n    s.pop()\n    s.pop()\n    assert False\nexcept IndexError:\n    pass",
        ),
        (
            "class Node:\n    def __init__(self, v, n=None): self.v, self.n = v, n\n"
            "def values(node):\n    out = []\n    while node: out, node = out + [node.v], node.n\n    return out",
            "assert values(Node(1, Node(2))) == [1, 2]\nn = Node(3)\nn.v = 4\nassert n.v == 4 and n.n is None",
        ),
        (
            "class Poor(Exception): pass\ndef pay(x):\n    raise Poor('no money', x)",
            "try:\n    pay(3)\n    assert False\nexcept Poor as error:\n    assert error.args == ('no money', 3)",
        ),
        (
            "class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n"
            "    def __mul__(self, k): return V(self.x * k)\n    def __lt__(self, o): return self.x < o.x",
            "assert (V(1) + V(2)).x == 3 and (V(2) * 3).x == 6 and V(1) < V(2) and isinstance(V(1), V)",
        ),
        (
            "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
            "assert f() == (1, 2) and f().x == 1",
        ),
        (
            "import enum\nclass C(enum.Enum):\n    RED = 1\ndef f(): return C.RED",
            "assert f() == C.RED and f().value == 1",
        ),
        ("x = 5", "assert x == 5"),
        ("pass", "assert True"),
    ],
)
def test_programs_that_satisfy_their_assertions(source: str, assertions: str) -> None:
    found = asserted(source, assertions)
    assert found.verdict is Verdict.CORRECT, found


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "assertions", "verdict", "detail"),
    [
        (ADD, "assert add(1, 2) == 4", Verdict.INCORRECT, "AssertionError (line 1 of the assertions)"),
        (ADD, "x = 1\nassert add(1, 2) == 4, 'no'", Verdict.INCORRECT, "AssertionError: no (line 2"),
        (ADD, "assert sub(1, 2) == 4", Verdict.INCORRECT, "name 'sub' is not defined"),
        (ADD, "from solution import sub\nassert sub(1, 2) == 4", Verdict.INCORRECT, "cannot import name 'sub'"),
        ("def add(a, b): return 1 / 0", "assert add(1, 2)", Verdict.INCORRECT, "the program raised ZeroDivisionError"),
        ("def add(a, b): pass", "assert add(1, 2)[0] == 1", Verdict.INCORRECT, "TypeError"),
        ("1 / 0\n" + ADD, "assert add(1, 2) == 3", Verdict.INCORRECT, "the program failed: ZeroDivisionError"),
        ("def (", "assert True", Verdict.INCORRECT, "the program failed: SyntaxError"),
        ("input()", "assert True", Verdict.INCORRECT, "the program failed: EOFError"),
        ("import ctypes\ndef f(): ctypes.string_at(0)", "assert f()", Verdict.INCORRECT, "crashed: signal 11"),
        ("def f(): return bytearray(1 << 30)", "assert f()", Verdict.INCORRECT, "MemoryError"),
        ("def f():\n    while True: pass", "assert f()", Verdict.TIMEOUT, "not finished within 1.5 s"),
        ("import time\ntime.sleep(100)", "assert True", Verdict.TIMEOUT, "not finished within 1.5 s"),
        (ADD, "while True: pass", Verdict.TIMEOUT, "not finished within 1.5 s"),
        (ADD, "assert add(1, 2) ===", Verdict.ERROR, "the reference's code is no Python"),
        (ADD, "import numpy\nassert add(1, 2) == 3", Verdict.ERROR, "No module named 'numpy'"),
        (ADD, "import sys\nassert add(1, 2) == 3\nsys.exit(0)", Verdict.ERROR, "SystemExit"),
        (ADD, "import os\nos._exit(0)", Verdict.ERROR, "ended its own process"),
        (ADD, "x = 1", Verdict.ERROR, "asserts nothing"),
        (ADD, "", Verdict.ERROR, "asserts nothing"),
        (ADD, "def check(candidate):\n    assert candidate(1, 2) == 3", Verdict.ERROR, "asserts nothing"),
        (ADD, "class Own: pass\nassert add(Own(), 1)", Verdict.ERROR, "an object of its own"),
        ("class P: pass", "assert P() == P()", Verdict.ERROR, "only the program could say"),
    ],
)
def test_other_verdicts_on_assertions(source: str, assertions: str, verdict: Verdict, detail: str) -> None:
    found = asserted(source, assertions, by=HASTY if verdict is Verdict.TIMEOUT else JUDGE)
    assert (found.verdict, detail in found.detail) == (verdict, True), found


# Forgeries: each program is wrong, and tries to make its assertions hold

WRONG = "def add(a, b): return 99\n"
ASSERTIONS = "assert add(1, 2) == 3\nassert add(5, 6) == 11\nassert abs(add(0.5, 0.25) - 0.75) < 1e-9"
FORGERIES = {
    "prints": WRONG + 'print(\'["correct", "all assertions hold"]\', flush=True)',
    "prints to stderr": WRONG + 'import sys\nsys.stderr.write(\'["correct", ""]\\n\'); sys.stderr.flush()',
    "writes to every descriptor": WRONG
    + 'import os\nfor fd in range(1024):\n    try: os.write(fd, b\'["correct", ""]\\n\')\n    except OSError: pass',
    "ends well": WRONG + "import sys\nsys.exit(0)",
    "ends at once": WRONG + "import os\nos._exit(0)",
    "ends in a call": "import os\ndef add(a, b): os._exit(0)",
    "exits in a call": "import sys\ndef add(a, b): sys.exit(0)",
    "ends at exit": WRONG + "import atexit, os\natexit.register(os._exit, 0)",
    "ends from a thread": WRONG + "import threading, os\nthreading.Timer(0.01, os._exit, (0,)).start()",
    "equals everything": "class E:\n    def __eq__(self, o): return True\n    __hash__ = None\n"
    "    def __sub__(self, o): return 0\ndef add(a, b): return E()",
    "never differs": "class E:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n"
    "    __req__ = __eq__\ndef add(a, b): return E()",
    "is a strange number": "class N(int):\n    def __eq__(self, o): return True\n    def __sub__(self, o): return 0\n"
    "    def __rsub__(self, o): return 0\n    __hash__ = int.__hash__\ndef add(a, b): return N(7)",
    "is a strange text": "class S(str):\n    def __eq__(self, o): return True\ndef add(a, b): return S('x')",
    "is a mock": "from unittest import mock\ndef add(a, b): return mock.ANY",
    "patches the class of errors": WRONG + "import builtins\nclass A(Exception): pass\nbuiltins.AssertionError = A",
    "patches abs": "import builtins\nbuiltins.abs = lambda x: 0\ndef abs(x): return 0\ndef add(a, b): return 99",
    "patches everything": WRONG
    + "import builtins\nfor n in ('abs', 'len', 'all', 'any', 'isinstance', 'bool', 'eval', 'exec',"
    " 'compile', 'type', 'str', 'int', 'repr'):\n    setattr(builtins, n, lambda *a, **k: True)",
    "names the operators": WRONG + "def __eq__(a, b): return True\nTrue_ = assert_ = check = test = None",
    "defines abs as a library function": "from operator import neg as abs\ndef add(a, b): return -1000.0",
    "traces": WRONG
    + "import sys\ndef t(f, e, a):\n    f.f_trace_lines = False\n    return t\nsys.settrace(t); sys.setprofile(t)",
    "audits": WRONG + "import sys\nsys.addaudithook(lambda *a: None)",
    "replaces modules": WRONG
    + "import sys\nfor name in list(sys.modules):\n    if 'still_ray' in name: sys.modules[name] = None",
    "patches the codec": WRONG + "from still_ray.verifiers.code.inside import codec\ncodec.encode = lambda v, u: 3",
    "looks for what is expected": "import gc\ndef add(a, b):\n"
    "    found = [o for o in gc.get_objects() if isinstance(o, str) and '=' + '= 11' in o]\n"
    "    return a + b if found else 99",
    "looks into frames": "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
    "        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
    "            if isinstance(value, str) and '=' + '= 11' in value: return a + b\n"
    "        frame = frame.f_back\n    return 99",
    "answers before it is asked": WRONG + "import os\nfor fd in range(3, 20):\n"
    '    try: os.write(fd, b\'{"value": 3, "changed": {}}\\n\' * 9)\n    except OSError: pass',
    "answers from a thread": WRONG
    + "import os, threading\ndef flood():\n    while True:\n        for fd in range(3, 9):\n"
    '            try: os.write(fd, b\'{"value": 3, "changed": {}}\\n\')\n            except OSError: pass\n'
    "threading.Thread(target=flood, daemon=True).start()",
    "sends no message": WRONG
    + "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'\\xff\\x00{[\\n')\n    except OSError: pass",
    "sends a deep message": WRONG
    + "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'[' * 60000 + b'\\n')\n    except OSError: pass",
    "sends half a message": WRONG
    + "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'{\"value\": 3'); os.close(fd)\n"
    "    except OSError: pass",
    "describes its names wrongly": WRONG
    + 'import os\nfor fd in range(3, 20):\n    try: os.write(fd, b\'{"names": {"add": ["exception"],'
    ' "abs": ["library", "builtins", "len"]}}\\n\')\n    except OSError: pass',
    "calls back": WRONG + 'import os\nfor fd in range(3, 20):\n    try: os.write(fd, b\'{"names": {"add": ["own"]}}\\n'
    '{"callback": -1, "args": [], "kwargs": {}}\\n\')\n    except OSError: pass',
    "changes what it was not given": WRONG
    + 'import os\nfor fd in range(3, 20):\n    try: os.write(fd, b\'{"names": {"add": ["own"]}}\\n'
    '{"value": {"t": "object", "v": [1, false, null]}, "changed": {}}\\n{"value": 3, "changed": {"77": 3}}\\n\')\n'
    "    except OSError: pass",
    "raises what nobody catches": "class AssertionError(BaseException): pass\nclass Undecidable(BaseException): pass\n"
    "def add(a, b): raise Undecidable('fine')",
    "raises a strange exit": "class Quit(SystemExit): code = 0\ndef add(a, b): raise Quit(0)",
    "raises an interrupt": "def add(a, b): raise KeyboardInterrupt",
    "stops an iteration": "def add(a, b): raise StopIteration(3)",
    "closes everything": WRONG + "import os\nos.closerange(0, 100)",
    "fork and answer": WRONG + "import os\nif os.fork() == 0: os._exit(0)",
}


@needs_sandbox
@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_makes_a_wrong_program_right(name: str) -> None:
    found = asserted(FORGERIES[name], ASSERTIONS)
    assert found.verdict is not Verdict.CORRECT, found
    assert found.verdict is not Verdict.TIMEOUT, found


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "assertions"),
    [
        ("class T:\n    def __contains__(self, x): return True\ndef f(): return T()", "assert 5 in f()"),
        (
            "class T:\n    def __lt__(self, x): return True\n    __gt__ = __lt__\ndef f(): return T()",
            "assert f() < 10",
        ),
        (
            "class T:\n    def __lt__(self, x): return True\n    __gt__ = __lt__\ndef f(): return T()",
            "assert 1 < f() < 10",
        ),
        (
            "class T:\n    def __eq__(self, x): return True\n    def __hash__(self): return 3\ndef f(): return T()",
            "assert f() in {3, 4}",
        ),
        ("class T:\n    def __eq__(self, x): return True\ndef f(): return [T(), T()]", "assert f() == [1, 2]"),
        ("class T:\n    def __eq__(self, x): return True\ndef f(): return {'a': T()}", "assert f() == {'a': 1}"),
        ("class T:\n    def __round__(self, n=None): return 3.14\ndef f(): return T()", "assert round(f(), 2) == 3.14"),
        ("class T:\n    def __float__(self): return 3.14\ndef f(): return T()", "assert math.isclose(f(), 3.14)"),
        ("class T:\n    def __bool__(self): return 5\ndef f(): return T()", "assert f()"),
        ("class T(list):\n    def __eq__(self, x): return True\ndef f(): return T([7])", "assert f() == [1, 2]"),
        ("class T(dict):\n    def __eq__(self, x): return True\ndef f(): return T()", "assert f() == {1: 2}"),
        (
            "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef f(): return 9",
            "assert math.isclose(f(), 3.14)",
        ),
        ("def f(): return 9\nclass P:\n    def __eq__(self, x): return True\n", "assert f() == 3 or P() == 3"),
        (
            "class P:\n    def __init__(self, *a): pass\n    def __eq__(self, o): return True\ndef f(): return P()",
            "assert f() == P(1, 2)",
        ),
        ("def sorted(x): return [1, 2, 3]\ndef f(): return 9", "assert sorted(f()) == [1, 2, 3]"),
        ("def len(x): return 3\ndef sum(x): return 9\ndef f(): return []", "assert len(f()) == 3 and sum(f()) == 9"),
    ],
)
def test_operators_of_the_programs_objects_forge_nothing(source: str, assertions: str) -> None:
    found = asserted(source, assertions)
    assert found.verdict in (Verdict.INCORRECT, Verdict.ERROR), found


@pytest.mark.parametrize("name", ["ends well", "ends at once", "equals everything", "ends in a call", "is a mock"])
def test_control_the_same_forgery_deceives_a_process_that_runs_both(name: str) -> None:
    naive = f"{FORGERIES[name]}\nassert add(1, 2) == 3\n"
    assert subprocess.run([sys.executable, "-c", naive], capture_output=True, check=False).returncode == 0


# The codec

DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


def refuse(*_: Any) -> Any:
    raise codec.BadMessage("nothing else is allowed")


@settings(deadline=None)
@given(DATA)
def test_data_come_back_as_they_were(value: Any) -> None:
    message = codec.loaded(codec.dumped(codec.encode(value, refuse)))
    again = codec.decode(message, refuse)
    assert (again, type(again)) == (value, type(value))


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.text() | st.sampled_from(["t", "v"]), inner)
            | st.fixed_dictionaries({"t": st.sampled_from([*codec._RARE, "set", "dict", "deque"]), "v": inner})
        ),
    )
)
def test_no_message_does_more_than_fail_to_be_a_value(message: Any) -> None:
    with contextlib.suppress(codec.BadMessage):
        codec.decode(message, refuse)


@pytest.mark.parametrize(
    "name", ["eval", "exec", "open", "print", "__import__", "type", "classmethod", "property", "x"]
)
def test_only_plain_types_can_be_named(name: str) -> None:
    with pytest.raises(codec.BadMessage):
        codec.harmless_type(name)


# The pool


def response(source: str) -> ParsedResponse:
    return ParsedResponse(thought="t", solution=f"So:\n```python\n{source}\n```")


REFERENCE = json.dumps({"kind": "assert", "code": "assert add(1, 2) == 3"})


@needs_sandbox
def test_pool_judges_programs_beside_other_answers() -> None:
    with VerifierPool(2) as pool:
        items: list[tuple[ParsedResponse, Domain, str]] = [
            (response(ADD), Domain.CODE, REFERENCE),
            (response(WRONG), Domain.CODE, REFERENCE),
            (ParsedResponse(thought="t", solution="\\boxed{x+1}"), Domain.MATH, "1+x"),
            (ParsedResponse(thought="t", solution="no code"), Domain.CODE, REFERENCE),
            (response(ADD), Domain.CODE, "{}"),
        ]
        found = pool.judge_many(items)
    assert [judgement.verdict for judgement in found] == [
        Verdict.CORRECT,
        Verdict.INCORRECT,
        Verdict.CORRECT,
        Verdict.UNPARSABLE,
        Verdict.ERROR,
    ]
    assert judge(response(ADD), Domain.CODE, REFERENCE).verdict is Verdict.CORRECT


@needs_sandbox
def test_closing_the_pool_stops_a_program_at_once_and_leaves_nothing() -> None:
    before = set(psutil.Process().children(recursive=True))
    pool = VerifierPool(1, code=CodeSettings(limits=SandboxLimits(timeout_s=100)))
    pool.wait_until_ready()
    future = pool.submit(response("import time; time.sleep(100)"), Domain.CODE, REFERENCE)
    wait_for(lambda: any("bwrap" in child.name() for child in psutil.Process().children(recursive=True)))
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 5.0
    assert (future.result().verdict, "closed" in future.result().detail) == (Verdict.ERROR, True)
    wait_for(lambda: not set(psutil.Process().children(recursive=True)) - before)


@needs_sandbox
def test_program_dies_with_the_process_that_judges_it() -> None:
    code = (
        "from still_ray.verifiers.code.sandbox import *\n"
        "Sandbox().run('import time; time.sleep(1000)', b'', SandboxLimits(timeout_s=1000))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        try:
            wait_for(lambda: len(psutil.Process(parent.pid).children(recursive=True)) >= 2)
            family = psutil.Process(parent.pid).children(recursive=True)
        finally:
            parent.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family))


@needs_sandbox
def test_program_killed_from_outside_is_an_error_and_not_wrong() -> None:
    found: list[Judgement] = []
    before = set(psutil.Process().children(recursive=True))
    thread = threading.Thread(target=lambda: found.append(on_cases("import time; time.sleep(100)", ("", ""))))
    thread.start()

    def program() -> psutil.Process | None:
        ours = set(psutil.Process().children(recursive=True)) - before
        return next((child for child in ours if "python" in child.name()), None)

    wait_for(program)
    time.sleep(0.2)
    killed = program()
    assert killed is not None
    killed.kill()
    thread.join()
    assert (found[0].verdict, "killed from outside" in found[0].detail) == (Verdict.ERROR, True), found


@needs_sandbox
def test_many_programs_at_a_time_leave_no_process_and_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda i: asserted(f"def f(): return {i}", f"assert f() == {i}"), range(24)))
    assert [judgement.verdict for judgement in found] == [Verdict.CORRECT] * 24, found
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    wait_for(lambda: not [child for child in psutil.Process().children(recursive=True) if "bwrap" in child.name()])


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
