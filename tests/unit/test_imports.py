"""What must stay light: records, recipe, decisions, driver and command line load none of the heavy packages."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import still_ray

PACKAGE = Path(still_ray.__file__).parent

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


def modules_of(folder: Path, name: str) -> dict[str, Path]:
    """The files of a package by the dotted names of their modules."""
    files = {path: path.relative_to(folder).with_suffix("").parts for path in folder.rglob("*.py")}
    return {".".join((name, *parts)).removesuffix(".__init__"): path for path, parts in files.items()}


def imported_by(source: str, known: Mapping[str, Path]) -> Iterator[str]:
    """The known modules that a source imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def circle_of(known: Mapping[str, Path]) -> list[str]:
    """Modules that import each other in a circle; none if there is no such circle."""
    graph = {name: {*imported_by(path.read_text(encoding="utf-8"), known)} - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle_of(modules_of(PACKAGE, "still_ray")) == []


def test_a_circle_of_imports_would_be_noticed_even_inside_a_function(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "one.py").write_text("from pack import two\n")
    (tmp_path / "two.py").write_text("def late():\n    from pack.one import x\n")
    assert {*circle_of(modules_of(tmp_path, "pack"))} == {"pack.one", "pack.two"}


def repeated_classes(known: Mapping[str, Path]) -> dict[str, list[str]]:
    """Names that more than one class has, private ones left out, with the modules that define them."""
    found: dict[str, list[str]] = {}
    for name, path in known.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def test_every_class_has_a_name_of_its_own() -> None:
    assert repeated_classes(modules_of(PACKAGE, "still_ray")) == {}


def test_a_name_of_two_classes_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class Mine: ...\nclass _Inner: ...\n")
    (tmp_path / "two.py").write_text("class Mine: ...\nclass _Inner: ...\n")
    assert {*repeated_classes(modules_of(tmp_path, "pack"))} == {"Mine"}
