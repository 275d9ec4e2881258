"""Verbs of dictionaries: harvest, train, convert, publish, index-text, evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from riebench.cli.flags import Verb, word
from riebench.core.json_text import json_text
from riebench.dictionaries.options import BACKBONE, EvaluateSettings, HarvestSettings, TrainSettings


def _harvest(settings: HarvestSettings) -> None:
    import torch

    from riebench.backbones.loading import choose_device, choose_dtype
    from riebench.backbones.table import BACKBONES
    from riebench.core.ray_cluster import cluster_for
    from riebench.dictionaries.harvest import harvest_to_store
    from riebench.dictionaries.prompts import read_prompts
    from riebench.dictionaries.ray_harvest import harvest_on_cluster
    from riebench.generation.sampler import load_sampler
    from sae_models.activation_store import refuse_other_store

    refuse_other_store(settings.out)
    backbone, size = BACKBONES.get(settings.backbone), settings.batch_size
    blocks = backbone.family.in_order(settings.blocks or backbone.blocks)
    prompts = read_prompts(
        settings.prompts,
        column=settings.column,
        count=settings.count,
        seed=settings.seed,
        family=backbone.judges,
    )
    words = blocks, prompts, settings.seed, settings.out
    of = {"branch": settings.branch, "site": settings.site or backbone.family.default_site}
    with cluster_for(settings.engine, settings.device, settings.address) as cluster:
        device = torch.device(cluster.device) if cluster else choose_device(settings.device)
        dtype = choose_dtype(backbone, device, settings.dtype)
        if cluster:
            store = harvest_on_cluster(cluster, backbone, *words, dtype=dtype, batch_size=size, **of)
        else:
            store = harvest_to_store(load_sampler(backbone, device, size, dtype), *words, **of)
    print(f"{len(prompts)} prompts, {sum(store.rows.values())} vectors of {', '.join(store.blocks)}: {settings.out}")


def _train(settings: TrainSettings) -> None:
    from riebench.core.claims import refuse_others
    from riebench.core.ray_cluster import cluster_for
    from riebench.dictionaries.settings import defaults_for, generated_data, make_config, make_grid, stored_data
    from riebench.dictionaries.train import train_dictionaries

    refuse_others(settings.out, "folder of dictionaries")
    with cluster_for(settings.engine, settings.device, settings.address) as cluster:
        common = {"seed": settings.seed, "device": settings.device, "cluster": cluster}
        if settings.store:
            data = stored_data(settings.store, settings.blocks, backbone=settings.backbone, **common)
        else:
            buffer = {"buffer_rows": settings.buffer_rows} if settings.buffer_rows is not None else {}
            words = _taken(settings, "prompts", "column", "count", "branch", "site")
            data = generated_data(settings.backbone or BACKBONE, settings.blocks, **words, **buffer, **common)
        defaults = defaults_for(data.backbone)
        how = _taken(settings, "steps", "batch_size", "lr", "normalisation", "compute", "compile")
        config, batch_size = make_config(defaults, data, **how)
        which = ("architecture", "k", "weights", "expansions", "prefixes", "seeds", "revival", "dead_after")
        grid = make_grid(defaults, **_taken(settings, *which))
        where = _taken(settings, "checkpoint_every", "trackers")
        train_dictionaries(data, grid, settings.out, config, batch_size, cluster=cluster, **where)


def _taken(settings: TrainSettings, *names: str) -> dict:
    """Returns the values of some of the settings."""
    return {name: getattr(settings, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Holds the words of `riebench convert`."""

    source: Path = word(positional=True)
    """A checkpoint of SAELens, sparsify, dictionary_learning, sdxl-unbox, or one that was published for FLUX."""
    out: Path = word(positional=True)
    """Folder to write."""
    to: str = "saelens"
    """The layout: saelens, which is ours, or sparsify."""


