"""The verb that lists what there is: ls."""

from __future__ import annotations

from dataclasses import dataclass

from riebench.cli.flags import Verb, word
from riebench.core.errors import UserError, did_you_mean
from riebench.runs.config import RunConfig

KINDS = (
    "backbones",
    "blocks",
    "categories",
    "dictionaries",
    "edits",
    "features",
    "grounders",
    "methods",
    "metrics",
    "runs",
)


MOST = 5  # features that are named of each block
FEATURES = """
A feature is a direction of a block's update that its sparse autoencoder found; its number is a row of the decoder, and
the same number means another thing in another block or dictionary. Which ones an edit moves:
  riebench edit ORIGINAL EDITED --region NOUN          prints the numbers turned on and off in each block
and what one does by itself, in a region of a picture:
  riebench edit PROMPT PROMPT --region NOUN --method chosen --set on=up.0.1:12,55 --set strength=2"""


@dataclass(frozen=True, kw_only=True)
class Ls:
    """Holds the words of `riebench ls`."""

    kind: str = word(positional=True)
    """What is listed: backbones, blocks, categories, dictionaries, edits, features, grounders, methods, metrics or
    runs."""
    backbone: str = RunConfig.backbone
    """The backbone whose features are listed."""
    released: bool = False
    """Of dictionaries, only those that others published (riebench fetch NAME)."""


def _ls(words: Ls) -> None:
    if words.kind not in KINDS:
        raise UserError(
            f"there is nothing to list as {words.kind!r}{did_you_mean(words.kind, KINDS)}",
            remedy=f"use {', '.join(KINDS)}",
        )
    if words.released and words.kind != "dictionaries":
        raise UserError(f"no {words.kind} are listed by --released", remedy="say riebench ls dictionaries --released")
    rows = _features(words.backbone) if words.kind == "features" else _listed(words.kind, words.released)
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        print(f"{name:<{width}}  {summary}".rstrip())
    if words.kind == "features":
        print(FEATURES)


def _features(name: str) -> list[tuple[str, str]]:
    """Returns of each block of a backbone the numbers that the features of its dictionary have, and where it is known
    which are active in most pictures."""
    from riebench.backbones.table import BACKBONES
    from riebench.methods.text_index import load_text_index, text_index_path
    from sae_models import index

    rows, backbone = [], BACKBONES.get(name)
    for block in backbone.blocks:
        entry = index.find(backbone.trained_on, block)
        said = f"0 to {entry.num_features - 1} of {entry.name}"
        path = text_index_path(entry.sha256) if entry.sha256 else None
        if path and path.is_file():
            active = load_text_index(path).active
            most = active.argsort(descending=True)[:MOST].tolist()
            often = ", ".join(f"{number} ({active[number]:.0%})" for number in most)
            said += f"; {int((active > 0).sum())} are active in some picture, most often {often}"
        rows.append((block, said))
    return rows


def _listed(kind: str, released: bool) -> list[tuple[str, str]]:
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
        from sae_models.released import released_entries

        return [(entry.name, describe(entry)) for entry in (released_entries() if released else entries())]
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


VERBS = (Verb("ls", "list what there is", Ls, _ls, ("riebench ls methods", "riebench ls features")),)
