"""CSV of spreadsheets, beside Python's own reader; and cells that a spreadsheet would take for formulas."""

import csv
import io

import pandas as pd
import pytest

from riebench.analysis import write_csv
from riebench.core.csv_tables import CsvError, inert, read_csv
from riebench.core.errors import UserError

ROWS = [["id", "prompt", "tags.look"], ["1", "a cat; a dog, or both", ""], ["2", 'a "big" | cat\tsits', "photo"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("said", ["", "sep=", '"sep="', "SEP="])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_every_separator_is_read_whether_it_is_said_or_not(tmp_path, separator, said, end):
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(ROWS)
    head = f"{said[:-1]}{separator}{said[-1]}" if said.endswith('"') else f"{said}{separator}"
    body = f"{head}\n{text.getvalue()}" if said else text.getvalue()
    (tmp_path / "a.csv").write_bytes(body.replace("\n", end).encode("utf-8-sig"))
    first = 2 if said else 1
    assert list(read_csv(tmp_path / "a.csv")) == [(first + place, row) for place, row in enumerate(ROWS)]


def test_lines_are_counted_as_they_stand_in_the_file(tmp_path):
    (tmp_path / "a.csv").write_text('\n\na;b\n1;"x\n\ny"\n\n;;\n2;z\n')
    assert list(read_csv(tmp_path / "a.csv")) == [(3, ["a", "b"]), (4, ["1", "x\n\ny"]), (9, ["2", "z"])]


def test_a_separator_in_quotes_does_not_count(tmp_path):
    (tmp_path / "a.csv").write_text('"a;b;c;d",e\n1,2\n')
    assert list(read_csv(tmp_path / "a.csv")) == [(1, ["a;b;c;d", "e"]), (2, ["1", "2"])]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("sep=:\na:b\n", 1, "its separator is ':'"),
        ('a,b\n1,"2', 2, "unexpected end"),
        ('a,b\n1,"2" 3\n', 2, "expected after"),
        (f"a,b\n1,{'x' * 200_000}\n", 2, "field larger"),
    ],
)
def test_what_is_no_csv_is_said_with_its_line(tmp_path, text, line, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(CsvError, match=said) as error:
        list(read_csv(tmp_path / "a.csv"))
    assert error.value.line == line


@pytest.mark.parametrize("data", [b"", b"\n\n", b"sep=;\n"])
def test_an_empty_table_has_no_rows(tmp_path, data):
    (tmp_path / "a.csv").write_bytes(data)
    assert list(read_csv(tmp_path / "a.csv")) == []
    (tmp_path / "b.csv").write_bytes(b"a,b\n\xe4,1")
    with pytest.raises(UserError, match="0xe4"):
        list(read_csv(tmp_path / "b.csv"))


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =cmd|' /C calc'!A0", "a;=1", "＝1", "=", "-a"]


def test_no_cell_begins_a_formula_and_numbers_and_words_stay_as_they_are(tmp_path):
    for text in FORMULAS:
        for part in inert(text).split(";"):
            assert part.lstrip(" ")[:1] not in "=+-@\t\r\n＝", text
    for text in ("", "sae", "a-b", "a=b", "0.5", "-0.5", "+1e-3", "not separable", "x;y"):
        assert inert(text) == text
    frame = pd.DataFrame({"method": FORMULAS, "=head": range(len(FORMULAS)), "low": [-0.5] * len(FORMULAS)})
    write_csv(frame, tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["method", "'=head", "low"]
    assert all(cell[:1] not in "=+-@\t\r\n" for cell, *_ in rows) and {row[2] for row in rows} == {"-0.5"}
    assert pd.read_csv(tmp_path / "a.csv")["low"].tolist() == [-0.5] * len(FORMULAS)
