"""The report in a real browser: clicks, keys, sizes, colours, ten thousand trajectories, text that looks like code."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from still_ray.report.facts import Inputs
from still_ray.report.page import write_report
from tests.browser.conftest import Opener
from tests.report_run import EXPLORE_1, EXPLORE_2, ReportRun, response_text, rollout, whole_run

EVIL = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
LEVELS = Inputs(test_levels={"t1": 1, "t2": 1, "t3": 2, "t4": 2}, problem_levels={"p1": 1, "p2": 2})
NUM_PROBLEMS = 1250
SAMPLES = 4
FILTER_LIMIT_S = 0.3
OPEN_LIMIT_S = 20.0
"""It takes 0.5 s on two cores that have nothing else to do."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small complete run."""
    folder = tmp_path_factory.mktemp("small")
    write_report(whole_run(folder).directory, folder / "report.html", LEVELS)
    return folder / "report.html"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run of 10,000 trajectories, 14 MB of text."""
    folder = tmp_path_factory.mktemp("large")
    run = ReportRun(folder)
    draw = random.Random(1)
    words = [f"{draw.randrange(10**6)}" for _ in range(4000)]
    for stage in (EXPLORE_1, EXPLORE_2):
        run.explore(
            stage,
            [
                rollout(
                    f"p{problem:04d}",
                    sample,
                    "correct" if problem % 3 else "incorrect",
                    round_number=stage.round,
                    num_tokens=350,
                    response=response_text(" + ".join(draw.choices(words, k=145)), r"\boxed{7}"),
                )
                for problem in range(NUM_PROBLEMS)
                for sample in range(SAMPLES)
            ],
        )
    write_report(run.directory, folder / "report.html", Inputs())
    return folder / "report.html"


def test_a_click_in_the_list_shows_the_response_with_its_markers_set_apart(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.locator(".row").nth(3).click()
    expect(page.locator("#detail .id")).to_have_text("p2 · round 1, sample 1")
    assert page.locator("#detail .part.thought .prose").inner_text() == "thought 1 on p2"
    assert page.locator("#detail .part.solution .prose").inner_text() == r"\boxed{7}"
    assert page.locator("#detail .marker").all_inner_texts() == [
        "<|begin_of_thought|>",
        "<|end_of_thought|>",
        "<|begin_of_solution|>",
        "<|end_of_solution|>",
    ]


def test_filters(opened: Opener, report: Path) -> None:
    page = opened(report)
    for name, choice, number in (
        ("f-round", "round 2", 4),
        ("f-verdict", "incorrect", 2),
        ("f-domain", "math", 10),
        ("f-level", "level 1", 4),
        ("f-used", "2 · DPO", 2),
        ("f-used", "not trained on", 6),
    ):
        page.locator(f"#{name}").select_option(label=choice)
        expect(page.locator("#found")).to_have_text(f"{number} of 10 responses")
        expect(page.locator(".row")).to_have_count(number)
        page.locator(f"#{name}").select_option(index=0)


def test_filters_together_and_one_that_matches_nothing(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.locator("#f-round").select_option(label="round 1")
    page.locator("#f-verdict").select_option(label="correct")
    expect(page.locator("#found")).to_have_text("3 of 10 responses")
    page.locator("#f-text").fill("no such problem")
    expect(page.locator("#found")).to_have_text("0 of 10 responses")
    expect(page.locator("#detail")).to_have_text("Nothing matches these filters.")


def test_keys_alone_go_through_the_list_and_the_rollouts_of_a_problem(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.locator("#list").focus()
    for key, expected in (
        ("j", "p1 · round 1, sample 1"),
        ("ArrowDown", "p2 · round 1, sample 0"),
        ("l", "p2 · round 1, sample 1"),
        ("ArrowRight", "p2 · round 2, sample 0"),
        ("h", "p2 · round 1, sample 1"),
        ("k", "p2 · round 1, sample 0"),
        ("End", "p2 · round 2, sample 1"),
        ("Home", "p1 · round 1, sample 0"),
        ("ArrowUp", "p1 · round 1, sample 0"),
    ):
        page.keyboard.press(key)
        expect(page.locator("#detail .id")).to_have_text(expected)
    chosen = page.locator("#list").get_attribute("aria-activedescendant")
    assert chosen == "row-0" and page.locator("#row-0").get_attribute("aria-selected") == "true"


def test_focus_stays_in_the_text_when_keys_replace_it(opened: Opener, report: Path) -> None:
    """The button that had it is gone with the text; on the body the keys would do nothing."""
    page = opened(report)
    page.get_by_role("button", name="Round 1, sample 1: correct").focus()
    for key, expected in (
        ("j", "p1 · round 1, sample 1"),
        ("j", "p2 · round 1, sample 0"),
        ("l", "p2 · round 1, sample 1"),
        ("k", "p2 · round 1, sample 0"),
    ):
        page.keyboard.press(key)
        expect(page.locator("#detail .id")).to_have_text(expected)
        assert page.evaluate("document.activeElement.id") == "detail"


def test_focus_stays_in_the_text_when_a_pair_leads_to_a_response_that_no_filter_matches(
    opened: Opener, report: Path
) -> None:
    page = opened(report)
    page.locator("#f-verdict").select_option(label="timeout")
    page.locator("#f-round").select_option(label="round 2")
    page.get_by_role("tab", name="Preference pairs").click()
    page.locator(".side").nth(1).get_by_role("button").press("Enter")
    expect(page.locator("#detail .id")).to_have_text("p2 · round 2, sample 1")
    assert page.evaluate("document.activeElement.id") == "detail"


def test_tab_leads_through_the_page_and_out_of_the_browser(opened: Opener, report: Path) -> None:
    """No trap: from the first control of the browser, Tab comes to its last and then leaves it."""
    page = opened(report)
    page.locator("#tab-responses").focus()
    inside = "document.getElementById('panes').contains(document.activeElement)"
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        if not page.evaluate(inside):
            break
        seen.append(page.evaluate("document.activeElement.id"))
    assert {"f-round", "f-verdict", "f-domain", "f-level", "f-used", "f-text", "list"} <= set(seen)
    assert not page.evaluate(inside)


def test_focus_is_visible(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    box = page.locator(".skip").bounding_box()
    assert box is not None and box["x"] >= 0


def test_buttons_step_through_the_rollouts_of_a_problem(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.get_by_role("button", name="Round 2, sample 1: correct").click()
    expect(page.locator("#detail .id")).to_have_text("p1 · round 2, sample 1")
    expect(page.locator("#detail .count")).to_have_text("4 of 4")
    assert page.get_by_role("button", name="Next rollout of this problem").is_disabled()
    page.get_by_role("button", name="Previous rollout of this problem").click()
    expect(page.locator("#detail .id")).to_have_text("p1 · round 2, sample 0")


def test_a_pair_stands_side_by_side_with_its_perplexities(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.get_by_role("tab", name="Preference pairs").click()
    expect(page.locator("#found")).to_have_text("1 of 1 preference pairs")
    sides = page.locator(".side")
    expect(sides).to_have_count(2)
    assert sides.nth(0).locator("strong").inner_text() == "1.400" and "thought 0 on p2" in sides.nth(0).inner_text()
    assert sides.nth(1).locator("strong").inner_text() == "1.050" and "thought 1 on p2" in sides.nth(1).inner_text()
    left, right = sides.nth(0).bounding_box(), sides.nth(1).bounding_box()
    assert left and right and left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    sides.nth(1).get_by_role("button").click()
    expect(page.locator("#detail .id")).to_have_text("p2 · round 2, sample 1")


def test_text_that_looks_like_code_stays_text(opened: Opener, tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    row = rollout(EVIL, 0, "correct", question=EVIL, answer=EVIL, extracted=EVIL, detail=EVIL)
    run.explore(EXPLORE_1, [rollout("p1", 0, "correct", response=response_text(EVIL, EVIL)), row])
    write_report(run.directory, tmp_path / "report.html", Inputs(problem_levels={EVIL: 1}))
    page = opened(tmp_path / "report.html")
    page.locator("#list").focus()
    for _ in range(2):
        page.keyboard.press("j")
        page.wait_for_timeout(50)
        assert EVIL in page.locator("#detail").inner_text()
    assert page.locator("#panes img, #panes script").count() == 0
    assert page.title() == "made up · still-ray report"


def test_even_a_script_that_got_into_the_page_would_not_run(chromium: Browser, report: Path) -> None:
    """The policy, besides the escaping."""
    page = chromium.new_page()
    page.goto(report.as_uri())
    refused = page.evaluate(
        """() => new Promise((done) => {
            document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "document.title = 'owned'";
            document.body.append(script);
        })"""
    )
    assert refused.startswith("script-src") and page.title() == "made up · still-ray report"
    page.close()


def test_nothing_is_wider_than_the_screen(opened: Opener, report: Path) -> None:
    page = opened(report)
    expect(page.locator("#panes")).to_be_visible()
    for width, height in ((360, 740), (390, 844), (768, 1024), (1080, 800), (1440, 900), (1920, 1080)):
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator(".plot.narrow" if width < 620 else ".plot.wide").first.is_visible()
        assert page.locator(".plot:visible").count() == 12


def test_colours_follow_the_system_and_the_switch(opened: Opener, report: Path) -> None:
    page = opened(report, dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Theme: auto").click()
    light = page.evaluate(paper)
    assert page.locator("#theme").inner_text() == "Theme: light" and light != dark
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(paper) == dark
    fill = "getComputedStyle(document.querySelector('#verdicts .plot [fill=\"var(--green)\"]')).fill"
    in_dark = page.evaluate(fill)
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Theme: dark").click()
    assert page.evaluate(paper) == light and page.evaluate(fill) != in_dark


def test_on_a_phone_a_tap_opens_the_response_and_a_button_leads_back(opened: Opener, report: Path) -> None:
    page = opened(report, width=390, height=844, touch=True)
    assert not page.locator("#detail").is_visible()
    page.locator(".row").nth(2).tap()
    expect(page.locator("#detail .id")).to_be_visible()
    assert not page.locator("#list").is_visible()
    page.get_by_role("button", name="Back to the list").tap()
    expect(page.locator("#list")).to_be_visible()


def test_a_mark_says_its_numbers_when_it_is_pointed_at(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.locator("#verdicts .plot.wide [aria-roledescription=bar]").first.hover()
    expect(page.locator("#tip")).to_have_text("round 1: 3 correct, 50.0%")


def test_tables_are_there_for_who_cannot_see_the_plots(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.locator("#verdicts summary").click()
    assert page.locator("#verdicts table").is_visible()
    assert page.get_by_role("region", name="Verdicts by round, table").is_visible()


def test_ten_thousand_trajectories_stay_fluent(opened: Opener, large: Path) -> None:
    began = time.monotonic()
    page = opened(large)
    expect(page.locator("#found")).to_have_text("10,000 of 10,000 responses", timeout=OPEN_LIMIT_S * 1000)
    assert time.monotonic() - began < OPEN_LIMIT_S
    assert page.locator(".row").count() < 60, "only the rows that can be seen are in the page"
    took = page.evaluate(
        """() => ["1", "0", "1"].map((value) => {
            const verdict = document.getElementById("f-verdict");
            verdict.value = value;
            const began = performance.now();
            verdict.dispatchEvent(new Event("change", { bubbles: true }));
            document.getElementById("list").getBoundingClientRect();
            return (performance.now() - began) / 1000;
        })"""
    )
    expect(page.locator("#found")).to_have_text("3,336 of 10,000 responses")
    assert min(took) < FILTER_LIMIT_S, "the best of three, for other programs may take the processor"
    page.locator("#list").focus()
    page.keyboard.press("End")
    expect(page.locator("#detail .id")).to_have_text("p1248 · round 2, sample 3")
