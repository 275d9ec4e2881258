"""A run: from a configuration to a folder with manifest, scores, images, summary and report."""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain, takewhile
from pathlib import Path

import pandas as pd
import torch

from riebench.analysis import summarise, write_scores
from riebench.analysis.failures import failure_sentences, failures_of
from riebench.analysis.run import FINISHED, MANIFEST, SCORES, SUMMARY, Run
from riebench.backbones.loading import choose_device, choose_dtype
from riebench.backbones.table import Backbone
from riebench.core import files
from riebench.core.claims import refuse_others
from riebench.core.errors import UserError, did_you_mean, shown
from riebench.core.interrupts import Interrupted, stopping
from riebench.core.keys import describe
from riebench.core.precision import describe_float32, set_tf32
from riebench.core.progress import Progress
from riebench.core.ray_cluster import Cluster, cluster_for
from riebench.core.scores import EDITS_KEY, Score, describe_scores
from riebench.core.text import one_line
from riebench.core.versions import library_version
from riebench.edits.checks import check_edits, checked_edits
from riebench.edits.edit import Edit, edit_sha256, set_sha256, shipped_sets
from riebench.edits.files import error_of
from riebench.edits.sets import describe_set
from riebench.methods.method import Method, sees_edited_image
from riebench.metrics import describe as describe_metrics
from riebench.metrics.versions import judge_version
from riebench.regions.grounders import grounder_settings
from riebench.report import write_report
from riebench.runs.config import RunConfig
from riebench.runs.dictionaries import check_dictionaries
from riebench.runs.edits import choose_edits, describe_choice, suits
from riebench.runs.engine import GROUP
from riebench.runs.limits import refuse_impossible
from riebench.runs.local import work_here
from riebench.runs.needs import leave_out
from riebench.runs.places import edits_of_run
from riebench.runs.plan import Task, plan, plan_variants
from riebench.runs.ray import work_on_cluster
from riebench.runs.resume import CACHE_MODES, find_missing, rescored, with_pictures
from riebench.runs.setup import Setup
from riebench.runs.store import Store
from sae_models.tensors import dtype_name


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
    `address`. device: of this machine, or with Ray of the workers, whatever this machine has (`ray_cluster`). compile:
    the denoiser and the decoder with torch.compile. Raises `UserError` before anything is generated where a name, a
    file or the folder is wrong, and `Interrupted` when the user stops it.
    """
    out = files.named_path(out)
    refuse_others(out, "run directory")
    if cache not in CACHE_MODES:
        remedy = f"use {', '.join(CACHE_MODES)}"
        raise UserError(f"unknown cache mode {cache!r}{did_you_mean(cache, CACHE_MODES)}", remedy=remedy)
    with cluster_for(engine, device, address) as cluster:
        return _run(config, out, device, methods, edits, cache, reuse, cluster, compile)


def _run(
    config: RunConfig,
    out: Path,
    device: str,
    methods: Sequence[Method],
    edits: Sequence[Edit] | None,
    cache: str,
    reuse: Sequence[Path],
    cluster: Cluster | None,
    compile: bool,
) -> Run:
    """Does what `run` does, on a cluster or, where that is None, here."""
    clock = time.monotonic()
    where = torch.device(cluster.device) if cluster else choose_device(device)
    asked = _asked(config, where, methods, edits)
    set_tf32(where.type, products=asked.setup.rules.tf32_products)
    with Store(out) as store, stopping() as wish:
        for folder in reuse:
            items = (item for task in asked.tasks for item in (*task.shared, *task.wanted))
            store.adopt(Path(folder), {item.recipe: item.code for item in items})
        for sentence in store.damage:
            print(f"riebench: {sentence}", file=sys.stderr)
        missing, unscored = find_missing(asked.tasks, store, cache, asked.scoring)
        made = sum(len(task.wanted) for task in missing)
        todo, whole = made + len(unscored), len(asked.recipes)
        if cache == "only-cache" and todo:
            raise UserError(f"{todo} of {whole} results are not in {out}", remedy="use --cache only-missing")
        files.write_json(out / MANIFEST, asked.manifest | {"status": "running"})

        setup, family, stop = asked.setup, asked.backbone.judges, lambda: wish.stop
        options = {"batch_size": config.batch_size, "setup": setup, "compiled": compile}
        of = {"keep_marks": setup.keeps_marks, "names": asked.metrics, "batch_size": config.batch_size}
        here = choose_device("cpu" if where.type == "cpu" else "auto")  # with Ray this machine may have no GPU
        batches = [rescored(unscored, family, here, store, asked.scoring, stop, **of)]
        if missing and cache != "only-cache":
            groups = _groups(missing, store, cache)
            if cluster:
                groups = takewhile(lambda _: not wish.stop, groups)
                batches.append(work_on_cluster(groups, asked.scoring, asked.backbone, cluster, options))
            else:
                batches.append(work_here(groups, asked.scoring, asked.backbone, where.type, options, stop))
        forwards = 0.0
        with Progress("generating and scoring", whole, whole - todo, "result") as progress:
            for batch in chain.from_iterable(batches):
                store.add(batch)
                forwards += batch.forwards
                progress.update(progress.done + sum("method" in row for row in batch.rows))
        if progress.done < whole:
            store.flush()
            files.write_json(out / MANIFEST, asked.manifest | {"status": "interrupted"})
            raise Interrupted(
                f"stopped with {progress.done} of {whole} results in {out}; the same command"
                f"{' without --cache never' if cache == 'never' else ''} goes on from there"
            )
        manifest = asked.manifest | {"status": FINISHED, "results": whole, "made": made, "forwards": round(forwards, 1)}
        manifest["seconds"] = round(time.monotonic() - clock, 1)
        scores = _scores(store, asked)
        store.check_there()
        write_scores(scores, store.folder / SCORES)
        return _finish(store.folder, scores, manifest, asked.edits, store.check_there)


@dataclass(frozen=True)
class _Asked:
    """What a run is to do, checked and planned before anything is generated."""

    backbone: Backbone
    setup: Setup
    edits: list[Edit]
    about: dict
    """What is said of the set that the edits are out of."""
    tasks: list[Task]
    metrics: tuple[str, ...]
    described: tuple[Score, ...]
    """What the table of results is to say of them."""
    scoring: str
    """The version of what scores."""
    manifest: dict

    @property
    def recipes(self) -> list[str]:
        """The keys of all results, in the order of the plan."""
        return [wanted.recipe for task in self.tasks for wanted in task.wanted]


def _asked(config: RunConfig, where: torch.device, methods: Sequence[Method], edits: Sequence[Edit] | None) -> _Asked:
    """Returns what a configuration asks for, on a kind of device, which this machine need not have. Raises `UserError`
    for all that can be seen to be wrong before anything is generated."""
    backbone = config.open_backbone()
    setup = config.setup(dtype_name(choose_dtype(backbone, where, config.dtype)))
    fits = suits(backbone, setup.dtype, setup.rules.read_phrase)
    known = checked_edits(config.edits, fits) if edits is None else list(edits)
    if edits is not None and (problems := check_edits(known, suits=fits)):
        raise error_of(Path("the edits given"), problems)
    if edits is None:
        about = describe_set(config.edits, known)
    else:
        about = {"name": "given in Python", "sha256": set_sha256(known)}
    chosen = choose_edits(known, config)
    own = edits is not None or config.edits not in shipped_sets()
    if left := describe_choice(known, chosen, config, own=own):
        print(f"riebench: {left}", file=sys.stderr)
    wanted = [*config.subsets_of, *(method.name for method in methods)]
    all_methods, left_out = leave_out([*config.build_methods(), *methods], backbone, setup, wanted)
    for method in all_methods:
        refuse_impossible(method, backbone, setup)
    for one in left_out:
        print(f"riebench: {one.method} is left out: {one.why}", file=sys.stderr)
    for name in (method.name for method in all_methods):
        if name != one_line(name):
            raise UserError(f"the method's name {shown(name)} is no line of text", remedy="leave out what is not shown")
    settings = [(method.name, method.strength) for method in all_methods]
    if len(set(settings)) != len(settings):
        words = ", ".join(f"{name} at {strength}" for name, strength in settings)
        raise UserError(f"two methods share name and strength: {words}", remedy="give one a label, or its own name")
    cases = [(edit, seed) for edit in chosen for seed in config.seeds]
    variants = plan_variants(all_methods, config.subsets_of, backbone.blocks)
    tasks = plan(backbone, cases, variants, setup, known, where.type)
    check_dictionaries(all_methods, backbone, setup)
    names = setup.metric_names(backbone.judges)
    described = describe_metrics(names, backbone.judges, keep_marks=setup.keeps_marks)
    scoring = judge_version(names, backbone.judges, keep_marks=setup.keeps_marks)
    manifest = _describe(config, about, chosen, all_methods, backbone.blocks, where.type)
    manifest |= {"left_out": [dataclasses.asdict(one) for one in left_out]}
    manifest |= {"scoring": scoring, "setup": _words(setup, backbone)}
    manifest |= {"planted": backbone.planted_blocks(dict.fromkeys(edit.category for edit in chosen))}
    manifest |= describe_float32(where.type, products=setup.rules.tf32_products)
    return _Asked(backbone, setup, chosen, about, tasks, names, described, scoring, manifest)


def _groups(tasks: Sequence[Task], store: Store, cache: str) -> Iterator[list[Task]]:
    """Yields the tasks in groups of `GROUP`, with the pictures that are there already."""
    for start in range(0, len(tasks), GROUP):
        yield [with_pictures(task, store, cache) for task in tasks[start : start + GROUP]]


def _scores(store: Store, asked: _Asked) -> pd.DataFrame:
    """Returns the table of all results, which says what its scores and its edits are."""
    hashes = {edit.id: edit_sha256(edit) for edit in asked.edits}
    scores = store.frame(asked.recipes)
    scores = describe_scores(scores.assign(edit_sha256=scores["edit"].map(hashes)), asked.described)
    scores.attrs[EDITS_KEY] = asked.about
    return scores


def report_again(folder: Path, edits: str | Path = "") -> Run:
    """Makes summary and report of a finished run anew, from its `scores.parquet`.

    edits: where the run's edits are now; "" looks where they were. Raises `UserError` for a folder without a finished
    run, and for edits that are not there.
    """
    found = Run.open(folder)
    return _finish(found.folder, found.scores, found.manifest, edits_of_run(found.manifest, edits))


def _finish(
    folder: Path,
    scores: pd.DataFrame,
    manifest: dict,
    edits: Sequence[Edit],
    check_there: Callable[[], None] = lambda: None,
) -> Run:
    """Writes summary, report and manifest, and says on stderr which methods failed. check_there: raises where the run
    directory has vanished."""
    config = manifest["config"]
    failures = failures_of(scores)
    for sentence in failure_sentences(failures, len(scores[["method", "strength"]].drop_duplicates())):
        print(f"riebench: {sentence}", file=sys.stderr)
    of_run = {"method": config["subsets_of"], "resamples": config["resamples"], "planted": manifest.get("planted", {})}
    summary = summarise(scores, tuple(manifest["blocks"]), **of_run)
    prompts = {edit.id: (edit.original_prompt, edit.edited_prompt) for edit in edits}
    for write in (
        lambda: files.write_json(folder / SUMMARY, summary, sort_keys=False),
        lambda: write_report(folder, summary, scores, manifest, prompts=prompts),
        lambda: files.write_json(folder / MANIFEST, manifest),
    ):
        check_there()
        write()
    return Run.open(folder)


def _describe(
    config: RunConfig, about: dict, edits: list[Edit], methods: list[Method], blocks: Sequence[str], device: str
) -> dict:
    """Returns what the manifest says before anything is made. about: what is said of the set that the edits are out
    of."""
    return {
        "config": dataclasses.asdict(config),
        "mode": config.mode,
        "edits": {"count": len(edits), "sha256": set_sha256(edits), "set": about},
        "methods": [_settings(method) for method in methods],
        "blocks": list(blocks),
        "device": device,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in ("riebench", "torch", "diffusers", "transformers")},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _words(setup: Setup, backbone: Backbone) -> dict:
    """Returns what the manifest says of a setup, with all settings of the grounder."""
    grounder = {"name": backbone.grounder, **grounder_settings(backbone.grounder, setup.grounder)}
    return dataclasses.asdict(setup) | {"grounder": grounder}


def _version(package: str) -> str:
    try:
        return library_version(package)
    except metadata.PackageNotFoundError:  # riebench itself, run from a clone
        return "not installed"


def _settings(method: Method) -> dict:
    """Returns what the manifest says of a method, in what JSON can hold."""
    said = {"name": method.name, "strength": method.strength, "sees_edited_image": sees_edited_image(method)}
    return describe(method) | said
