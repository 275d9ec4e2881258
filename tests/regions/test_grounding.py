"""Phrases to masks, and masks to cells, against slow loops and OpenCV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from riebench.core.errors import UserError
from riebench.edits.edit import CATEGORY_NAMES, Edit
from riebench.edits.phrases import Phrase, mask_files, parse_phrase
from riebench.regions.find import Regions, find_regions, masks_of, region_cells, whole_cells
from riebench.regions.grounders import MASK_RULES
from riebench.regions.grounding import ground, published_cells
from riebench.regions.masks import dilate, mask_to_grid


class LeftHalf:
    """Finds "thing" in the left half, "foreground" in the top row, "corner" in two pieces; remembers what it saw."""

    settings = {}

    def __init__(self) -> None:
        self.asked: list[tuple[float, tuple[str, ...]]] = []

    def detections(self, images_bchw, phrases):
        self.asked += zip(images_bchw[:, 0, 0, 0].tolist(), phrases, strict=True)
        return [self._found(image, nouns) for image, nouns in zip(images_bchw, phrases, strict=True)]

    def _found(self, image, nouns):
        h, w = image.shape[-2:]
        masks = {name: torch.zeros(h, w, dtype=torch.bool) for name in ("thing", "foreground", "first", "last")}
        masks["thing"][:, : w // 2] = True
        masks["foreground"][0] = True
        masks["first"][0, 0] = True
        masks["last"][-1, -1] = True
        pieces = {"thing": ["thing"], "foreground": ["foreground"], "corner": ["first", "last"]}
        found = [masks[piece] for noun in nouns for piece in pieces.get(noun, [])]
        return torch.stack(found) if found else torch.zeros(0, h, w, dtype=torch.bool)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("everything", Phrase()),
        (" #everything ", Phrase()),
        ("not everything", Phrase(complement=True)),
        ("background", Phrase(("foreground",), complement=True)),
        ("not background", Phrase(("foreground",))),
        ("~background", Phrase(("foreground",))),
        ("a red heart", Phrase(("a red heart",))),
        ("not a red heart", Phrase(("a red heart",), complement=True)),
        ("~red heart", Phrase(("red heart",), complement=True)),
        ("~ red heart", Phrase(("red heart",), complement=True)),
        ("not ~red heart", Phrase(("red heart",))),
        ("Not  NOT ~ red heart", Phrase(("red heart",), complement=True)),
        ("chain, star", Phrase(("chain", "star"))),
        ("chain,star,", Phrase(("chain", "star"))),
        ("chain . star .", Phrase(("chain", "star"))),
        ("not chain, gold star", Phrase(("chain", "gold star"), complement=True)),
        ("a St. Bernard and a cat", Phrase(("a St. Bernard and a cat",))),
        ("a cat in the background", Phrase(("a cat in the background",))),
        ("knot", Phrase(("knot",))),
        ("mask:some, where/mask.png", Phrase(file=Path("some, where/mask.png"))),
        ("not mask:mask.png", Phrase(file=Path("mask.png"), complement=True)),
    ],
)
def test_a_phrase_is_read(text, phrase):
    assert parse_phrase(text) == phrase
    assert mask_files(text) == ((phrase.file,) if phrase.file else ())


@pytest.mark.parametrize("text", ["", "  ", ",", " . ", "not ", "~", "not ,", "mask:", "~mask: "])
def test_a_phrase_that_names_nothing_is_refused(text):
    with pytest.raises(UserError, match="region phrase"):
        parse_phrase(text)


def test_phrases():
    images = torch.zeros(7, 3, 4, 4)
    phrases = ["thing", "not thing", "everything", "background", "foreground", "unknown", "not everything"]
    masks = ground(LeftHalf(), images, phrases)
    left = torch.zeros(4, 4, dtype=torch.bool)
    left[:, :2] = True
    top = torch.zeros(4, 4, dtype=torch.bool)
    top[0] = True
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    for mask, expected in zip(masks, (left, ~left, torch.ones_like(left), ~top, top, nothing, nothing), strict=True):
        assert torch.equal(mask, expected)


def test_all_detections_of_all_nouns_are_united():
    corners, both, neither = ground(LeftHalf(), torch.zeros(3, 3, 4, 6), ["corner", "thing, corner", "~thing . corner"])
    assert corners.nonzero().tolist() == [[0, 0], [3, 5]]
    expected = corners.clone()
    expected[:, :3] = True
    assert torch.equal(both, expected)
    assert torch.equal(neither, ~expected)


def test_the_grounder_sees_no_image_whose_region_is_known_and_batches_of_one_size(tmp_path):
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 4, 4)
    grounder = LeftHalf()
    ground(grounder, images, ["everything", "thing", f"mask:{tmp_path / 'mask.png'}", "corner, thing"])
    assert grounder.asked == [(1.0, ("thing",)), *[(3.0, ("corner", "thing"))] * 3]
    assert ground(grounder, images[:2], ["everything", f"not mask:{tmp_path / 'mask.png'}"]).sum().item() == 16 + 12
    assert len(grounder.asked) == 4
    with pytest.raises(ValueError, match="as many phrases"):
        ground(grounder, images, ["thing"])


def test_a_mask_file_is_the_region_where_it_is_light(tmp_path):
    shades = np.array([[0, 127, 128], [255, 1, 200]], dtype=np.uint8)
    path = tmp_path / "mask.png"
    for image in (Image.fromarray(shades), Image.fromarray(shades).convert("RGB")):
        image.save(path)
        mask, rest = ground(LeftHalf(), torch.zeros(2, 3, 2, 3), [f"mask:{path}", f"~mask:{path}"])
        assert torch.equal(mask, torch.from_numpy(shades > 127))
        assert torch.equal(rest, ~mask)


def test_a_mask_file_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("L", (3, 2)).save(path)
    with pytest.raises(UserError, match=r"mask\.png has 3 x 2 px, its image 2 x 3 px"):
        ground(LeftHalf(), torch.zeros(1, 3, 3, 2), [f"mask:{path}"])
    with pytest.raises(UserError, match=r"gone\.png cannot be read"):
        ground(LeftHalf(), torch.zeros(1, 3, 3, 2), [f"mask:{tmp_path / 'gone.png'}"])
    path.write_text("no image")
    with pytest.raises(UserError, match=r"mask\.png cannot be read"):
        ground(LeftHalf(), torch.zeros(1, 3, 3, 2), [f"mask:{path}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "size", "reach"), [("touched", 64, 0), ("touched", 512, 1), ("wide", 64, 2), ("wide", 512, 15)]
)
def test_touched_and_wide_are_any_pixel_of_the_cell_after_a_scaled_square_dilation(rule, size, reach):
    generator = torch.Generator().manual_seed(size)
    cell = size // 8
    for _ in range(20):
        mask = torch.zeros(1, size, size, dtype=torch.bool)
        points = torch.randint(size, (3, 2), generator=generator)
        mask[0, points[:, 0], points[:, 1]] = True
        expected = torch.zeros(8, 8, dtype=torch.bool)
        for row in range(8):
            for col in range(8):
                for y, x in points.tolist():
                    dy = max(row * cell - y, y - (row + 1) * cell + 1, 0)
                    dx = max(col * cell - x, x - (col + 1) * cell + 1, 0)
                    expected[row, col] |= max(dy, dx) <= reach
        assert torch.equal(mask_to_grid(mask, (8, 8), rule)[0], expected)


def test_half_counts_half_of_the_cell():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :2] = True  # exactly half of the first cell
    mask[0, :4, 4:5] = True  # a quarter of the second
    assert mask_to_grid(mask, (2, 2), "half")[0].tolist() == [[True, False], [False, False]]


def test_empty_stays_empty_and_full_stays_full():
    for rule in MASK_RULES:
        assert not mask_to_grid(torch.zeros(1, 64, 64, dtype=torch.bool), (8, 8), rule).any()
        assert mask_to_grid(torch.ones(1, 64, 64, dtype=torch.bool), (8, 8), rule).all()
    assert torch.equal(dilate(torch.eye(3, dtype=torch.bool)[None], 0)[0], torch.eye(3, dtype=torch.bool))
    with pytest.raises(UserError, match="did you mean 'published'.*touched"):
        mask_to_grid(torch.ones(1, 8, 8, dtype=torch.bool), (2, 2), "publish")


def shapes(height: int, width: int, count: int) -> np.ndarray:
    """Random masks `[count, h, w]` (bool) of every sort: also empty, full, of one pixel, and cut by the border."""
    rng = np.random.default_rng([height, width])
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((count, height, width), dtype=bool)
    masks[1] = True
    masks[2, rng.integers(height), rng.integers(width)] = True
    masks[3, -1, 0] = True
    for i, mask in enumerate(masks[4:]):
        (y0, y1), (x0, x1) = rng.integers(-40, height + 40, 2), rng.integers(-40, width + 40, 2)
        if i % 5 == 0:  # a rectangle
            mask[max(min(y0, y1), 0) : max(y0, y1) + 1, max(min(x0, x1), 0) : max(x0, x1) + 1] = True
        elif i % 5 == 1:  # an ellipse
            mask[((y - y0) / rng.uniform(5, 150)) ** 2 + ((x - x0) / rng.uniform(5, 150)) ** 2 <= 1] = True
        elif i % 5 == 2:  # a thin line across the image
            angle = rng.uniform(0, np.pi)
            mask[np.abs((y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)) < rng.uniform(0.5, 2)] = True
        elif i % 5 == 3:  # a wavy blob
            waves = np.sin(y / rng.uniform(20, 60) + rng.uniform(0, 6)) * np.sin(
                x / rng.uniform(20, 60) + rng.uniform(0, 6)
            )
            mask[waves > rng.uniform(0.2, 0.9)] = True
        else:  # scattered pixels
            mask[rng.integers(height, size=12), rng.integers(width, size=12)] = True
    return masks


def lanczos_matrix(pixels: int, cells: int) -> np.ndarray:
    """The textbook kernel sinc(t) sinc(t / 4) at 8 pixels around each cell's centre, scaled to sum 1, in float64."""
    matrix = np.zeros((cells, pixels))
    for cell in range(cells):
        centre = (cell + 0.5) * pixels / cells - 0.5
        taps = int(np.floor(centre)) + np.arange(-3, 5)
        weights = np.sinc(centre - taps) * np.sinc((centre - taps) / 4)
        np.add.at(matrix[cell], np.clip(taps, 0, pixels - 1), weights / weights.sum())
    return matrix


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "grid", "count"),
    [
        ((512, 512), (16, 16), 34),
        ((1024, 1024), (32, 32), 9),
        ((384, 640), (12, 20), 14),
        ((144, 336), (16, 24), 19),
        ((64, 48), (16, 12), 19),
    ],
)
def test_published_is_opencv_s_blur_and_lanczos_resize(size, grid, count):
    """Cell for cell, but where the weighted sum is 0 within float32's rounding. The last but one has odd cells; the
    last so small ones that the resize looks beyond the border."""
    cv2 = pytest.importorskip("cv2")
    rows, columns = lanczos_matrix(size[0], grid[0]), lanczos_matrix(size[1], grid[1])
    masks = shapes(*size, count)
    for mask, found in zip(masks, mask_to_grid(torch.from_numpy(masks), grid, "published").numpy(), strict=True):
        blurred = cv2.GaussianBlur(mask.astype(np.float32), (31, 31), 31 / 6) > 0
        published = cv2.resize(blurred.astype(np.float32), grid[::-1], interpolation=cv2.INTER_LANCZOS4) > 0
        exact = rows @ blurred @ columns.T
        assert (np.abs(exact[found != published]) < 1e-6).all()
        assert (found == (exact > 0))[np.abs(exact) >= 1e-6].all()
        if grid != (16, 24):
            assert (found == published).all()


