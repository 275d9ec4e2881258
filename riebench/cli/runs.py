"""Verbs of runs: run, edit, score, compare, dominance, agreement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml

from riebench.cli.flags import Verb, word
from riebench.core.errors import UserError
from riebench.core.values import Seed
from riebench.runs.config import RunConfig, read_config, setting_kinds

#: Fields of a RunConfig that are flags of `riebench run`.
OVERRIDES = (
    "backbone",
    "edits",
    "split",
    "categories",
    "edits_per_category",
    "seeds",
    "mode",
    "dtype",
    "dictionaries",
    "batch_size",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Holds the words of `riebench run`, beside the fields of a RunConfig."""

    name: str = word(positional=True)
    """A shipped run (riebench ls runs) or a YAML file."""
    out: Path | None = None
    """Folder for the results (default: runs/<name>)."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""
    cache: str = "only-missing"
    """Which results in the folder are taken. only-missing: those that this version of the code made; the rest is made.
    always: also those of another version. never: none. only-cache: nothing is made."""
    reuse: tuple[Path, ...] = word((), repeat=True)
    """Another run's folder to take results from; repeatable."""
    engine: str = "local"
    """What does the work: local, or ray: a worker for each GPU of a cluster."""
    address: str | None = None
    """Address of a running Ray cluster, or auto (default: start one on this machine)."""
    compile: bool = False
    """Compile the denoiser and the decoder with torch.compile."""


def _run(words: Run, overrides: Mapping[str, Any]) -> None:
    config = read_config(words.name, overrides)

    from riebench.analysis import block_table
    from riebench.runs.run import run

    done = run(
        config,
        words.out or Path("runs") / Path(words.name).stem,
        device=words.device,
        cache=words.cache,
        reuse=words.reuse,
        engine=words.engine,
        address=words.address,
        compile=words.compile,
    )
    made = f"{done.manifest['made']} made now, {done.manifest['forwards']:.0f} forwards"
    print(f"\n{block_table(done.summary)}\n")
    print(f"{done.manifest['results']} results in {done.manifest['seconds']:.0f} s ({made})")
    print(f"report: {done.report.resolve()}")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Holds the words of `riebench edit`."""

    original: str = word(positional=True)
    """The prompt of the picture that is to be changed."""
    edited: str = word(positional=True)
    """The prompt of the picture as you want it."""
    region: str = "everything"
    """Where: a noun in the picture, everything, background, 'not NOUN', or mask:FILE."""
    edited_region: str | None = None
    """The same for the edited picture, where it differs."""
    method: str = "sae"
    """A name out of `riebench ls methods`."""
    settings: tuple[str, ...] = word((), flag="set", repeat=True, metavar="KEY=VALUE")
    """A setting of the method, as strength=2 or on=up.0.1:12,55; repeatable."""
    blocks: tuple[str, ...] = ()
    """The blocks, comma-separated (default: all four)."""
    seed: Seed = 42
    """Seed of the noise."""
    backbone: str = RunConfig.backbone
    """A name out of `riebench ls backbones`."""
    dictionaries: str = ""
    """Folder of your own dictionaries (default: the shipped and released ones)."""
    out: Path = Path("edit.png")
    """The strip."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""


def _edit(words: Edit) -> None:
    settings = _settings(words.method, words.settings)

    from riebench.api import edit
    from riebench.backbones.table import BACKBONES
    from riebench.metrics import default_metrics, describe

    done = edit(
        words.original,
        words.edited,
        region=words.region,
        edited_region=words.edited_region,
        method=words.method,
        blocks=words.blocks,
        seed=words.seed,
        backbone=words.backbone,
        dictionaries=words.dictionaries,
        device=words.device,
        **settings,
    )
    words.out.parent.mkdir(parents=True, exist_ok=True)
    done.strip().save(words.out)
    for block, sides in done.features.items():
        for side, numbers in sides.items():
            print(f"{block} {side}: {', '.join(map(str, numbers)) or 'none'}")
    judges = BACKBONES.get(words.backbone).judges
    for score in describe(default_metrics(judges), judges):
        print(f"{score.label:<30} {done.scores[score.name]:.3f}")
    print(f"strip: {words.out.resolve()}")


def _settings(method: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Returns the settings that `--set` names, read as the method's dataclass has them."""
    pairs = [word.partition("=") for word in words]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"--set {key!r} sets nothing", remedy="write it as --set strength=2")
    kinds = (pairs and setting_kinds(method)) or {}
    return {key: _plain(value, kinds.get(key, Any)) for key, _, value in pairs}


def _plain(text: str, kind: Any) -> Any:
    """Returns text where a setting is text, and else what YAML reads in it."""
    if kind is str or get_origin(kind) is Literal or ":" in text:
        return text
    try:
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text


