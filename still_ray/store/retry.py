"""Retries at an object store: what it could not do now it may do in a minute.

pyarrow tries each request again by itself, for about half a minute. A store that is busy or out of reach for longer
would cost a run its stage, so what a stage ends with is tried again a few times more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from still_ray.location import is_lasting
from still_ray.types import RunError

PAUSES_S = (2.0, 10.0, 30.0, 90.0)
"""Between two tries; with pyarrow's own retries, about five minutes in all. Source: ours."""
JITTER = 0.5
"""Share by which a pause may be longer: eight files that failed together come back one after another."""

Result = TypeVar("Result")


def with_retries(work: Callable[[], Result]) -> Result:
    """Does something with an object store, again if it fails for a reason that may pass; it must bear repetition.

    Raises:
        RunError: The last try failed, or the reason would not pass.
    """
    for pause_s in PAUSES_S:
        try:
            return work()
        except RunError as error:
            if is_lasting(error):
                raise
        time.sleep(pause_s * (1 + JITTER * random.random()))
    return work()
