"""Text, JSON and YAML as people's programs write them, beside Python's own codecs; and what is none of them."""

import codecs
import sys

import pytest

from riebench.core.errors import UserError, did_you_mean, shown
from riebench.core.files import read_json, read_json_lines
from riebench.core.text import LONGEST_LINE, one_line, parse_json, read_lines, read_text
from riebench.core.yaml_text import DEEPEST, YamlError, load_yaml

LINES = ["ein Löwe", "", "狮子 🦁", "=1+1", "the last"]
ENCODINGS = {
    "plain": (b"", "utf-8"),
    "UTF-8 with a mark": (codecs.BOM_UTF8, "utf-8"),
    "two marks": (2 * codecs.BOM_UTF8, "utf-8"),
    "UTF-16, little end": (codecs.BOM_UTF16_LE, "utf-16-le"),
    "UTF-16, big end": (codecs.BOM_UTF16_BE, "utf-16-be"),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("mark", "encoding"), ENCODINGS.values(), ids=ENCODINGS)
def test_every_encoding_and_end_of_line_gives_the_same_text(tmp_path, mark, encoding, end):
    path = tmp_path / "text"
    path.write_bytes(mark + end.join(LINES).encode(encoding))
    assert read_text(path) == "\n".join(LINES)
    assert [line.rstrip("\n") for line in read_lines(path)] == LINES
    path.write_bytes(mark + f'{{"löwe":{end} "🦁"}}'.encode(encoding))
    assert read_json(path, "the file") == {"löwe": "🦁"}
    path.write_bytes(mark + f'{{"a": 1}}{end}{end}{{"a": 2}}'.encode(encoding))
    assert [item["a"] for _, item in read_json_lines(path)] == [1, 2]


def test_files_that_were_strung_together_have_their_marks_within(tmp_path):
    path = tmp_path / "two"
    path.write_bytes(b"".join(codecs.BOM_UTF8 + part for part in (b"a\r\n", b"b\r\n", b"c")))
    assert read_text(path) == "a\nb\nc"
    assert list(read_lines(path)) == ["a\n", "b\n", "c"]


def test_only_the_ends_of_lines_end_lines(tmp_path):
    path = tmp_path / "text"
    path.write_text("a\x0bb\x0cc\x1cd\x85e\u2028f\n", newline="")
    assert len(list(read_lines(path))) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a\r\nb\r\nschön".encode("cp1252"), "line 3 cannot be read: the byte 0xf6 at place 9 .* it is 'ö'"),
        ("a\rschön".encode("latin-1"), "line 2 .* 0xf6"),
        ("日本".encode("shift_jis"), "line 1 .* 0x93 at place 0"),
        ("Привет".encode("cp1251"), "line 1 .* 0xcf at place 0"),
        ("abc".encode("utf-16-le"), "the byte 0x00 at place 1 .*; UTF-16 begins with its mark -> save it as UTF-8"),
        ("abc".encode("utf-16-be"), "the byte 0x00 at place 0"),
        ("abc".encode("utf-32"), "the bytes ff fe 00 00, as UTF-32 does"),
        (codecs.BOM_UTF32_BE + "abc".encode("utf-32-be"), "the bytes 00 00 fe ff, as UTF-32 does"),
        (codecs.BOM_UTF16_LE + b"a\0b", "0x62 at place 4 is no UTF-16 text"),
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8", "0x00 at place 4 is no UTF-16 text"),
        (b"abc\xe2\x82", "0xe2 at place 3"),
        (b"abc\xed\xa0\x80", "0xed at place 3"),
        (b"x" * 70_000 + b"\n" + b"y" * 9 + b"\xff", "line 2 .* 0xff at place 70010"),
        (b"\x89PNG\r\n\x1a\n\0\0", "0x89 at place 0"),
        (b"PK\x03\x04\0\0", "0x00 at place 4"),
    ],
)
@pytest.mark.parametrize("read", [read_text, lambda path: list(read_lines(path))], ids=["whole", "lines"])
def test_another_encoding_is_refused_with_its_first_byte(tmp_path, data, said, read):
    (tmp_path / "text").write_bytes(data)
    with pytest.raises(UserError, match=f"text, {said}") if "line " in said else pytest.raises(UserError, match=said):
        read(tmp_path / "text")


