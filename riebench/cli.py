"""The command line: verbs only. Each parses its words, calls one function and prints. Imports no torch itself."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import named_path

KINDS = ("backbones", "blocks", "categories", "dictionaries", "edits", "grounders", "methods", "metrics", "runs")


def main(argv: list[str] | None = None) -> int:
    """Runs a verb. A user's error is one line on stderr and exit status 2; Ctrl-C is 130."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.verb(arguments)
    except UserError as error:
        print(f"riebench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as by `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stopped:
        print(f"riebench: {str(stopped) or 'stopped'}", file=sys.stderr)
        return 130
    return 0


def _path(text: str) -> Path:
    try:
        return named_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="riebench", description="Benchmark of representation-based image editing in diffusion models."
    )
    verbs = parser.add_subparsers(required=True, metavar="verb")

    run = verbs.add_parser("run", help="run a benchmark and write its report")
    run.add_argument("name", help="a shipped run (riebench ls runs) or a YAML file")
    run.add_argument("--out", type=_path, help="folder for the results (default: runs/<name>)")
    run.add_argument("--device", default="auto", help="auto, cpu or cuda")
    run.add_argument("--backbone", help="another backbone than the file's (riebench ls backbones)")
    run.add_argument("--edits", help="another edit set: its name (riebench ls edits), a file or a folder")
    run.add_argument("--split", help="dev, test or all of the edits (default: test where there is one, else all)")
    run.add_argument("--mode", help="strict (default), or reference: as the published code does")
    run.add_argument("--dtype", help="what the U-Net computes in: auto (default), float32, float16 or bfloat16")
    run.add_argument("--dictionaries", help="folder of your own dictionaries (default: the shipped and released ones)")
    run.add_argument("--edits-per-category", type=int, help="how many edits of each category; 0 for all")
    run.add_argument("--batch-size", type=int, help="images generated at once; 0 (default) finds it")
    run.add_argument(
        "--cache",
        default="only-missing",
        help="which results in the folder are taken. only-missing (default): those that this version of the code made; "
        "the rest is made. always: also those of another version. never: none. only-cache: nothing is made",
    )
    run.add_argument(
        "--reuse", type=_path, action="append", default=[], help="another run's folder to take results from; repeatable"
    )
    run.add_argument("--engine", default="local", help="local, or ray: a worker for each GPU of a cluster")
    run.add_argument("--address", help="of a running Ray cluster, or auto (default: start one on this machine)")
    run.add_argument("--compile", action="store_true", help="compile the U-Net and the decoder with torch.compile")
    run.set_defaults(verb=_run)

    edit = verbs.add_parser("edit", help="edit one prompt pair of your own and write a picture strip")
    edit.add_argument("original", help="the prompt of the picture that is to be changed")
    edit.add_argument("edited", help="the prompt of the picture as you want it")
    edit.add_argument(
        "--region",
        default="everything",
        help="where: a noun in the picture, everything (default), background, 'not NOUN', or mask:FILE",
    )
    edit.add_argument("--edited-region", help="the same for the edited picture, where it differs")
    edit.add_argument("--method", default="sae", help="see riebench ls methods")
    edit.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a setting of the method, as strength=2 or on=up.0.1:12,55; repeatable",
    )
    edit.add_argument("--blocks", default="", help="comma-separated (default: all four)")
    edit.add_argument("--seed", type=int, default=42)
    edit.add_argument("--backbone", default="tinyworld-turbo@1", help="see riebench ls backbones")
    edit.add_argument("--dictionaries", default="", help="folder of your own dictionaries")
    edit.add_argument("--out", type=_path, default=Path("edit.png"), help="the strip (default: edit.png)")
    edit.add_argument("--device", default="auto", help="auto, cpu or cuda")
    edit.set_defaults(verb=_edit)

    fetch = verbs.add_parser("fetch", help="download weights: a backbone, a grounder, the judges, released SAEs")
    fetch.add_argument("names", nargs="*", metavar="name", help="what to fetch; without a name, what there is")
    fetch.set_defaults(verb=_fetch)

    doctor = verbs.add_parser("doctor", help="what this machine has, which weights are there, what would fit")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(verb=_doctor)

    agreement = verbs.add_parser("agreement", help="how well the metrics of a run agree with tinyworld's oracle")
    agreement.add_argument("run", type=_path, help="folder of a finished run")
    agreement.add_argument("--json", action="store_true", help="print JSON")
    agreement.add_argument("--out", type=_path, help="also write the tables to this file, as markdown")
    agreement.set_defaults(verb=_agreement)

    score = verbs.add_parser("score", help="score a finished run by further metrics; nothing is generated")
    score.add_argument("run", type=_path, help="folder of a finished run")
    score.add_argument("--metrics", required=True, help="comma-separated (riebench ls metrics)")
    score.add_argument("--device", default="auto", help="auto, cpu or cuda")
    score.set_defaults(verb=_score)

    compare = verbs.add_parser("compare", help="methods of one or more runs beside each other, pair by pair")
    compare.add_argument("runs", type=_path, nargs="+", help="folders of finished runs on the same edits and seeds")
    compare.add_argument(
        "--against", default="", help="the method that all others are compared with, as sae or dense@2"
    )
    compare.add_argument("--metrics", default="", help="comma-separated (default: gain, preservation and the oracle)")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.add_argument("--out", type=_path, help="folder to write compare.md, compare.csv and compare.json to")
    compare.set_defaults(verb=_compare)

    dominance = verbs.add_parser(
        "dominance", help="which block dominates which category, over methods, steps and models"
    )
    dominance.add_argument("runs", type=_path, nargs="+", help="folders of finished runs")
    dominance.add_argument("--value", default="clip_text_edited", help="of what (default: the gain in CLIP)")
    dominance.add_argument("--out", type=_path, help="also write all effects to this file, as CSV")
    dominance.set_defaults(verb=_dominance)

    example = verbs.add_parser("new-edits", help="write an example of edits of your own, with comments")
    example.add_argument("file", type=_path, help="to write: .yaml or .csv")
    example.set_defaults(verb=_new_edits)

    foreign = verbs.add_parser("import", help="make edits of a published list")
    foreign.add_argument("kind", help="riebench or pie-bench")
    foreign.add_argument("file", type=_path, help="the list")
    foreign.add_argument("--out", type=_path, required=True, help="a new folder for the edits, and their masks")
    foreign.set_defaults(verb=_import)

    submit = verbs.add_parser("submit", help="write the leaderboard's entries of a run's methods")
    submit.add_argument("run", type=_path, help="folder of a finished run, as of riebench run leaderboard")
    submit.add_argument("--methods", default="", help="comma-separated, as sae or dense@2 (default: all)")
    submit.add_argument("--out", type=_path, default=Path("data/leaderboard"), help="default: data/leaderboard")
    submit.add_argument("--authors", default="", help="who made the method")
    submit.add_argument("--code", default="", help="address of its source")
    submit.add_argument("--description", default="", help="one sentence about it")
    submit.set_defaults(verb=_submit)

    validate = verbs.add_parser("validate", help="check edits, or entries of the leaderboard against their own scores")
    validate.add_argument("paths", type=_path, nargs="+", help="edit sets, or folders with one entry or many")
    validate.set_defaults(verb=_validate)

    leaderboard = verbs.add_parser("leaderboard", help="render the leaderboard as a static site")
    leaderboard.add_argument("--entries", type=_path, help="folder of entries (default: the shipped ones)")
    leaderboard.add_argument("--out", type=_path, default=Path("site"), help="folder of the site (default: site)")
    leaderboard.set_defaults(verb=_leaderboard)

    ls = verbs.add_parser("ls", help="list what there is")
    ls.add_argument("kind", help=", ".join(KINDS))
    ls.set_defaults(verb=_ls)

    harvest = verbs.add_parser("harvest", help="generate, and store what the blocks add to their inputs")
    harvest.add_argument("--backbone", default="tinyworld-turbo@1", help="see riebench ls backbones")
    harvest.add_argument("--blocks", default="", help="comma-separated (default: all four)")
    harvest.add_argument(
        "--prompts",
        default="",
        help="a .txt, .jsonl or .parquet file, datasets:NAME[:SPLIT], or captions of tinyworld (default: the model's)",
    )
    harvest.add_argument("--column", default="", help="of the prompts, in a .jsonl, .parquet or data set")
    harvest.add_argument("--count", type=int, default=0, help="the first so many prompts; 0 for all")
    harvest.add_argument("--branch", default="both", help="rows kept under guidance: cond, uncond or both (default)")
    harvest.add_argument("--seed", type=int, default=0)
    harvest.add_argument("--out", type=_path, required=True, help="folder of the store; a killed harvest goes on there")
    harvest.add_argument("--batch-size", type=int, default=0, help="prompts at once; 0 (default) finds it")
    harvest.add_argument(
        "--dtype", default="auto", help="what the U-Net computes in: auto (default), float32, float16 or bfloat16"
    )
    harvest.add_argument("--device", default="auto", help="auto, cpu or cuda")
    harvest.set_defaults(verb=_harvest)

    train = verbs.add_parser("train", help="train sparse autoencoders on a backbone's block updates")
    train.add_argument("--out", type=_path, required=True, help="folder for the dictionaries, their index and logs")
    rows = train.add_argument_group("what they are trained on: generated now, or a store that riebench harvest wrote")
    rows.add_argument("--backbone", help="see riebench ls backbones (default: tinyworld-turbo@1, or the store's)")
    rows.add_argument("--blocks", default="", help="comma-separated (default: all four, or all of the store)")
    rows.add_argument("--prompts", default="", help="as in riebench harvest")
    rows.add_argument("--column", default="", help="of the prompts, in a .jsonl, .parquet or data set")
    rows.add_argument("--count", type=int, default=0, help="the first so many prompts (default: suits the backbone)")
    rows.add_argument("--branch", default="both", help="rows taken under guidance: cond, uncond or both (default)")
    rows.add_argument("--buffer-rows", type=int, help="room of a block's shuffling buffer (default: 524288)")
    rows.add_argument("--store", type=_path, help="read a store instead; the prompts and branches are its own then")
    rows.add_argument("--seed", type=int, default=0, help="of the noise, and of the order of the rows")
    grid = train.add_argument_group("which SAEs: every combination; lists are comma-separated")
    grid.add_argument("--architecture", default="topk", help="topk (default), batch-topk, l1 or jumprelu")
    grid.add_argument("--k", default="", help="active features a vector (default: 4,8,16; SDXL 10)")
    grid.add_argument("--weight", default="", help="of l1 or jumprelu, instead of k: larger is sparser")
    grid.add_argument("--width", default="", help="features, as multiples of the channels (default: 4,8,16; SDXL 4)")
    grid.add_argument("--prefixes", default="", help="Matryoshka: shares of the features that code by themselves")
    grid.add_argument("--seeds", default="0", help="where features start (default: 0)")
    grid.add_argument("--revival", default="", help="of dead features: auxk, restart, none (default: suits the model)")
    grid.add_argument("--dead-after", type=int, default=0, help="vectors without the feature, with auxk or restart")
    how = train.add_argument_group("how")
    how.add_argument("--steps", type=int, help="0 takes each vector once, as SDXL's default is (default: 1200)")
    how.add_argument("--batch-size", type=int, default=0, help="vectors a step (default: 2048; SDXL 4096)")
    how.add_argument("--lr", type=float, default=0.0, help="peak learning rate (default: 4e-3; SDXL 1e-4)")
    how.add_argument("--normalisation", default="scale", help="of the rows: none, mean, scale (default) or whiten")
    how.add_argument("--compute", default="float32", help="of the products: float32 (default) or bfloat16")
    how.add_argument("--compile", action="store_true", help="compile what fuses in a step with torch.compile")
    how.add_argument("--tracker", default="", help="send the log there too: wandb, tensorboard or both")
    how.add_argument("--engine", default="local", help="local, or ray: a group of the SAEs on each GPU of a cluster")
    how.add_argument("--address", help="of a running Ray cluster, or auto (default: start one on this machine)")
    how.add_argument("--checkpoint-every", type=int, default=1_000, help="steps; a killed training goes on from there")
    how.add_argument("--device", default="auto", help="auto, cpu or cuda")
    train.set_defaults(verb=_train)

    convert = verbs.add_parser("convert", help="write another package's SAE checkpoint in our layout, or back")
    convert.add_argument("source", type=_path, help="a SAELens, sparsify, dictionary_learning or sdxl-unbox checkpoint")
    convert.add_argument("out", type=_path, help="folder to write")
    convert.add_argument("--to", default="saelens", help="saelens (default), which is our layout, or sparsify")
    convert.set_defaults(verb=_convert)

    publish = verbs.add_parser("publish", help="upload an SAE checkpoint, or a folder of them, to the Hugging Face Hub")
    publish.add_argument("folder", type=_path, help="a checkpoint, or a folder that riebench train wrote")
    publish.add_argument("repo", help="owner/name on the Hub")
    publish.add_argument("--private", action="store_true", help="make it a private repository")
    publish.set_defaults(verb=_publish)

    words = verbs.add_parser("index-text", help="learn which features go with which words, for text-selected")
    words.add_argument("--backbone", default="tinyworld-turbo@1", help="see riebench ls backbones")
    words.add_argument("--prompts", default="4096", help="a text file, a prompt on each line; for tinyworld a number")
    words.add_argument("--out", type=_path, help="folder to write to (default: your cache, where runs look)")
    words.add_argument("--device", default="auto", help="auto, cpu or cuda")
    words.set_defaults(verb=_index_text)

    evaluate = verbs.add_parser(
        "evaluate",
        help="what dictionaries are worth: in figures, at other steps and on other models, in the images",
        description="What dictionaries are worth: in figures, at other steps and on other models, in the images, and "
        "beside those of another seed. Without options it takes two to three minutes on one core.",
    )
    evaluate.add_argument("--trained-on", default="tinyworld-turbo@1", help="the backbone whose dictionaries are meant")
    evaluate.add_argument(
        "--on",
        help="comma-separated backbones whose updates they are to code, beside their own (default: tinyworld's others; "
        "none of another model's)",
    )
    evaluate.add_argument("--dictionary", default="", help="only those of these names, comma-separated (default: all)")
    evaluate.add_argument("--dictionaries", type=_path, help="folder that riebench train wrote (default: the shipped)")
    evaluate.add_argument("--other", type=_path, help="folder of dictionaries of another seed, to compare with")
    evaluate.add_argument(
        "--prompts", default="", help="as in riebench harvest (default: held-out captions; SDXL's own)"
    )
    evaluate.add_argument("--count", type=int, default=16, help="how many prompts (default: 16)")
    evaluate.add_argument(
        "--images",
        type=int,
        default=2,
        help="prompts of which images are made with updates replaced by those of the dictionaries named, or else those "
        "that runs use; 0 for none (default: 2)",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.add_argument("--out", type=_path, help="also write the tables to this file, as markdown")
    evaluate.add_argument("--device", default="auto", help="auto, cpu or cuda")
    evaluate.set_defaults(verb=_evaluate)

    world = verbs.add_parser("tinyworld", help="make or judge the embedded world").add_subparsers(
        required=True, metavar="verb"
    )
    world_train = world.add_parser("train", help="train every model of tinyworld from nothing; resumable")
    world_train.add_argument("--out", type=_path, required=True, help="folder for weights and checkpoints")
    world_train.add_argument(
        "--only", default="", help="comma-separated: vae, base, turbo, oracle, grounder, clip, dictionaries"
    )
    world_train.add_argument("--seed", type=int, default=0)
    world_train.add_argument("--device", default="auto", help="auto, cpu or cuda")
    world_train.set_defaults(verb=_tinyworld_train)
    world_evaluate = world.add_parser("evaluate", help="judge the shipped models against the renderer's truth")
    world_evaluate.add_argument("--json", action="store_true", help="print JSON")
    world_evaluate.add_argument("--count", type=int, default=512, help="pictures for each figure")
    world_evaluate.add_argument("--device", default="auto", help="auto, cpu or cuda")
    world_evaluate.set_defaults(verb=_tinyworld_evaluate)
    world_edits = world.add_parser("edits", help="write tinyworld's edit set, the same bytes every time")
    world_edits.add_argument("--out", type=_path, required=True, help="folder for one file a category")
    world_edits.set_defaults(verb=_tinyworld_edits)
    return parser


def _run(arguments) -> None:
    from riebench.runs.config import REFERENCE_SEED, read_config

    names = ("backbone", "edits", "split", "mode", "dtype", "dictionaries", "edits_per_category", "batch_size")
    overrides = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.mode == "reference":
        overrides["seeds"] = [REFERENCE_SEED]
    config = read_config(arguments.name, overrides)
    out = arguments.out or Path("runs") / Path(arguments.name).stem

    from riebench.analysis import block_table
    from riebench.runs.run import run

    done = run(
        config,
        out,
        device=arguments.device,
        cache=arguments.cache,
        reuse=arguments.reuse,
        engine=arguments.engine,
        address=arguments.address,
        compile=arguments.compile,
    )
    made = f"{done.manifest['made']} made now, {done.manifest['forwards']:.0f} forwards"
    print(f"\n{block_table(done.summary)}\n")
    print(f"{done.manifest['results']} results in {done.manifest['seconds']:.0f} s ({made})")
    print(f"report: {done.report.resolve()}")


def _edit(arguments) -> None:
    import yaml

    from riebench.api import edit
    from riebench.backbones.table import BACKBONES
    from riebench.metrics import default_metrics, describe

    settings = {}
    for word in arguments.settings:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--set {word!r} sets nothing", remedy="write it as --set strength=2")
        settings[key] = yaml.safe_load(value) if ":" not in value else value
    done = edit(
        arguments.original,
        arguments.edited,
        region=arguments.region,
        edited_region=arguments.edited_region,
        method=arguments.method,
        blocks=arguments.blocks.split(",") if arguments.blocks else (),
        seed=arguments.seed,
        backbone=arguments.backbone,
        dictionaries=arguments.dictionaries,
        device=arguments.device,
        **settings,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done.strip().save(arguments.out)
    for block, sides in done.features.items():
        for side, numbers in sides.items():
            print(f"{block} {side}: {', '.join(map(str, numbers)) or 'none'}")
    judges = BACKBONES.get(arguments.backbone).judges
    for score in describe(default_metrics(judges), judges):
        print(f"{score.label:<30} {done.scores[score.name]:.3f}")
    print(f"strip: {arguments.out.resolve()}")


def _fetch(arguments) -> None:
    from riebench.core.hub import fetch
    from riebench.doctor import fetch_names

    known = fetch_names()
    names = [re.sub(r"@\d+(?=:|$)", "", name) for name in arguments.names]  # the same files, whatever the steps
    for name in names:
        if name not in known:
            raise UserError(
                f"there is nothing to fetch named {name!r}{did_you_mean(name, known)}", remedy=f"use {', '.join(known)}"
            )
    for name in names:
        for weights in known[name]:
            print(fetch(name, weights))
    if not names:
        width = max(map(len, known))
        for name, parts in known.items():
            print(f"{name:<{width}}  {sum(w.gigabytes for w in parts):6.2f} GB  {', '.join(w.repo for w in parts)}")


def _doctor(arguments) -> None:
    import json

    from riebench.doctor import examine, format_doctor

    found = examine()
    print(json.dumps(found, indent=2) if arguments.json else format_doctor(found))


def _agreement(arguments) -> None:
    import json

    from riebench.analysis import agreement_of_run, agreement_tables
    from riebench.core.files import write_text

    found = agreement_of_run(arguments.run)
    tables = agreement_tables(found)
    if arguments.out:
        write_text(arguments.out, f"{tables}\n")
    print(json.dumps(found, indent=2, allow_nan=False) if arguments.json else tables)


def _score(arguments) -> None:
    from riebench.runs.rescore import score_run
    from riebench.runs.run import report_again

    score_run(arguments.run, _words(arguments.metrics), arguments.device)
    print(f"report: {report_again(arguments.run).report.resolve()}")


def _compare(arguments) -> None:
    import json

    from riebench.analysis.compare import compare_runs, compare_table, write_compare

    found = compare_runs(arguments.runs, against=arguments.against, metrics=_words(arguments.metrics))
    if arguments.out:
        write_compare(found, arguments.out)
    print(json.dumps(found, indent=2, allow_nan=False) if arguments.json else compare_table(found))


def _dominance(arguments) -> None:
    from riebench.analysis import dominance_over, load_summary, verdict_table
    from riebench.core.files import read_json, write_text

    summaries = [(run.resolve().name, load_summary(read_json(run / "summary.json", "a run"))) for run in arguments.runs]
    effects = dominance_over(summaries)
    if arguments.out:
        write_text(arguments.out, effects.to_csv(index=False))
    print(verdict_table(effects, arguments.value))


def _new_edits(arguments) -> None:
    from riebench.edits.template import write_template

    print(write_template(arguments.file))


def _import(arguments) -> None:
    from riebench.edits.importers import format_imported, import_edits

    print(format_imported(import_edits(arguments.kind, arguments.file, arguments.out)))


def _submit(arguments) -> None:
    from riebench.leaderboard import submit

    about = {name: getattr(arguments, name) for name in ("authors", "code", "description")}
    for entry in submit(arguments.run, arguments.out, methods=_words(arguments.methods), **about):
        print(entry)


def _validate(arguments) -> None:
    from riebench.edits.checks import validate_edits
    from riebench.leaderboard import entry_folders, validate

    wrong = total = 0
    for path in arguments.paths:
        is_entry = any(path.rglob("entry.json"))
        for one in entry_folders(path) if is_entry else [path]:
            problems = [f"{one}: {problem}" for problem in validate(one)] if is_entry else validate_edits(one)
            for problem in problems:
                print(problem, file=sys.stderr)
            wrong, total = wrong + bool(problems), total + 1
    if wrong:
        raise UserError(f"{wrong} of {total} are not in order", remedy="mend what is named above")
    print(f"{total} in order")


def _leaderboard(arguments) -> None:
    from riebench.core.files import data_folder
    from riebench.leaderboard import render_site

    print(render_site(arguments.entries or data_folder() / "leaderboard", arguments.out).resolve())


def _words(text: str) -> tuple[str, ...]:
    """Of a comma-separated list, each once."""
    return tuple(dict.fromkeys(word for word in text.split(",") if word))


def _ls(arguments) -> None:
    if arguments.kind not in KINDS:
        raise UserError(
            f"there is nothing to list as {arguments.kind!r}{did_you_mean(arguments.kind, KINDS)}",
            remedy=f"use {', '.join(KINDS)}",
        )
    rows = _listed(arguments.kind)
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
        from riebench.runs.config import preset_names, read_config

        configs = [(name, read_config(name)) for name in preset_names()]
        return [(name, f"{c.backbone}, {len(c.methods)} methods, {len(c.seeds)} seeds") for name, c in configs]
    if kind == "edits":
        from riebench.edits.edit import load_edits, shipped_sets

        return [(name, f"{len(load_edits(name))} edits") for name in shipped_sets()]
    if kind == "dictionaries":
        from sae_models.index import describe, entries

        return [(entry.name, describe(entry)) for entry in entries()]
    registry = _registries()[kind]
    return [(name, registry.summary(name)) for name in registry.names()]


def _registries() -> dict:
    from baselines import METHODS
    from riebench.backbones.table import BACKBONES
    from riebench.metrics import METRICS
    from riebench.regions.grounders import GROUNDERS

    return {"backbones": BACKBONES, "grounders": GROUNDERS, "methods": METHODS, "metrics": METRICS}


def _harvest(arguments) -> None:
    from riebench.backbones.loading import choose_device, choose_dtype
    from riebench.backbones.table import BACKBONES
    from riebench.dictionaries.harvest import harvest_to_store
    from riebench.dictionaries.prompts import read_prompts
    from riebench.generation.sampler import load_sampler

    backbone, device = BACKBONES.get(arguments.backbone), choose_device(arguments.device)
    dtype = choose_dtype(backbone, device, arguments.dtype)
    blocks = backbone.family.in_order(arguments.blocks.split(",")) if arguments.blocks else backbone.blocks
    prompts = read_prompts(
        arguments.prompts,
        column=arguments.column,
        count=arguments.count,
        seed=arguments.seed,
        family=backbone.judges,
    )
    sampler = load_sampler(backbone, device, arguments.batch_size, dtype)
    store = harvest_to_store(sampler, blocks, prompts, arguments.seed, arguments.out, branch=arguments.branch)
    print(f"{len(prompts)} prompts, {sum(store.rows.values())} vectors of {', '.join(store.blocks)}: {arguments.out}")


def _train(arguments) -> None:
    from riebench.dictionaries import settings
    from riebench.dictionaries.train import train_dictionaries

    words = {
        "k": _numbers(arguments.k, "--k", int),
        "expansions": _numbers(arguments.width, "--width", int),
        "weights": _numbers(arguments.weight, "--weight", float),
        "prefixes": _numbers(arguments.prefixes, "--prefixes", float),
        "seeds": _numbers(arguments.seeds, "--seeds", int),
    }
    blocks = tuple(arguments.blocks.split(",")) if arguments.blocks else ()
    common = {"seed": arguments.seed, "device": arguments.device}
    if arguments.store:
        data = settings.stored_data(arguments.store, blocks, backbone=arguments.backbone, **common)
    else:
        of_prompts = {name: getattr(arguments, name) for name in ("prompts", "column", "count", "branch")}
        buffer = {"buffer_rows": arguments.buffer_rows} if arguments.buffer_rows is not None else {}
        backbone = arguments.backbone or "tinyworld-turbo@1"
        data = settings.generated_data(backbone, blocks, **of_prompts, **buffer, **common)
    defaults = settings.defaults_for(data.backbone)
    of_grid = {name: getattr(arguments, name) for name in ("architecture", "revival", "dead_after")}
    names = ("steps", "batch_size", "lr", "normalisation", "compute", "compile")
    of_config = {name: getattr(arguments, name) for name in names}
    config, batch_size = settings.make_config(defaults, data, **of_config)
    grid = settings.make_grid(defaults, **of_grid, **words)
    train_dictionaries(
        data,
        grid,
        arguments.out,
        config,
        batch_size,
        checkpoint_every=arguments.checkpoint_every,
        trackers=tuple(name for name in arguments.tracker.split(",") if name),
        engine=arguments.engine,
        address=arguments.address,
    )


def _numbers(text: str, option: str, kind: type) -> tuple:
    """Of a comma-separated list, each once."""
    try:
        return tuple(dict.fromkeys(kind(word) for word in text.split(","))) if text else ()
    except ValueError as error:
        raise UserError(f"{option} is {text!r}", remedy="give numbers with commas between, as 4,8,16") from error


def _convert(arguments) -> None:
    from sae_models.convert import convert

    sha256 = convert(arguments.source, arguments.out, to=arguments.to)
    print(f"{arguments.out}  weights sha256 {sha256}")


def _publish(arguments) -> None:
    from sae_models.publish import publish

    print(publish(arguments.folder, arguments.repo, private=arguments.private))


def _index_text(arguments) -> None:
    from riebench.dictionaries.text_index import index_text

    prompts = int(arguments.prompts) if arguments.prompts.isdecimal() else Path(arguments.prompts)
    for path in index_text(arguments.backbone, prompts, arguments.out, arguments.device).values():
        print(path)


def _evaluate(arguments) -> None:
    import json

    from riebench.backbones.table import BACKBONES
    from riebench.core.files import write_text
    from riebench.dictionaries.evaluate import evaluate
    from riebench.dictionaries.tables import format_markdown, format_tables

    world = arguments.trained_on.startswith("tinyworld")
    on = arguments.on if arguments.on is not None else "tinyworld-turbo@4,tinyworld-base@25" if world else ""
    found = evaluate(
        arguments.trained_on,
        [BACKBONES.get(name) for name in dict.fromkeys(on.split(",")) if name],
        arguments.count,
        arguments.images,
        source=arguments.prompts,
        names=tuple(dict.fromkeys(arguments.dictionary.split(","))) if arguments.dictionary else (),
        root=arguments.dictionaries,
        other=arguments.other,
        device=arguments.device,
    )
    if arguments.out:
        write_text(arguments.out, format_markdown(found))
    print(json.dumps(found, indent=2, allow_nan=False) if arguments.json else format_tables(found))


def _tinyworld_train(arguments) -> None:
    from riebench.tinyworld_build.train import PARTS, train_world

    only = tuple(part for part in arguments.only.split(",") if part) or PARTS
    train_world(arguments.out, only, seed=arguments.seed, device=arguments.device)


def _tinyworld_evaluate(arguments) -> None:
    import json

    from riebench.tinyworld_build.evaluate import evaluate_world, format_evaluation

    found = evaluate_world(arguments.count, arguments.device)
    print(json.dumps(found, indent=2) if arguments.json else format_evaluation(found))


def _tinyworld_edits(arguments) -> None:
    from riebench.tinyworld_build.edit_set import write_edit_set

    for path in write_edit_set(arguments.out):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
