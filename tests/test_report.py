"""The report page: parsed, offline, complete, and safe with hostile text."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from riebench.analysis import summarise, write_scores
from riebench.analysis.dominance import subset_names
from riebench.analysis.frames import COLUMNS, SCORES, Setting
from riebench.analysis.statistics import Interval
from riebench.axes import ticks
from riebench.report import write_report
from riebench.report.examples import choose_examples, embed_image
from riebench.report.figures import Box, HeatRow, heat_picture, place_labels
from riebench.report.markup import number, p_value, table

BLOCKS = ("down.2.1", "mid.0", "up.0.0", "up.0.1")
EVERY = "+".join(BLOCKS)
HOSTILE = """<script>alert("x")</script>'&"""
GAIN = {
    "change_object": {"down.2.1": 0.06, "up.0.0": 0.02},
    "change_colour": {"up.0.1": 0.05},
    "change_style": {"mid.0": -0.01, "up.0.0": 0.02, "up.0.1": 0.021},
}
MAIN = {"oracle-prompt": (0.12, 0.5), "dense": (0.09, 0.35), "neurons": (0.05, 0.3), "random": (-0.002, 0.2)}
VOID = {"meta", "img", "br", "link", "input", "line", "rect", "circle"}


class Page(HTMLParser):
    """The elements of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_run(folder, *, num_edits=6, seeds=(42,), rename=None, side=64, reason="no region found in the edited image"):
    """A run folder's scores with planted gains and images of one colour a result."""
    rng = np.random.default_rng(0)
    rows = []

    def add(case, base, method, blocks, gain, cost, strength=1.0):
        row = {name: "" if dtype is str else dtype(0) for name, dtype in COLUMNS.items()}
        row |= {score.name: 0.0 for score in SCORES}
        row |= dict(zip(("edit", "category", "seed"), case, strict=True))
        row |= {"method": method, "blocks": blocks, "strength": strength, "status": "ok", "mode": "strict"}
        row |= {"backbone": "tinyworld-turbo@1", "steps": 1, "clip_text_edited": base + gain, "lpips_original": cost}
        chosen = blocks.split("+") if blocks else []
        row |= {"features": json.dumps(dict.fromkeys(chosen, 8)), "image": f"images/{len(rows)}.png"}
        path = folder / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(0, 256, 3))).save(path)
        rows.append(row)

    for category, worth in GAIN.items():
        for i in range(num_edits):
            for seed in seeds:
                at = (f"{category}-{i:02d}", (rename or {}).get(category, category), seed), rng.normal(0.2, 0.03)
                add(*at, "noop", "", 0.0, 0.0)
                for names in subset_names(BLOCKS)[1:]:
                    chosen = names.split("+")
                    gain = sum(worth.get(block, 0.0) for block in chosen) + rng.normal(0, 0.01)
                    add(*at, "sae", names, gain, 0.05 * len(chosen) + abs(rng.normal(0, 0.01)))
                for method, (gain, cost) in MAIN.items():
                    blocks = "" if method == "oracle-prompt" else EVERY
                    add(*at, method, blocks, gain + rng.normal(0, 0.02), cost + rng.normal(0, 0.02))
    rows[-1] |= {"status": "failed", "reason": reason, "image": "", "clip_text_edited": np.nan}
    return pd.DataFrame(rows)


MANIFEST = {
    "config": {"backbone": "tinyworld-turbo@1", "seeds": [42]},
    "methods": [{"name": "sae", "k": 32}],
    "status": "finished",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    scores = make_run(folder)
    write_scores(scores, folder / "scores.parquet")
    summary = summarise(scores, BLOCKS, resamples=500)
    prompts = {"change_colour-00": ("a red circle", "a blue circle")}
    path = write_report(folder, summary, scores, MANIFEST, prompts=prompts)
    return folder, scores, summary, path


@pytest.fixture(scope="module")
def page(run):
    return Page(run[3].read_text())


def test_the_page_asks_for_nothing_outside_itself(run, page):
    text = run[3].read_text()
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed"}
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_links_within_the_page_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} == set(ids)


def test_categories_methods_blocks_and_verdicts_are_there(run, page):
    for word in [*GAIN, *MAIN, "sae", "noop", *BLOCKS, "not separable"]:
        assert word.replace("_", " ") in page.text
    summary = run[2]
    assert summary["categories"]["change_colour"]["dominant"]["clip_text_edited"] == "up.0.1"
    assert "up.0.1 for change colour" in page.text
    # two outlined cells in the headline figure: change_object and change_colour
    headline = run[3].read_text().split("</svg>")[0]
    assert headline.count('class="marked"') == sum(
        row["dominant"]["clip_text_edited"] in BLOCKS for row in [*summary["categories"].values(), summary["overall"]]
    )


def test_numbers_of_the_summary_are_on_the_page(run, page):
    for row in run[2]["methods"]:
        assert number(row["scores"]["lpips_original"]["mean"]) in page.text
    effects = run[2]["categories"]["change_object"]["effects"]["clip_text_edited"]["down.2.1"]
    for effect in ("solo", "leave_one_out", "shapley"):
        assert number(effects[effect]["mean"], signed=True) in page.text


def test_what_was_run_and_what_failed_are_there(page):
    assert "config.backbone tinyworld-turbo@1" in page.text
    assert "methods.1.k 32" in page.text
    assert "no region found in the edited image" in page.text
    assert "17 of 18 cases valid, on 17 edits in 3 categories" in page.text


def test_tables_and_pictures_can_be_read_aloud(page):
    assert len(page.all("table")) == len(page.all("caption")) > 4
    assert all(attributes.get("scope") in {"row", "col"} for attributes in page.all("th"))
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(attributes["aria-label"] and attributes["role"] == "img" for attributes in page.all("svg"))
    assert ("html", {"lang": "en"}) in page.elements


