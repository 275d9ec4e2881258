"""The leaderboard's site as files: what stands in it, that nothing of an entry can act, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from site_entries import BLOCKS, CONTROLS, PLANTED, SEES, write_entry, write_leaderboard

from riebench.analysis.statistics import Interval
from riebench.core.errors import UserError
from riebench.edits.edit import CATEGORY_NAMES
from riebench.leaderboard.site import render_site
from riebench.leaderboard.site_board import WITHHELD
from riebench.leaderboard.site_plot import LinkedPoint, linked_trade_off
from riebench.leaderboard.site_words import web_address
from riebench.report.figures import Point
from riebench.report.rendering import environment

pytestmark = pytest.mark.slow  # what it runs takes a while, or the run that all its tests look at

TURBO = "tinyworld-turbo@1"


class Page(HTMLParser):
    """Elements with their attributes and text, in order; a template's content too."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.elements, self.open = path, [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})
        if tag not in {"meta", "link", "img", "input", "br"}:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open and self.open.pop()["tag"] == tag, f"{tag} closes nothing in {self.path}"

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag: str) -> list[dict]:
        return [element for element in self.elements if element["tag"] == tag]

    @property
    def data(self) -> dict:
        return json.loads(next(e["text"] for e in self.all("script") if e.get("type") == "application/json"))


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return write_leaderboard(tmp_path_factory.mktemp("entries"))


@pytest.fixture(scope="module")
def site(entries, tmp_path_factory):
    return render_site(entries, tmp_path_factory.mktemp("out") / "site").parent


@pytest.fixture(scope="module")
def index(site):
    return Page(site / "index.html")


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def content(entries: Path, backbone: str, name: str) -> dict:
    return json.loads((entries / backbone / name / "entry.json").read_text())


def test_there_is_a_page_for_every_entry(site):
    expected = {f"entries/{backbone}/{name}.html" for backbone, names in PLANTED.items() for name in names}
    assert {str(path.relative_to(site)) for path in pages(site)} == {"index.html", *expected}


def test_every_link_and_picture_leads_to_a_file_of_the_site(site):
    for path in pages(site):
        page = Page(path)
        ids = [element["id"] for element in page.elements if "id" in element]
        assert len(ids) == len(set(ids))
        for element in page.elements:
            for name in ("href", "src"):
                target = element.get(name)
                if target in (None, "data:,", "https://example.org/riebench"):
                    continue
                address, _, anchor = target.partition("#")
                file = (path.parent / unquote(address)).resolve() if address else path
                assert file.is_file() and file.is_relative_to(site), f"{target} in {path}"
                if anchor and file == path:
                    assert anchor in ids
    of_json = [entry["page"] for board in Page(site / "index.html").data["backbones"] for entry in board["entries"]]
    assert len(of_json) == 11 and all((site / unquote(page)).is_file() for page in of_json)


