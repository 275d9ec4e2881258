"""The tinyworld renderer: attribute and layout indices in, images and true masks out. Vectorised, deterministic.

Everything is drawn from signed distances (negative inside), so an edge is anti-aliased over one pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from riebench.core.errors import UserError
from riebench.tinyworld import scenes

SIZE = 64
CENTRE_ROW = 36

COLOUR_RGB = np.array(
    [(215, 35, 40), (245, 130, 20), (250, 225, 50), (40, 160, 60),
     (60, 205, 215), (45, 75, 220), (135, 50, 175), (250, 140, 190)], dtype=np.float32)  # fmt: skip
HAT_RGB, CROWN_RGB, BOOTS_RGB = (35, 30, 35), (255, 205, 0), (105, 60, 30)
PLATE_RGB, FACE_RGB = (255, 245, 230), (30, 20, 20)
DARK_TONE = 0.42  # the second tone of a patterned material, as a factor of the colour
PERIOD = 11.0  # pixels, of stripes, dots and checks

#: pose -> (x scale, y scale, shear of x per y upwards)
POSE_SHAPE = np.array([(1, 1, 0), (1, 1, 0.5), (0.74, 1.15, 0), (1.22, 0.74, 0)], dtype=np.float32)


class Rendering(NamedTuple):
    """A batch of pictures: `image_bhwc` uint8, and boolean masks `[batch, 64, 64]` that partition the image."""

    image_bhwc: np.ndarray
    object_bhw: np.ndarray
    accessory_bhw: np.ndarray
    background_bhw: np.ndarray


def render(attributes: np.ndarray, layouts: np.ndarray) -> Rendering:
    """Draws scenes. attributes: `[batch, 8]` indices as in `scenes.VALUES`; layouts: `[batch, 2]` (place, size)."""
    attributes, layouts = np.asarray(attributes), np.asarray(layouts)
    _check(attributes, layouts)
    shape, colour, material, pose, content, accessory, background, style = (
        attributes[:, i, None, None] for i in range(8)
    )
    column = np.array(list(scenes.PLACES.values()), dtype=np.float32)[layouts[:, 0]][:, None, None]
    radius = np.array(list(scenes.SIZES.values()), dtype=np.float32)[layouts[:, 1]][:, None, None]
    rows, cols = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
    x, y = cols[None] - column, rows[None] - CENTRE_ROW
    scale_x, scale_y, shear = (POSE_SHAPE[attributes[:, 3], i][:, None, None] for i in range(3))
    u, v = (x + shear * y) / (radius * scale_x), y / (radius * scale_y)

    distance = _shape_distance(attributes[:, 0], u, v) * radius * np.minimum(scale_x, scale_y)
    cover = _cover(distance)[..., None]
    tone = np.where(_dark_cells(material, x, y), np.float32(DARK_TONE), np.float32(1))[..., None]
    paint = COLOUR_RGB[attributes[:, 1]][:, None, None, :] * tone
    image = _backgrounds(rows, cols)[attributes[:, 6]]
    image = image + cover * (paint - image)

    item_distance, item_rgb = _accessory(attributes[:, 5], x, y, radius, scale_y, shear)
    item_cover = _cover(item_distance)[..., None]
    image = image + item_cover * (item_rgb[:, None, None, :] - image)

    image = np.where((style == 2)[..., None], _blocks(image, 4), image)  # pixel
    plate, ink = _face(content, x, y, radius)
    image = image + plate[..., None] * (np.array(PLATE_RGB, np.float32) - image)
    image = image + ink[..., None] * (np.array(FACE_RGB, np.float32) - image)
    edge = np.clip(1.6 - np.abs(np.minimum(distance, item_distance)), 0, 1)[..., None]
    pale = (0.75 * image + 0.25 * 248) * (1 - 0.85 * edge)
    image = np.where((style == 1)[..., None], pale, image)  # sketch
    hatch = np.where((rows + cols) % 8 < 4, np.float32(0.7), np.float32(1.0))[None, ..., None]
    image = np.where((style == 3)[..., None], image * hatch + 12, image)  # crayon

    item = item_distance < 0
    body = (distance < 0) & ~item
    return Rendering(np.clip(np.rint(image), 0, 255).astype(np.uint8), body, item, ~body & ~item)


def _check(attributes: np.ndarray, layouts: np.ndarray) -> None:
    tables = [*scenes.VALUES.items(), ("place", tuple(scenes.PLACES)), ("size", tuple(scenes.SIZES))]
    if attributes.ndim != 2 or attributes.shape[1] != len(scenes.VALUES) or layouts.shape != (len(attributes), 2):
        raise ValueError(f"render wants attributes [n, 8] and layouts [n, 2], got {attributes.shape}, {layouts.shape}")
    indices = np.concatenate([attributes, layouts], axis=1)
    outside = (indices < 0) | (indices >= [len(values) for _, values in tables])
    if outside.any():
        row, column = np.argwhere(outside)[0]
        name, values = tables[column]
        raise UserError(
            f"row {row}: {name} index {indices[row, column]} is not in 0..{len(values) - 1}",
            remedy=f"the values of {name} are {', '.join(values)}, in this order",
        )


def _cover(distance: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - distance, 0, 1)


def _blocks(image: np.ndarray, size: int) -> np.ndarray:
    batch, n = len(image), SIZE // size
    mean = image.reshape(batch, n, size, n, size, 3).mean(axis=(2, 4), keepdims=True)
    return np.broadcast_to(mean, (batch, n, size, n, size, 3)).reshape(image.shape)


def _shape_distance(kind: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the signed distance in units of the radius, `[batch, 64, 64]`, each row by its own formula."""
    out = np.empty_like(u)
    for index, formula in enumerate(_FORMULAS):
        rows = kind == index
        if rows.any():
            out[rows] = formula(u[rows], v[rows])
    return out


