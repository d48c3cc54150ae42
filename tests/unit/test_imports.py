"""What must stay light: records, recipe, decisions, driver and command line load none of the heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("ray", "torch", "vllm", "transformers", "trl", "deepspeed", "datasets")
REPORT = f"; import json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
ALL_OF = """
import importlib, pkgutil
package = importlib.import_module({name!r})
for module in pkgutil.walk_packages(getattr(package, "__path__", []), {name!r} + "."):
    importlib.import_module(module.name)
"""


def loaded_by(program: str) -> list[str]:
    """The heavy packages that are loaded at the end of a program, which runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program + REPORT.removeprefix("; ")], capture_output=True, text=True, check=True
    )
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


@pytest.mark.parametrize(
    "package", ["types", "config", "algo", "store", "distill", "prepare", "report", "driver", "cli"]
)
def test_every_module_of_a_light_package_is_light(package: str) -> None:
    assert loaded_by(ALL_OF.format(name=f"still_ray.{package}")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        *(["run", "nowhere.yaml"], ["plan", "nowhere.yaml"], ["rehearse", "nowhere.yaml"]),
        *(["status", "nowhere"], ["report", "nowhere"]),
        ["ablate", "nowhere.yaml"],
        ["ablate", "jobs/ablate-table2.yaml", "--plan"],
    ],
)
def test_help_and_wrong_input_are_answered_without_loading_an_engine(arguments: list[str]) -> None:
    program = f"""
import sys
sys.argv = ["still-ray", *{arguments!r}]
from still_ray.cli import main
try:
    main()
except SystemExit:
    pass
"""
    assert loaded_by(program) == []


def test_a_heavy_package_would_be_noticed() -> None:
    """The check itself: a module that puts a heavy name among the loaded ones is reported."""
    assert loaded_by("import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n") == ["torch"]
