"""The page as text: whole in itself, closed to whatever a model wrote, and open to a run that is not finished."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from still_ray.report.browser_data import browser_data
from still_ray.report.charts import PAPER, Axis, Series, Size, interval_plot, line_plot, stacked_bars, svg
from still_ray.report.facts import Inputs
from still_ray.report.page import VARIABLES, render, write_report
from still_ray.store.run_store import RunStore
from tests.report_run import EXPLORE_1, ReportRun, rollout, whole_run

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u2028"
LEVELS = Inputs(test_levels={"t1": 1, "t2": 1, "t3": 2, "t4": 2}, problem_levels={"p1": 3})


class Page(HTMLParser):
    """Tags with their attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    run = whole_run(folder)
    write_report(run.directory, folder / "report.html", LEVELS)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_anywhere(page_text: str) -> None:
    page = Page(page_text)
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses and all(value and value.startswith("#") for value in addresses)
    assert "@import" not in page_text and re.search(r"url\((?!#)", page_text) is None
    assert not page.all("link") and not page.all("iframe") and not page.all("img")


def test_only_the_one_script_and_the_one_style_are_allowed(page_text: str) -> None:
    page = Page(page_text)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    script = page_text.rpartition("<script>")[2].partition("</script>")[0]
    style = page_text.partition("<style>")[2].partition("</style>")[0]
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert {part.split()[0] for part in policy.split("; ") if part.split()[1:] != ["'none'"]} == {
        "style-src",
        "script-src",
    }
    for kind, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert [one for one in page.all("script") if one.get("type") != "text/plain"] == [{}]


def test_no_inline_styles_or_handlers_which_the_policy_would_refuse(page_text: str) -> None:
    names = {name for _, attributes in Page(page_text).tags for name in attributes}
    assert "style" not in names and not {name for name in names if name.startswith("on")}


def test_ids_are_unique_and_references_lead_somewhere(page_text: str) -> None:
    page = Page(page_text)
    ids = [value for _, attributes in page.tags for name, value in attributes.items() if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value for _, a in page.tags for name, value in a.items() if name in ("aria-labelledby", "aria-controls")}
    wanted |= {(value or "")[1:] for _, a in page.tags for name, value in a.items() if name == "href"}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", page_text))
    assert wanted <= set(ids)


def test_every_plot_is_drawn_for_two_widths_and_has_a_table(page_text: str) -> None:
    page = Page(page_text)
    plots = [attributes["class"] for attributes in page.all("svg") if "plot" in (attributes.get("class") or "")]
    assert plots.count("plot wide") == plots.count("plot narrow") == 12
    figures = page_text.split("<figure")[1:]
    assert all("<table" in figure for figure in figures if "<svg class=" in figure)


def test_colours_of_plots_are_those_of_the_page(page_text: str) -> None:
    plots = "".join(re.findall(r'<svg class="plot.*?</svg>', page_text, re.DOTALL))
    assert set(re.findall(r'(?:fill|stroke)="(#[0-9a-fA-F]{3,6})"', plots)) == set()
    style = page_text.partition("<style>")[2].partition("</style>")[0]
    used = set(re.findall(r"var\(--([\w-]+)\)", page_text))
    assert used <= set(re.findall(r"--([\w-]+):", style)) and "blue" in used
    assert style.count("--ramp-7: #") == 3, "light, dark by preference, dark by choice"


@pytest.mark.parametrize("where", ["response", "question", "problem_id"])
def test_text_of_a_model_or_a_file_is_never_part_of_the_page(tmp_path: Path, where: str) -> None:
    run = ReportRun(tmp_path)
    changes: dict[str, Any] = {where: EVIL}
    run.explore(EXPLORE_1, [replace(rollout("p1", 0, "correct"), **changes)])
    facts = run.facts()
    text = render(facts, browser_data(run.directory, facts))
    assert "owned" not in text and "onerror" not in text


def test_names_and_notes_are_escaped(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: made up", "name: '<b onclick=x>&made up'"))
    write_report(run.directory, tmp_path / "report.html", Inputs(notes=("<i>gone</i>",)))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b onclick" not in text and "&lt;b onclick=x&gt;&amp;made up" in text
    assert "&lt;i&gt;gone&lt;/i&gt;" in text


def test_a_rehearsal_says_that_it_is_one(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rehearsal: true\n" + recipe.read_text())
    write_report(run.directory, tmp_path / "report.html", LEVELS)
    assert "Engines and trainers were fakes" in (tmp_path / "report.html").read_text()


def test_an_unfinished_run_says_so_and_has_no_browser_yet(tmp_path: Path) -> None:
    directory = ReportRun(tmp_path).directory
    write_report(directory, tmp_path / "report.html", Inputs())
    text = (tmp_path / "report.html").read_text()
    assert "This run is not complete." in text
    assert "Its process ended without a word in stage 000-backbone, " in text
    assert "No trajectory has been stored yet." in text and 'id="panes"' not in text


def test_a_run_that_failed_says_why_and_what_resumes_it(tmp_path: Path) -> None:
    directory = ReportRun(tmp_path).directory
    RunStore(directory, (), command="still-ray run r.yaml").stop("failed", "no room for replica-0")
    write_report(directory, tmp_path / "report.html", Inputs())
    text = (tmp_path / "report.html").read_text()
    assert ": no room for replica-0. The same command resumes it: still-ray run r.yaml" in text


def test_the_same_run_gives_the_same_data(tmp_path: Path, page_text: str) -> None:
    run = whole_run(tmp_path)
    data = browser_data(run.directory, run.facts(LEVELS))
    assert f'id="index">{data.index}</script>' in page_text
    assert all(f">{block}</script>" in page_text for block in data.blocks) and data.blocks


# -- plots ------------------------------------------------------------------------------------------------------------

ROW = {"stage": "a <b> & c", "value": 0.5, "low": 0.4, "high": 0.6, "text": "50%", "tip": "a <b> & c: 50%", "k": 1}
VALUE = Axis(field="value", percent=True)


def test_every_mark_has_its_label_and_text_is_escaped() -> None:
    drawn = svg(interval_plot([ROW], category="stage", value=VALUE, low="low", high="high"))
    assert 'aria-label="a &lt;b&gt; &amp; c: 50%"' in drawn and "<b>" not in drawn


def test_size_and_background() -> None:
    spec = interval_plot([ROW], category="stage", value=VALUE, low="low", high="high", size=Size(width=326, height=200))
    assert 'viewBox="0 0 326 200"' in svg(spec) and f'fill="{PAPER}"' in svg(spec)
    assert f'<rect width="326" height="200" fill="{PAPER}"' not in svg(spec, background=False)


def test_a_legend_stands_in_the_plot_unless_the_page_has_it() -> None:
    series = Series(field="stage", colors={"a <b> & c": "#1c9173"})
    with_legend = svg(stacked_bars([ROW], category="text", value=VALUE, series=series))
    without = svg(stacked_bars([ROW], category="text", value=VALUE, series=series, legend=False))
    assert "role-legend" in with_legend and "role-legend" not in without


def test_every_colour_of_the_house_style_is_a_variable() -> None:
    series = Series(field="stage", colors={"a <b> & c": "#1c9173"})
    drawn = svg(line_plot([ROW], x=Axis(field="k"), y=VALUE, series=series, band=("low", "high")))
    assert set(re.findall(r'(?:fill|stroke)="(#[0-9a-fA-F]{3,6})"', drawn)) <= VARIABLES.keys()