def test_a_page_may_only_run_and_wear_what_it_holds(site):
    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    for path in pages(site):
        page = Page(path)
        policy = next(e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy")
        rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
        assert rules["default-src"] == ["'none'"] and rules["img-src"] == ["'self'", "file:", "data:"]
        running = [e for e in page.all("script") if e.get("type") != "application/json"]
        assert [digest(e["text"]) for e in running] == rules["script-src"] and not any("src" in e for e in running)
        assert [digest(e["text"]) for e in page.all("style")] == rules["style-src"]
        for element in page.elements:
            assert element["tag"] not in {"iframe", "object", "embed", "base"}
            assert element["tag"] != "link" or element["href"] == "data:,"  # no icon, so that none is asked for
            assert not [name for name in element if name.startswith("on") or name == "style"]
        style = page.all("style")[0]["text"]
        assert "url(" not in style and "@import" not in style


def test_the_data_are_the_means_of_the_scores(entries, index):
    """Values and ranks beside means and an order computed with pandas from the entries' own tables."""
    boards = {board["name"]: board for board in index.data["backbones"]}
    assert list(boards)[0] == TURBO and set(boards) == set(PLANTED)
    for backbone, board in boards.items():
        names = [entry["name"] for entry in board["entries"]]
        assert sorted(names) == sorted(PLANTED[backbone])
        for metric, sign in (("clip_text_edited", -1), ("lpips_original", 1)):
            for category in ("all", "change_pose"):
                means = {}
                for name in names:
                    frame = pd.read_parquet(entries / backbone / name / "scores.parquet")
                    rows = frame[(frame["method"] == name) & ((category == "all") | (frame["category"] == category))]
                    means[name] = rows.groupby("edit")[metric].mean().mean()
                ranked = dict(zip(names, board["ranked"][category][metric], strict=True))
                order = sorted(names, key=lambda name: sign * means[name])
                for name, (mean, low, high, rank, best, worst) in ranked.items():
                    assert mean == pytest.approx(means[name], abs=6e-5)
                    assert high in range(len(WITHHELD)) if low is None else low <= mean <= high
                    assert best is None or best <= rank <= worst
                    assert rank == order.index(name) + 1


def test_the_other_columns_are_those_of_the_entry(entries, index):
    for board in index.data["backbones"]:
        for i, entry in enumerate(board["entries"]):
            rows = content(entries, board["name"], entry["name"])["aggregates"]
            for category in CATEGORY_NAMES:
                row = rows["categories"][category]
                for key, cell in (
                    ("gain", row["gains"]["clip_text_edited"]),
                    ("lpips_original", row["scores"]["lpips_original"]),
                    ("oracle_success", row["scores"].get("oracle_success")),
                ):
                    shown = board["columns"][key][category][i]
                    wanted = None if cell is None else [cell["mean"], cell["low"], cell["high"]]
                    assert shown == (wanted if wanted is None else pytest.approx(wanted, abs=6e-5))


def test_controls_and_methods_that_see_the_edited_image_are_told(index):
    for board in index.data["backbones"]:
        for entry in board["entries"]:
            assert entry["control"] == (entry["name"] in CONTROLS)
            assert entry["sees"] == (entry["name"] in SEES)


def test_scores_without_a_direction_are_not_ranked_by(index):
    for board in index.data["backbones"]:
        names = [metric["name"] for metric in board["metrics"]]
        assert names[0] == "clip_text_edited" and "clip_text_original" not in names
        assert ("oracle_success" in names) == board["name"].startswith("tinyworld")


def test_the_index_is_small_and_holds_no_single_case(index):
    """Under 1 MB for three backbones of fifteen entries and twenty scores, from what one entry and score takes here."""
    assert not re.search(r"change_pose-\d", index.source)
    data = len(next(e["text"] for e in index.all("script") if e.get("type") == "application/json"))
    plots = sum(map(len, re.findall(r"<template.*?</template>", index.source, re.DOTALL)))
    shown = sum(len(board["entries"]) * len(board["metrics"]) for board in index.data["backbones"])
    assert data / shown * 45 * 20 + plots / 11 * 45 + (len(index.source) - data - plots) < 1e6


def test_an_entry_shows_its_figures_and_pictures(entries, site):
    words = content(entries, TURBO, "sae")
    page = Page(site / "entries" / TURBO / "sae.html")
    text = " ".join(page.open[0]["text"].split() if page.open else page.all("html")[0]["text"].split())
    gain = words["aggregates"]["categories"]["change_pose"]["gains"]["clip_text_edited"]
    assert f"{gain['mean']:+.3f} [{gain['low']:.3f}, {gain['high']:.3f}]".replace("-", "−") in text
    for said in (words["description"], words["authors"], "2026-11-13", "12.5", "2 cores", words["hashes"]["scores"]):
        assert said in text
    assert words["chosen"] in text and "oracle: sees the edited image" in text and "No case failed." in text
    assert re.search(r"Rank 3 \(95 % interval \d to \d\) of 7 entries", text)
    assert {link["href"] for link in page.all("a")} >= {
        "../../index.html#backbone=tinyworld-turbo%401",
        "https://example.org/riebench",
    }
    pictures = page.all("img")
    assert len(pictures) == 4 * len(CATEGORY_NAMES) and all(picture["alt"] for picture in pictures)
    for picture in pictures:
        copied = (site / "entries" / TURBO / unquote(picture["src"])).resolve()
        assert hashlib.sha256(copied.read_bytes()).hexdigest() == words["hashes"]["images"][copied.name]
    chart = next(e for e in page.all("svg") if "Shapley" in e["aria-label"])
    for block in (*BLOCKS, "blocks share it", "no block has an effect"):
        assert block in chart["text"]
    places = [chart["text"].index(name.replace("_", " ")) for name in CATEGORY_NAMES]
    assert places == sorted(places)  # the protocol's order, whatever that of the file


def test_what_an_entry_lacks_is_said(site):
    pca = Page(site / "entries" / TURBO / "pca.html").all("html")[0]["text"]
    assert "Not measured" in pca and "the region is empty" in pca
    assert "Features–" in Page(site / "entries" / TURBO / "noop.html").all("html")[0]["text"]


def test_tables_and_controls_are_named_for_screen_readers(site):
    for path in pages(site):
        page = Page(path)
        assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
        labelled = {label["for"] for label in page.all("label")}
        assert {element["id"] for tag in ("select", "input") for element in page.all(tag)} == labelled
        assert len(page.all("caption")) == len(page.all("table")) and all(c["text"] for c in page.all("caption"))
        assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
        levels = [int(e["tag"][1]) for e in page.elements if re.fullmatch(r"h[1-6]", e["tag"])]
        assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
        assert page.elements[[e["tag"] for e in page.elements].index("body") + 1]["class"] == "skip"


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def hostile_entry(root: Path) -> None:
    folder = write_entry(root, "sdxl-turbo@4", "sae")
    words = json.loads((folder / "entry.json").read_text())
    words |= {"title": HOSTILE, "description": HOSTILE, "authors": HOSTILE, "chosen": HOSTILE, "dtype": HOSTILE}
    words["failures"] = {HOSTILE: {HOSTILE: 1}}
    words["versions"] = {HOSTILE: HOSTILE}
    words["method"] |= {HOSTILE: [HOSTILE]}
    words["cost"] |= {"device": HOSTILE, "machine": HOSTILE}
    words["images"][0] |= {"edit": HOSTILE, "category": HOSTILE, "prompt_original": HOSTILE, "prompt_edited": HOSTILE}
    words["aggregates"]["categories"][HOSTILE] = words["aggregates"]["overall"]
    for metric in words["metrics"]:
        metric |= {"label": HOSTILE, "meaning": HOSTILE, "source": HOSTILE, "network": HOSTILE}
    effects = {
        "edits": 1,
        "cases": 1,
        "lead": {},
        "edits_needed": {},
        "dominant": {HOSTILE: HOSTILE},
        "effects": {HOSTILE: {}},
    }
    words["dominance"] = {
        **{"method": HOSTILE, "strength": 1.0, "window": HOSTILE, "estimator": HOSTILE, "subsets": 16},
        **{"overall": effects, "categories": {HOSTILE: effects}},
    }
    words["dominance"]["overall"]["effects"][HOSTILE] = dict.fromkeys(words["blocks"])
    (folder / "entry.json").write_text(json.dumps(words))


def test_text_of_an_entry_stays_text(tmp_path):
    hostile_entry(tmp_path / "entries")
    site = render_site(tmp_path / "entries", tmp_path / "site").parent
    for path in pages(site):
        page = Page(path)
        assert len(page.all("script")) == (2 if path.name == "index.html" else 1)
        for element in page.elements:
            assert not [name for name in element if name.startswith("on")]
        assert all(picture["src"].startswith("../../images/") for picture in page.all("img"))
    assert HOSTILE in Page(site / "entries" / "sdxl-turbo@4" / "sae.html").all("h1")[0]["text"]
    assert Page(site / "index.html").data["backbones"][0]["entries"][0]["title"] == HOSTILE


def test_embedded_json_closes_no_script():
    value = {HOSTILE: [HOSTILE, "<!--", 0.5, None]}
    template = environment().from_string("{{ value | tojson }}")
    text = template.render(value=value)
    assert json.loads(text) == value and "<" not in text
    with pytest.raises(ValueError):
        template.render(value=float("nan"))


@pytest.mark.parametrize(
    ("address", "links"),
    [
        ("https://example.org/a?b=c", True),
        ("http://example.org", True),
        ("", False),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)//https://", False),
        ("data:text/html,hello", False),
        ("//example.org", False),
        ("https:", False),
        ("https://[broken", False),
    ],
)
def test_only_web_addresses_become_links(address, links):
    assert web_address(address) == (address if links else None)