def test_what_is_no_file_or_no_text_is_refused_without_reading_it_all(tmp_path, monkeypatch):
    for path, said in ((tmp_path, "is no file"), (tmp_path / "gone", "does not exist"), ("/dev/zero", "is no file")):
        with pytest.raises(UserError, match=said):
            read_text(path)
    monkeypatch.setattr("riebench.core.text.LONGEST_LINE", 100)
    monkeypatch.setattr("riebench.core.text.MOST_CHARACTERS", 100)
    (tmp_path / "long").write_text(f"short\n{'x' * 200}\n")
    with pytest.raises(UserError, match="line 2 has over 100 characters"):
        list(read_lines(tmp_path / "long"))
    with pytest.raises(UserError, match="has over 100 characters"):
        read_text(tmp_path / "long")
    (tmp_path / "fits").write_text(f"{'x' * 99}\n")
    assert list(read_lines(tmp_path / "fits")) == [read_text(tmp_path / "fits")]
    assert LONGEST_LINE >= 2**24


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        (r'["\ud83e"]', "half a character"),
        (r'{"\udd81": 1}', "half a character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 5000, "digits"),
        ("", "Expecting value"),
        ("{'a': 1}", "double quotes"),
    ],
)
def test_json_that_would_be_lost_or_break_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_json(text)


def test_json_has_no_nan_where_that_is_asked():
    assert parse_json("[1e3, null]", finite=True) == [1000.0, None] and parse_json("[NaN]") != [None]
    for text in ("NaN", "[-Infinity]"):
        with pytest.raises(ValueError, match="no finite number"):
            parse_json(text, finite=True)
    assert parse_json(r'"\ud83e\udd81"') == "🦁"


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb:\n  c: 2\n  c: 3\n", 4, "'c' stands twice"),
        ("a: 1\n? [b]\n: 2\n", 2, "a key is no text"),
        ("a: &a [*a]", 1, "an alias names what it stands in"),
        (LAUGHS, 1, "its aliases make more than"),
        ("a: 1\nb: *c", 2, "undefined alias"),
        ("[" * 1000, 1, f"nested more than {DEEPEST} times"),
        ("- " * 1000, 1, f"nested more than {DEEPEST} times"),
        ('a: "\\ud83e"', 1, "half a character"),
        ("a: 1\nb: \x01", 2, "special characters"),
        ("a: !!timestamp noon", 1, "not what its tag says"),
        ("a: !!int ''", 1, "not what its tag says"),
        ("a: !!bool perhaps", 1, "not what its tag says"),
        ("a: 2026-13-45", 1, "month"),
        ("a: !!python/object/apply:os.system [ls]", 1, "could not determine a constructor"),
        ("a: 1\n--- \nb: 2", 2, "another document"),
        ("a: [1\nb: 2", 2, "expected"),
        ("a: b: c", 1, "not allowed here"),
        ("<<: 1", 1, "merging"),
    ],
)
def test_yaml_that_would_be_lost_or_break_is_refused_with_its_line(text, line, said):
    with pytest.raises(YamlError, match=said) as error:
        load_yaml(text)
    assert error.value.line == line


def test_yaml_of_plain_values_is_read():
    text = "on: [1, 2.5, no, ~]\nbase: &base {k: 1}\nother: {<<: *base, m: '🦁'}\n"
    assert load_yaml(text) == {"on": [1, 2.5, False, None], "base": {"k": 1}, "other": {"k": 1, "m": "🦁"}}
    assert load_yaml("") is None


def test_messages_hold_any_value_in_a_line():
    huge, endless = 16**5000, []
    for _ in range(2 * sys.getrecursionlimit()):
        endless = [endless]
    assert shown(huge) == "a int too large to be written" and "too large" in shown(endless)
    assert shown("x" * 500) == f"'{'x' * 76}..." and shown([1]) == "[1]"
    assert did_you_mean(huge, ["a"]) == "" and did_you_mean("sa", ["sae"]) == "; did you mean 'sae'?"
    assert one_line("a\nb\tc\x1b[2J\u202e\u00a0ö\ud83e") == "a b c\\x1b[2J\\u202e\u00a0ö\\ud83e"
