"""The tables of `riebench evaluate`, for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from riebench.core.text_tables import aligned, markdown
from riebench.dictionaries.evaluate import OWN_ROWS, shown_steps
from riebench.dictionaries.generalisation import ALL_STEPS, FEATURE_COSINE, FEATURE_OVERLAP
from riebench.dictionaries.reconstruction import ZERO

OWN = {
    "explained_variance_pooled": "EV pooled",
    "explained_variance_mean": "EV mean",
    "fvu_pooled": "FVU",
    "cosine": "cosine",
    "l0": "L0",
    "dead_share": "dead",
    "rare_share": "rare",
    "dense_share": "dense",
    "utilisation": "utilisation",
}
GEOMETRY = {"coherence": "coherence", "nearest_cosine": "nearest cosine"}
OF_STEPS = {
    "explained_variance_pooled": "Explained variance, pooled",
    "explained_variance_mean": "Explained variance, mean over dimensions",
}
OF_PAIRS = {
    FEATURE_COSINE: "Cosine of the features at adjacent steps",
    FEATURE_OVERLAP: "Overlap of the active features at adjacent steps",
}
OF_IMAGES = {
    "lpips": "LPIPS of images with replaced updates",
    "clip_image": "CLIP cosine of images with replaced updates",
    "recovered": "Share of the LPIPS of zero updates that is recovered",
}
FORMATS = {OF_IMAGES["lpips"]: "{:.2g}", OF_IMAGES["clip_image"]: "{:.5f}"}  # of tables that need other than 3 decimals
DECIMALS = "{:.3f}"
ONLY_ON_PAGE = ("explained_variance_mean",)  # of the tables of steps

EXPLANATION = """\
The dictionaries were trained on block updates of `{trained_on}` and nothing was trained again. Prompts are
{prompts_of}, each with its own noise (seeds from {first_seed}): {counts}. Steps count from 1, the noisiest; under
guidance `cond` are the rows that see the prompt, `uncond` those that see none.

    riebench evaluate {words}

Every step, branch and figure is in the JSON that `--json` prints."""
OWN_EXPLANATION = """\
On `{trained_on}`, all steps together; with captions, at least {own_rows} rows of each block.

- EV pooled: 1 - sum of |x - x_hat|^2 / sum of |x - mean(x)|^2; FVU is the rest to 1. EV mean: the mean over the
  channels of 1 - Var(x - x_hat) / Var(x). Cosine: of x and x_hat.
- L0: active features a row. Dead: the share of the features that are active on no row; rare: on fewer than one in
  10,000; dense: on more than one in 10.
- Utilisation: the effective number of features, exp of the entropy of their shares in the sum of the latents, over
  their number.
- Coherence: the greatest |cosine| of two decoder directions; nearest cosine: the mean over the features of the greatest
  with another."""
STEPS_EXPLANATION = """\
- The means and variances are those of the updates in that column alone: a shift of the mean from step to step does not
  count as explained.
- Cosine of the features: between the latents of a cell at one step and at the next, mean over cells.
- Overlap of the active features: of the same latents, how many are active in both over how many are in either
  (Jaccard)."""
IMAGES_EXPLANATION = """\
Images of {images} prompts, against the undisturbed images from the same noise. In the place of a block's updates, or of
those of all of them, stands what is named: a dictionary's reconstruction of them, zero, or the block's mean update over
these images. Under `all` it does at all steps, and under guidance in all rows, or in those of one branch where that is
named; under a number at that step alone, in all rows. `--dictionary` gives those of other dictionaries.