def _circle(u, v):
    return np.hypot(u, v) - 0.95


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _triangle(u, v):
    return np.maximum(v - 0.8, (1.85 * np.abs(u) - (v + 1.05)) / 2.1)


def _star(u, v):
    sector = np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + sector) % (2 * sector) - sector)
    r = np.hypot(u, v)
    along, across = r * np.cos(angle), r * np.sin(angle)
    # the edge from the tip (1.12, 0) to the notch (0.56 at 36 degrees)
    tip, notch = 1.12, (0.56 * np.cos(sector), 0.56 * np.sin(sector))
    normal = (notch[1], tip - notch[0])
    return ((along - tip) * normal[0] + across * normal[1]) / np.hypot(*normal)


def _heart(u, v):
    lobe = np.hypot(np.abs(u) - 0.47, v + 0.32) - 0.53
    point = np.maximum((np.abs(u) + 0.92 * (v - 1.0)) / 1.36, -0.32 - v)
    return np.minimum(lobe, point)


def _cross(u, v):
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.38, b - 1), np.maximum(a - 1, b - 0.38))


_FORMULAS = (_circle, _square, _triangle, _star, _heart, _cross)


def _dark_cells(material: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    half = PERIOD / 2
    striped = (y + half / 2) % PERIOD < half
    near_x, near_y = (x + half) % PERIOD - half, (y + half) % PERIOD - half
    dotted = np.hypot(near_x, near_y) < 3.3
    checkered = (x // (half + 0.5) + y // (half + 0.5)) % 2 < 1
    return ((material == 1) & striped) | ((material == 2) & dotted) | ((material == 3) & checkered)


def _accessory(kind, x, y, radius, scale_y, shear):
    """Returns the distance in pixels (large where there is none) and colour of each row's accessory."""
    top, bottom = -0.82 * radius * scale_y, 0.82 * radius * scale_y
    at_top, at_bottom = x + shear * top, np.abs(x + shear * bottom)
    brim = np.maximum(np.abs(at_top) - 11, np.abs(y - top) - 2)
    tall = np.maximum(np.abs(at_top) - 7, np.abs(y - top + 6) - 6)
    hat = np.minimum(brim, tall)
    spikes = top - 9 + 1.1 * np.abs((at_top + 10) % 6.667 - 3.333)
    crown = np.maximum(np.maximum(np.abs(at_top) - 10, y - top - 1), spikes - y)
    boots = np.maximum(np.abs(at_bottom - 7) - 4.5, np.abs(y - bottom - 3) - 5)
    kind_b11 = kind[:, None, None]
    none = np.full_like(x, 1e3)
    distance = np.select([kind_b11 == 1, kind_b11 == 2, kind_b11 == 3], [hat, crown, boots], none)
    return distance, np.array([(0, 0, 0), HAT_RGB, CROWN_RGB, BOOTS_RGB], np.float32)[kind]


def _face(content, x, y, radius):
    """Returns the cover of the pale plate and of the dark eyes and mouth."""
    size = 0.46 * radius
    plate = _cover(np.hypot(x, y) - size)
    eyes = np.hypot(np.abs(x) - 0.42 * size, y + 0.3 * size) - 0.2 * size
    bend = (x / (0.62 * size)) ** 2 * 0.42 * size
    curve = np.where(content == 1, y - (0.62 * size - bend), y - (0.2 * size + bend))
    mouth = np.maximum(np.abs(curve) - 1.3, np.abs(x) - 0.66 * size)
    ink = _cover(np.minimum(eyes, mouth))
    shown = content > 0
    return plate * shown, ink * shown


def _backgrounds(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Returns the six backgrounds, `[6, 64, 64, 3]` float32."""

    def blend(low_rgb, high_rgb, cover):
        low, high = np.array(low_rgb, np.float32), np.array(high_rgb, np.float32)
        return low + cover[..., None] * (high - low)

    def ellipses(*items):
        return np.max([_cover(4 * (np.hypot((cols - c) / w, (rows - r) / h) - 1)) for c, r, w, h in items], axis=0)

    sky = blend((185, 220, 250), (255, 255, 255), ellipses((12, 10, 11, 5), (50, 16, 12, 5), (30, 58, 14, 5)))
    meadow = blend((215, 235, 245), (150, 200, 125), _cover(44 - rows))
    night = blend((22, 24, 62), (250, 245, 200), ellipses((54, 9, 6, 6), (10, 12, 2, 2), (30, 5, 2, 2), (6, 40, 2, 2)))
    desert = blend((252, 238, 210), (222, 186, 128), _cover(42 + 5 * np.sin(cols / 9) - rows))
    waves = 30 + 2.5 * np.sin(cols / 3.2) - rows
    sea = blend((225, 238, 248), (95, 150, 190), _cover(waves))
    brick_row = rows // 10
    mortar = (rows % 10 < 2) | ((cols + 8 * (brick_row % 2)) % 16 < 2)
    wall = blend((182, 140, 128), (226, 216, 208), mortar.astype(np.float32))
    return np.stack([sky, meadow, night, desert, sea, wall]).astype(np.float32)
