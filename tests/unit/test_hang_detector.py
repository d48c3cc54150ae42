"""Which replicas hang: those that hold work, count no steps and give no answers for too long."""

from __future__ import annotations

import math

import pytest

from still_ray.actors.pool.hang_detector import LONGEST_LOOK_S, HangDetector


class Scene:
    """A detector with a clock that stands still until it is moved."""

    def __init__(self, timeout_s: float | None) -> None:
        self.now = 1000.0
        self.detector = HangDetector(timeout_s, clock=lambda: self.now)


def test_a_replica_hangs_when_it_holds_work_and_its_steps_stand_still() -> None:
    scene = Scene(100.0)
    for name in ("still", "steps", "answers"):
        scene.detector.alive(name)
        scene.detector.counted(name, 7)
    scene.now += 60
    scene.detector.counted("still", 7)
    scene.detector.counted("steps", 8)
    scene.detector.alive("answers")
    assert scene.detector.hanging(["still", "steps", "answers"]) == []
    scene.now += 60
    assert scene.detector.hanging(["still", "steps", "answers"]) == ["still"]


def test_a_replica_that_rested_has_its_whole_time_from_its_next_request_on() -> None:
    scene = Scene(100.0)
    scene.detector.alive("replica-0")
    assert scene.detector.hanging(["replica-0"]) == []
    assert scene.detector.hanging([]) == []  # it holds nothing
    scene.now += 1000
    scene.detector.alive("replica-0")
    scene.now += 99
    assert scene.detector.hanging(["replica-0"]) == []
    scene.now += 2
    assert scene.detector.hanging(["replica-0"]) == ["replica-0"]


def test_without_a_limit_nobody_hangs() -> None:
    scene = Scene(None)
    scene.detector.alive("replica-0")
    scene.now += 10**9
    assert scene.detector.hanging(["replica-0"]) == []


@pytest.mark.parametrize(("timeout_s", "every_s"), [(8.0, 1.0), (1800.0, LONGEST_LOOK_S), (None, LONGEST_LOOK_S)])
def test_several_looks_fit_into_the_time_of_a_replica(timeout_s: float | None, every_s: float) -> None:
    assert math.isclose(HangDetector(timeout_s).look_every_s, every_s)


@pytest.mark.parametrize("timeout_s", [80.0, None])
def test_a_look_is_due_after_its_interval(timeout_s: float | None) -> None:
    scene = Scene(timeout_s)
    assert [scene.detector.is_due(), scene.detector.is_due()] == [True, False]
    scene.now += 1.5
    assert not scene.detector.is_due()
    scene.now += 0.5
    assert scene.detector.is_due()
