"""CSV has one reader, for the separators that spreadsheets of any country write, and one guard for what is written."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from riebench.core.text import read_lines

SEPARATORS = (",", ";", "\t", "|")
_SEP_LINE = re.compile(r'"?sep=(?P<sep>.)"?[,;\t|"]*', re.IGNORECASE)  # of Excel; what follows are empty cells
#: Where a spreadsheet would begin to calculate: at the beginning of a cell, or of what another separator makes one.
_FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n|]))(?=\s*[=+\-@＝＋－＠])|^(?=[\t\r\n])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


class CsvError(ValueError):
    """An error of a CSV text. `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def read_csv(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, cells without surrounding space) of each row of a file that is not blank, the head first.

    The separator is what a first line `sep=;` says, or else that of comma, semicolon, tab and bar which stands in the
    head most often; a quoted one does not count. Raises `CsvError` for what is no CSV, and `UserError` as `read_lines`
    does.
    """
    lines = enumerate(read_lines(path), start=1)
    first, head = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    said = _SEP_LINE.fullmatch(head.strip(" \n"))
    if said:
        separator = said["sep"]
        if separator not in SEPARATORS:
            raise CsvError(f"its separator is {separator!r}, not a comma, a semicolon, a tab or a bar", first)
        first, head = next(((number, line) for number, line in lines if line.strip()), (first, ""))
    else:
        separator = separator_of(head)
    reader = csv.reader(chain([head], (line for _, line in lines)), delimiter=separator, strict=True)
    line = first
    try:
        for cells in reader:
            start, line = line, first + reader.line_num
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield start, cells
    except csv.Error as error:
        raise CsvError(str(error), line) from error


def separator_of(head: str) -> str:
    """Returns the separator of a table's first line: which of `SEPARATORS` is in it most often, outside quotes."""
    bare = re.sub(r'"[^"]*"?', "", head)
    return max(SEPARATORS, key=bare.count)


def inert(text: str) -> str:
    """Returns text as a cell that no spreadsheet takes for a formula: with an apostrophe before what would begin one.

    A plain number stays as it is. (OWASP, "CSV Injection".)
    """
    return text if _NUMBER.fullmatch(text) else _FORMULA.sub("'", text)
