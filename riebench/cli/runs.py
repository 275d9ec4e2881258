"""Verbs of runs: run, edit, score, compare, dominance, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

from riebench.cli.flags import Verb, word
from riebench.core.errors import UserError
from riebench.core.json_text import json_text
from riebench.core.plugins import load_plugins
from riebench.core.values import Seed
from riebench.core.yaml_text import YamlError, load_yaml
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
    "dictionary",
    "batch_size",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Holds the words of `riebench run`, beside the fields of a RunConfig."""

    name: str = word(positional=True)
    """A shipped run (riebench ls runs) or a YAML file."""
    out: Path | None = None
    """Folder for the results: new, empty, or that of an earlier run (default: runs/<name>, with the settings that are
    given in the place of the run's own, as runs/quickstart-edits=mine.yaml)."""
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
    plugin: tuple[Path, ...] = word((), repeat=True)
    """A Python file with methods or metrics of your own; repeatable."""


def _run(words: Run, overrides: Mapping[str, Any]) -> int:
    """Runs, and returns the exit status: 1 where a method has no valid case."""
    load_plugins(words.plugin)
    config = read_config(words.name, overrides)

    from riebench.analysis import block_table
    from riebench.analysis.failures import failures_of, without_valid_case
    from riebench.runs.folder import default_folder
    from riebench.runs.run import run

    done = run(
        config,
        words.out or default_folder(words.name, overrides),
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
    return 1 if without_valid_case(failures_of(done.scores)) else 0


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
    category: str = "change_object"
    """What kind of edit it is (riebench ls categories): where something is added or deleted, one region counts on both
    pictures."""
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
    """The strip: a picture of that name that riebench did not make is not replaced."""
    plugin: tuple[Path, ...] = word((), repeat=True)
    """A Python file with methods or metrics of your own; repeatable."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""


def _edit(words: Edit) -> None:
    load_plugins(words.plugin)
    settings = _settings(words.method, words.settings)

    from riebench.core.own_pictures import claim_picture, save_picture

    out = claim_picture(words.out)

    from riebench.api import edit
    from riebench.backbones.table import BACKBONES
    from riebench.metrics import default_metrics, describe

    done = edit(
        words.original,
        words.edited,
        region=words.region,
        edited_region=words.edited_region,
        category=words.category,
        method=words.method,
        blocks=words.blocks,
        seed=words.seed,
        backbone=words.backbone,
        dictionaries=words.dictionaries,
        device=words.device,
        **settings,
    )
    save_picture(done.strip(), out)
    for block, sides in done.features.items():
        for side, numbers in sides.items():
            print(f"{block} {side}: {', '.join(map(str, numbers)) or 'none'}")
    judges = BACKBONES.get(words.backbone).judges
    for score in describe(default_metrics(judges), judges):
        print(f"{score.label:<30} {done.scores[score.name]:.3f}")
    print(f"strip: {out.resolve()}")


def _settings(method: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Returns the settings that `--set` names, read as the method's dataclass has them."""
    pairs = [word.partition("=") for word in words]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"--set {key!r} sets nothing", remedy="write it as --set strength=2")
        if [name for name, _, _ in pairs].count(key) > 1:
            raise UserError(f"--set {key} is given twice", remedy="give it once")
    kinds = (pairs and setting_kinds(method)) or {}
    return {key: _plain(value, kinds.get(key, Any)) for key, _, value in pairs}


def _plain(text: str, kind: Any) -> Any:
    """Returns text where a setting is text, and else what YAML reads in it."""
    if kind is str or get_origin(kind) is Literal or ":" in text:
        return text
    try:
        return load_yaml(text)
    except YamlError:
        return text


@dataclass(frozen=True, kw_only=True)
class Score:
    """Holds the words of `riebench score`."""

    run: Path = word(positional=True)
    """Folder of a finished run."""
    metrics: tuple[str, ...]
    """The metrics, comma-separated (riebench ls metrics)."""
    edits: str = ""
    """Where the run's edits are now (default: where they were)."""
    plugin: tuple[Path, ...] = word((), repeat=True)
    """A Python file with methods or metrics of your own; repeatable."""
    device: str = "auto"
    """The device: auto, cpu or cuda."""
    engine: str = "local"
    """What does the work: local, or ray: a scorer on each GPU of a cluster."""
    address: str | None = None
    """Address of a running Ray cluster, or auto (default: start one on this machine)."""


def _score(words: Score) -> None:
    load_plugins(words.plugin)
    from riebench.edits.edit import meant_edits
    from riebench.runs.rescore import score_run
    from riebench.runs.run import report_again

    edits = words.edits and meant_edits(words.edits)
    score_run(words.run, words.metrics, words.device, edits=edits, engine=words.engine, address=words.address)
    print(f"report: {report_again(words.run, edits).report.resolve()}")


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Holds the words of `riebench compare`."""

    runs: tuple[Path, ...] = word(positional=True)
    """Folders of finished runs on the same edits and seeds."""
    methods: tuple[str, ...] = ()
    """Only these methods, comma-separated, as sae or dense@2 (default: all)."""
    against: str = ""
    """The method that all others are compared with, as sae or dense@2."""
    metrics: tuple[str, ...] = ()
    """The metrics, comma-separated (default: gain, preservation and the oracle)."""
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """Folder to write compare.md, compare.csv and compare.json to."""
    plugin: tuple[Path, ...] = word((), repeat=True)
    """A Python file with methods or metrics of your own; repeatable."""


def _compare(words: Compare) -> None:
    load_plugins(words.plugin)
    from riebench.analysis.compare import compare_runs
    from riebench.analysis.compare_words import compare_table, write_compare
    from riebench.core.claims import refuse_others

    if words.out:
        refuse_others(words.out, "folder of tables")
    found = compare_runs(words.runs, methods=words.methods, against=words.against, metrics=words.metrics)
    if words.out:
        write_compare(found, words.out)
    print(json_text(found, indent=2) if words.json else compare_table(found))


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
    from riebench.analysis import Run, dominance_over, load_summary, verdict_table, write_csv
    from riebench.analysis.across import SOURCE
    from riebench.analysis.truth import agreement_of_verdicts
    from riebench.core.claims import begins, claim_file

    out = words.out and claim_file(words.out, begins(",".join(SOURCE)))
    runs = [Run.open(folder) for folder in words.runs]
    summaries = [(run.name, load_summary(run.summary)) for run in runs]
    effects = dominance_over(summaries)
    if out:
        write_csv(effects, out)
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
    from riebench.analysis.agreement import AGREEMENT_HEAD, agreement_of_run, agreement_tables
    from riebench.core.claims import begins, claim_file
    from riebench.core.files import write_text

    out = words.out and claim_file(words.out, begins(AGREEMENT_HEAD))
    found = agreement_of_run(words.run)
    tables = agreement_tables(found)
    if out:
        write_text(out, f"{tables}\n")
    print(json_text(found, indent=2) if words.json else tables)


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
            'riebench edit "flat poster of a standing red plain heart in the sky" '
            '"flat poster of a standing red plain star in the sky" --region heart --edited-region star',
            'riebench edit "a cat on a road" "a dog on a road" --region cat --edited-region dog '
            "--backbone sdxl-turbo@4 --set strength=2 --out dog.png",
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
            "riebench compare runs/mine --methods mine,sae --metrics lpips_original --out tables",
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
