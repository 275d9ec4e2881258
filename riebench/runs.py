"""A run: from a configuration to a folder with manifest, scores, images, summary and report."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain, takewhile
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from riebench import files
from riebench.analysis import summarise, write_scores
from riebench.backbones import BACKBONES, BLOCK_NAMES
from riebench.cluster import work_on_cluster
from riebench.config import RunConfig
from riebench.edits import CATEGORY_NAMES, Edit, load_edits
from riebench.engine import GROUP, from_array, regions_from_array, to_array
from riebench.errors import UserError, did_you_mean
from riebench.interrupts import Interrupted, stopping
from riebench.methods import Method
from riebench.metrics import METRICS
from riebench.plan import Task, Wanted, plan, plan_variants
from riebench.progress import Progress
from riebench.report import write_report
from riebench.sampling import choose_device
from riebench.scoring import Pictures, Scorer, eight_bits
from riebench.store import Batch, Store, read_picture
from riebench.versions import judge_version
from riebench.workers import work_here

#: Which results of a run directory are taken and which are made.
CACHE_MODES = {
    "only-missing": "what is there is taken, the rest is made",
    "always": "the same, and what another version of the code made is taken too",
    "never": "nothing that is there is taken: everything is made again",
    "only-cache": "nothing is made: tables and report of what is there, or an error where something is missing",
}
ENGINES = ("local", "ray")
RESCORED = 64  # results that are read and scored together


@dataclass(frozen=True)
class Run:
    """A finished run, and where its files are."""

    folder: Path
    manifest: dict
    scores: pd.DataFrame
    summary: dict

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def run(
    config: RunConfig,
    out: Path,
    *,
    device: str = "auto",
    methods: Sequence[Method] = (),
    edits: Sequence[Edit] | None = None,
    cache: str = "only-missing",
    reuse: Sequence[Path] = (),
    engine: str = "local",
    address: str | None = None,
    compile: bool = False,
) -> Run:
    """Does what the configuration asks and writes the run directory; what is there already is not made again.

    methods: further methods of one's own, beside the configured ones. edits: edits of one's own in place of the
    configured set. cache: which results of the directory are taken, see `CACHE_MODES`. reuse: other run directories,
    whose results with equal keys are taken over. engine: "local", or "ray" for a worker on each GPU of the cluster at
    `address`. compile: the U-Net and the decoder with torch.compile. Raises `UserError` before anything is generated
    where a name, a file or the folder is wrong, and `Interrupted` when the user stops it.
    """
    out = Path(out)
    if cache not in CACHE_MODES:
        raise UserError(
            f"unknown cache mode {cache!r}{did_you_mean(cache, CACHE_MODES)}", remedy=f"use {', '.join(CACHE_MODES)}"
        )
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}{did_you_mean(engine, ENGINES)}", remedy=f"use {', '.join(ENGINES)}")
    backbone, where = BACKBONES.get(config.backbone), choose_device(device)
    chosen = choose_edits(load_edits(config.edits) if edits is None else list(edits), config)
    all_methods = [*(method.build() for method in config.methods), *methods]
    settings = [(method.name, method.strength) for method in all_methods]
    if len(set(settings)) != len(settings):
        shown = ", ".join(f"{name} at {strength}" for name, strength in settings)
        raise UserError(f"two methods share name and strength: {shown}", remedy="give each its own name")
    cases = [(edit, seed) for edit in chosen for seed in config.seeds]
    tasks = plan(backbone, cases, plan_variants(all_methods, config.subsets_of), config.mask_rule)
    recipes = [wanted.recipe for task in tasks for wanted in task.wanted]
    judges = judge_version(METRICS.names(), backbone.judges)

    clock = time.monotonic()
    manifest = _describe(config, chosen, all_methods, where.type) | {"judges": judges}
    with Store(out) as store, stopping() as wish:
        for folder in reuse:
            store.adopt(Path(folder), recipes)
        for sentence in store.damage:
            print(f"riebench: {sentence}", file=sys.stderr)
        missing, unscored = _missing(tasks, store, cache, judges)
        made = sum(len(task.wanted) for task in missing)
        todo = made + len(unscored)
        if cache == "only-cache" and todo:
            raise UserError(f"{todo} of {len(recipes)} results are not in {out}", remedy="use --cache only-missing")
        files.write_json(out / "manifest.json", manifest | {"status": "running"})
        options = {"batch_size": config.batch_size, "mask_rule": config.mask_rule, "compiled": compile}
        groups = (missing[start : start + GROUP] for start in range(0, len(missing), GROUP))
        wished = takewhile(lambda _: not wish.stop, groups)
        make, more = (work_here, ()) if engine == "local" else (work_on_cluster, (address,))
        generated = make(wished, judges, backbone, where.type, options, *more) if missing else ()
        forwards = 0.0
        with Progress("generating and scoring", len(recipes), len(recipes) - todo, "result") as progress:
            for batch in chain(_rescored(unscored, backbone.judges, where, store, judges), generated):
                store.add(batch)
                forwards += batch.forwards
                progress.update(progress.done + len(batch.rows))
        if progress.done < len(recipes):
            store.flush()
            files.write_json(out / "manifest.json", manifest | {"status": "interrupted"})
            raise Interrupted(
                f"stopped with {progress.done} of {len(recipes)} results in {out}; the same command goes on from there"
            )
        scores = store.frame(recipes)
        write_scores(scores, out / "scores.parquet")
        summary = summarise(scores, BLOCK_NAMES, method=config.subsets_of, resamples=config.resamples)
        files.write_json(out / "summary.json", summary)
        manifest |= {
            "status": "finished",
            "seconds": round(time.monotonic() - clock, 1),
            "results": len(recipes),
            "made": made,
            "unet_forwards": round(forwards, 1),
        }
        files.write_json(out / "manifest.json", manifest)
        prompts = {edit.id: (edit.original_prompt, edit.edited_prompt) for edit in chosen}
        write_report(out, summary, scores, manifest, prompts=prompts)
    return Run(out, manifest, scores, summary)


def _missing(
    tasks: Sequence[Task], store: Store, cache: str, judges: str
) -> tuple[list[Task], list[tuple[Task, Wanted]]]:
    """(Tasks with what must be generated, results that are there and must only be scored)."""
    missing, unscored = [], []
    for task in tasks:
        absent = []
        for wanted in task.wanted:
            row = store.row(wanted.recipe) if cache != "never" else None
            if row is None or (row["code"] != wanted.code and cache != "always"):
                absent.append(wanted)
            elif row["judges"] != judges and _has_pictures(task, store.folder):
                unscored.append((task, wanted))
            elif row["judges"] != judges:
                absent.append(wanted)
        if absent:
            missing.append(dataclasses.replace(task, wanted=tuple(absent)))
    return missing, unscored


def choose_edits(edits: list[Edit], config: RunConfig) -> list[Edit]:
    """The first `edits_per_category` edits of each asked category. Raises `UserError` where none is left."""
    chosen = []
    for category in CATEGORY_NAMES:
        if category in config.categories:
            of_category = [edit for edit in edits if edit.category == category]
            chosen += of_category[: config.edits_per_category or None]
    if not chosen:
        raise UserError("no edit of the asked categories is in the edit set", remedy="ask for other categories")
    return chosen


def _rescored(
    items: Sequence[tuple[Task, Wanted]], family: str, device: torch.device, store: Store, judges: str
) -> Iterator[Batch]:
    """The rows of results that are there, with new scores of the same pictures."""
    scorer = Scorer(family, device) if items else None
    for start in range(0, len(items), RESCORED):
        rows, to_score = {}, []
        for task, wanted in items[start : start + RESCORED]:
            row = store.row(wanted.recipe)
            rows[wanted.recipe] = row | {"judges": judges}
            if row["image"]:
                image = from_array(read_picture(store.folder / row["image"]))
                to_score.append((wanted.recipe, (task.edit, _pictures(task, store.folder), image)))
        scores = scorer.score([item for _, item in to_score])
        for (recipe, _), found in zip(to_score, scores, strict=True):
            rows[recipe] |= found
        yield Batch(list(rows.values()), {})


def _pictures(task: Task, folder: Path) -> Pictures:
    """The reference pictures of a case as they are on disk. Raises `UserError` where one is missing or broken."""
    original, edited, regions = (read_picture(folder / path) for path in (task.original, task.edited, task.regions))
    return Pictures(from_array(original), from_array(edited), regions_from_array(regions))


def _has_pictures(task: Task, folder: Path) -> bool:
    try:
        _pictures(task, folder)
    except UserError:
        return False
    return True


def to_picture(image_chw: torch.Tensor) -> Image.Image:
    """A PIL image of a float tensor `[3, h, w]` in [0, 1]."""
    return Image.fromarray(to_array(eight_bits(image_chw)))


def _describe(config: RunConfig, edits: list[Edit], methods: list[Method], device: str) -> dict:
    text = "\n".join(repr(edit) for edit in edits)
    return {
        "config": dataclasses.asdict(config),
        "mode": "strict",
        "edits": {"count": len(edits), "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "methods": [_settings(method) for method in methods],
        "blocks": list(BLOCK_NAMES),
        "device": device,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in ("riebench", "torch", "diffusers", "transformers")},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # riebench itself, run from a clone
        return "not installed"


def _settings(method: Method) -> dict:
    settings = dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {}
    return settings | {"name": method.name, "strength": method.strength}
