"""The verb that lists what there is: ls."""

from __future__ import annotations

from dataclasses import dataclass

from riebench.cli.flags import Verb, word
from riebench.core.errors import UserError, did_you_mean

KINDS = ("backbones", "blocks", "categories", "dictionaries", "edits", "grounders", "methods", "metrics", "runs")


@dataclass(frozen=True, kw_only=True)
class Ls:
    """Holds the words of `riebench ls`."""

    kind: str = word(positional=True)
    """What is listed: backbones, blocks, categories, dictionaries, edits, grounders, methods, metrics or runs."""


def _ls(words: Ls) -> None:
    if words.kind not in KINDS:
        raise UserError(
            f"there is nothing to list as {words.kind!r}{did_you_mean(words.kind, KINDS)}",
            remedy=f"use {', '.join(KINDS)}",
        )
    rows = _listed(words.kind)
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        print(f"{name:<{width}}  {summary}".rstrip())


def _listed(kind: str) -> list[tuple[str, str]]:
    if kind == "blocks":
        from riebench.backbones.sdxl import SDXL

        return [(block, place.path) for block, place in SDXL.places.items()]
    if kind == "categories":
        from riebench.edits.edit import CATEGORIES

        return [(category.name, f"{category.id}  {category.title}") for category in CATEGORIES]
    if kind == "runs":
        return _runs()
    if kind == "edits":
        from riebench.edits.edit import load_edits, shipped_sets

        return [(name, f"{len(load_edits(name))} edits") for name in shipped_sets()]
    if kind == "dictionaries":
        from sae_models.index import describe, entries

        return [(entry.name, describe(entry)) for entry in entries()]
    registry = _registries()[kind]
    return [(name, registry.summary(name)) for name in registry.names()]


def _runs() -> list[tuple[str, str]]:
    """Returns the shipped runs of each kind of backbone, as one asks for them."""
    from riebench.runs.config import PRESETS, preset_names, read_config

    rows = []
    for kind in sorted((path.name for path in PRESETS.iterdir()), reverse=True):  # tinyworld first
        for name in preset_names(kind):
            config = read_config(str(PRESETS / kind / f"{name}.yaml"))
            default = read_config(name) == config
            asked = name if default else f"{name} --backbone {config.backbone}"
            seeds = ", ".join(map(str, config.seeds))
            rows.append((asked, f"{config.backbone}, {config.mode}, {len(config.methods)} methods, seeds {seeds}"))
    return rows


def _registries() -> dict:
    from baselines import METHODS
    from riebench.backbones.table import BACKBONES
    from riebench.metrics import METRICS
    from riebench.regions.grounders import GROUNDERS

    return {"backbones": BACKBONES, "grounders": GROUNDERS, "methods": METHODS, "metrics": METRICS}


VERBS = (Verb("ls", "list what there is", Ls, _ls, ("riebench ls methods", "riebench ls dictionaries")),)
