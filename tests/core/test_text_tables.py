"""Tables as text, beside tables written out."""

import subprocess
import sys

import pytest

from riebench.core.text_tables import aligned, markdown

ROWS = [("name", "count", "what"), ("a", "10", "first"), ("longer", "7", "")]


def test_columns_stand_below_each_other_and_lines_end_without_blanks():
    assert aligned(ROWS, right=(1,)) == ["name    count  what", "a          10  first", "longer      7"]
    assert aligned(ROWS, gap=" | ") == ["name   | count | what", "a      | 10    | first", "longer | 7     |"]
    assert aligned([]) == []


def test_markdown_has_a_rule_below_its_head_and_no_cell_opens_another():
    assert markdown([*ROWS, ("x|y", "1", "")], right=[1]).splitlines() == [
        "| name   | count | what  |",
        "| ------ | ----: | ----- |",
        "| a      |    10 | first |",
        "| longer |     7 |       |",
        "| x\\|y   |     1 |       |",
    ]


@pytest.mark.process
def test_making_tables_imports_neither_pandas_nor_torch():
    code = "import sys, riebench.core.text_tables; sys.exit(bool({'pandas', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