def any_pixel(masks: np.ndarray, reach: int, cell: int = 32) -> np.ndarray:
    """Cells `[n, h, w]` that have a pixel of the mask within `reach` px; inside themselves where that is negative."""
    n, height, width = masks.shape
    cells = np.zeros((n, height // cell, width // cell), dtype=bool)
    for row in range(height // cell):
        for col in range(width // cell):
            top, left = row * cell - reach, col * cell - reach
            window = masks[:, max(top, 0) : (row + 1) * cell + reach, max(left, 0) : (col + 1) * cell + reach]
            cells[:, row, col] = window.any(axis=(1, 2))
    return cells


@pytest.mark.slow
@pytest.mark.parametrize(("side", "count"), [(512, 44), (1024, 14)])
def test_published_lies_between_a_cell_s_inside_and_3_px_around_it_near_touched_and_far_below_wide(side, count):
    """Cells of 32 px, of which the resize looks at the 8 x 8 px in the middle, after a dilation of 15 px: it reaches
    12 + 15 px, 3 more than the cell; and a pixel that is 4 px inside the cell covers all it looks at."""
    masks = shapes(side, side, count)
    grid = (side // 32, side // 32)
    published, half, touched, wide = (
        mask_to_grid(torch.from_numpy(masks), grid, rule).numpy() for rule in ("published", "half", "touched", "wide")
    )
    assert not (any_pixel(masks, -4) & ~published).any()
    assert not (published & ~any_pixel(masks, 3)).any()
    assert not (half & ~published).any()  # the ring of 4 px is 44 % of a cell
    assert (published & ~any_pixel(masks, 2)).any()
    assert (any_pixel(masks, 1) & ~published).any()
    assert not (published & ~wide).any()
    assert (wide & ~published).sum() > 5 * count
    if side == 512:
        assert (touched == any_pixel(masks, 1)).all() and (wide == any_pixel(masks, 15)).all()
        off = [abs(int(any_pixel(masks, reach).sum()) - int(published.sum())) for reach in range(6)]
        assert off.index(min(off)) == 1, "of all dilations the nearest to the published cells in number"


def test_published_is_no_dilation_its_weights_can_cancel():
    """A pixel in a cell's corner, and lines 1 px beyond its other sides: 1/4 - 2 * 0.1189 - 0.1189^2 < 0."""
    mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[0, 32, 32] = True
    assert mask_to_grid(mask, (3, 3), "published")[0, 1, 1]
    mask[0, 64, 32:65] = mask[0, 32:65, 64] = True
    assert not mask_to_grid(mask, (3, 3), "published")[0, 1, 1]
    assert mask_to_grid(mask, (3, 3), "touched")[0, 1, 1] and mask_to_grid(mask, (3, 3), "wide")[0, 1, 1]


class Given:
    """Finds in each image, for the noun "n", the n-th list of masks."""

    settings = {}

    def __init__(self, found: dict[str, np.ndarray]) -> None:
        self.found = found

    def detections(self, images_bchw, phrases):
        return [torch.from_numpy(np.concatenate([self.found[noun] for noun in nouns])) for nouns in phrases]


def published_slowly(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Each detection's cells, with OpenCV, and the repair by loops over cells."""
    cv2 = pytest.importorskip("cv2")
    union = np.zeros(grid, dtype=bool)
    for mask in masks:
        blurred = cv2.GaussianBlur(mask.astype(np.float32), (31, 31), 31 / 6) > 0
        cells = cv2.resize(blurred.astype(np.float32), grid[::-1], interpolation=cv2.INTER_LANCZOS4) > 0
        if not cells.any():
            height, width = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
            counts = np.array(
                [
                    [mask[r * height : (r + 1) * height, c * width : (c + 1) * width].sum() for c in range(grid[1])]
                    for r in range(grid[0])
                ]
            )
            if counts.max() < height * width:
                cells = counts > 0
        union |= cells
    return union


@pytest.mark.slow
def test_published_cells_resize_each_detection_and_complement_on_the_grid():
    masks = shapes(512, 512, 34)[2:]
    grounder = Given({"one": masks[4:5], "many": masks[[0, 7, 12]], "foreground": masks[[5, 9]]})
    phrases = [
        "one",
        "many",
        "not many",
        "~one, many",
        "background",
        "the dark background",
        "everything",
        "not not many",
    ]
    cells = published_cells(grounder, torch.zeros(len(phrases), 3, 512, 512), phrases, (16, 16)).numpy()
    one, many, foreground = (published_slowly(grounder.found[noun], (16, 16)) for noun in grounder.found)
    expected = [one, many, ~many, ~(one | many), ~foreground, ~foreground, np.ones_like(one), many]
    for phrase, found, wanted in zip(phrases, cells, expected, strict=True):
        assert wanted.sum() > 0 and (found == wanted).all(), phrase


def test_published_cells_of_no_detection_are_none_also_for_complements():
    none, empty = np.zeros((0, 64, 64), dtype=bool), np.zeros((1, 64, 64), dtype=bool)
    grounder = Given({"none": none, "empty": empty, "foreground": none})
    phrases = ["none", "not none", "background", "empty", "~empty", "none, empty", "not everything"]
    assert not published_cells(grounder, torch.zeros(len(phrases), 3, 64, 64), phrases, (2, 2)).any()


def test_published_cells_keep_a_detection_that_the_resize_loses():
    """Cells of 128 px: the resize looks at 38 px in the middle of each, so that a speck in a corner has no cell."""
    specks = np.zeros((3, 256, 512), dtype=bool)
    specks[0, 120:130, 250:260] = True  # across four cells
    specks[1, 3, 140] = True
    specks[2, 64, 64] = True  # in the middle, which the resize sees
    grounder = Given({"speck": specks[:1], "dot": specks[1:2], "both": specks[1:]})
    cells = published_cells(grounder, torch.zeros(4, 3, 256, 512), ["speck", "dot", "both", "not dot"], (2, 4))
    assert not mask_to_grid(torch.from_numpy(specks[:2]), (2, 4), "published").any()
    assert cells[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert cells[1].nonzero().tolist() == [[0, 1]]
    assert cells[2].nonzero().tolist() == [[0, 0], [0, 1]]
    assert torch.equal(cells[3], ~cells[1])
    for found, noun in zip(cells, grounder.found, strict=False):
        assert (found.numpy() == published_slowly(grounder.found[noun], (2, 4))).all()


def test_a_mask_file_goes_to_the_published_grid_too(tmp_path):
    mask = shapes(512, 512, 34)[7]
    Image.fromarray(mask).save(tmp_path / "background.png")
    cells = published_cells(LeftHalf(), torch.zeros(1, 3, 512, 512), [f"mask:{tmp_path / 'background.png'}"], (16, 16))
    assert torch.equal(cells, mask_to_grid(torch.from_numpy(mask[None]), (16, 16), "published"))


# ---- the regions of cases


class Shades:
    """Finds, for the noun "dark", the pixels below 0.5, and for "light" the others."""

    settings: dict = {}

    def detections(self, images_bchw, phrases):
        return [
            torch.stack([image[0] < 0.5 if noun == "dark" else image[0] >= 0.5 for noun in nouns])
            for image, nouns in zip(images_bchw, phrases, strict=True)
        ]


def shaded(top: int, left: int) -> torch.Tensor:
    """A light image with a dark square of 128 px."""
    image = torch.ones(3, 512, 512)
    image[:, top : top + 128, left : left + 128] = 0
    return image


@pytest.mark.slow
@pytest.mark.parametrize("look", [masks_of, whole_cells])
def test_a_category_says_whose_region_counts_whatever_the_look(look):
    original, edited = shaded(64, 64), shaded(256, 320)
    names = (*CATEGORY_NAMES, "my_own")
    cases = [(Edit("e", name, "a", "b", "dark", "dark"), original, edited) for name in names]
    found = find_regions(Shades(), cases, (16, 16), look)
    own = [original[0] < 0.5, edited[0] < 0.5]
    if look is whole_cells:
        blown = [mask_to_grid(mask[None], (16, 16), "published")[0] for mask in own]
        own = [cells.repeat_interleave(32, 0).repeat_interleave(32, 1) for cells in blown]
    for name, regions in zip(names, found, strict=True):
        expected = {"add_object": (own[1], own[1]), "delete_object": (own[0], own[0])}.get(name, own)
        assert regions.dtype == torch.bool and torch.equal(regions, torch.stack(tuple(expected))), name


def test_cells_are_in_reading_order_of_each_block_s_grid():
    region = torch.zeros(96, 128, dtype=torch.bool)
    region[40:50, 100:110] = True
    grids = {"up.0.1": (6, 8), "mid.0": (3, 4)}
    for rule in ("wide", "touched", "half", "published"):
        found = Regions(Shades(), masks_of, rule).cells(region, grids)
        assert list(found) == list(grids)
        for block, (height, width) in grids.items():
            expected = np.zeros(height * width, dtype=bool)
            grown = region if rule != "wide" else dilate(region[None], round(15 * 96 / 512))[0]
            for cell in range(height * width):
                row, column = divmod(cell, width)
                part = grown[row * 96 // height : (row + 1) * 96 // height, column * 128 // width :]
                part = part[:, : 128 // width].float()
                expected[cell] = bool(part.any()) if rule in ("touched", "wide") else float(part.mean()) >= 0.5
            assert found[block].shape == (height * width,) and found[block].tolist() == expected.tolist()
            assert torch.equal(region_cells(region, (height, width), rule), found[block])
        assert found["up.0.1"].any() == (rule in ("touched", "wide"))


def test_many_cases_are_looked_at_in_batches_and_each_gets_its_own():
    squares = [shaded(32 * i, 384 - 32 * i) for i in range(11)]
    cases = [(Edit(str(i), "change_pose", "a", "b", "dark", "light"), one, one) for i, one in enumerate(squares)]
    together = Regions(Shades(), masks_of, "touched").find(cases, (16, 16))
    for regions, image in zip(together, squares, strict=True):
        assert torch.equal(regions[0], image[0] < 0.5) and torch.equal(regions[1], image[0] >= 0.5)
