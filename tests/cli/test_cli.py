"""The command line as a user meets it: quick listings, and one clear line for everything that is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from riebench.cli import main
from riebench.cli.listing import KINDS
from riebench.core.errors import UserError
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


def test_listing_and_help_import_no_torch():
    for words in (["--help"], *(["ls", kind] for kind in KINDS)):
        code = (
            "import sys\nfrom riebench.cli import main\n"
            f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
            "assert 'torch' not in sys.modules and 'pandas' not in sys.modules, words"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_an_unknown_name_says_what_was_meant(capsys):
    assert "did you mean 'quickstart'" in failing(capsys, "run", "quickstrat")
    assert "did you mean 'methods'" in failing(capsys, "ls", "metods")
    assert "tinyworld has no part 'vea'" in failing(capsys, "tinyworld", "train", "--only", "vea", "--out", "x")
    assert "unknown block" in failing(capsys, "train", "--blocks", "up.9.9", "--out", "x")


def test_train_and_evaluate_say_what_is_wrong_with_their_words(capsys, tmp_path):
    assert "--k is '4;8'" in failing(capsys, "train", "--k", "4;8", "--out", tmp_path)
    assert "--width is '4,'" in failing(capsys, "train", "--width", "4,", "--out", tmp_path)
    assert "did you mean 'tinyworld-base@25'" in failing(capsys, "evaluate", "--on", "tinyworld-bas@25")
    assert "no dictionary was trained on" in failing(capsys, "evaluate", "--dictionaries", tmp_path)
    assert not list(tmp_path.iterdir())


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


def test_an_unwritable_folder_is_one_line(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert "cannot write" in failing(capsys, "run", "quickstart", "--out", blocked / "run")


def test_a_folder_without_a_run_has_no_agreement(tmp_path, capsys):
    assert "manifest.json does not exist -> check the path" in failing(capsys, "agreement", tmp_path / "nowhere")


def test_the_full_preset_is_quickstart_on_every_edit_at_more_strengths():
    full, quick = read_config("full"), read_config("quickstart")
    assert full.edits_per_category == 0 and full.seeds == quick.seeds and full.categories == quick.categories
    settings = [(method.name, method.strength) for method in (config.build() for config in full.methods)]
    assert settings.count(("dense", 0.5)) == settings.count(("dense", 1.0)) == 1


def test_the_leaderboards_preset_is_quickstart_on_every_edit_at_more_strengths():
    board, quick = read_config("leaderboard"), read_config("quickstart")
    assert board.edits_per_category == 0 and board.seeds == quick.seeds and board.categories == quick.categories
    assert {method.build() for method in quick.methods} < {method.build() for method in board.methods}


def test_presets_read_and_build(capsys):
    for name in preset_names():
        config = read_config(name)
        assert all(method.build().name == (method.label or method.name) for method in config.methods)
    assert read_config("quickstart", {"seeds": [1]}).seeds == (1,)
    with pytest.raises(UserError, match="unknown key 'seed'"):
        build_config({"seed": 1}, where="here")
