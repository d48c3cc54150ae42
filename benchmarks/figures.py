"""How a benchmark prints a figure: one JSON line."""

from __future__ import annotations

import json
import os
import platform
import sys


def print_figure(name: str, *, value: float, unit: str, baseline: float) -> None:
    """Prints a figure, its baseline and their ratio (value over baseline)."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    figure = {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "baseline": round(baseline, 3),
        "ratio": round(value / baseline, 3),
        "machine": machine,
    }
    sys.stdout.write(json.dumps(figure) + "\n")
    sys.stdout.flush()
