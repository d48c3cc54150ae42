"""A headless Chromium, and pages in it that report what goes wrong in them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]

Opener = Callable[..., Page]
"""Opens a file of this machine at a size."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser; tests that want it are skipped where there is none and none can be had.

    While it is open, Playwright keeps an event loop in this thread, where other tests call `asyncio.run`: so it lives
    no longer than one file of tests.
    """
    found = subprocess.run([str(ROOT / "tools" / "chromium.sh")], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(found.stderr.strip().splitlines()[-1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found.stdout.strip(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Opener]:
    """Opens pages; fails the test if a page logged an error or asked for anything but its own file."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_page(file: Path, *, width: int = 1440, height: int = 900, dark: bool = False, touch: bool = False) -> Page:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=touch
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        address = file.as_uri()
        page.on("request", lambda request: None if request.url == address else complaints.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
