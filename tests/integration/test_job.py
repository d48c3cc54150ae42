"""The commands of jobs/README.md on a real cluster with a token: submitted, stopped, resumed, followed to success."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections import Counter

import pytest

from tests.demo_jobs import NUM_PROBLEMS, SAMPLES, DemoJobs
from tests.ray_head import RayHead
from tests.runs import json_of, rows_of

pytestmark = pytest.mark.integration

STAGES = ["000-backbone", "000-imitate", "001-explore", "001-sft"]


def test_the_cluster_refuses_whoever_has_no_token(head: RayHead) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=30)


def test_a_stopped_job_says_so_and_leaves_nothing_behind(demo_jobs: DemoJobs) -> None:
    assert demo_jobs.stopped["status"] == "STOPPED"
    last = demo_jobs.stopped_log.splitlines()[-1]
    assert last.startswith("still-ray: interrupted; resume with: still-ray run jobs/demo.yaml --run-dir ")
    assert demo_jobs.left == []
    assert 0 < len(demo_jobs.kept) < NUM_PROBLEMS * SAMPLES


def test_the_same_job_again_resumes_to_the_end_with_every_sample_once(demo_jobs: DemoJobs) -> None:
    assert demo_jobs.resumed["status"] == "SUCCEEDED"
    assert demo_jobs.resumed["runtime_env"]["working_dir"] != demo_jobs.stopped["runtime_env"]["working_dir"]
    rows = [row for path in demo_jobs.run_dir.glob("trajectories/*/*.parquet") for row in rows_of(path)]
    keys = Counter((row["round"], row["problem_id"], row["sample_index"]) for row in rows)
    assert set(keys.values()) == {1} and len(keys) == NUM_PROBLEMS * SAMPLES
    assert set(demo_jobs.kept) <= set(keys)
    assert all((demo_jobs.run_dir / "rounds" / stage / "manifest.json").exists() for stage in STAGES)
    assert json_of(demo_jobs.run_dir / "state.json")["status"] == "complete"


def test_following_a_job_shows_plain_lines_and_does_not_repeat_what_was_done(demo_jobs: DemoJobs) -> None:
    text = demo_jobs.followed
    assert "Ray dashboard: http://" in text and "001-explore  explore" in text and "95 % interval" in text
    assert "train by SFT" in text and "000-imitate  train" not in text
    assert "Job 'demo-2' succeeded" in text
    assert "\x1b[?25" not in text and "\r" not in text, "a live display in a log"
    assert "Warning" not in text and "Traceback" not in text


def test_the_jobs_page_shows_recipe_and_run_directory_of_every_attempt(head: RayHead, demo_jobs: DemoJobs) -> None:
    jobs = {job["submission_id"]: job for job in head.api("/api/jobs/") if job["submission_id"]}
    assert set(jobs) == {"demo-1", "demo-2"}
    expected = {"recipe": "jobs/demo.yaml", "run_dir": str(demo_jobs.run_dir)}
    assert [jobs[name]["metadata"] for name in sorted(jobs)] == [expected, expected]
    assert "demo-1" in demo_jobs.watched and str(demo_jobs.run_dir) in demo_jobs.watched
    assert "stage 000-" in demo_jobs.watched, "still-ray status, beside the run"
