"""How dictionaries trained on the updates of one backbone carry over to other steps and models (arXiv 2410.22366)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from riebench.backbones import BLOCK_NAMES, Backbone
from riebench.errors import UserError, did_you_mean
from riebench.lens import find_sites
from riebench.loading import choose_device
from riebench.progress import Progress
from riebench.prompts import world_prompts
from riebench.sampling import Request, Sampler, load_sampler
from sae_models import index
from sae_models.dictionary import Dictionary
from sae_models.evaluation import Evaluation, Tally

FIRST_SEED = 20_000  # of the generations evaluated on; the shipped dictionaries were trained on seeds below
SHOWN_STEPS = 6  # the most columns that the tables give to the steps of a backbone
FEATURE_COSINE = "feature_cosine"
TITLES = {
    "explained_variance_pooled": "Explained variance, pooled",
    "explained_variance_mean": "Explained variance, mean over dimensions",
    FEATURE_COSINE: "Cosine of the features at adjacent steps",
}
EXPLANATION = """\
The dictionaries were trained on block updates of `{trained_on}` and nothing was trained again. Here they code the block
updates of other steps and models, for {prompts} captions of held-out scenes, each with its own noise (seeds from
{first_seed}). Steps count from 1, the noisiest; under guidance `cond` are the rows that see the prompt, `uncond`
those that see none.

- Explained variance, pooled: 1 - sum of |x - x_hat|^2 / sum of |x - mean(x)|^2.
- Explained variance, mean over dimensions: the mean over the channels of 1 - Var(x - x_hat) / Var(x).
- The means and variances are those of the updates in that column alone: a shift of the mean from step to step does not
  count as explained.
- Cosine of the features: between the latents of a cell at one step and at the next, mean over cells.