- LPIPS (AlexNet): 0 for the same image. CLIP cosine: 1 for the same.
- Recovered: (LPIPS of zero - LPIPS) / LPIPS of zero, of the means over the images."""
STABILITY_EXPLANATION = """\
Decoder directions of dictionaries that differ in the seed of their training, each matched with another one so that the
sum of the cosines is greatest (Hungarian method). Cosine: the mean of the matched; shared: the share above 0.7."""


def format_tables(found: dict) -> str:
    """Returns the tables of what `evaluate` found but the mean explained variance of steps, for a terminal."""
    tables = _of_own(found) | _of_steps(found, without=ONLY_ON_PAGE) | _of_images(found) | _of_seeds(found)
    return "\n\n".join(
        "\n".join([title, *aligned(_cells(table, FORMATS.get(title, DECIMALS)), _right(table))])
        for title, table in tables.items()
    )


HEAD = "# What the dictionaries of"


def format_markdown(found: dict) -> str:
    """Returns a page of all tables that says what they are and how to make them again."""
    counts = ", ".join(f"{on['prompts']} on `{on['backbone']}`" for on in found["on"])
    said = found | {"counts": counts, "words": _words(found), "own_rows": f"{OWN_ROWS:,}"}
    said["prompts_of"] = f"of `{found['source']}`" if found["source"] else "captions of held-out scenes"
    parts = [f"{HEAD} `{found['trained_on']}` are worth", EXPLANATION.format(**said)]
    for title, explanation, tables in (
        ("On their own backbone", OWN_EXPLANATION, _of_own(found)),
        ("At other steps and on other models", STEPS_EXPLANATION, _of_steps(found)),
        ("In the images", IMAGES_EXPLANATION, _of_images(found)),
        ("Beside other seeds", STABILITY_EXPLANATION, _of_seeds(found)),
    ):
        if tables:
            parts += [f"## {title}", explanation.format(**said)]
            parts += [
                f"### {name}\n\n{markdown(_cells(table, FORMATS.get(name, DECIMALS)), _right(table))}"
                for name, table in tables.items()
            ]
    return "\n\n".join(parts) + "\n"


def _words(found: dict) -> str:
    """Returns the options that make the page."""
    named = ["--dictionary", ",".join(found["names"])] if found["names"] else []
    backbones = ",".join(on["backbone"] for on in found["on"])
    options = ["--trained-on", found["trained_on"], *named, "--on", backbones]
    options += ["--prompts", found["source"]] if found["source"] else []
    return " ".join([*options, "--count", str(found["prompts"]), "--images", str(found["images"])])


def _of_own(found: dict) -> dict[str, pd.DataFrame]:
    """Returns the figures of each (block, dictionary) on the backbone it was trained on; of each branch where there are
    two."""
    rows = {}
    for row in found["dictionaries"]:
        courses = row["on"][found["trained_on"]]
        for branch, course in courses.items():
            key = (row["block"], row["name"], *([branch] if len(courses) > 1 else []))
            rows[key] = [*(course[ALL_STEPS][field] for field in OWN), *(row["geometry"][field] for field in GEOMETRY)]
    names = ["block", "dictionary", "branch"][: len(next(iter(rows)))]
    index = pd.MultiIndex.from_tuples(rows, names=names)
    columns = [*OWN.values(), *GEOMETRY.values()]
    return {"Figures of the dictionaries": pd.DataFrame(list(rows.values()), index, columns, dtype=float)}


def _of_steps(found: dict, without: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """Returns a table a figure, of each (block, dictionary) at the shown steps of each backbone and branch."""
    tables = {}
    for field, title in (OF_STEPS | OF_PAIRS).items():
        columns: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        for row in found["dictionaries"] if field not in without else ():
            for backbone, courses in row["on"].items():
                for branch, course in courses.items():
                    label = f"{backbone} {branch}" if len(courses) > 1 else backbone
                    for step in shown_steps(len(course[field])):
                        head = f"{step}-{step + 1}" if field in OF_PAIRS else f"{step}"
                        columns.setdefault((label, head), {})[row["block"], row["name"]] = course[field][step - 1]
        if columns:
            tables[title] = _table(columns, ["block", "dictionary"])
    return tables


def _of_images(found: dict) -> dict[str, pd.DataFrame]:
    """Returns a table a figure, of what replaces which blocks, at all steps and at the shown ones of each backbone."""
    tables = {}
    every = max((effect["blocks"] for effect in found["effects"]), key=lambda blocks: blocks.count("+"), default="")
    for field, title in OF_IMAGES.items():
        columns: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        for effect in found["effects"]:
            if field == "recovered" and effect["replacement"] == ZERO:
                continue
            step = "all" if effect["step"] is None else str(effect["step"])
            head = (
                step if effect["branch"] == _whole_branch(found, effect["backbone"]) else f"{step} {effect['branch']}"
            )
            blocks = "all" if "+" in every and effect["blocks"] == every else effect["blocks"]
            key = blocks, effect["dictionary"] or effect["replacement"]
            columns.setdefault((effect["backbone"], head), {})[key] = effect[field]
        if columns:
            tables[title] = _table(columns, ["blocks", "replaced by"])
    return tables


def _whole_branch(found: dict, backbone: str) -> str:
    """Returns the branch that stands for all rows of a backbone."""
    return next(effect["branch"] for effect in found["effects"] if effect["backbone"] == backbone)


def _of_seeds(found: dict) -> dict[str, pd.DataFrame]:
    if not found["stability"]:
        return {}
    table = pd.DataFrame(found["stability"]).set_index(["block", "name", "partner"])
    table.index.names = ["block", "dictionary", "partner"]
    return {"Stability over seeds": table.rename(columns={"shared_share": "shared"})}


def _table(columns: dict[tuple[str, str], dict[tuple[str, str], float]], names: Sequence[str]) -> pd.DataFrame:
    """Returns columns by (backbone, step) of rows by `names`."""
    table = pd.DataFrame(columns, dtype=float)
    return table.rename_axis(index=names, columns=["", "step"])


def _cells(table: pd.DataFrame, number: str) -> list[list[str]]:
    """Returns the head and the rows of a table as text. Where its columns are by (backbone, step), the head names the
    backbones, each over its first step, and the row below it the steps."""
    names = [str(name) for name in table.index.names]
    lines = [[*names, *map(str, table.columns)]]
    if table.columns.nlevels == 2:
        backbones, steps = (list(table.columns.get_level_values(level)) for level in (0, 1))
        lines = [names + [name if i == 0 or name != backbones[i - 1] else "" for i, name in enumerate(backbones)]]
        lines.append(["step", *[""] * (len(names) - 1), *steps])
    return lines + [
        [*labels, *("-" if pd.isna(value) else number.format(value) for value in values)]
        for labels, values in zip(table.index, table.to_numpy(), strict=True)
    ]


def _right(table: pd.DataFrame) -> range:
    """Returns the places of the columns of numbers, behind those of the index."""
    return range(table.index.nlevels, table.index.nlevels + table.shape[1])
