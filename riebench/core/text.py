"""Text of files has one reader, for whatever encoding, marks and ends of lines people's programs write.

UTF-8 and UTF-16 are read, the latter where the file begins with its byte order mark; a mark is no part of the text.
Lines end in LF, CR LF or a lone CR, and are given with LF. Anything else is refused with the first byte that shows it.
"""

from __future__ import annotations

import codecs
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from riebench.core.errors import UserError
from riebench.core.json_text import json_text

MOST_CHARACTERS = 2**28  # of a file that is read whole
LONGEST_LINE = 2**24  # characters
MARK = "\ufeff"  # stands within a text where files were strung together
#: Byte order mark -> encoding; a longer mark stands before one that it begins with.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_REMEDY = "save it as UTF-8 (in Excel: `CSV UTF-8`)"


class NotText(UserError):
    """An error of a file that is no text: what is `wrong` in which `line`."""

    def __init__(self, path: Path, line: int, wrong: str) -> None:
        super().__init__(f"{path}, line {line} cannot be read: {wrong}", remedy=_REMEDY)
        self.line, self.wrong = line, wrong


def read_text(path: str | Path) -> str:
    """Returns the text of a file. Raises `UserError` as `read_lines` does, and for more than `MOST_CHARACTERS`."""
    pieces = list(islice(_pieces(Path(path), lambda reader: reader.read(MOST_CHARACTERS)), 2))
    if len(pieces) > 1:
        raise UserError(f"{path} has over {MOST_CHARACTERS} characters", remedy="give a smaller file")
    return "".join(pieces)


def read_lines(path: str | Path) -> Iterator[str]:
    """Yields the lines of a text file, each with its end.

    Raises `UserError` where there is no such file, where it is of another encoding, with the byte, its place and its
    line, and for a line of more than `LONGEST_LINE` characters.
    """
    for number, line in enumerate(_pieces(Path(path), lambda reader: reader.readline(LONGEST_LINE)), start=1):
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise UserError(f"{path}, line {number} has over {LONGEST_LINE} characters", remedy="give a text file")
        yield line


def parse_json(text: str, *, finite: bool = False) -> Any:
    """Returns the value of a JSON text. finite: whether NaN and Infinity are refused, which are no JSON.

    Raises `ValueError` with what is wrong: no JSON, a key that stands twice in an object, half a character (a lone
    surrogate), and what is nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse if finite else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    refuse_half_characters(value if r"\u" in text else "")
    return value


def refuse_half_characters(value: Any) -> None:
    """Raises `ValueError` where text in plain values, as JSON and YAML give them, holds a lone surrogate: half a
    character, which no file can hold."""
    try:
        json_text(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"it holds half a character, {half!r}") from None


def one_line(text: object) -> str:
    """Returns text as it may stand in a line: blanks for ends of lines and tabs, escapes for what steers a terminal."""
    return "".join(
        letter
        if letter.isprintable() or unicodedata.category(letter) == "Zs"
        else " "
        if letter.isspace()
        else ascii(letter)[1:-1]
        for letter in str(text)
    )


def _pieces(path: Path, read: Callable[[io.TextIOWrapper], str]) -> Iterator[str]:
    """Yields what `read` takes from the text of a file, until it takes nothing more."""
    try:
        if not path.is_file():
            raise UserError(f"{path} {'is no file' if path.exists() else 'does not exist'}", remedy="check the path")
        with path.open("rb") as file:
            encoding = _encoding(path, file)
            reader = io.TextIOWrapper(file, encoding=encoding)
            while piece := read(reader):
                if "\0" in piece:
                    _refuse_byte(path, encoding)
                yield piece.removeprefix(MARK).replace(f"\n{MARK}", "\n")
    except UnicodeDecodeError:
        _refuse_byte(path, encoding)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}", remedy="check the path") from error


def _encoding(path: Path, file: BinaryIO) -> str:
    """Returns the encoding of a file, which then stands behind its mark."""
    start = file.read(4)
    mark, encoding = next(((mark, name) for mark, name in _MARKS.items() if start.startswith(mark)), (b"", "utf-8"))
    if encoding == "utf-32":
        raise NotText(path, 1, f"it begins with the bytes {start.hex(' ')}, as UTF-32 does")
    file.seek(len(mark))
    return encoding


def _refuse_byte(path: Path, encoding: str) -> NoReturn:
    """Raises `UserError` with the first byte of a file that is no text, where it stands and in which line."""
    with path.open("rb") as file:
        data = file.read(MOST_CHARACTERS)
    try:
        text, place = data.decode(encoding), len(data)
    except UnicodeDecodeError as error:
        text, place = data[: error.start].decode(encoding), error.start
    if "\0" in text:
        text = text[: text.index("\0")]
        place = len(text.encode(encoding))
    line = 1 + text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    byte = data[place : place + 1]
    said = f"the byte 0x{byte.hex()} at place {place} is no {encoding[:6].upper().removesuffix('-')} text{_guess(byte)}"
    raise NotText(path, line, said)


def _guess(byte: bytes) -> str:
    """Returns what a byte may have been meant as."""
    if byte == b"\0":
        return "; UTF-16 begins with its mark"
    letter = byte.decode("cp1252", errors="replace")
    return f"; in Windows-1252 it is {letter!r}" if letter.isalpha() and not letter.isascii() else ""


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no finite number")
