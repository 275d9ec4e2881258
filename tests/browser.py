"""A page in the Chromium of this machine, and all that the page asked for and complained of."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Visit:
    """A browser's page, with what happened on it since it was made."""

    page: object
    """playwright's `Page`."""
    requests: list[str] = field(default_factory=list)
    """URLs, in order."""
    complaints: list[str] = field(default_factory=list)
    """What stood on the console, and errors that no one caught."""

    def open(self, path: Path, **options) -> None:
        self.page.goto(Path(path).resolve().as_uri(), **options)

    def wait_until(self, expression: str, seconds: float = 20.0) -> None:
        """Until JavaScript is true. playwright's own `wait_for_function` evaluates in the page, where a strict content
        policy forbids it. Raises `TimeoutError`."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {seconds:g} s: {expression}")
            time.sleep(0.02)

    def outside(self, folder: Path) -> list[str]:
        """The requests for anything but files in the folder and what the page holds itself."""
        return [url for url in self.requests if not _is_within(url, Path(folder).resolve())]


def _is_within(url: str, folder: Path) -> bool:
    parts = urlparse(url)
    if parts.scheme in ("data", "blob"):
        return True
    return parts.scheme == "file" and Path(unquote(parts.path)).resolve().is_relative_to(folder)


@pytest.fixture(scope="module")
def chromium():
    """playwright's `Browser`. Skips where playwright or a Chromium on the PATH is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"needs a browser on the PATH: {', '.join(NAMES)}")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def chromium_page(chromium):
    """Makes a `Visit`; its options are those of playwright's `Browser.new_page`, as `color_scheme="dark"`."""
    opened = []

    def make(**options) -> Visit:
        page = chromium.new_page(**options)
        visit = Visit(page)
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on("console", lambda message: visit.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: visit.complaints.append(f"error: {error}"))
        opened.append(page)
        return visit

    yield make
    for page in opened:
        page.close()
