"""docs/leaderboard.png and docs/report.png: the leaderboard's site and the report of a run, as Chromium shows them.

python benchmarks/screenshots.py [--entries data/leaderboard] [--run runs/quickstart] [--out docs]     needs playwright

Renders the site of the entries into a temporary folder; the run's `report.html` is taken as it is.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from riebench.core.errors import UserError
from riebench.core.files import data_folder, replacing
from riebench.leaderboard.site import render_site

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 960


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=Path, default=data_folder() / "leaderboard")
    parser.add_argument("--run", type=Path, help="folder of a finished run, for docs/report.png")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise UserError("there is no Chromium on the PATH", remedy="install chromium")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as made:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        take(
            browser,
            render_site(arguments.entries, Path(made) / "site"),
            arguments.out / "leaderboard.png",
            "#trade-off",
        )
        if arguments.run is not None:
            take(browser, arguments.run.resolve() / "report.html", arguments.out / "report.png", "table.verdicts")
        browser.close()


def take(browser: Browser, page: Path, picture: Path, last: str) -> None:
    """A page in light colours from its top as far as the first element `last` reaches."""
    tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
    tab.goto(page.as_uri(), wait_until="load")
    box = tab.locator(last).first.bounding_box()
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"]}
    with replacing(picture) as temporary:
        tab.screenshot(path=temporary, full_page=True, clip=clip)
    tab.close()
    print(picture)


if __name__ == "__main__":
    main()
