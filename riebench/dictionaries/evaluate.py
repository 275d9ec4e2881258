"""`riebench evaluate`: what dictionaries are worth, by figures of their own, at other steps and on other models, in the
images, and beside those of another training seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import torch

from riebench.backbones.folders import backbone_folder, channels_of
from riebench.backbones.loading import choose_device, choose_dtype
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.core.keys import digest
from riebench.core.versions import folder_digest, installed_sources, library_versions
from riebench.dictionaries.estimate import Work, tell
from riebench.dictionaries.generalisation import FIRST_SEED, evaluate_steps, find_entries, held_out_captions
from riebench.dictionaries.harvest import rows_per_prompt
from riebench.dictionaries.kept import Kept
from riebench.dictionaries.prompts import EDITS, read_prompts
from riebench.dictionaries.reconstruction import num_conditions, reconstruction_effect, summarise
from riebench.dictionaries.stability import compare_pairs, find_pairs
from riebench.generation.replacement import Scope
from riebench.generation.sampler import Sampler, load_sampler
from riebench.metrics.models import ScoringModels
from sae_models import index
from sae_models.dictionary import Dictionary
from sae_models.evaluation import geometry
from sae_models.tensors import dtype_name

OWN_ROWS = 16_384  # of each block and branch, at least, on the backbone trained on: 10,000 cannot tell rare features
SHOWN_STEPS = 6  # the most steps of a backbone that have a column, and at which alone updates are replaced


def evaluate(
    trained_on: str,
    on: Sequence[Backbone],
    prompts: int,
    images: int,
    *,
    source: str = "",
    names: Sequence[str] = (),
    root: Path | None = None,
    other: Path | None = None,
    site: str = "update",
    device: str = "auto",
    keep: Path | None = None,
) -> dict:
    """Evaluates the dictionaries of the backbone `trained_on` on that backbone and on the backbones `on`.

    prompts: how many; without a source, on `trained_on` as many more as give 16,384 rows. images: of how many of them
    images are made with updates replaced, by the dictionaries of `names`, or else those that runs use, or else all; 0
    for none. source: of the prompts, as `read_prompts` takes it; "" takes captions of held-out scenes for tinyworld,
    and for others what the dev split of the shipped edits shows, which no dictionary was trained on. names: of the
    dictionaries (default: all there are); root: of their index (default: the shipped one); site: what they code of the
    blocks; other: a folder of dictionaries of another training seed. keep: a folder where what is done is kept until
    all is, so that the same evaluation, stopped or killed, goes on from there. How long it takes is said on stderr
    first.

    Returns what JSON can hold, None for what is not defined:

    - `trained_on`, `names`, `source`, `prompts`, `images`, `first_seed`; `on`: of each backbone its name, steps,
      guidance and number of prompts;
    - `dictionaries`: of each its block, name, k and size, the fields of its `geometry`, and `on`: backbone -> `Course`;
    - `effects`: the rows of `summarise` for each backbone, `step` being the only one at which updates were replaced,
      from 1 on, or None for all steps; `dictionary` is None for zero and mean;
    - `stability`: as `compare_pairs` has it.

    Raises `UserError` where there are no such dictionaries or partners, one does not fit a backbone, or there is
    nothing to evaluate on.
    """
    if images < 0:
        raise UserError(f"images of {images} prompts cannot be made", remedy="use 0 for none, or a greater number")
    entries, where = find_entries(trained_on, names, root, site), choose_device(device)
    pairs = find_pairs(entries, root, other)
    own = BACKBONES.get(trained_on)
    texts = _prompts(source, max(prompts, images) if prompts > 0 else prompts, own.judges)
    backbones = list({backbone.name: backbone for backbone in (own, *on)}.values())
    for backbone in backbones:
        channels = channels_of(backbone, dtype_name(choose_dtype(backbone, where)))
        for entry in entries:
            index.refuse_width(entry.block, entry.width, channels.get(entry.block, entry.width), backbone.name)
    judges = _judges(backbones, where) if images else {}
    dictionaries = [index.open(entry, root=root, device=str(where)) for entry in entries]
    rows = [_describe(entry, dictionary, where) for entry, dictionary in zip(entries, dictionaries, strict=True)]
    by_name = _by_name(entries, dictionaries, names or _used_by_runs(entries))
    kept = Kept(keep and keep / _key(backbones, entries, by_name, texts, images, root, site, where))
    samplers = {own.name: load_sampler(own, where)}
    counts = dict.fromkeys([backbone.name for backbone in backbones], prompts)
    if not source:
        counts[own.name] = _own_prompts(samplers[own.name], entries, prompts)
    of_blocks = [(entry.block, dictionary) for entry, dictionary in zip(entries, dictionaries, strict=True)]
    done = {backbone.name: kept.read(f"done-{backbone.name}") for backbone in backbones}
    work = [
        _work(backbone, counts[backbone.name], images, by_name) for backbone in backbones if not done[backbone.name]
    ]
    if work:
        tell(work, samplers[own.name], of_blocks, by_name, texts[: max(prompts, 1)], judges.get(own.judges), site)
    described, effects = [], []
    for backbone in backbones:
        part = done[backbone.name]
        if part is None:
            sampler = samplers.pop(backbone.name, None) or load_sampler(backbone, where)
            shown = texts[:prompts]
            if counts[backbone.name] > prompts:
                shown = _prompts(source, counts[backbone.name], own.judges)
            sampler.batch_size = min(sampler.batch_size, len(shown))
            part = {"courses": evaluate_steps(sampler, of_blocks, shown, FIRST_SEED, site, kept), "effects": []}
            if images:
                part["effects"] = _effects(sampler, by_name, texts[:images], judges[backbone.judges], site, kept)
            kept.write(f"done-{backbone.name}", part)
        for row, course in zip(rows, part["courses"], strict=True):
            row["on"][backbone.name] = course
        effects += part["effects"]
        of_backbone = {"backbone": backbone.name, "steps": backbone.steps, "guidance": backbone.guidance}
        described.append(of_backbone | {"prompts": counts[backbone.name]})
    stability = compare_pairs(pairs, where)
    kept.clear()
    return {
        "trained_on": trained_on,
        "names": list(names),
        "source": source,
        "prompts": prompts,
        "images": images,
        "first_seed": FIRST_SEED,
        "on": described,
        "dictionaries": rows,
        "effects": effects,
        "stability": stability,
    }


def _key(
    backbones: Sequence[Backbone],
    entries: Sequence[index.Entry],
    by_name: Mapping,
    texts: Sequence[str],
    images: int,
    root: Path | None,
    site: str,
    device: torch.device,
) -> str:
    """Returns what an evaluation is known by: all that its figures depend on."""
    weights = {f"{entry.block} {entry.name}": index.fingerprint(entry, root=root) for entry in entries}
    rests_on = [
        [_described(backbone) for backbone in backbones],
        weights,
        list(by_name),
        list(texts),
        images,
        site,
        str(device),
        installed_sources(),
        library_versions(("torch", "diffusers")),
    ]
    return digest(rests_on)[:16]


def _described(backbone: Backbone) -> dict[str, object]:
    """Returns all that a backbone says of itself, its kind by where that is described and a folder by its bytes."""
    said = {field.name: getattr(backbone, field.name) for field in fields(backbone) if field.name != "family"}
    return said | {
        "family": backbone.family.at,
        "folder": folder_digest(backbone_folder(backbone)) if backbone.folder else "",
    }


def _work(backbone: Backbone, prompts: int, images: int, by_name: Mapping[str, Mapping[str, Dictionary]]) -> Work:
    """Returns what is to be done on a backbone."""
    conditions = num_conditions(by_name, _scopes(backbone), backbone.family) if images else 0
    return Work(backbone, prompts, images * (1 + conditions))


def _prompts(source: str, count: int, family: str) -> list[str]:
    if source or family != "tinyworld":
        return read_prompts(source or EDITS, count=count, seed=FIRST_SEED)
    return held_out_captions(count)


def shown_steps(count: int) -> list[int]:
    """Returns which of the steps 1 to `count` are shown: all of a few, else the first and the ends of equal parts."""
    if count <= SHOWN_STEPS:
        return list(range(1, count + 1))
    return sorted({1, *(round(count * part / (SHOWN_STEPS - 1)) for part in range(1, SHOWN_STEPS))})


def _describe(entry: index.Entry, dictionary: Dictionary, device: torch.device) -> dict:
    return {
        "block": entry.block,
        "name": entry.name,
        "k": entry.k,
        "num_features": entry.num_features,
        "geometry": asdict(geometry(dictionary, device)),
        "on": {},
    }


def _own_prompts(sampler: Sampler, entries: Sequence[index.Entry], prompts: int) -> int:
    """Returns how many prompts give `OWN_ROWS` rows of each block, but no fewer than `prompts`."""
    fewest = min(rows_per_prompt(sampler, entry.block, "cond") for entry in entries)
    return max(prompts, -(-OWN_ROWS // fewest))


def _used_by_runs(entries: Sequence[index.Entry]) -> list[str]:
    """Returns the name that runs use where none is asked for, or all names where it is not among the entries."""
    names = list(dict.fromkeys(entry.name for entry in entries))
    default = index.default_name(entries[0].backbone, entries[0].site or "update")
    return [default] if default in names else names


def _by_name(
    entries: Sequence[index.Entry], dictionaries: Sequence[Dictionary], names: Sequence[str]
) -> dict[str, dict[str, Dictionary]]:
    """Returns name -> block -> dictionary."""
    found: dict[str, dict[str, Dictionary]] = {name: {} for name in names}
    for entry, dictionary in zip(entries, dictionaries, strict=True):
        if entry.name in found:
            found[entry.name][entry.block] = dictionary
    return found


def _judges(backbones: Sequence[Backbone], device: torch.device) -> dict[str, ScoringModels]:
    """Returns family -> the networks that judge its images, loaded now: what is missing is told before long work."""
    found = {backbone.judges: ScoringModels(backbone.judges, device) for backbone in backbones}
    for models in found.values():
        for name in ("clip", "lpips"):
            models[name]
    return found


def _scopes(backbone: Backbone) -> list[Scope]:
    """Returns the scopes that are looked at: all rows and steps; each branch by itself; and each shown step by
    itself."""
    scopes = [Scope("both"), Scope("cond"), Scope("uncond")] if backbone.guided else [Scope("cond")]
    steps = shown_steps(backbone.steps) if backbone.steps > 1 else []
    return scopes + [Scope(scopes[0].branch, str(step - 1)) for step in steps]


def _effects(
    sampler: Sampler,
    dictionaries: Mapping[str, Mapping[str, Dictionary]],
    prompts: Sequence[str],
    models: ScoringModels,
    site: str,
    kept: Kept,
) -> list[dict]:
    sampler.batch_size = min(sampler.batch_size, len(prompts))
    seeds = [FIRST_SEED + i for i in range(len(prompts))]
    scopes = _scopes(sampler.backbone)
    effect = reconstruction_effect(sampler, dictionaries, prompts, seeds, models, scopes, site, kept)
    found = []
    for row in summarise(effect).to_dict("records"):
        window, recovered = row.pop("window"), row.pop("recovered")
        found.append(
            {"backbone": sampler.backbone.name}
            | row
            | {
                "dictionary": row["dictionary"] or None,
                "step": None if window == "all" else int(window) + 1,
                "recovered": None if pd.isna(recovered) else recovered,
            }
        )
    return found
