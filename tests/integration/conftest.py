"""One cluster with one run on it, for every test that looks at one; started by the first that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.demo_jobs import DOCUMENT, DemoJobs, run_demo_jobs
from tests.ray_head import RayHead, commands_of, ray_head


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """A head started as jobs/README.md says, with ports, folders and a token of its own; ends with the tests."""
    with ray_head(commands_of(DOCUMENT, "A head on this machine")) as started:
        yield started


@pytest.fixture(scope="module")
def demo_jobs(head: RayHead) -> DemoJobs:
    """The demo as two jobs on that head, finished.

    What has to watch the run from its beginning, such as a server that scrapes `head`, is a module fixture that asks
    for `head` and that this one asks for.
    """
    return run_demo_jobs(head)