def _convert(words: Convert) -> None:
    from sae_models.convert import convert

    sha256 = convert(words.source, words.out, to=words.to)
    print(f"{words.out}  weights sha256 {sha256}")


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Holds the words of `riebench publish`."""

    folder: Path = word(positional=True)
    """A checkpoint, or a folder that riebench train wrote."""
    repo: str = word(positional=True)
    """The repository, owner/name, on the Hub."""
    private: bool = False
    """Make it a private repository."""


def _publish(words: Publish) -> None:
    from sae_models.publish import publish

    print(publish(words.folder, words.repo, private=words.private))


@dataclass(frozen=True, kw_only=True)
class IndexText:
    """Holds the words of `riebench index-text`."""

    backbone: str = BACKBONE
    """A name out of `riebench ls backbones`."""
    prompts: str = "4096"
    """How many: captions of tinyworld, or what the dev split of the shipped edits shows; or a file, as in riebench
    harvest."""
    blocks: tuple[str, ...] = ()
    """The blocks, comma-separated (default: all four)."""
    dictionary: str = ""
    """Name of the dictionaries (default: those that runs use)."""
    dictionaries: str = ""
    """Folder of your own dictionaries (default: the shipped and released ones)."""
    site: Literal["", "update", "stream"] = ""
    """What they read of a block: update, or stream (default: what the backbone's dictionaries read)."""
    out: Path | None = None
    """Folder to write to (default: your cache, where runs look)."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""


def _index_text(words: IndexText) -> None:
    from riebench.dictionaries.text_index import index_text

    how = {name: getattr(words, name) for name in ("blocks", "dictionary", "dictionaries", "site")}
    prompts = int(words.prompts) if words.prompts.isdecimal() else words.prompts
    for path in index_text(words.backbone, prompts, words.out, words.device, **how).values():
        print(path)


def _evaluate(settings: EvaluateSettings) -> None:
    from riebench.backbones.table import BACKBONES
    from riebench.core.claims import begins, claim_file
    from riebench.core.files import write_text
    from riebench.dictionaries.evaluate import evaluate
    from riebench.dictionaries.tables import HEAD, format_markdown, format_tables
    from riebench.methods.text_index import cache_folder

    out = settings.out and claim_file(settings.out, begins(HEAD))

    others = ("tinyworld-turbo@4", "tinyworld-base@25") if settings.trained_on.startswith("tinyworld") else ()
    found = evaluate(
        settings.trained_on,
        [BACKBONES.get(name) for name in (others if settings.on is None else settings.on)],
        settings.count,
        settings.images,
        source=settings.prompts,
        names=settings.dictionary,
        root=settings.dictionaries,
        other=settings.other,
        site=settings.site,
        device=settings.device,
        keep=cache_folder().parent / "evaluations",
    )
    if out:
        write_text(out, format_markdown(found))
    print(json_text(found, indent=2) if settings.json else format_tables(found))


VERBS = (
    Verb(
        "harvest",
        "generate, and store what the blocks add to their inputs",
        HarvestSettings,
        _harvest,
        (
            "riebench harvest --out store --count 4096",
            "riebench harvest --out store --backbone sdxl-turbo@1 --prompts prompts.txt --blocks mid.0,up.0.1",
        ),
    ),
    Verb(
        "train",
        "train sparse autoencoders on a backbone's block updates",
        TrainSettings,
        _train,
        ("riebench train --out saes", "riebench train --out saes --store store --k 10,20,40 --width 4 --seeds 0,1,2"),
    ),
    Verb(
        "convert",
        "write another package's SAE checkpoint in our layout, or back",
        Convert,
        _convert,
        ("riebench convert checkpoint ours", "riebench convert ours theirs --to sparsify"),
    ),
    Verb(
        "publish",
        "upload an SAE checkpoint, or a folder of them, to the Hugging Face Hub",
        Publish,
        _publish,
        ("riebench publish saes owner/name", "riebench publish saes owner/name --private"),
    ),
    Verb(
        "index-text",
        "learn which features go with which words, for text-selected",
        IndexText,
        _index_text,
        ("riebench index-text --backbone sdxl-turbo@1", "riebench index-text --prompts prompts.txt --out text_index"),
    ),
    Verb(
        "evaluate",
        "what dictionaries are worth: in figures, at other steps and on other models, in the images",
        EvaluateSettings,
        _evaluate,
        (
            "riebench evaluate --dictionaries saes --other saes-of-another-seed",
            "riebench evaluate --on tinyworld-turbo@4 --count 64 --images 4 --json",
        ),
    ),
)
