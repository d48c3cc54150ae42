"""A verifier of the user's own: a function that says whether a solution answers a question.

    def judge(solution: str, reference: str, question: str) -> bool | Verdict | Judgement: ...

It gets the text between the solution markers, the row's answer, and what was asked ("" if unknown), by position. True
is `correct`, False `incorrect`; an exception, or anything else returned, is the verdict `error`. It is named by a
dotted path (`package.module:function` or `package.module.function`) or by an entry point of the group
`still_ray.verifiers`.

It runs only in the killable judges of the verifier pool, under their time and memory limits. Nothing else loads it, not
even to see whether it is there: `check_custom_verifiers` asks a process of its own.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from still_ray.extensions import load_path
from still_ray.types import InputError, Judgement, Verdict
from still_ray.verifiers.environment import worker_environment
from still_ray.verifiers.judge import CustomQuestion, error_judgement

GROUP: Final = "still_ray.verifiers"
LOAD_TIMEOUT_S: Final = 60.0
"""Time to import a verifier; it does not count against an answer. Source: ours, for a module that imports torch."""

CustomVerifier = Callable[[str, str, str], Any]


class LoadError(Exception):
    """A verifier of the user's own cannot be loaded; says why."""


def load_verifier(path: str) -> CustomVerifier:
    """The function with this dotted path or entry-point name; runs the module's code.

    Raises:
        LoadError: It cannot be imported, or is no function.
    """
    try:
        found = load_path(path, group=GROUP)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise LoadError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise LoadError(f"{path} is no function but {type(found).__name__}")
    verifier: CustomVerifier = found
    return verifier


def judge_custom(verifier: CustomVerifier, question: CustomQuestion) -> Judgement:
    """Judges with a loaded verifier, in this process."""
    try:
        found = verifier(question.solution, question.reference, question.question)
    except Exception as error:  # named policy: whatever it raises, the verdict is ERROR
        return error_judgement("the verifier raised " + ": ".join(filter(None, (type(error).__name__, str(error)))))
    return _judgement(found)


def _judgement(found: Any) -> Judgement:
    if isinstance(found, bool):
        return Judgement(verdict=Verdict.CORRECT if found else Verdict.INCORRECT, detail="said by the verifier")
    if isinstance(found, Verdict):
        return Judgement(verdict=found, detail="said by the verifier")
    if isinstance(found, Judgement) and _is_whole(found):
        return found
    return error_judgement(f"the verifier returned {type(found).__name__}, expected bool, Verdict or Judgement")


def _is_whole(judgement: Judgement) -> bool:
    texts = isinstance(judgement.detail, str) and isinstance(judgement.extracted, str | None)
    return texts and isinstance(judgement.verdict, Verdict)


def check_custom_verifiers(custom: Mapping[str, str], *, key: str = "verifier.custom") -> None:
    """Loads each in a process of its own.

    Args:
        custom: Paths by domain.
        key: Of the settings, which names them.

    Raises:
        InputError: One cannot be loaded; names its domain and says why.
    """
    for domain, path in custom.items():
        reason = _reason_not_to_load(path)
        if reason:
            raise InputError(f"{key}.{domain}: {reason}")


def _reason_not_to_load(path: str) -> str:
    command = [sys.executable, "-P", "-m", "still_ray.verifiers.custom", "--path", path]
    environment = worker_environment(with_working_directory=True)
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{path} is not loaded within {LOAD_TIMEOUT_S:g} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"{path} ended its process with status {done.returncode}"


def main() -> None:
    """Loads one verifier and says why it cannot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", required=True)
    try:
        load_verifier(parser.parse_args().path)
    except LoadError as error:
        sys.exit(" ".join(str(error).split())[:300])


if __name__ == "__main__":
    main()
