"""Tables become text, with the cells of a column below each other: plain, for a terminal, and as markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from riebench.core.text import one_line


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = (), gap: str = "  ") -> list[str]:
    """Returns the rows, which have as many cells each, as lines without blanks at their ends.

    right: places of the columns that are set to the right; the others are set to the left. gap: what stands between
    two columns.
    """
    return [gap.join(cells).rstrip() for cells in _padded(rows, right)]


def markdown(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Returns the rows as a markdown table whose first row is the head. right: as in `aligned`."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    head, *body = _padded(escaped, right)
    rule = ["-" * (len(cell) - 1) + ":" if i in right else "-" * len(cell) for i, cell in enumerate(head)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def _padded(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[list[str]]:
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
