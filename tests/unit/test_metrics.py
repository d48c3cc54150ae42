"""The table of metrics, and what is made from it: the Grafana dashboard and the list in docs/watching.md."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from still_ray.actors.monitoring.metrics import METRICS, ROLLOUTS, VERDICTS, VLLM_METRICS, Metric, MetricsRecorder
from still_ray.actors.session import train_run_name
from tests.prometheus import DASHBOARD, expressions, metrics_of

ROOT = Path(__file__).resolve().parents[2]


def printed_by(tool: str) -> str:
    path = ROOT / "tools" / tool
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True).stdout


def test_the_dashboard_is_that_of_the_table() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == printed_by("grafana_dashboard.py"), "run tools/grafana_dashboard.py"


def test_the_documented_metrics_are_those_of_the_table() -> None:
    document = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")
    assert printed_by("metrics_reference.py") in document, "put the output of tools/metrics_reference.py there"


def test_every_metric_of_the_table_is_on_the_dashboard() -> None:
    shown = {metric.exported for expression in expressions() for metric in metrics_of(expression)}
    assert shown == {metric.exported for metric in (*METRICS, *VLLM_METRICS)}


def test_every_label_of_an_expression_is_one_that_its_metrics_carry() -> None:
    for expression in expressions():
        carried = {"run", "le", *(tag for metric in metrics_of(expression) for tag in metric.tags)}
        grouped = {name for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(", ")}
        matched = set(re.findall(r"(\w+)=~?\"", expression))
        assert grouped | matched <= carried, expression


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        xs, ys = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in xs for y in ys}
        assert not cells & taken and max(xs) < 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_can_be_recorded_by_a_process(metric: Metric) -> None:
    """Ray refuses wrong names, unknown tags and histograms without boundaries when a metric is first used.

    The run and a custom domain may be named in any script, of which Ray's metrics take ASCII alone.
    """
    recorder, tags = MetricsRecorder("数学 \ud800"), dict.fromkeys(metric.tags, "é")
    if metric.kind == "counter":
        recorder.count(metric, 2, **tags)
    elif metric.kind == "gauge":
        recorder.set(metric, 0.5, **tags)
    else:
        recorder.observe(metric, [0.5, 1000.0], **tags)


def test_a_recorder_gives_each_metric_the_common_tags_that_it_knows() -> None:
    recorder = MetricsRecorder("test", replica="replica-1")
    recorder.count(ROLLOUTS, finish_reason="stop")
    recorder.count(VERDICTS, verdict="correct", domain="math")
    with pytest.raises(ValueError, match="finish_reason"):
        recorder.count(ROLLOUTS)


@pytest.mark.parametrize(
    ("recipe", "start"),
    [
        ("still-ray 7b", "still-ray 7b-"),
        ("数学", "%E6%95%B0%E5%AD%A6-"),
        ("../a/b\x00\\", "%2Fa%2Fb%00%5C-"),
        ("数" * 300, "%E6%95%B0"),
        ("\ud800", "%3F-"),
        ("", "-"),
    ],
)
def test_a_train_run_is_named_by_what_is_both_a_tag_and_the_name_of_a_folder(
    recipe: str, start: str, tmp_path: Path
) -> None:
    name = train_run_name(recipe, "20261130-054047")
    assert name.isascii() and name.startswith(start) and name.endswith("-20261130-054047")
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_counting_nothing_is_no_record() -> None:
    # Ray raises for increments of 0.
    MetricsRecorder("test").count(ROLLOUTS, 0, replica="replica-0", finish_reason="stop")


def test_the_statistics_of_the_dashboard_are_vllms() -> None:
    package = importlib.util.find_spec("vllm")
    assert package is not None and package.origin is not None
    source = (Path(package.origin).parent / "v1" / "metrics" / "loggers.py").read_text(encoding="utf-8")
    for metric in VLLM_METRICS:
        assert f'name="vllm:{metric.name}"' in source, metric.name
