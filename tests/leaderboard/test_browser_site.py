"""The leaderboard's site in a real browser: choose, sort, filter, open an entry; network and console are watched."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlparse

import pandas as pd
import pytest
from browser import chromium, chromium_page  # noqa: F401  (fixtures)
from site_entries import CONTROLS, PLANTED, write_entry, write_leaderboard

from riebench.edits.edit import CATEGORY_NAMES
from riebench.leaderboard.site import render_site

pytestmark = pytest.mark.slow  # what it runs takes a while, or the run that all its tests look at

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright").expect
TURBO = "tinyworld-turbo@1"


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return write_leaderboard(tmp_path_factory.mktemp("entries"))


@pytest.fixture(scope="module")
def site(entries, tmp_path_factory):
    return render_site(entries, tmp_path_factory.mktemp("out") / "site").parent


@pytest.fixture
def visit(site, chromium_page):  # noqa: F811
    """The index, open; at the end nothing was asked for but files of the site, and nothing stood on the console."""
    visit = chromium_page(viewport={"width": 1280, "height": 900})
    visit.open(site / "index.html")
    yield visit
    assert visit.requests and visit.outside(site) == []
    assert visit.complaints == []


def names(page) -> list[str]:
    return page.locator("#rows th a").all_inner_texts()


def sort_by(page, head: str, direction: str) -> None:
    """Clicks a head, after which the column, and no other, is to say that it is sorted so."""
    page.locator(".board thead").get_by_role("button", name=head, exact=True).click()
    expect(page.locator(f".board th[aria-sort='{direction}']")).to_have_text(head)
    expect(page.locator(".board th[aria-sort]")).to_have_count(1)


def column(page, head: str) -> list[str]:
    """First line of each cell of a column, by the words of its head."""
    heads = page.locator(".board thead th:not([hidden])").all_inner_texts()
    place = [words.strip() for words in heads].index(head)
    return [row.locator("th, td").nth(place).inner_text().split("\n")[0] for row in page.locator("#rows tr").all()]


def numbers(texts: list[str]) -> list[float]:
    return [float(re.match(r"[+−\d.]+", text)[0].replace("−", "-")) for text in texts if text != "–"]


def means(entries, backbone: str, metric: str, category: str = "all") -> dict[str, float]:
    found = {}
    for name in PLANTED[backbone]:
        frame = pd.read_parquet(entries / backbone / name / "scores.parquet")
        rows = frame[(frame["method"] == name) & ((category == "all") | (frame["category"] == category))]
        found[name] = rows.groupby("edit")[metric].mean().mean()
    return found


def test_the_table_opens_ranked_by_the_headline(visit, entries):
    planted = means(entries, TURBO, "clip_text_edited")
    order = sorted(planted, key=planted.get, reverse=True)
    assert names(visit.page) == order
    ranks = column(visit.page, "Rank")
    assert [int(text.split()[0]) for text in ranks] == list(range(1, 8))
    assert all(re.fullmatch(r"\d \[\d–\d\]", text) for text in ranks)
    assert numbers(column(visit.page, "CLIP, edited prompt")) == [round(planted[name], 3) for name in order]
    whiskers = visit.page.locator(".whisker").evaluate_all(
        "all => all.map(({ children: [line, dot] }) => [line.x1, dot.cx, line.x2].map((x) => x.baseVal.value))"
    )
    assert len(whiskers) == 7 and all(low < mean < high for low, mean, high in whiskers)
    assert [mean for _, mean, _ in whiskers] == sorted((mean for _, mean, _ in whiskers), reverse=True)
    assert visit.page.locator("#shown").inner_text().startswith("7 of 7 entries on tinyworld-turbo@1, all categories")
    assert visit.page.locator(".board th[aria-sort]").get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("backbone", PLANTED)
def test_backbone_category_and_metric_rank_anew(visit, entries, backbone):
    page = visit.page
    page.get_by_label("Backbone").select_option(backbone)
    for category in ("all", "change_pose", "change_style"):
        page.get_by_label("Category").select_option(category)
        for metric, best in (("lpips_original", min), ("clip_text_edited", max)):
            page.get_by_label("Ranked by").select_option(metric)
            planted = means(entries, backbone, metric, category)
            assert names(page)[0] == best(planted, key=planted.get)
            assert column(page, "Rank")[0].startswith("1 ")
            label = {"lpips_original": "LPIPS to original", "clip_text_edited": "CLIP, edited prompt"}[metric]
            assert numbers(column(page, label))[0] == round(best(planted.values()), 3)
    heads = page.locator(".board thead th:not([hidden])").all_inner_texts()
    assert any(words.strip() == "Oracle success" for words in heads) == backbone.startswith("tinyworld")
    assert sorted(unquote(a) for a in page.locator("#plot a").evaluate_all("all => all.map(a => a.dataset.entry)")) == (
        sorted(PLANTED[backbone])
    )


@pytest.mark.parametrize(
    ("head", "first"),
    [("LPIPS to original", "ascending"), ("Edit gain", "descending"), ("Oracle success", "descending")],
)
def test_a_column_sorts_both_ways_with_what_is_missing_last(visit, head, first):
    page = visit.page
    for direction in (first, {"ascending": "descending", "descending": "ascending"}[first]):
        sort_by(page, head, direction)
        texts = column(page, head)
        assert numbers(texts) == sorted(numbers(texts), reverse=direction == "descending")
        assert "–" not in texts[: len(numbers(texts))]


def test_words_and_dates_sort_too(visit):
    page = visit.page
    for head, reverse in (("Method", False), ("Submitted", True), ("Sees edited image", False)):
        sort_by(page, head, "descending" if reverse else "ascending")
        texts = names(page) if head == "Method" else column(page, head)
        assert texts == sorted(texts, reverse=reverse)


def test_blocks_as_planted_are_a_column_where_an_entry_tells_them(visit, chromium_page, tmp_path):  # noqa: F811
    assert visit.page.locator(".board th[data-key='planted']").is_hidden()
    for name, planted in (("few", {"add_object": "mid.0"}), ("sae", {"add_object": "up.0.1"}), ("none", None)):
        write_entry(tmp_path / "told", TURBO, "sae", name=name, **({"planted": planted} if planted else {}))
    other = chromium_page()
    other.open(render_site(tmp_path / "told", tmp_path / "site"))
    sort_by(other.page, "Blocks as planted", "descending")
    assert column(other.page, "Blocks as planted") == ["1 of 1", "0 of 1", "–"]
    assert other.complaints == []


def test_the_filter_and_the_controls(visit):
    page = visit.page
    assert page.locator("#rows .mark:text('control')").count() == len(CONTROLS)
    page.get_by_label("Hide controls").check()
    assert set(names(page)) == set(PLANTED[TURBO]) - set(CONTROLS)
    page.get_by_label("Filter by method").fill("SA")
    assert names(page) == ["sae"]
    assert page.locator("#shown").inner_text().startswith("1 of 7 entries")
    faint = page.locator("#plot a.left-out").evaluate_all("all => all.map(a => a.dataset.entry)")
    assert set(faint) == set(PLANTED[TURBO]) - {"sae"}
    page.get_by_label("Filter by method").fill("nothing of the kind")
    assert names(page) == [] and page.locator("#none").is_visible() and not page.locator("#entries").is_visible()
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("#rows tr")).to_have_count(7)
    expect(page.get_by_label("Hide controls")).not_to_be_checked()


def test_the_address_keeps_the_view(visit, site):
    page = visit.page
    page.get_by_label("Category").select_option("change_pose")
    page.get_by_label("Ranked by").select_option("lpips_original")
    page.get_by_label("Filter by method").fill("a")
    page.get_by_label("Hide controls").check()
    sort_by(page, "Edit gain", "descending")
    view, rows = page.url, page.locator("#rows").inner_text()
    page.reload()
    assert page.locator("#rows").inner_text() == rows
    assert page.get_by_label("Category").input_value() == "change_pose"
    assert page.get_by_label("Filter by method").input_value() == "a"
    assert page.get_by_label("Hide controls").is_checked()
    page.locator("#rows a").first.click()
    expect(page.locator("#back")).to_be_visible()
    page.go_back()
    assert page.url == view and page.locator("#rows").inner_text() == rows
    page.goto(f"{(site / 'index.html').as_uri()}#backbone=no+such&category=%3Cb%3E&sort=-nothing&metric=__proto__")
    expect(page.locator("#rows tr")).to_have_count(7)  # what is not there falls back


def test_an_entry_opens_with_all_its_images_and_leads_back(visit):
    page = visit.page
    page.get_by_label("Backbone").select_option("tinyworld-base@25")
    page.locator("#rows").get_by_role("link", name="sae", exact=True).click()
    expect(page.locator("h1")).to_have_text("sae on tinyworld-base@25")
    images = page.locator("main img")
    assert images.count() == 4 * len(CATEGORY_NAMES)
    for image in images.all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.locator("#blocks svg").first.is_visible()
    page.locator("#scores table.sortable").get_by_role("button", name="edit gain").click()
    expect(page.locator("#scores th[aria-sort='ascending']")).to_have_text("edit gain")
    gains = page.locator("#scores table.sortable").first.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert numbers(gains) == sorted(numbers(gains))
    page.get_by_role("link", name="Leaderboard").click()
    expect(page.get_by_label("Backbone")).to_have_value("tinyworld-base@25")
    assert page.url.split("#")[0].endswith("index.html")


def test_a_point_of_the_plot_opens_its_entry(visit):
    visit.page.locator("#plot a[data-entry='pca'] path").click()
    expect(visit.page.locator("h1")).to_have_text(f"pca on {TURBO}")


def test_the_keyboard_is_enough(visit):
    page = visit.page

    def focused() -> str:
        return page.evaluate(
            "() => { const e = document.activeElement; return e.id || e.getAttribute('href') || e.textContent.trim(); }"
        )

    def outlined() -> bool:
        return page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle !== 'none'")

    page.keyboard.press("Tab")
    assert focused() == "#entries" and page.locator(".skip").bounding_box()["x"] >= 0
    walk = []
    for _ in range(60):
        page.keyboard.press("Tab")
        if focused() in walk:
            break
        walk.append(focused())
        assert outlined(), f"{walk[-1]} shows no focus"
    heads = [words.strip() for words in page.locator(".board thead th:not([hidden])").all_inner_texts()]
    assert walk[:6] == ["backbone", "category", "metric", "filter", "hide-controls", "entries"]
    assert walk[6 : 6 + len(heads)] == heads
    links = [unquote(urlparse(one).path) for one in walk[6 + len(heads) :]]
    assert [f"entries/{TURBO}/{name}.html" for name in names(page)] == links[:7]
    assert "plot" in walk

    page.locator("#category").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#shown")).to_contain_text("tinyworld-turbo@1, change object, by")
    assert focused() == "category"
    page.locator("#hide-controls").focus()
    page.keyboard.press("Space")
    expect(page.locator("#rows tr")).to_have_count(4)
    page.locator(".board thead button").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#rows th a")).to_have_text(["dense", "pca", "sae", "text-selected"])
    assert focused() == "Method"
    page.locator("#rows a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(f"dense on {TURBO}")


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_scrolls_the_table_and_not_the_page(site, chromium_page, width):  # noqa: F811
    visit = chromium_page(viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True)
    for path in ("index.html", f"entries/{TURBO}/sae.html"):
        visit.open(site / path)
        visit.page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= width
    visit.open(site / "index.html")
    table = visit.page.locator("#entries")
    assert table.evaluate("(e) => e.scrollWidth > e.clientWidth")
    table.evaluate("(e) => e.scrollTo(300, 0)")
    assert width != 360 or visit.page.locator("#rows th").first.bounding_box()["x"] < 40  # the names stay in sight
    assert visit.complaints == [] and visit.outside(site) == []


CONTRASTS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const [r, g, b, a = 1] = parts(getComputedStyle(e).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !e.getClientRects().length || e.closest("title, #blocks svg g")) continue;
    const style = getComputedStyle(e);
    const text = parts(e.namespaceURI.endsWith("svg") ? style.fill : style.color).slice(0, 3);
    const [high, low] = [light(text), light(behind(e))].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 30)}`]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(site, chromium_page, scheme):  # noqa: F811
    """WCAG 2.2, 1.4.3: a contrast of 4.5 at least, of every text but that on the coloured cells of the block chart."""
    visit = chromium_page(color_scheme=scheme)
    backgrounds = []
    for path in ("index.html", f"entries/{TURBO}/sae.html"):
        visit.open(site / path)
        contrasts = visit.page.evaluate(CONTRASTS)
        assert len(contrasts) > 50
        assert [words for contrast, words in contrasts if contrast < 4.5] == []
        backgrounds.append(visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == [{"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]] * 2


def test_hostile_words_do_nothing(tmp_path, chromium_page):  # noqa: F811
    hostile = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'</script>"
    write_entry(tmp_path / "entries", TURBO, "pca", title=hostile, description=hostile, authors=hostile)
    site = render_site(tmp_path / "entries", tmp_path / "site").parent
    visit = chromium_page()
    visit.open(site / "index.html")
    assert visit.page.title() == "riebench leaderboard" and names(visit.page) == ["pca"]
    visit.page.locator("#rows a").click()
    expect(visit.page.locator("h1")).to_have_text(hostile)
    assert visit.page.title() != "owned"
    assert visit.complaints == [] and visit.outside(site) == []


def test_without_scripts_the_entries_are_listed(site, chromium):  # noqa: F811
    page = chromium.new_page(java_script_enabled=False)
    page.goto((site / "index.html").as_uri())
    assert page.locator("noscript a").count() == sum(map(len, PLANTED.values()))
    page.close()
