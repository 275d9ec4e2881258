"""How long the report of a large run takes to open in Chromium: from the navigation to the pictures of the first strip.

    python benchmarks/report.py [--results 5000] [--repeats 5]        needs playwright and a Chromium

The run is made up: scores at random, and for every result a file of 12 KB, which is the same noise 64 px wide. What is
opened is what `riebench run` writes.
"""

from __future__ import annotations

import argparse
import io
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from riebench.analysis import summarise
from riebench.analysis.coalitions import subset_names
from riebench.backbones.sdxl import SDXL
from riebench.core.json_text import json_text
from riebench.core.scores import COLUMNS, SCORES
from riebench.edits.edit import CATEGORY_NAMES
from riebench.report import write_report

BLOCK_NAMES = SDXL.default_blocks

SEEDS = (42, 43, 44)
PICTURES = ("original", "edited", "regions")
EVERY = "+".join(BLOCK_NAMES)
SETTINGS = (
    ("noop", 0.0, ""),
    ("oracle-prompt", 1.0, ""),
    *(("sae", 1.0, blocks) for blocks in subset_names(BLOCK_NAMES)[1:]),
    *(("dense", strength, EVERY) for strength in (0.5, 1.0, 2.0)),
    *((method, 1.0, EVERY) for method in ("neurons", "random", "region-means", "pca", "mismatched")),
)
#: From the navigation to the first strip with all its pictures.
FIRST_STRIP = """() => {
  const pictures = Array.from(document.querySelectorAll(".case:first-child img"));
  return pictures.length > 0 && pictures.every((picture) => picture.complete && picture.naturalWidth > 0);
}"""


def make_run(folder: Path, num_results: int, *, seed: int = 0) -> pd.DataFrame:
    """Scores of at least `num_results` made-up results; the folder gets the picture of each, and three a case."""
    generator = np.random.default_rng(seed)
    num_edits = -(-num_results // (len(SETTINGS) * len(SEEDS)))
    rows = [
        {"edit": f"{category}-{i:03d}", "category": category, "seed": case_seed}
        | {"method": method, "strength": strength, "blocks": blocks}
        for i, category in ((i, CATEGORY_NAMES[i % len(CATEGORY_NAMES)]) for i in range(num_edits))
        for case_seed in SEEDS
        for method, strength, blocks in SETTINGS
    ]
    frame = pd.DataFrame(rows)
    filled = {name: "" if kind is str else kind(0) for name, kind in COLUMNS.items() if name not in frame}
    frame = frame.assign(**filled, **{score.name: generator.uniform(size=len(frame)) for score in SCORES})
    frame = frame.assign(status="ok", backbone="tinyworld-turbo@1", steps=1, mode="strict", features="{}")
    at = "images/" + frame["edit"] + "/" + frame["seed"].astype(str) + "/"
    keys = pd.Series([f"-{i:012x}.png" for i in range(len(frame))])
    frame["image"] = at + frame["method"] + "@" + frame["strength"].map("{:g}".format) + "-" + frame["blocks"] + keys
    for name in PICTURES:
        frame[name] = at + name + "-0123456789ab.png"
    picture = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(picture, "PNG")
    for room in at.unique():
        (folder / room).mkdir(parents=True)
    for name in {*frame["image"], *frame[list(PICTURES)].to_numpy().flat}:
        (folder / name).write_bytes(picture.getvalue())
    return frame


def seconds_to_open(browser: Browser, page: Path) -> float:
    """From the navigation to the first strip with its pictures, in a fresh profile."""
    context = browser.new_context()
    tab = context.new_page()
    begun = time.perf_counter()
    tab.goto(page.resolve().as_uri(), wait_until="commit")
    tab.evaluate("document.readyState === 'loading' && new Promise((r) => addEventListener('DOMContentLoaded', r))")
    tab.evaluate("document.getElementById('strips').scrollIntoView()")
    while not tab.evaluate(FIRST_STRIP):  # wait_for_function needs eval, which the page's content policy forbids
        time.sleep(0.01)
    taken = time.perf_counter() - begun
    context.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        frame = make_run(folder, asked.results)
        summary = summarise(frame, BLOCK_NAMES, resamples=200)
        begun = time.perf_counter()
        page = write_report(folder, summary, frame, {})
        written = time.perf_counter() - begun
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        times = [seconds_to_open(browser, page) for _ in range(asked.repeats)]
        found = {
            "results": len(frame),
            "images": sum(1 for _ in folder.rglob("*.png")),
            "page_bytes": page.stat().st_size,
            "seconds_to_write": round(written, 2),
            "seconds_to_open": {
                "median": round(statistics.median(times), 2),
                "least": round(min(times), 2),
                "greatest": round(max(times), 2),
            },
            "browser": f"{browser.browser_type.name} {browser.version}",
            "machine": platform.machine(),
        }
        browser.close()
    print(json_text(found, indent=2))


if __name__ == "__main__":
    main()
