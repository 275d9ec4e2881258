"""Step 8: where a few edits of each category may change, with pictures to look at."""

from __future__ import annotations

import numpy as np

from riebench.core.errors import UserError
from riebench.core.pictures import to_array
from riebench.runs.pictures import Pictures
from riebench.runs.reference import SIDES
from riebench.runs.store import Batch, Store
from riebench.selftest.bench import SEED, Bench
from riebench.selftest.step import Check, Found, NotPossible, one_line

FOLDER = "regions"


def look(bench: Bench) -> Found:
    """Returns how many cells were found for each edit, and writes a strip of each: its two images, their regions below
    them."""
    if bench.random:
        raise NotPossible("with random weights there is nothing to be found")
    engine = bench.engine
    try:
        _ = engine.regions
    except UserError as error:
        raise NotPossible(one_line(error)) from error
    edits = bench.edits(bench.amounts.each)
    found: dict[str, dict[str, dict[str, int]]] = {}
    strips = {}
    for start in range(0, len(edits), bench.amounts.batch):
        some = edits[start : start + bench.amounts.batch]
        for edit, reference in zip(some, engine.references([(edit, SEED) for edit in some]), strict=True):
            case = reference.case
            first = next(iter(case.original_cells))
            cells = {side: int(getattr(case, f"{side}_cells")[first].sum()) for side in SIDES}
            found.setdefault(edit.category, {})[edit.id] = cells | {"of": case.original_cells[first].numel()}
            strips[f"{FOLDER}/{edit.id}.png"] = strip(reference.pictures)
    with Store(bench.out) as store:
        store.add(Batch([], strips))
        store.flush()
    empty = [name for name, of in found.items() if not any(min(cells[side] for side in SIDES) for cells in of.values())]
    means = {name: sum(c["original"] for c in of.values()) / len(of) for name, of in found.items()}
    shown = ", ".join(f"{name} {mean:.0f}" for name, mean in means.items())
    figure = f"cells by category: {shown}; strips in {(bench.out / FOLDER).resolve()}"
    wrong = [f"no region in any edit of {name}" for name in empty]
    return Found(
        "; ".join([*wrong, figure]), not wrong, {"cells": found, "strips": str((bench.out / FOLDER).resolve())}
    )


def strip(pictures: Pictures) -> np.ndarray:
    """Returns both images of a case beside each other, uint8 `[2 h, 2 w, 3]`, the regions below them in white."""
    images = [to_array(getattr(pictures, side)) for side in SIDES]
    masks = [np.repeat(region.cpu().numpy()[..., None], 3, axis=2) * np.uint8(255) for region in pictures.regions]
    return np.concatenate([np.concatenate(row, axis=1) for row in (images, masks)])


CHECK = Check(8, "regions", "some cells in every category, and the strips show what the prompts name", look)
