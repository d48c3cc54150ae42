"""still-ray: imitate, explore and self-improve (STILL-2, arXiv 2412.09413) as a Ray system.

What a program may build on is in `still_ray.library` and can be imported from here.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from still_ray.library import *  # noqa: F403 - the list is there

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Loads the public names when one of them is first asked for: every module of the package runs this one first."""
    # Python asks here for a module as well before it imports it, and the library itself is made of these.
    is_module = name.startswith("_") or find_spec(f"{__name__}.{name}") is not None
    library = None if is_module else import_module("still_ray.library")
    if library is None or name not in library.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(library, name)
