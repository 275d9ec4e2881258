"""Files and words of a user, generated and damaged: each is read as Python's own codecs and readers read it, or refused
in words; none is a traceback."""

from __future__ import annotations

import codecs
import json

import pytest
import yaml
from fuzzing import LEAST, ODD, Tally, damaged, fuzz, odd_text, odd_values, written
from hypothesis import given
from hypothesis import strategies as st

from baselines import METHODS
from riebench.backbones.own import backbone_from
from riebench.cli import main
from riebench.cli.runs import _settings
from riebench.core.text import read_lines, read_text
from riebench.dictionaries.prompts import read_prompts
from riebench.edits.checks import validate_edits
from riebench.edits.edit import load_edits
from riebench.edits.importers.pie_bench import import_pie_bench
from riebench.edits.importers.published import import_riebench
from riebench.edits.template import write_template
from riebench.runs.config import MethodConfig, RunConfig, read_config, setting_kinds

pytestmark = pytest.mark.slow

MARKS = (b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def test_there_are_a_thousand_bad_inputs():
    assert sum(LEAST.values()) >= 1000


def test_bytes_are_the_text_that_codecs_find_or_none(tmp_path):
    tally, path = Tally("text"), tmp_path / "a"
    encodings = dict(zip(MARKS, ("utf-8", "utf-8", "utf-16-le", "utf-16-be"), strict=True))

    @fuzz(200)
    @given(st.sampled_from(MARKS), st.binary(max_size=12) | odd_text)
    def check(mark, body):
        encoding = encodings[mark]
        data = mark + (body if isinstance(body, bytes) else body.encode(encoding, "surrogatepass"))
        path.write_bytes(data)
        try:
            text = data[len(mark) :].decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
            good = "\0" not in text and not data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE))
        except UnicodeDecodeError:
            good = False
        if tally.refuses(lambda: read_text(path)):
            assert not good
        else:
            assert read_text(path) == "".join(read_lines(path))
            assert not good or read_text(path).replace("\ufeff", "") == text.replace("\ufeff", "")

    check()
    tally.check()


RUN = "backbone: tinyworld-turbo@1\nseeds: [1, 2]\nmethods:\n- name: noop\n- {name: sae, k: 16}\nresamples: 10\n"


def test_damaged_run_files_are_read_or_refused(tmp_path):
    tally, path = Tally("run files"), tmp_path / "a.yaml"

    @fuzz(200)
    @given(damaged(RUN.encode()))
    def check(data):
        path.write_bytes(data)
        if not tally.refuses(lambda: read_config(str(path))):
            assert isinstance(read_config(str(path)), RunConfig)

    check()
    tally.check()


def test_run_files_hold_known_keys_with_values_of_their_kind_or_are_refused(tmp_path):
    tally, path = Tally("run files, keys"), tmp_path / "a.yaml"
    known = [*RunConfig.__dataclass_fields__, "k", "strength", "on"]

    @fuzz(220)
    @given(st.dictionaries(st.sampled_from(known) | odd_text, odd_values, min_size=1, max_size=2))
    def check(values):
        path.write_text(yaml.safe_dump(values), encoding="utf-8", errors="surrogatepass")
        if not tally.refuses(lambda: read_config(str(path))):
            assert set(values) <= set(RunConfig.__dataclass_fields__)
            for name, kind in {"seeds": tuple, "methods": tuple, "batch_size": int, "edits": str, "mode": str}.items():
                assert isinstance(getattr(read_config(str(path)), name), kind)

    check()
    tally.check()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """The bytes of an example of edits in each format."""
    folder = tmp_path_factory.mktemp("examples")
    found = {f".{kind}": write_template(folder / f"a.{kind}").read_bytes() for kind in ("yaml", "csv")}
    rows = [vars(edit) for edit in load_edits(folder / "a.csv")]
    return found | {".jsonl": "\n".join(map(json.dumps, rows)).encode()}, rows


def test_damaged_edit_files_are_read_or_refused(tmp_path, examples):
    tally = Tally("edit files")

    @fuzz(210)
    @given(
        st.sampled_from(sorted(examples[0])).flatmap(lambda kind: st.tuples(st.just(kind), damaged(examples[0][kind])))
    )
    def check(file):
        path = tmp_path / f"a{file[0]}"
        path.write_bytes(file[1])
        problems = []
        if tally.refuses(lambda: problems.extend(validate_edits(path))):
            return
        assert all(problem.what and problem.file for problem in problems)
        tally.bad += bool(problems)
        if not problems:
            assert load_edits(path)

    check()
    tally.check()