Every step, the active features and the dead features are in the JSON that `--json` prints."""


def generalise(
    trained_on: str,
    on: Sequence[Backbone],
    prompts: int,
    *,
    name: str | None = None,
    root: Path | None = None,
    device: str = "auto",
) -> dict:
    """Evaluates the dictionaries of the backbone `trained_on` on the updates of each step of the backbones `on`.

    prompts: how many captions of held-out scenes; name: of the dictionaries (default: all there are); root: of their
    index (default: the shipped one). Returns what JSON can hold: `dictionaries` has an item for each dictionary, whose
    `on` is: backbone -> branch, as in `evaluate_steps`. Raises `UserError` where there is no such dictionary, or one
    does not fit a backbone.
    """
    if prompts < 1:
        raise UserError(f"there is nothing to evaluate on with {prompts} prompts", remedy="use at least 1")
    entries = sorted(_entries(trained_on, name, root), key=lambda e: (BLOCK_NAMES.index(e.block), e.num_features, e.k))
    where = choose_device(device)
    dictionaries = [(entry.block, index.open(entry, root=root, device=str(where))) for entry in entries]
    rows = [
        {"block": entry.block, "name": entry.name, "k": entry.k, "num_features": entry.num_features, "on": {}}
        for entry in entries
    ]
    captions = world_prompts(prompts, FIRST_SEED, "held_out")
    for backbone in on:
        sampler = load_sampler(backbone, where)
        sampler.batch_size = min(sampler.batch_size, prompts)
        for row, found in zip(rows, evaluate_steps(sampler, dictionaries, captions, FIRST_SEED), strict=True):
            row["on"][backbone.name] = found
    return {
        "trained_on": trained_on,
        "on": [{"backbone": backbone.name, "steps": backbone.steps, "guidance": backbone.guidance} for backbone in on],
        "prompts": prompts,
        "first_seed": FIRST_SEED,
        "dictionaries": rows,
    }


def evaluate_steps(
    sampler: Sampler, dictionaries: Sequence[tuple[str, Dictionary]], prompts: Sequence[str], seed: int
) -> list[dict[str, dict[str, list[float]]]]:
    """For each (block, dictionary): branch -> figure -> a number a step. Prompt i is generated from seed + i.

    Branches: "cond", the rows that see the prompt, and under guidance "uncond". Figures: the fields of `Evaluation`,
    of the rows of that step alone, and "feature_cosine": for steps t and t + 1, so one number fewer, the mean over
    cells of the cosine of the latents (0 where a cell has none).
    """
    branches = ("cond", "uncond") if sampler.backbone.guided else ("cond",)
    courses = [
        {branch: _Course(dictionary, sampler.backbone.steps) for branch in branches} for _, dictionary in dictionaries
    ]
    sites = find_sites(sampler.unet, list(dict.fromkeys(block for block, _ in dictionaries)), "update")
    with Progress(f"evaluating on {sampler.backbone.name}", total=len(prompts), unit="prompt") as progress:
        for start in range(0, len(prompts), sampler.batch_size):
            chunk = prompts[start : start + sampler.batch_size]
            requests = [Request(prompt, seed + start + i) for i, prompt in enumerate(chunk)]
            samples = sampler.generate(requests, sites, decode=False)
            for branch in branches:
                traces = [sample.trace if branch == "cond" else sample.uncond_trace for sample in samples]
                for site in sites:
                    updates = torch.stack([trace[site] for trace in traces]).to(sampler.device)
                    for (block, _), course in zip(dictionaries, courses, strict=True):
                        if block == site.block:
                            course[branch].add(updates)
            progress.update(start + len(chunk))
    return [{branch: course[branch].figures() for branch in branches} for course in courses]


class _Course:
    """One dictionary along the steps of generations."""

    def __init__(self, dictionary: Dictionary, steps: int) -> None:
        self._tallies = [Tally(dictionary) for _ in range(steps)]
        self._cosine_sums = [0.0] * (steps - 1)

    def add(self, updates: Tensor) -> None:
        """Counts in updates `[n, steps, C, h, w]`."""
        latents_before = None
        for step, tally in enumerate(self._tallies):
            latents = tally.add(updates[:, step].permute(0, 2, 3, 1).flatten(0, 2))
            if step:
                cosine = cosine_similarity(latents_before, latents, dim=1)
                self._cosine_sums[step - 1] += float(cosine.sum(dtype=torch.float64))
            latents_before = latents

    def figures(self) -> dict[str, list[float]]:
        found = [tally.evaluation() for tally in self._tallies]
        return {
            **{field.name: [getattr(step, field.name) for step in found] for field in fields(Evaluation)},
            FEATURE_COSINE: [total / found[0].num_rows for total in self._cosine_sums],
        }


def _entries(trained_on: str, name: str | None, root: Path | None) -> list[index.Entry]:
    known = [entry for entry in index.entries(root) if entry.backbone == trained_on]
    if not known:
        backbones = dict.fromkeys(entry.backbone for entry in index.entries(root))
        raise UserError(
            f"no dictionary was trained on {trained_on!r}{did_you_mean(trained_on, backbones)}",
            remedy=f"there are some of {', '.join(backbones)}" if backbones else "make some with `riebench train`",
        )
    named = [entry for entry in known if name in (None, entry.name)]
    if not named:
        names = dict.fromkeys(entry.name for entry in known)
        raise UserError(
            f"{trained_on} has no dictionary {name!r}{did_you_mean(name, names)}",
            remedy=f"take one of {', '.join(names)}",
        )
    return named


def format_tables(found: dict) -> str:
    """Pooled explained variance and cosines, for a terminal."""
    tables = {field: _table(found, field) for field in ("explained_variance_pooled", FEATURE_COSINE)}
    return "\n\n".join(
        f"{TITLES[field]}\n{table.to_string(float_format='{:.2f}'.format)}"
        for field, table in tables.items()
        if table.size
    )


def format_markdown(found: dict) -> str:
    """A page of all tables that says what they are and how to make them again."""
    backbones = ",".join(on["backbone"] for on in found["on"])
    tables = {title: _table(found, field) for field, title in TITLES.items()}
    parts = [
        f"# How dictionaries of `{found['trained_on']}` carry over to other steps and models",
        EXPLANATION.format(**found),
        f"    riebench evaluate --trained-on {found['trained_on']} --on {backbones} --prompts {found['prompts']}",
        *(f"## {title}\n\n{_markdown(table)}" for title, table in tables.items() if table.size),
    ]
    return "\n\n".join(parts) + "\n"


def _table(found: dict, field: str) -> pd.DataFrame:
    """A figure of each (block, dictionary) at the shown steps of each backbone and branch."""
    columns: dict[tuple[str, str], list[float]] = {}
    rows = found["dictionaries"]
    for on in found["on"]:
        backbone, courses = on["backbone"], rows[0]["on"][on["backbone"]]
        for branch, course in courses.items():
            label = f"{backbone} {branch}" if len(courses) > 1 else backbone
            for step in _shown(len(course[field])):
                head = f"{step}-{step + 1}" if field == FEATURE_COSINE else f"{step}"
                columns[label, head] = [row["on"][backbone][branch][field][step - 1] for row in rows]
    names = [(row["block"], row["name"]) for row in rows]
    return pd.DataFrame(
        [list(values) for values in zip(*columns.values(), strict=True)] or None,
        index=pd.MultiIndex.from_tuples(names, names=["block", "dictionary"]),
        columns=pd.MultiIndex.from_tuples(columns, names=["", "step"]),
    )


def _shown(count: int) -> list[int]:
    """Which of the steps 1 to `count` have a column: all of a few, else the first and the ends of equal parts."""
    if count <= SHOWN_STEPS:
        return list(range(1, count + 1))
    return sorted({1, *(round(count * part / (SHOWN_STEPS - 1)) for part in range(1, SHOWN_STEPS))})


def _markdown(table: pd.DataFrame) -> str:
    """The first row names the backbones, each over its first step; the second the steps."""
    backbones, steps = (list(table.columns.get_level_values(level)) for level in (0, 1))
    heads = [name if i == 0 or name != backbones[i - 1] else "" for i, name in enumerate(backbones)]
    lines = [
        ["block", "dictionary", *heads],
        ["---"] * 2 + ["---:"] * len(steps),
        ["step", "", *steps],
        *(
            [*names, *(f"{value:.3f}" for value in values)]
            for names, values in zip(table.index, table.to_numpy(), strict=True)
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