@dataclass(frozen=True, kw_only=True)
class Score:
    """Holds the words of `riebench score`."""

    run: Path = word(positional=True)
    """Folder of a finished run."""
    metrics: tuple[str, ...]
    """The metrics, comma-separated (riebench ls metrics)."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""
    engine: str = "local"
    """What does the work: local, or ray: a scorer on each GPU of a cluster."""
    address: str | None = None
    """Address of a running Ray cluster, or auto (default: start one on this machine)."""


def _score(words: Score) -> None:
    from riebench.runs.rescore import score_run
    from riebench.runs.run import report_again

    score_run(words.run, words.metrics, words.device, engine=words.engine, address=words.address)
    print(f"report: {report_again(words.run).report.resolve()}")


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Holds the words of `riebench compare`."""

    runs: tuple[Path, ...] = word(positional=True)
    """Folders of finished runs on the same edits and seeds."""
    against: str = ""
    """The method that all others are compared with, as sae or dense@2."""
    metrics: tuple[str, ...] = ()
    """The metrics, comma-separated (default: gain, preservation and the oracle)."""
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """Folder to write compare.md, compare.csv and compare.json to."""


def _compare(words: Compare) -> None:
    from riebench.analysis.compare import compare_runs, compare_table, write_compare

    found = compare_runs(words.runs, against=words.against, metrics=words.metrics)
    if words.out:
        write_compare(found, words.out)
    print(json.dumps(found, indent=2, allow_nan=False) if words.json else compare_table(found))


@dataclass(frozen=True, kw_only=True)
class Dominance:
    """Holds the words of `riebench dominance`."""

    runs: tuple[Path, ...] = word(positional=True)
    """Folders of finished runs."""
    value: str = "clip_text_edited"
    """The score whose effects are told (default: clip_text_edited, the gain in CLIP)."""
    out: Path | None = None
    """Also write all effects to this file, as CSV."""


def _dominance(words: Dominance) -> None:
    from riebench.analysis import Run, dominance_over, load_summary, verdict_table
    from riebench.analysis.truth import agreement_of_verdicts
    from riebench.core.files import write_text

    runs = [Run.open(folder) for folder in words.runs]
    summaries = [(run.name, load_summary(run.summary)) for run in runs]
    effects = dominance_over(summaries)
    if words.out:
        write_text(words.out, effects.to_csv(index=False))
    print(verdict_table(effects, words.value))
    if agreement := agreement_of_verdicts(effects, words.value):
        print(f"\n{agreement}")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Holds the words of `riebench agreement`."""

    run: Path = word(positional=True)
    """Folder of a finished run."""
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """Also write the tables to this file, as markdown."""


def _agreement(words: Agreement) -> None:
    from riebench.analysis import agreement_of_run, agreement_tables
    from riebench.core.files import write_text

    found = agreement_of_run(words.run)
    tables = agreement_tables(found)
    if words.out:
        write_text(words.out, f"{tables}\n")
    print(json.dumps(found, indent=2, allow_nan=False) if words.json else tables)


VERBS = (
    Verb(
        "run",
        "run a benchmark and write its report",
        Run,
        _run,
        ("riebench run quickstart", "riebench run my-run.yaml --out runs/mine --device cuda"),
        overrides=(RunConfig, OVERRIDES),
    ),
    Verb(
        "edit",
        "edit one prompt pair of your own and write a picture strip",
        Edit,
        _edit,
        (
            'riebench edit "a red heart" "a blue heart" --region heart',
            'riebench edit "a red heart" "a blue heart" --region heart --method dense --set strength=2 --out heart.png',
        ),
    ),
    Verb(
        "score",
        "score a finished run by further metrics; nothing is generated",
        Score,
        _score,
        (
            "riebench score runs/quickstart --metrics psnr,ssim",
            "riebench score runs/mine --metrics lpips_vgg_original --device cuda",
        ),
    ),
    Verb(
        "compare",
        "methods of one or more runs beside each other, pair by pair",
        Compare,
        _compare,
        (
            "riebench compare runs/mine runs/quickstart",
            "riebench compare runs/mine --against random --metrics lpips_original --out tables",
        ),
    ),
    Verb(
        "dominance",
        "which block dominates which category, over methods, steps and models",
        Dominance,
        _dominance,
        (
            "riebench dominance runs/quickstart runs/windows",
            "riebench dominance runs/quickstart --value lpips_original --out effects.csv",
        ),
    ),
    Verb(
        "agreement",
        "how well the metrics of a run agree with tinyworld's oracle",
        Agreement,
        _agreement,
        ("riebench agreement runs/full", "riebench agreement runs/full --out agreement.md"),
    ),
)
