"""The command line as a user meets it: quick listings, and one clear line for everything that is wrong."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from riebench.cli import VERBS, build_parser, main
from riebench.cli.flags import field_docs, read_flags
from riebench.cli.listing import KINDS
from riebench.core.errors import UserError
from riebench.core.files import data_folder, write_bytes
from riebench.dictionaries.options import HarvestSettings, TrainSettings
from riebench.runs.config import build_config, preset_names, read_config


def failing(capsys, *words) -> str:
    """The single line on stderr of a command that must exit 2."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in captured.err
    assert lines[0].startswith("riebench: ")
    return lines[0]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_can_be_listed(kind, capsys):
    assert main(["ls", kind]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.process
def test_listing_and_help_import_no_torch():
    for words in (["--help"], *(["ls", kind] for kind in KINDS if kind != "features")):  # those read an index of theirs
        code = (
            "import sys\nfrom riebench.cli import main\n"
            f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
            "assert 'torch' not in sys.modules and 'pandas' not in sys.modules, words"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_verbs_of_files_alone_and_every_help_import_no_torch(tmp_path):
    entry = next((data_folder() / "leaderboard").rglob("entry.json")).parent
    verbs = [["new-edits", str(tmp_path / "mine.yaml")], ["validate", str(entry)], ["compare", str(tmp_path)]]
    verbs.insert(1, ["validate", str(tmp_path / "mine.yaml")])
    verbs += [["leaderboard", "--out", str(tmp_path / "site")], *([*verb.name.split(), "--help"] for verb in VERBS)]
    code = (
        "import sys\nfrom riebench.cli import main\n"
        f"for words in {verbs!r}:\n    try:\n        main(words)\n    except SystemExit:\n        pass\n"
        "    assert 'torch' not in sys.modules, words"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 in order" in done.stdout and "riebench tinyworld edits" in done.stdout
    assert (tmp_path / "mine.yaml").is_file() and (tmp_path / "site" / "index.html").is_file()


@pytest.mark.process
def test_the_package_is_a_command_too():
    done = subprocess.run([sys.executable, "-m", "riebench.cli", "ls", "blocks"], capture_output=True, text=True)
    assert done.returncode == 0 and "mid_block" in done.stdout
    done = subprocess.run([sys.executable, "-m", "riebench.cli", "ls", "blcks"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("riebench: there is nothing to list as 'blcks'; did you")


@pytest.mark.parametrize("name", [*(verb.name for verb in VERBS), "tinyworld"])
def test_every_verb_shows_two_examples_that_can_be_typed(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [line for line in shown if line == f"riebench {name}" or line.startswith(f"riebench {name} ")]
    assert len(examples) == len(set(examples)) == 2
    for line in examples:
        arguments = build_parser().parse_args(shlex.split(line)[1:])
        verb = arguments.verb
        assert verb.name == name or verb.name.startswith(f"{name} ")
        verb.words(**read_flags(arguments, verb.words))  # lists are read too


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_word_of_a_verb_is_explained_and_says_its_default(verb, capsys):
    for settings, only in ((verb.words, ()), *([verb.overrides] if verb.overrides else [])):
        docs = field_docs(settings)
        for field in dataclasses.fields(settings):
            if not only or field.name in only:
                assert docs[field.name][-1] == ".", field.name
    with pytest.raises(SystemExit):
        main([*verb.name.split(), "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(verb.words):
        if isinstance(field.default, int | str) and field.default:
            assert f"{field.default}" in shown, field.name


def test_defaults_of_trainings_are_those_of_the_functions_that_take_them():
    from inspect import signature

    from riebench.dictionaries.train import train_dictionaries
    from riebench.runs.run import run
    from sae_models.trainer import TrainConfig

    for name in ("normalisation", "compute", "compile"):
        assert getattr(TrainSettings, name) == getattr(TrainConfig, name)
    for name in ("checkpoint_every", "trackers"):
        assert getattr(TrainSettings, name) == signature(train_dictionaries).parameters[name].default
    for name in ("engine", "address"):
        assert getattr(TrainSettings, name) == getattr(HarvestSettings, name) == signature(run).parameters[name].default


def test_words_of_a_training_become_its_settings():
    words = "train --out ~/saes --k 4,8 --width 2,16 --weight 0.1 --lr 1e-3 --seeds 3 --tracker wandb, --compile"
    arguments = build_parser().parse_args(shlex.split(words))
    given = read_flags(arguments, TrainSettings)
    assert given == {
        "out": Path.home() / "saes",
        "k": (4, 8),
        "expansions": (2, 16),
        "weights": (0.1,),
        "lr": 1e-3,
        "seeds": (3,),
        "trackers": ("wandb",),
        "compile": True,
    }
    assert TrainSettings(**given).architecture == "topk"


def test_flags_of_a_run_are_fields_of_its_configuration(monkeypatch):
    def run(config, out, **how):
        given.update(config=config, out=out, **how)
        raise UserError("stopped")

    given = {}
    monkeypatch.setattr("riebench.runs.run.run", run)
    words = "run quickstart --mode reference --batch-size 3 --edits-per-category 2 --reuse a --reuse b --split all"
    assert main(shlex.split(words)) == 2
    config = given["config"]
    assert (config.mode, config.seeds, config.batch_size) == ("reference", (42,), 3)
    assert (config.edits_per_category, config.split, config.backbone) == (2, "all", "tinyworld-turbo@1")
    said = "mode=reference-split=all-edits_per_category=2"
    assert given["out"] == Path(f"runs/quickstart-{said}") and given["reuse"] == (Path("a"), Path("b"))
    assert (given["cache"], given["engine"], given["address"]) == ("only-missing", "local", None)
    assert (given["device"], given["compile"]) == ("auto", False)
    assert main(shlex.split("run quickstart --seeds 7,8 --categories add_object,change_pose")) == 2
    assert (given["config"].seeds, given["config"].categories) == ((7, 8), ("add_object", "change_pose"))


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("--set strength=2 --set keep_spatial=no", {"strength": 2, "keep_spatial": False}),
        ("--set strength=1e-1 --set k=16", {"strength": "1e-1", "k": 16}),
        ("--set aggregation=mean --set window=1,2", {"aggregation": "mean", "window": "1,2"}),
        ("--set window=3", {"window": "3"}),
        ("--method chosen --set on=up.0.1:12,55", {"on": "up.0.1:12,55"}),
        ("--set k=[1", {"k": "[1"}),
    ],
)
def test_a_setting_of_a_method_is_read_as_its_dataclass_has_it(words, settings, monkeypatch):
    given = {}

    def edit(*prompts, **how):
        given.update(how)
        raise UserError("stopped")

    monkeypatch.setattr("riebench.api.edit", edit)
    assert main(["edit", "a", "b", *shlex.split(words)]) == 2
    assert {key: given[key] for key in settings} == settings


@pytest.mark.slow
def test_an_unknown_name_says_what_was_meant(capsys):
    assert "did you mean 'quickstart'" in failing(capsys, "run", "quickstrat")
    assert "did you mean 'methods'" in failing(capsys, "ls", "metods")
    assert "the planted world has no part 'vea'" in failing(capsys, "tinyworld", "train", "--only", "vea", "--out", "x")
    assert "unknown block" in failing(capsys, "train", "--blocks", "up.9.9", "--out", "x")


def test_train_and_evaluate_say_what_is_wrong_with_their_words(capsys, tmp_path):
    assert "--k holds 4 twice -> give each once" in failing(capsys, "train", "--k", "4,8,4", "--out", tmp_path)
    assert "--k is '4;8'" in failing(capsys, "train", "--k", "4;8", "--out", tmp_path)
    assert "--seeds holds -1 -> give a whole number from 0" in failing(
        capsys, "train", "--seeds=1,-1", "--out", tmp_path
    )
    assert "--seed holds 9223372036854775808 -> " in failing(capsys, "edit", "a", "b", "--seed", 2**63)
    assert "--width is '4,'" in failing(capsys, "train", "--width", "4,", "--out", tmp_path)
    assert "did you mean 'tinyworld-base@25'" in failing(capsys, "evaluate", "--on", "tinyworld-bas@25")
    assert "no dictionary was trained on" in failing(capsys, "evaluate", "--dictionaries", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --k 0", "--k holds 0 -> give a whole number from 1 to"),
        ("train --k 1.5", "--k is '1.5'"),
        ("train --k ,", "--k is ','"),
        ("train --width 0", "--width holds 0"),
        ("train --width 1000000000", "--width holds 1000000000"),
        ("train --lr nan", "--lr holds nan -> give a number from 0 to 1"),
        ("train --lr=-1", "--lr holds -1.0"),
        ("train --weight inf", "--weight holds inf"),
        ("train --prefixes 2", "--prefixes holds 2.0"),
        ("train --steps=-1", "--steps holds -1"),
        ("train --steps many", "--steps holds 'many'"),
        ("train --batch-size 1000000000", "--batch-size holds 1000000000"),
        ("train --buffer-rows 0", "--buffer-rows holds 0"),
        ("train --checkpoint-every 0", "--checkpoint-every holds 0"),
        ("train --architecture topkk", "--architecture holds 'topkk'; did you mean 'topk'?"),
        ("train --tracker wandbb", "--tracker holds 'wandbb'"),
        ("train --seeds 1,1", "--seeds holds 1 twice"),
        ("train --blocks mid.0,mid.0", "--blocks holds mid.0 twice"),
        ("train --engine rays", "--engine holds 'rays'; did you mean 'ray'?"),
        ("harvest --count=-1", "--count holds -1"),
        ("harvest --count 1e3", "--count holds '1e3'"),
        ("harvest --batch-size 1000000000", "--batch-size holds 1000000000 -> give a whole number from 0 to 4096"),
        ("harvest --dtype float15", "--dtype holds 'float15'; did you mean 'float16'?"),
        ("harvest --branch none", "--branch holds 'none'; did you mean 'uncond'? -> give cond, uncond or both"),
        ("harvest --seed=-1", "--seed holds -1"),
        ("evaluate --count 0", "--count holds 0"),
        ("evaluate --images=-1", "--images holds -1"),
        ("evaluate --site streams", "--site holds 'streams'; did you mean 'stream'?"),
        ("index-text --site streams", "--site holds 'streams'"),
        ("tinyworld train --seed=-1", "--seed holds -1"),
        ("run quickstart --batch-size 1000000000", "--batch-size holds 1000000000"),
        ("run quickstart --batch-size true", "--batch-size holds 'true'"),
        ("run quickstart --edits-per-category=-1", "--edits-per-category holds -1"),
        ("run quickstart --seeds 18446744073709551616", "--seeds holds 18446744073709551616"),
        ("run quickstart --seeds 1,1", "--seeds holds 1 twice"),
        ("run quickstart --seeds ''", "--seeds is ''"),
        ("run quickstart --categories ''", "--categories is empty"),
        ("run quickstart --edits ''", "--edits is empty"),
        ("edit a b --blocks ''", "--blocks is empty"),
        ("edit a b --set k=1 --set k=2", "--set k is given twice"),
        ("edit a b --set =1", "no setting ''"),
        ("edit a b --seed 1e3", "--seed holds '1e3'"),
        ("edit a b --out picture.txt", "picture.txt is no name of a picture"),
        ("edit a b --out picture", "picture is no name of a picture"),
    ],
)
def test_words_that_cannot_be_meant_are_one_line_before_anything_is_loaded(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wants_out = words.split()[0] in ("train", "harvest", "tinyworld", "run", "index-text")
    line = failing(capsys, *shlex.split(words), *(["--out", "new"] if wants_out else []))
    assert said in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [42", "is not YAML"),
        ("", "holds no settings"),
        ("- a\n- b", "holds no settings"),
        ("sedes: [42]", "unknown key 'sedes'; did you mean 'seeds'"),
        ("seeds: 42", "not a list"),
        ("seeds: ['a']", "holds 'a'"),
        ("seeds: []", "empty or repeated"),
        ("seeds: [1, 1]", "empty or repeated"),
        ("categories: [change_colr]", "no category 'change_colr'; did you mean 'change_colour'"),
        ("split: tset", "unknown split 'tset'; did you mean 'test'"),
        ("backbone: tinyworld-turb@1", "did you mean 'tinyworld-turbo@1'"),
        ("edits: nowhere.jsonl", "no edit set"),
        ("methods: [noop, saes]", "did you mean 'sae'"),
        ("methods: [sae]", "no method 'noop'"),
        ("methods: [noop, {name: sae, kk: 3}]", "no setting 'kk'"),
        ("methods: [noop, 3]", "a method is 3"),
        ("batch_size: -1", "batch_size holds -1 -> give a whole number from 0 to 4096"),
        ("batch_size: true", "holds True"),
        ("mask_rule: most", "unknown mask rule"),
    ],
)
def test_a_broken_configuration_is_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert message in failing(capsys, "run", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "scores.parquet").exists()


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert "there is no run" in failing(capsys, "run", tmp_path / "absent.yaml")


def test_a_device_that_is_not_there_is_one_line_and_touches_nothing(tmp_path, capsys):
    line = failing(capsys, "run", "quickstart", "--device", "gpu", "--out", tmp_path / "run")
    assert "unknown device 'gpu'" in line and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_unwritable_folder_is_one_line(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert "cannot write" in failing(capsys, "run", "quickstart", "--out", blocked / "run")


def test_a_folder_without_a_run_has_no_agreement(tmp_path, capsys):
    assert "nowhere is no run directory -> give the folder of a finished" in failing(
        capsys, "agreement", tmp_path / "nowhere"
    )


def test_the_full_preset_is_quickstart_on_every_edit_at_more_strengths():
    full, quick = read_config("full"), read_config("quickstart")
    assert full.edits_per_category == 0 and set(full.seeds) > set(quick.seeds) and full.categories == quick.categories
    settings = [(method.name, method.strength) for method in (config.build() for config in full.methods)]
    assert settings.count(("dense", 0.5)) == settings.count(("dense", 1.0)) == 1


def test_the_leaderboards_preset_is_quickstart_on_every_edit_at_more_strengths():
    board, quick = read_config("leaderboard"), read_config("quickstart")
    assert (
        board.edits_per_category == 0 and set(board.seeds) > set(quick.seeds) and board.categories == quick.categories
    )
    assert {method.build() for method in quick.methods} < {method.build() for method in board.methods}


def test_presets_read_and_build(capsys):
    for name in preset_names():
        config = read_config(name)
        assert all(method.build().name == (method.label or method.name) for method in config.methods)
    assert read_config("quickstart", {"seeds": [1]}).seeds == (1,)
    with pytest.raises(UserError, match="unknown key 'seed'"):
        build_config({"seed": 1}, where="here")


@pytest.mark.process
@pytest.mark.parametrize("words", [["ls", "methods"], ["--help"], ["run", "--help"]], ids=" ".join)
def test_a_full_disk_is_a_line(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "riebench.cli", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("riebench: No space left on device -> ")


def test_files_that_the_machine_refuses_are_a_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no run" in failing(capsys, "run", "a" * 300)
    assert "File name too long" in failing(capsys, "validate", "a" * 300)
    for word in ("\udcff", "a\ud800"):
        assert "is no text in UTF-8 -> rename it" in failing(capsys, "validate", word)


def test_a_device_is_written_to_by_nobody(tmp_path):
    for device in (Path("/dev/full"), Path("/dev/null")):
        kind = device.stat().st_rdev
        with pytest.raises(UserError, match="is a device, not a file"):
            write_bytes(device, b"x")
        assert device.stat().st_rdev == kind and device.is_char_device()
    (tmp_path / "pipe").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a device"):
        write_bytes(tmp_path / "pipe", b"x")


def test_what_steers_a_terminal_is_shown_and_not_sent(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in ("a\x1b[2Jb", "a\u202eb"):
        assert ascii(word)[1:-1] in failing(capsys, "validate", word)
        with pytest.raises(SystemExit):
            main(["ls", "methods", word])
        assert word not in capsys.readouterr().err
