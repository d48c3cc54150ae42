"""The environment of the processes that verify."""

import os
import sys
from pathlib import Path
from typing import Final

_KEPT_VARIABLES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONHOME")


def worker_environment(*, with_working_directory: bool = False) -> dict[str, str]:
    """Enough to import what this process can import, and no secrets.

    Args:
        with_working_directory: Look for modules there too, after all others: a user's own verifier may lie there.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    folders = [*(path for path in sys.path if path), str(Path(__file__).resolve().parents[2])]
    if with_working_directory:
        folders.append(str(Path.cwd()))
    return {**kept, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