def test_images_are_embedded_as_they_are(run, page):
    folder, scores, _, _ = run
    images = [a for a in page.all("img") if "original image of" in a["alt"]]
    shown = images[0]["alt"].removeprefix("original image of ").split(",")[0]
    row = scores[(scores["edit"] == shown) & (scores["method"] == "noop")].iloc[0]
    embedded = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].split(",")[1])))
    assert embedded.size == (64, 64)
    assert embedded.getpixel((3, 3)) == Image.open(folder / row["image"]).getpixel((3, 3))


def test_examples_are_the_best_and_the_worst(run):
    folder, scores, _, _ = run
    examples = choose_examples(scores, folder, Setting("sae", 1.0, EVERY), BLOCKS)
    assert [(e.category, e.chosen_as) for e in examples[:3]] == [
        ("change_object", "best"),
        ("change_object", "worst"),
        ("change_object", "random"),
    ]
    wide = scores[(scores["category"] == "change_object") & scores["blocks"].isin(["", EVERY])]
    wide = wide.pivot(index="edit", columns="method", values="clip_text_edited")
    gains = wide["sae"] - wide["noop"]
    assert examples[0].edit == gains.idxmax() and examples[1].edit == gains.idxmin()
    assert examples[2].edit not in {examples[0].edit, examples[1].edit}
    tiles = examples[0].methods
    assert [tile.label for tile in tiles[:2]] == ["original", "edited"]
    assert {tile.label for tile in tiles[2:]} == {"sae", "dense", "neurons", "random"}
    assert (tiles[0].gain, tiles[0].cost) == (0.0, 0.0)
    assert [tile.label for tile in examples[0].solo] == [f"{block} alone" for block in BLOCKS]


def test_hostile_text_is_escaped(tmp_path):
    scores = make_run(tmp_path, num_edits=1, rename={"change_object": HOSTILE}, reason=HOSTILE)
    scores["edit"] = scores["edit"] + HOSTILE
    scores.loc[scores["method"] == "neurons", "method"] = HOSTILE
    scores["backbone"] = HOSTILE
    summary = summarise(scores, BLOCKS, resamples=20)
    prompts = dict.fromkeys(scores["edit"], (HOSTILE, HOSTILE))
    text = write_report(tmp_path, summary, scores, {HOSTILE: [HOSTILE, {"a": HOSTILE}]}, prompts=prompts).read_text()
    assert "<script" not in text
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.elements}
    assert 'alert("x")' in page.text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_a_run_without_images_subsets_or_valid_categories_still_has_a_page(tmp_path):
    scores = make_run(tmp_path, num_edits=2).assign(image="")
    failed = scores["category"] == "change_style"
    scores.loc[failed, ["status", "reason"]] = ["failed", "no region"]
    scores = scores[scores["blocks"].isin(["", EVERY])]
    page = Page(write_report(tmp_path, summarise(scores, BLOCKS, resamples=20), scores, {}).read_text())
    assert "were not measured" in page.text and "kept no images" in page.text


def test_a_category_without_a_valid_case_has_a_row(tmp_path):
    scores = make_run(tmp_path, num_edits=2)
    scores.loc[scores["category"] == "change_style", ["status", "reason"]] = ["failed", "no region"]
    page = Page(write_report(tmp_path, summarise(scores, BLOCKS, resamples=20), scores, {}).read_text())
    assert "no valid case" in page.text and "no region" in page.text


def test_images_that_cannot_be_shown_are_not(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    for name in ("../outside.png", str(tmp_path / "outside.png"), "missing.png", "broken.png", ""):
        assert embed_image(folder, name) == ""


def test_large_images_are_scaled_down(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    kind, data = embed_image(tmp_path, "large.png").split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 256)


def test_heat_cells_are_coloured_by_sign_and_size():
    row = HeatRow("r", (Interval(0.2, 0.1, 0.3), Interval(-0.1, -0.2, 0.0), None), 0, "a")
    svg = heat_picture("t", ("a", "b", "c"), [row], "dominant")
    cells = [a for tag, a in Page(svg).elements if tag == "rect" and a.get("class") in {"gain", "loss"}]
    assert [(a["class"], float(a["fill-opacity"])) for a in cells] == [("gain", 0.75), ("loss", 0.375)]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-0.013, 0.12), (0.0, 0.7), (-3.0, 1200.0), (1e-7, 3e-7)])
def test_ticks_enclose_the_data_in_even_round_steps(low, high):
    found = ticks(low, high)
    steps = np.diff(found)
    assert found[0] <= low <= high <= found[-1] and 2 <= len(found) <= 9
    assert steps == pytest.approx(steps[0])
    assert round(steps[0] / 10 ** np.floor(np.log10(steps[0] * 1.0001)), 6) in {1, 2, 5}


def test_labels_of_nearby_points_do_not_overlap():
    anchors = [(100.0, 100.0), (104.0, 102.0), (98.0, 97.0), (101.0, 99.0)]
    markers = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in anchors]
    boxes = place_labels(["oracle-prompt", "dense", "neurons", "random"], anchors, markers, Box(0, 0, 300, 200))
    assert all(a.overlap(b) == 0 for i, a in enumerate(boxes) for b in [*boxes[:i], *markers])


def test_numbers_and_tables():
    assert [number(v, signed=True) for v in (0.1234, -0.1, -0.0001, None)] == ["+0.123", "−0.100", "0.000", "–"]
    assert [p_value(p) for p in (0.0001, 0.0123, 1.0)] == ["< 0.001", "0.012", "1.000"]
    markup = table("c<", ("a", "b"), [("1<", "2&")])
    assert "c&lt;" in markup and "1&lt;" in markup and "2&amp;" in markup
