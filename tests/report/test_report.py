"""The report page: parsed, offline, complete, safe with hostile text. In a browser: test_browser_report.py."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import riebench
from riebench.analysis import summarise, write_scores
from riebench.analysis.coalitions import subset_names
from riebench.analysis.statistics import Interval
from riebench.core.axes import ticks
from riebench.core.scores import COLUMNS, NOOP, SCORES
from riebench.report import markup, write_report
from riebench.report.figures import Box, Curve, HeatRow, Point, element, heat_picture, place_labels, trade_off
from riebench.report.markup import Cell, number, p_value, table
from riebench.report.strips import strips_index
from riebench.report.words import interval_cell

BLOCKS = ("down.2.1", "mid.0", "up.0.0", "up.0.1")
EVERY = "+".join(BLOCKS)
HOSTILE = """</script><script>alert("x")</script>'&"""
GAIN = {
    "change_object": {"down.2.1": 0.06, "up.0.0": 0.02},
    "change_colour": {"up.0.1": 0.05},
    "change_style": {"mid.0": -0.01, "up.0.0": 0.02, "up.0.1": 0.021},
}
MAIN = {"oracle-prompt": (0.12, 0.5), "dense": (0.09, 0.35), "neurons": (0.05, 0.3), "random": (-0.002, 0.2)}
VOID = {"meta", "img", "br", "link", "input", "line", "rect", "circle", "path", "polyline"}
REASON = "no region found in the edited image"


