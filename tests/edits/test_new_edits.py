"""The example that `riebench new-edits` writes: it validates as it is, and it runs."""

import re
from pathlib import Path

import pytest
import yaml

import riebench
from riebench.core.errors import UserError
from riebench.edits.checks import check_edits, validate_edits
from riebench.edits.edit import read_edits
from riebench.edits.template import EXAMPLES, write_template
from riebench.runs.config import read_config
from riebench.tinyworld.captions import parse


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "mine.csv"])
def test_the_example_validates_and_is_of_the_world(tmp_path, name):
    path = write_template(tmp_path / "new" / name)
    assert validate_edits(path) == []
    edits = read_edits(path)
    assert sorted(edits, key=lambda edit: edit.id) == sorted(EXAMPLES, key=lambda edit: edit.id)
    for edit in edits:
        original, edited = parse(edit.original_prompt), parse(edit.edited_prompt)
        assert sum(getattr(original, name) != getattr(edited, name) for name in vars(original)) == 1
    with pytest.raises(UserError, match="is there already"):
        write_template(path)


def test_what_is_commented_out_holds_too(tmp_path):
    """The shown edit, taken out of its comment, is one that reads and validates, in a category that is declared."""
    text = write_template(tmp_path / "mine.yaml").read_text()
    tail = text[text.index("# Quotes are needed") :].splitlines()[2:]
    live = text.replace("# categories:", "categories:") + "\n".join(line.removeprefix("# ") for line in tail)
    (tmp_path / "mine.yaml").write_text(live.replace("category: change_background", "category: change_season"))
    assert validate_edits(tmp_path / "mine.yaml") == []
    assert [edit.id for edit in read_edits(tmp_path / "mine.yaml")][-1] == "one-more"
    assert yaml.safe_load(text)["edits"][0]["id"] == EXAMPLES[0].id  # any YAML reader agrees


def test_the_examples_of_the_page_hold(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "custom-edits.md").read_text()
    shown = re.search(r"```yaml\n(edits:.*?)```", page, re.DOTALL)[1]
    (tmp_path / "shown.yaml").write_text(shown)
    assert validate_edits(tmp_path / "shown.yaml") == []
    assert read_edits(tmp_path / "shown.yaml")[0].tags == {"split": "dev", "look": "photo"}
    asked = []
    monkeypatch.setattr(riebench, "run", lambda *_, edits: asked.extend(edits), raising=False)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert len(asked) == 1 and check_edits(asked) == [] and parse(asked[0].edited_prompt).colour == "blue"


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"end the name in \.yaml, \.yml, \.csv"):
        write_template(tmp_path / "mine.jsonl")


@pytest.mark.slow
def test_the_example_runs_to_a_report(tmp_path):
    from riebench.runs.run import run

    overrides = {
        "edits": str(write_template(tmp_path / "mine.yaml")),
        "categories": ["add_object", "change_colour"],
        "seeds": [42],
        "methods": ["noop", {"name": "sae", "k": 8}],
        "subsets_of": [],
        "resamples": 100,
    }
    done = run(read_config("quickstart", overrides), tmp_path / "out", device="cpu")
    assert done.manifest["edits"]["count"] == 2 and done.report.is_file()
    assert set(done.scores.edit) == {edit.id for edit in EXAMPLES}
    assert (done.scores.status == "ok").all() and len(done.scores) == 4
    assert done.scores[done.scores.method == "sae"].lpips_original.gt(0).all()
