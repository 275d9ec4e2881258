"""Which cases are shown as pictures, and the pictures as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from riebench.analysis.frames import NOOP, Setting, score_table

HEADLINE, COST = "clip_text_edited", "lpips_original"
LARGEST_SIDE = 256  # pixels; larger images are scaled down so that the page stays small


@dataclass(frozen=True)
class Tile:
    label: str
    image: str
    """A data URI, "" where no image can be shown."""
    gain: float
    cost: float


@dataclass(frozen=True)
class Example:
    category: str
    edit: str
    seed: int
    chosen_as: str
    """"best", "worst" or "random"."""
    methods: tuple[Tile, ...]
    """The original image, the edited image, then each method on all of its blocks."""
    solo: tuple[Tile, ...]
    """The method of the block effects on each block alone."""


def choose_examples(
    scores: pd.DataFrame, run_folder: Path, judged: Setting, blocks: tuple[str, ...], seed: int = 0
) -> list[Example]:
    """Best, worst and a random other case of each category by the gain of `judged`, among those with images."""
    shown = scores[(scores["status"] == "ok") & (scores["image"] != "")]
    if not ((shown["method"] == NOOP).any() and (shown[list(Setting._fields)] == list(judged)).all(axis=1).any()):
        return []
    table = score_table(shown, HEADLINE)
    baseline = table.xs(NOOP, axis=1, level="method").iloc[:, 0]
    gains = (table[judged] - baseline).dropna()
    generator = np.random.default_rng(seed)
    examples = []
    for category in scores["category"].drop_duplicates():
        ranked = gains[gains.index.get_level_values("category") == category].sort_values(ascending=False, kind="stable")
        picks = {"best": 0, "worst": len(ranked) - 1}
        if len(ranked) > 2:
            picks["random"] = int(generator.integers(1, len(ranked) - 1))
        for chosen_as, place in list(picks.items())[: len(ranked)]:
            _, edit, case_seed = ranked.index[place]
            rows = shown[(shown["edit"] == edit) & (shown["seed"] == case_seed)]
            examples.append(_example(rows, run_folder, judged, blocks, chosen_as, baseline[ranked.index[place]]))
    return examples


def embed_image(run_folder: Path, name: str) -> str:
    """The image as a data URI of at most 256 x 256 pixels; "" where it is missing, broken or outside the folder."""
    folder = Path(run_folder).resolve()
    path = (folder / name).resolve()
    if not name or not path.is_relative_to(folder):
        return ""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError:
        return ""
    kind, options = "PNG", {"optimize": True}
    if max(small.size) > LARGEST_SIDE:
        small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        kind, options = "JPEG", {"quality": 85}
    buffer = io.BytesIO()
    small.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _example(rows: pd.DataFrame, run_folder, judged: Setting, blocks, chosen_as: str, baseline: float) -> Example:
    every = "+".join(blocks)

    def tile(row: pd.Series, label: str) -> Tile:
        return Tile(label, embed_image(run_folder, row["image"]), row[HEADLINE] - baseline, row[COST])

    names = {NOOP: "original", "oracle-prompt": "edited"}
    first = list(names)
    whole = rows[rows["blocks"].isin(("", every))]
    order = whole["method"].map(lambda method: first.index(method) if method in first else len(first))
    whole = whole.loc[order.sort_values(kind="stable").index]
    many = whole["method"].duplicated(keep=False)
    solo = rows[(rows["method"] == judged.method) & (rows["strength"] == judged.strength) & rows["blocks"].isin(blocks)]
    solo = solo.set_index("blocks").reindex([block for block in blocks if block in set(solo["blocks"])])
    return Example(
        category=rows["category"].iloc[0],
        edit=rows["edit"].iloc[0],
        seed=int(rows["seed"].iloc[0]),
        chosen_as=chosen_as,
        methods=tuple(
            tile(row, names.get(row["method"], row["method"]) + (f" ×{row['strength']:g}" if many[i] else ""))
            for i, row in whole.iterrows()
        ),
        solo=tuple(tile(row, f"{block} alone") for block, row in solo.iterrows()) if len(blocks) > 1 else (),
    )