def test_a_missing_or_linked_picture_is_shown_as_missing(tmp_path):
    folder = write_entry(tmp_path / "entries", TURBO, "pca")
    (folder / "images" / "add_object-edited.png").unlink()
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (folder / "images" / "add_object-original.png").unlink()
    os.symlink(secret, folder / "images" / "add_object-original.png")
    site = render_site(tmp_path / "entries", tmp_path / "site").parent
    page = Page(site / "entries" / TURBO / "pca.html")
    assert len(page.all("img")) == 34 and sum(e["text"] == "no image" for e in page.all("div")) == 2
    assert not [path for path in site.rglob("*.png") if path.read_bytes() == b"secret"]


def test_the_reference_mode_has_a_board_of_its_own(tmp_path):
    write_entry(tmp_path / "entries", TURBO, "pca")
    write_entry(tmp_path / "entries", TURBO, "sae", name="sae-reference", mode="reference")
    index = Page(render_site(tmp_path / "entries", tmp_path / "site"))
    names = [(board["name"], [entry["name"] for entry in board["entries"]]) for board in index.data["backbones"]]
    assert names == [(TURBO, ["pca"]), (f"{TURBO}, reference mode", ["sae-reference"])]


def test_a_site_is_replaced_whole_or_not_at_all(tmp_path):
    entries, out = tmp_path / "entries", tmp_path / "site"
    folder = write_entry(entries, TURBO, "pca")
    render_site(entries, out)
    (out / "CNAME").write_text("example.org")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    render_site(entries, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    words = json.loads((folder / "entry.json").read_text())
    words["dominance"] = {
        **{"method": "pca", "strength": 1.0, "window": "all", "estimator": "exact", "subsets": 16},
        "overall": {
            "edits": 1,
            "cases": 1,
            "dominant": {"lpips_original": "mid.0"},
            "lead": {},
            "edits_needed": {},
            "effects": {"lpips_original": {"mid.0": 3}},
        },
        "categories": {},
    }
    (folder / "entry.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=re.escape(f"entry {folder} cannot be shown")):
        render_site(entries, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entries", "site"]


def test_what_cannot_be_shown_is_named(tmp_path):
    with pytest.raises(UserError, match="no entry in"):
        render_site(tmp_path / "nowhere", tmp_path / "site")
    folder = write_entry(tmp_path / "broken", TURBO, "pca")
    (folder / "entry.json").write_text("{")
    with pytest.raises(UserError, match=re.escape(str(folder))):
        render_site(tmp_path / "broken", tmp_path / "site")
    write_entry(tmp_path / "twice", TURBO, "pca")
    (tmp_path / "twice" / TURBO / "pca").rename(tmp_path / "twice" / TURBO / "other")
    write_entry(tmp_path / "twice", TURBO, "pca")
    with pytest.raises(UserError, match="two entries on tinyworld-turbo@1 are called 'pca'"):
        render_site(tmp_path / "twice", tmp_path / "site")
    assert not (tmp_path / "site").exists()
    (tmp_path / "file").write_text("")
    write_entry(tmp_path / "fine", TURBO, "pca")
    with pytest.raises(UserError, match="cannot write to .*/file: Not a directory"):
        render_site(tmp_path / "fine", tmp_path / "file")


def test_every_point_of_the_plot_leads_to_its_page():
    spread = [(0.02 * i, 0.01 * (i % 4)) for i in range(12)]
    linked = [
        LinkedPoint(Point(f"m<{i}>", Interval(x, x - 0.01, x + 0.01), Interval(y, y, y), 1), f"m<{i}>", f"p/{i}.html")
        for i, (x, y) in enumerate(spread)
    ]
    svg = ET.fromstring(linked_trade_off("title", "cost", "gain", linked))
    links = svg.findall("a")
    assert [(a.get("data-entry"), a.get("href")) for a in links] == [(one.entry, one.page) for one in linked]
    across = []
    for one, link in zip(linked, links, strict=True):
        assert len(link.findall("path")) == 1 and [t.text for t in link.findall("text")] == [one.entry]
        across.append(float(re.match(r"M([-\d.]+),", link.find("path").get("d"))[1]))
        assert f"cost {one.point.x.mean:.3f}" in link.findtext("title")
    assert across == sorted(across) and svg.get("role") == "group"
    assert not [line for line in svg.findall("line") if line.get("class") == "leader"]  # they went with their labels
    assert [g.get("data-entry") for g in svg.iter("g") if "bars" in g.get("class", "")] == [o.entry for o in linked]