class Page(HTMLParser):
    """The elements of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.data: dict[str, str] = {}
        """What script elements with an id hold."""
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
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if self._open and self._open[-1] == "script":
            self.data[attributes.get("id", "")] = data
        elif tag != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_run(folder, *, num_edits=6, seeds=(42,), rename=None, reason=REASON, masks=True):
    """A run folder's scores with planted gains, and pictures of one colour, of which the last two results have none:
    one failed, and the file of the other is missing."""
    rng = np.random.default_rng(0)
    rows = []

    def paint(path):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), tuple(int(v) for v in rng.integers(0, 256, 3))).save(folder / path)
        return path

    def add(case, base, method, blocks, gain, cost, strength=1.0):
        row = {name: "" if dtype is str else dtype(0) for name, dtype in COLUMNS.items()}
        row |= {score.name: float(rng.uniform()) for score in SCORES}
        row |= {"edit": case["edit"], "category": case["category"], "seed": case["seed"]}
        row |= {"method": method, "blocks": blocks, "strength": strength, "status": "ok", "mode": "strict"}
        row |= {"backbone": "tinyworld-turbo@1", "steps": 1, "clip_text_edited": base + gain, "lpips_original": cost}
        row["features"] = json.dumps(dict.fromkeys(blocks.split("+") if blocks else [], 8))
        row["image"] = paint(f"{case['folder']}/{method}@{strength:g}-{blocks}-{len(rows):012x}.png")
        rows.append(row | case["pictures"])

    for category, worth in GAIN.items():
        for i in range(num_edits):
            for seed in seeds:
                at = f"images/{category}-{i:02d}/{seed}"
                pictures = {name: paint(f"{at}/{name}-0123456789ab.png") for name in ("original", "edited", "regions")}
                case = {"edit": f"{category}-{i:02d}", "category": (rename or {}).get(category, category), "seed": seed}
                case |= {"folder": at, "pictures": pictures if masks else {}}
                base = rng.normal(0.2, 0.03)
                add(case, base, "noop", "", 0.0, 0.0, 0.0)
                for names in subset_names(BLOCKS)[1:]:
                    chosen = names.split("+")
                    gain = sum(worth.get(block, 0.0) for block in chosen) + rng.normal(0, 0.01)
                    add(case, base, "sae", names, gain, 0.05 * len(chosen) + abs(rng.normal(0, 0.01)))
                for method, (gain, cost) in MAIN.items():
                    blocks = "" if method == "oracle-prompt" else EVERY
                    for strength in (0.5, 1.0) if method == "dense" else (1.0,):
                        drawn = (strength * gain + rng.normal(0, 0.02), strength * cost + abs(rng.normal(0, 0.02)))
                        add(case, base, method, blocks, *drawn, strength)
    (folder / rows[-2]["image"]).unlink()
    rows[-1] |= {"status": "failed", "reason": reason, "image": "", "clip_text_edited": np.nan}
    return pd.DataFrame(rows)


MANIFEST = {
    "config": {"backbone": "tinyworld-turbo@1", "edits": "tinyworld", "seeds": [42], "subsets_of": ["sae"]},
    "methods": [{"name": "sae", "class": "baselines.sae.SAE", "strength": 1.0, "k": 32}],
    "versions": {"torch": "2.6.0"},
    "machine": "x86_64, 2 threads",
    "seconds": 12.5,
    "forwards": 640.5,
    "status": "finished",
}


def with_curves(summary):
    """The summary with a curve of dense and a choice of its strength, of figures that are easy to find on the page."""
    at = lambda mean: {"mean": mean, "low": mean - 0.011, "high": mean + 0.011, "withheld": ""}  # noqa: E731
    curve = {
        "points": [{"strength": s, "gain": at(0.0911 * s), "cost": at(0.3511 * s)} for s in (0.5, 1.0)],
        "at_cost": [{"cost": 0.123, "gain": at(0.0321)}, {"cost": 0.456, "gain": None}],
        "area": at(0.0652),
        "hypervolume": at(0.0762),
    }
    chosen = {
        "strengths": [0.5, 1.0],
        "chosen": {"first half": 1.0, "second half": 0.5},
        "gain": at(0.0543),
        "cost": at(0.2543),
        "optimistic_gain": at(0.0882),
    }
    frontier = summary["frontier"] | {"overall": {"dense": curve}, "categories": {"change_style": {"dense": curve}}}
    return summary | {"frontier": frontier, "chosen_strengths": {"dense": chosen}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    scores = make_run(folder)
    write_scores(scores, folder / "scores.parquet")
    summary = with_curves(summarise(scores, BLOCKS, resamples=500))
    prompts = {"change_colour-00": ("a red circle", "a blue circle")}
    path = write_report(folder, summary, scores, MANIFEST, prompts=prompts)
    return folder, scores, summary, path


@pytest.fixture(scope="module")
def page(run):
    return Page(run[3].read_text())


@pytest.fixture(scope="module")
def index(page):
    return json.loads(page.data["strips-index"])


def numbers_of(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


@pytest.mark.slow
def test_the_page_asks_for_nothing_outside_its_folder(run, page):
    text = run[3].read_text()
    known = {"http://www.w3.org/2000/svg"}  # a name, which is not fetched
    assert set(re.findall(r"https?://[^\s\"'<]*", text)) <= known
    assert "url(" not in text and "@import" not in text
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith("#")


def test_only_the_page_s_own_scripts_and_style_may_run(run, page):
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "'self' file:"
    assert "unsafe" not in policy
    inline = re.findall(r"<(script|style)>(.*?)</\1>", run[3].read_text(), re.DOTALL)
    for kind in ("script", "style"):
        digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for k, s in inline if k == kind]
        assert rules[f"{kind}-src"].split() == [f"'sha256-{digest}'" for digest in digests] != []
    for _, attributes in page.elements:
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes)


def test_links_within_the_page_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    assert {a["href"][1:] for a in page.all("a")} >= {"blocks", "methods", "trade-off", "strips", "failures"}


def test_categories_methods_blocks_and_verdicts_are_there(run, page):
    for word in [*GAIN, *MAIN, "sae", "noop", *BLOCKS, "not separable"]:
        assert word.replace("_", " ") in page.text
    summary = run[2]
    assert summary["categories"]["change_colour"]["dominant"]["clip_text_edited"] == "up.0.1"
    assert "up.0.1 for change colour" in page.text
    headline = run[3].read_text().split("</svg>")[0]
    assert headline.count('class="marked"') == sum(
        row["dominant"]["clip_text_edited"] in BLOCKS for row in [*summary["categories"].values(), summary["overall"]]
    )


def test_numbers_of_the_summary_are_on_the_page(run, page):
    summary = run[2]
    for row in [*summary["methods"], *(row for rows in summary["methods_by_category"].values() for row in rows)]:
        assert number(row["scores"]["lpips_original"]["mean"]) in page.text
    effects = summary["dominance"][0]["categories"]["change_object"]["effects"]["clip_text_edited"]["down.2.1"]
    for effect in ("solo", "leave_one_out", "shapley"):
        assert number(effects[effect]["mean"], signed=True) in page.text


def test_curves_and_chosen_strengths_are_there(page):
    for shown in (
        "+0.032 [0.021, 0.043]",
        "0.065 [0.054, 0.076]",
        "0.076 [0.065, 0.087]",
    ):  # matched, area, hypervolume
        assert shown in page.text
    assert "+0.054 [0.043, 0.065]" in page.text and "+0.088 [0.077, 0.099]" in page.text
    assert len(page.all("polyline")) == 4  # all categories, and change style, for wide and for narrow screens


def test_effects_of_further_settings_have_figures_of_their_own(run, tmp_path):
    folder, scores, summary, _ = run
    other = summary["dominance"][0] | {"method": "sae-late", "window": "last", "estimator": "sampled", "subsets": 9}
    both = summary | {"dominance": [*summary["dominance"], other]}
    page = Page(write_report(tmp_path, both, scores, MANIFEST).read_text())
    assert "sae-late, steps: last, estimated from 9 subsets of the blocks" in page.text
    files = [a["data-file"] for a in page.all("figure")]
    assert len(files) == len(set(files))
    num_values = len(summary["values"])
    assert sum(name.startswith("blocks-") for name in files) == 2 * num_values


def test_scores_are_those_of_the_summary(run, tmp_path):
    _, scores, summary, _ = run
    renamed = [score | {"label": f"{score['label']}, renamed"} for score in summary["scores"]]
    page = Page(write_report(tmp_path, summary | {"scores": renamed[:-1]}, scores, MANIFEST).read_text())
    assert "LPIPS to original, renamed" in page.text and "CLIP, edited image, renamed" in page.text
    assert renamed[-1]["label"] not in page.text


def test_what_was_asked_and_run_and_what_failed_are_there(page):
    assert "config.backbone tinyworld-turbo@1" in page.text and "methods.1.k 32" in page.text
    assert "On subsets of the blocks sae" in page.text and "sae 1.0 k 32" in page.text
    assert "torch 2.6.0" in page.text and "12.5 s" in page.text and "640.5" in page.text
    assert f"change style {REASON} 1 17%" in page.text
    assert "17 of 18 cases valid, on 17 edits in 3 categories" in page.text


def test_tables_pictures_and_controls_can_be_read_aloud(page):
    assert len(page.all("table")) == len(page.all("caption")) > 4
    assert all(attributes.get("scope") in {"row", "col"} for attributes in page.all("th"))
    assert all(attributes["aria-label"] and attributes["role"] == "img" for attributes in page.all("svg"))
    assert len(page.all("select")) == 6 <= len(page.all("label"))
    assert any(attributes.get("aria-live") == "polite" for attributes in page.all("p"))
    assert ("html", {"lang": "en"}) in page.elements


def test_without_scripts_the_page_says_so_and_its_tables_still_read(page):
    assert page.all("noscript") and "your browser has switched off" in page.text
    assert not any("hidden" in attributes for attributes in page.all("table") + page.all("section"))


def test_the_index_gives_every_picture_of_the_frame(run, index):
    folder, scores, _, _ = run
    cases = index["cases"]
    place = {
        (index["edits"][edit]["id"], seed): i
        for i, (edit, seed) in enumerate(zip(cases["edit"], cases["seed"], strict=True))
    }
    settings = {(s["method"], float(s["strength"]), s["blocks"]): s for s in index["settings"]}
    assert len(settings) == 15 + 5 and len(place) == 18
    shown = 0
    for row in scores[scores["method"] != NOOP].itertuples():
        i = place[row.edit, row.seed]
        files = settings[row.method, row.strength, row.blocks]["files"]
        between = files["between"][i]
        if between is None:
            assert row.image == "" or not (folder / row.image).exists()
        else:
            assert cases["folder"][i] + files["before"] + between + files["after"] == row.image
            shown += 1
        assert [cases[name][i] for name in ("original", "edited", "regions")] == [row.original, row.edited, row.regions]
    assert shown == 18 * 20 - 2


def test_the_index_gives_every_score_of_the_frame(run, index):
    scores = run[1]
    assert [score["name"] for score in index["scores"]] == [score["name"] for score in run[2]["scores"]]
    for setting in index["settings"]:
        rows = scores[
            (scores["method"] == setting["method"])
            & (scores["strength"] == float(setting["strength"]))
            & (scores["blocks"] == setting["blocks"])
        ]  # in the order of the cases, since the frame is
        for name, text in setting["scores"].items():
            np.testing.assert_array_equal(numbers_of(text), rows[name].to_numpy(dtype=np.float32))
        reasons = {int(i): index["reasons"][reason] for i, reason in setting["failed"].items()}
        assert reasons == {i: r.reason for i, r in enumerate(rows.itertuples()) if r.status == "failed"}
    noop = scores.loc[scores["method"] == NOOP, "clip_text_edited"]
    np.testing.assert_array_equal(numbers_of(index["unchanged"]), noop.to_numpy(dtype=np.float32))


def test_the_index_begins_with_the_setting_of_the_block_effects(index):
    first = index["settings"][index["first"]]
    assert (first["method"], first["strength"], first["blocks"], first["whole"]) == ("sae", "1", EVERY, True)
    assert sum(setting["single"] for setting in index["settings"]) == 4


@pytest.mark.slow
def test_without_masks_none_are_shown(tmp_path):
    scores = make_run(tmp_path, num_edits=1, masks=False)
    index = strips_index(summarise(scores, BLOCKS, resamples=20), scores, tmp_path, {})
    assert index["masks"] is False and set(index["cases"]["regions"]) == {""}
    assert index["settings"][0]["files"]["between"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../outside.png", "images/../../outside.png", "{absolute}", "missing.png", ""])
def test_pictures_outside_the_folder_or_missing_are_not_named(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    scores = make_run(folder, num_edits=1)
    scores["image"] = name.format(absolute=outside)
    scores["original"] = name.format(absolute=outside)
    summary = summarise(scores, BLOCKS, resamples=20)
    assert strips_index(summary, scores, folder, {}) is None
    scores.loc[5, "image"] = scores.loc[5, "regions"]  # one that is there
    index = strips_index(summary, scores, folder, {})
    assert "outside.png" not in json.dumps(index) and set(index["cases"]["original"]) == {""}


def test_the_index_stays_small(run, index):
    """Beside the names of edits and folders: 16 bytes for a picture, and for a number less than 6."""
    results = sum(len(setting["files"]["between"]) for setting in index["settings"])
    numbers = sum(len(numbers_of(text)) for setting in index["settings"] for text in setting["scores"].values())
    text = json.dumps(index["settings"], separators=(",", ":"))
    assert len(text) < 16 * results + 6 * numbers + 400 * len(index["settings"])


@pytest.mark.slow
def test_hostile_text_is_escaped(tmp_path):
    scores = make_run(tmp_path, num_edits=1, rename={"change_object": HOSTILE}, reason=HOSTILE)
    scores["edit"] = scores["edit"] + HOSTILE
    scores.loc[scores["method"] == "neurons", "method"] = HOSTILE
    scores["backbone"] = HOSTILE
    summary = with_curves(summarise(scores, BLOCKS, resamples=20))
    summary["scores"] = [
        score | {"label": HOSTILE, "meaning": HOSTILE, "source": HOSTILE} for score in summary["scores"]
    ]
    prompts = dict.fromkeys(scores["edit"], (HOSTILE, HOSTILE))
    manifest = {HOSTILE: [HOSTILE, {"a": HOSTILE}], "methods": [{"name": HOSTILE, HOSTILE: HOSTILE}], "config": HOSTILE}
    text = write_report(tmp_path, summary, scores, manifest, prompts=prompts).read_text()
    page = Page(text)
    assert len(page.all("script")) == len(re.findall("<script", text)) == len(re.findall("</script", text)) == 5
    assert 'alert("x")' in page.text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    index = json.loads(page.data["strips-index"])
    assert all(edit["id"].endswith(HOSTILE) and edit["prompts"] == [HOSTILE, HOSTILE] for edit in index["edits"])


def test_plain_text_is_escaped_wherever_it_is_put():
    made = [
        markup.table(HOSTILE, [HOSTILE], [[HOSTILE, Cell(HOSTILE, 0.5)]], sortable=True, file_name=HOSTILE),
        markup.figure(HOSTILE, HOSTILE, HOSTILE, file_name=HOSTILE),
        markup.choice(HOSTILE, {HOSTILE: HOSTILE}),
        markup.details(HOSTILE, HOSTILE),
        markup.paragraph(HOSTILE),
        markup.wrapped(HOSTILE),
        markup.definitions({HOSTILE: HOSTILE}, kind=HOSTILE),
        element("g", HOSTILE, class_=HOSTILE, data_entry=HOSTILE),
    ]
    for text in made:
        page = Page(text)
        assert not page.all("script") and 'alert("x")' in page.text + str(page.elements)
        values = [value for _, attributes in page.elements for value in attributes.values()]
        assert all(value == HOSTILE for value in values if "alert" in value)
    inside = markup.paragraph("&")
    assert inside in markup.details("a", inside) and "&amp;amp;" not in markup.details("a", inside)


def test_no_template_lets_text_through_as_it_is():
    templates = [path for path in Path(riebench.__file__).parent.rglob("*.html") if path.parent.name != "_data"]
    assert {"page.html", "strips.html", "index.html", "entry.html"} <= {path.name for path in templates}
    for path in templates:
        assert not re.search(r"\|\s*safe|autoescape|</?script[^>]*>[^{\s]", path.read_text())


def test_a_run_without_images_subsets_or_valid_categories_still_has_a_page(tmp_path):
    scores = make_run(tmp_path, num_edits=2).assign(image="")
    failed = scores["category"] == "change_style"
    scores.loc[failed, ["status", "reason"]] = ["failed", "no region"]
    scores = scores[scores["blocks"].isin(["", EVERY])]
    page = Page(write_report(tmp_path, summarise(scores, BLOCKS, resamples=20), scores, {}).read_text())
    assert "were not measured" in page.text and "kept no images" in page.text


@pytest.mark.slow
def test_a_category_without_a_valid_case_has_a_row(tmp_path):
    scores = make_run(tmp_path, num_edits=2)
    scores.loc[scores["category"] == "change_style", ["status", "reason"]] = ["failed", "no region"]
    page = Page(write_report(tmp_path, summarise(scores, BLOCKS, resamples=20), scores, {}).read_text())
    assert "no valid case" in page.text and "no region" in page.text


def test_heat_cells_are_coloured_by_sign_and_size():
    row = HeatRow("r", (Interval(0.2, 0.1, 0.3), Interval(-0.1, -0.2, 0.0), None), 0, "a")
    svg = heat_picture("t", ("a", "b", "c"), [row], "dominant")
    cells = [a for tag, a in Page(svg).elements if tag == "rect" and a.get("class") in {"gain", "loss"}]
    assert [(a["class"], float(a["fill-opacity"])) for a in cells] == [("gain", 0.75), ("loss", 0.375)] * 2
    kinds = [a["class"] for tag, a in Page(svg).elements if tag == "svg"]
    assert kinds == ["wide", "narrow"]  # one of which is shown


def test_curves_go_through_their_points():
    points = [Point(str(x), Interval(x, x, x), Interval(y, y, y), 1) for x, y in ((0.1, 0.2), (0.3, 0.5))]
    page = Page(trade_off("t", "x", "y", points, [Curve(1, ((0.1, 0.2), (0.3, 0.5)))]))
    (line,) = page.all("polyline")
    squares = [np.array(re.findall(r"[-\d.]+", a["d"]), dtype=float).reshape(4, 2) for a in page.all("path")]
    assert line["points"].split() == ["{:.1f},{:.1f}".format(*corners.mean(axis=0)) for corners in squares]


def test_points_of_64_methods_differ_in_colour_or_in_shape():
    """Neighbours in both, so that those of a page with a few methods are told apart without seeing colours."""
    points = [Point(f"m{i}", Interval(0.1, 0.1, 0.1), Interval(0.2, 0.2, 0.2), i) for i in range(64)]
    marks = [(a["class"], a["d"]) for a in Page(trade_off("t", "x", "y", points)).all("path")]
    assert len(set(marks)) == 64
    assert len({shape for _, shape in marks[:8]}) == len({colour for colour, _ in marks[:8]}) == 8


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=14),
    st.floats(0.001, 1),
    st.sampled_from([468, 1000]),
)
def test_labels_touch_no_other_however_near_the_points_are(places, spread, width):
    plot = Box(64, 16, width - 20, 488)
    anchors = [(64 + (width - 84) * x * spread, 16 + 472 * y * spread) for x, y in places]
    boxes = place_labels([f"method-{i} ×2" for i in range(len(anchors))], anchors, [], plot)
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(plot.contains(box) for box in boxes)


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
    cells = Page(table("c", ("a", "b", "c"), [("x", Cell("0.12", 0.123456789, 0.1, 0.2), Cell("–", None))])).all("td")
    assert cells == [{"data-value": "0.123457", "data-low": "0.1", "data-high": "0.2"}, {"data-value": ""}]
    cell = interval_cell({"mean": 0.25, "low": None, "high": None, "withheld": "too few edits"}, signed=True)
    assert cell.text == "+0.250 too few edits"
    (shown,) = Page(table("c", ("a", "b"), [("x", cell)])).all("td")
    assert shown == {"data-value": "0.25", "data-withheld": "too few edits"}
