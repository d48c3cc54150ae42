"""What is generated into docs is what the code says today."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_recipe_reference_is_that_of_the_schema() -> None:
    tool = ROOT / "tools" / "recipe_reference.py"
    printed = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == printed, f"run {tool.name} > docs/recipe.md"