def test_edits_have_text_in_their_fields_or_are_refused(tmp_path, examples):
    tally, path = Tally("edits"), tmp_path / "a.jsonl"
    good = examples[1][0]
    odd_fields = odd_values.filter(lambda value: not isinstance(value, str) and value != {})
    half = st.sampled_from(["\ud800", "a\udfff", " ", ""])
    needed = [name for name in good if name not in ("instruction", "tags")]

    @fuzz(200)
    @given(st.sampled_from(sorted(needed)), odd_fields | half | st.just(...), odd_text)
    def check(name, value, further):
        row = {key: old for key, old in good.items() if key != name} | ({} if value is ... else {name: value})
        path.write_bytes(written(row))
        assert tally.refuses(lambda: load_edits(path))
        path.write_bytes(written(good | {f"{further}!": further}))
        assert tally.refuses(lambda: load_edits(path))

    check()
    tally.check()


def test_every_item_of_a_list_is_taken_dropped_or_refused(tmp_path):
    tally, path = Tally("lists"), tmp_path / "a.json"
    good = {
        **{"id": 1, "editing_type_id": "6", "original_prompt": "a [red] kite", "editing_prompt": "a [blue] kite"},
        **{"original_gsam_prompt": "kite", "editing_gsam_prompt": "kite", "mask": [0, 9], "image_path": "a.jpg"},
    }

    @fuzz(200)
    @given(st.sampled_from(sorted(good)), odd_values, st.booleans())
    def check(name, value, photographs):
        item = good | {name: value}
        path.write_bytes(written({"a": item, "b": good} if photographs else [item, good | {"id": "b"}]))
        found = []
        read = (lambda: import_pie_bench(path, tmp_path)) if photographs else (lambda: import_riebench(path))
        if not tally.refuses(lambda: found.append(read())):
            (imported,) = found
            assert len(imported.edits) + len(imported.refused) + sum(imported.dropped.values()) == 2
            tally.bad += bool(imported.refused)

    check()
    tally.check()


def test_prompts_are_text_or_refused(tmp_path):
    tally = Tally("prompts")
    lines = b'{"prompt": "a red circle"}\n{"prompt": "a star"}\n'

    @fuzz(100)
    @given(
        damaged(lines) | odd_values.map(lambda value: written({"prompt": value})), st.sampled_from([".jsonl", ".txt"])
    )
    def check(data, suffix):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(data)
        if not tally.refuses(lambda: read_prompts(str(path))):
            assert all(prompt.strip() == prompt != "" for prompt in read_prompts(str(path)))
            "".join(read_prompts(str(path))).encode()  # no half characters

    check()
    tally.check()


def test_settings_are_what_a_method_has_or_refused():
    tally = Tally("settings")
    methods = [name for name in METHODS.names() if setting_kinds(name)]
    keys = sorted({key for name in methods for key in setting_kinds(name)})

    @fuzz(130)
    @given(
        st.sampled_from(methods),
        st.sampled_from(keys) | odd_text,
        odd_text | odd_values.map(lambda v: yaml.safe_dump(v)),
    )
    def check(method, key, value):
        word = f"{key}={value}"
        found = []
        if not tally.refuses(lambda: found.append(MethodConfig(method, _settings(method, (word,))).build())):
            assert word.partition("=")[0] in setting_kinds(method) and found[0].name == method

    check()
    tally.check()


def test_backbones_are_of_known_keys_or_refused():
    tally = Tally("backbones")
    good = {"name": "mine@1", "like": "tinyworld-turbo@1", "folder": "a", "steps": 1, "guidance": 0.0, "height": 64}

    @fuzz(150)
    @given(st.sampled_from([*good, "vae", "dtype", "judges", "x"]), odd_values)
    def check(key, value):
        if not tally.refuses(lambda: backbone_from(good | {key: value}, "here")):
            assert key != "x" and backbone_from(good | {key: value}, "here").steps == 1

    check()
    tally.check()


VERBS = ["run", "edit", "validate", "import", "new-edits", "score", "compare", "dominance", "agreement", "submit", "ls"]


def test_words_of_a_command_line_end_it_with_a_line(tmp_path, monkeypatch, capsys):
    tally = Tally("words")
    monkeypatch.chdir(tmp_path)
    word = odd_text | st.sampled_from(
        ["--edits", "--seeds=1,x", "--out", "--metrics", "--k", "nowhere", "-1", "9" * 5000, "a" * 300]
    )

    @fuzz(80)
    @given(st.sampled_from(VERBS), st.lists(word, max_size=3))
    def check(verb, words):
        words = ["--", *words] if verb == "new-edits" else words
        try:
            status = main([verb, *words])
        except SystemExit as stopped:
            status = stopped.code
        out, err = capsys.readouterr()
        tally.tried, tally.bad = tally.tried + 1, tally.bad + (status == 2)
        assert status == 0 or (status == 2 and err.strip()), (status, out, err)
        assert "Traceback" not in err and not any(
            part in err for part in ODD if not part.isprintable() and part not in "\r\n"
        )

    check()
    tally.check()
