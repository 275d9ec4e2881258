"""How dictionaries trained on the updates of one backbone carry over to other steps and models (arXiv 2410.22366)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from riebench.backbones.loading import choose_device
from riebench.backbones.sdxl import SDXL
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError, did_you_mean
from riebench.core.progress import Progress
from riebench.dictionaries.kept import Kept
from riebench.dictionaries.prompts import world_prompts
from riebench.generation.sampler import Request, Sampler, load_sampler
from sae_models import index
from sae_models.comparison import active_overlap
from sae_models.dictionary import Dictionary
from sae_models.evaluation import Evaluation, Tally

FIRST_SEED = 20_000  # of the generations evaluated on; the shipped dictionaries were trained on seeds below
FEATURE_COSINE, FEATURE_OVERLAP = "feature_cosine", "feature_overlap"
ALL_STEPS = "all_steps"

#: Branch -> figure -> a number a step, and "all_steps" -> figure -> a number.
Course = dict[str, dict[str, list[float | None] | dict[str, float | None]]]


def generalise(
    trained_on: str,
    on: Sequence[Backbone],
    prompts: int,
    *,
    name: str | None = None,
    root: Path | None = None,
    device: str = "auto",
) -> dict[str, list[dict]]:
    """Evaluates the dictionaries of the backbone `trained_on` on the updates of each step of the backbones `on`.

    prompts: how many captions of held-out scenes; name: of the dictionaries (default: all there are); root: of their
    index (default: the shipped one). Returns what JSON can hold: `dictionaries` has an item for each dictionary, whose
    `on` is: backbone -> branch, as in `evaluate_steps`. Raises `UserError` where there is no such dictionary, or one
    does not fit a backbone.
    """
    captions = held_out_captions(prompts)
    entries, where = find_entries(trained_on, (name,) if name else (), root), choose_device(device)
    dictionaries = [(entry.block, index.open(entry, root=root, device=str(where))) for entry in entries]
    rows = [{"block": entry.block, "name": entry.name, "on": {}} for entry in entries]
    for backbone in on:
        sampler = load_sampler(backbone, where)
        sampler.batch_size = min(sampler.batch_size, prompts)
        courses = evaluate_steps(sampler, dictionaries, captions, FIRST_SEED)
        for row, course in zip(rows, courses, strict=True):
            row["on"][backbone.name] = course
    return {"dictionaries": rows}


def held_out_captions(count: int) -> list[str]:
    """Returns captions of so many held-out scenes. Raises `UserError` for less than one."""
    if count < 1:
        raise UserError(f"there is nothing to evaluate on with {count} prompts", remedy="use at least 1")
    return world_prompts(count, FIRST_SEED, "held_out")


def find_entries(trained_on: str, names: Sequence[str], root: Path | None, site: str = "update") -> list[index.Entry]:
    """Returns the dictionaries of a backbone, of these names or all, by block, size and k. Raises `UserError` where
    there are none."""
    known = [entry for entry in index.entries(root) if entry.backbone == trained_on and entry.site in ("", site)]
    if not known:
        backbones = dict.fromkeys(entry.backbone for entry in index.entries(root) if entry.site in ("", site))
        of_site = "" if site == "update" else f"the {site} of "
        raise UserError(
            f"no dictionary was trained on {of_site}{trained_on!r}{did_you_mean(trained_on, backbones)}",
            remedy=f"there are some of {', '.join(backbones)}" if backbones else "make some with `riebench train`",
        )
    there = dict.fromkeys(entry.name for entry in known)
    for name in names:
        if name not in there:
            raise UserError(
                f"{trained_on} has no dictionary {name!r}{did_you_mean(name, there)}",
                remedy=f"take one of {', '.join(there)}",
            )
    named = [entry for entry in known if entry.name in (names or there)]
    order = _block_order(trained_on)
    return sorted(named, key=lambda entry: (order.index(entry.block), entry.num_features, entry.k))


def _block_order(backbone: str) -> list[str]:
    """Returns the blocks that dictionaries of a backbone may be of, in its order; of SDXL where it is not known
    here."""
    family = BACKBONES.get(backbone).family if backbone in BACKBONES.names() else SDXL
    return list(family.places)


def evaluate_steps(
    sampler: Sampler,
    dictionaries: Sequence[tuple[str, Dictionary]],
    prompts: Sequence[str],
    seed: int,
    site: str = "update",
    kept: Kept | None = None,
    quiet: bool = False,
) -> list[Course]:
    """Returns for each (block, dictionary) its course. Prompt i is generated from seed + i. site: the kind of site that
    the dictionaries code. kept: where what was counted is written now and then, and taken up again; quiet: show no
    progress.

    Branches: "cond", the rows that see the prompt, and under guidance "uncond". Figures: the fields of `Evaluation`, of
    the rows of that step alone, and for steps t and t + 1, so one number fewer, means over cells: "feature_cosine" of
    the cosine of the latents (0 where a cell has none) and "feature_overlap" of `active_overlap`. "all_steps" has the
    fields of the `Evaluation` of the rows of all steps.
    """
    branches = ("cond", "uncond") if sampler.backbone.guided else ("cond",)
    courses = [
        {branch: _Tallies(dictionary, sampler.backbone.steps) for branch in branches} for _, dictionary in dictionaries
    ]
    blocks = dict.fromkeys(block for block, _ in dictionaries)
    sites = sampler.blocks.sites(blocks, site)
    kept, name = kept or Kept(), f"steps-{sampler.backbone.name}"
    done = _restore(courses, kept.read_tensors(name), sampler.device)
    with Progress(f"evaluating on {sampler.backbone.name}", len(prompts), done, unit="prompt", quiet=quiet) as progress:
        for start in range(done, len(prompts), sampler.batch_size):
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
            if kept.is_due:
                kept.write_tensors(name, _state(courses, start + len(chunk)))
    return [{branch: course[branch].figures() for branch in branches} for course in courses]


def _state(courses: Sequence[dict[str, _Tallies]], done: int) -> dict[str, Tensor]:
    """Returns all that was counted on so many prompts."""
    state = {"done": torch.tensor(done)}
    for i, course in enumerate(courses):
        for branch, tallies in course.items():
            state |= {f"{i}.{branch}.{key}": tensor for key, tensor in tallies.state().items()}
    return state


def _restore(courses: Sequence[dict[str, _Tallies]], state: dict[str, Tensor] | None, device: torch.device) -> int:
    """Has courses go on from a `_state`, and returns on how many prompts it was counted; 0 without one."""
    if state is None:
        return 0
    for i, course in enumerate(courses):
        for branch, tallies in course.items():
            start = f"{i}.{branch}."
            tallies.restore(
                {key[len(start) :]: tensor for key, tensor in state.items() if key.startswith(start)}, device
            )
    return int(state["done"])


class _Tallies:
    """One dictionary along the steps of generations, in one branch."""

    def __init__(self, dictionary: Dictionary, steps: int) -> None:
        self.dictionary = dictionary
        self._tallies = [Tally(dictionary) for _ in range(steps)]
        self._cosine_sums, self._overlap_sums = [0.0] * (steps - 1), [0.0] * (steps - 1)

    def add(self, updates: Tensor) -> None:
        """Counts in updates `[n, steps, cells, C]`."""
        latents_before = None
        for step, tally in enumerate(self._tallies):
            latents = tally.add(updates[:, step].flatten(0, 1))
            if step:
                cosine = cosine_similarity(latents_before, latents, dim=1)
                self._cosine_sums[step - 1] += float(cosine.sum(dtype=torch.float64))
                overlap = active_overlap(latents_before, latents)
                self._overlap_sums[step - 1] += float(overlap.sum(dtype=torch.float64))
            latents_before = latents

    def state(self) -> dict[str, Tensor]:
        """Returns all that was counted."""
        state = {"cosine_sums": torch.tensor(self._cosine_sums, dtype=torch.float64)}
        state |= {"overlap_sums": torch.tensor(self._overlap_sums, dtype=torch.float64)}
        for step, tally in enumerate(self._tallies):
            state |= {f"{step}.{key}": tensor for key, tensor in tally.state().items()}
        return state

    def restore(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Goes on from a `state`, on the dictionary's device."""
        self._cosine_sums, self._overlap_sums = state["cosine_sums"].tolist(), state["overlap_sums"].tolist()
        for step, tally in enumerate(self._tallies):
            tally.restore({key: state[f"{step}.{key}"] for key in tally.state()}, device)

    def figures(self) -> dict[str, list[float | None] | dict[str, float | None]]:
        """Returns the figures as a branch of a `Course` has them."""
        found, whole = [tally.evaluation() for tally in self._tallies], Tally(self.dictionary)
        for tally in self._tallies:
            whole.merge(tally)
        return {
            **{field.name: [getattr(step, field.name) for step in found] for field in fields(Evaluation)},
            FEATURE_COSINE: [total / found[0].num_rows for total in self._cosine_sums],
            FEATURE_OVERLAP: [total / found[0].num_rows for total in self._overlap_sums],
            ALL_STEPS: asdict(whole.evaluation()),
        }
