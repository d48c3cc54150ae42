"""What vLLM, DeepSpeed and TRL say of the arguments that a recipe hands on to them, before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final

from still_ray.algo.placement import resolve_sampler, resolve_trainer
from still_ray.config import Recipe
from still_ray.config.library_arguments import REFUSED_BEFORE_UPDATES_ON_CPU, REFUSED_ON_CPU
from still_ray.trainer.environment import trainer_environment
from still_ray.types import InputError

_LOOK_S: Final = 600.0
"""Time for importing the libraries, seconds. Source: ours, they take 10 and much longer from a busy network disk."""


def check_library_arguments(
    recipe: Recipe, *, has_gpus: bool, trains: bool = True, updates: bool = True
) -> tuple[str, ...]:
    """Asks the libraries' own classes in processes of their own, if there is anything to ask.

    Args:
        recipe: The recipe.
        has_gpus: Whether it is to run on GPUs.
        trains: Whether there is a trainer beside the samplers.
        updates: Whether the weights of samplers are replaced while they live.

    Returns:
        What could not be checked here, a line each.

    Raises:
        InputError: An argument is unknown, of the wrong type, or cannot be used on a CPU.
    """
    engine, trainer = recipe.sampler.engine, recipe.trainer
    notes = []
    if engine:
        _check_on_cpu(recipe, has_gpus=has_gpus, updates=updates)
        notes.append(_asked("still_ray.sampler.engine_arguments", "vllm", "sampler.engine", engine, {}))
    if trains and (trainer.deepspeed or trainer.trl):
        resolved = resolve_trainer(trainer, has_gpus=False)
        question = {
            "deepspeed": trainer.deepspeed,
            "trl": trainer.trl,
            "zero_stage": trainer.zero_stage,
            "methods": list(dict.fromkeys(step.method.trainer for step in recipe.steps)),
        }
        environment = trainer_environment(resolved, use_gpu=False)
        keys = " and ".join(f"trainer.{name}" for name in ("deepspeed", "trl") if question[name])
        notes.append(_asked("still_ray.trainer.library_arguments", "trl", keys, question, environment))
    return tuple(filter(None, notes))


def _check_on_cpu(recipe: Recipe, *, has_gpus: bool, updates: bool) -> None:
    if resolve_sampler(recipe.sampler, has_gpus=has_gpus).on_gpu:
        return
    for name, reason in (REFUSED_ON_CPU | (REFUSED_BEFORE_UPDATES_ON_CPU if updates else {})).items():
        if recipe.sampler.engine.get(name):
            raise InputError(f"sampler.engine.{name}: cannot be used without GPUs: {reason}")


def _asked(module: str, package: str, key: str, question: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """Why nobody could be asked here; "" if somebody was, and had nothing to say."""
    if find_spec(package) is None:
        return f"{key}: not checked, since {package} is not installed here"
    status, output, errors = _answer(module, json.dumps(question, sort_keys=True), tuple(environment.items()))
    if status:  # named policy: a library that cannot be imported here, e.g. for want of a driver, may be elsewhere
        return f"{key}: not checked, since {package} cannot be asked here: {_last_line(errors)}"
    problems: list[str] = json.loads(_last_line(output))
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise InputError(problems[0] + more)
    return ""


@lru_cache(maxsize=8)
def _answer(module: str, question: str, environment: tuple[tuple[str, str], ...]) -> tuple[int, str, str]:
    """Exit status, output and errors of a module that is asked; the runs of an ablation ask the same."""
    folders = [path for path in sys.path if path]
    variables = {**os.environ, **dict(environment), "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-P", "-m", module]
    try:
        done = subprocess.run(
            command, input=question, env=variables, capture_output=True, text=True, timeout=_LOOK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"it did not answer within {_LOOK_S:g} s"
    return done.returncode, done.stdout, done.stderr


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
