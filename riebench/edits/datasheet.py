"""This makes the figures of the shipped edit set's datasheet, which stand in data/edits/README.md between two marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from riebench.edits.edit import SPLITS, Edit, categories_of, load_edits
from riebench.edits.rules import LOOKS, SUBJECTS, words_of


def format_datasheet(edits: Sequence[Edit]) -> str:
    """Returns counts by category, subject, look and split, lengths and vocabulary, in Markdown."""
    columns = [("subject", SUBJECTS), ("look", LOOKS), ("split", SPLITS)]
    values = [(tag, value) for tag, known in columns for value in known]
    head = ["category", "edits", *(value for _, value in values), "words of a prompt"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for category in (*categories_of(edits), "all"):
        chosen = [edit for edit in edits if category in ("all", edit.category)]
        counts = [sum(edit.tags.get(tag) == value for edit in chosen) for tag, value in values]
        cells = [category, len(chosen), *counts, _lengths(chosen)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    colours = Counter(text.split()[-1] for edit in edits if edit.category == "change_colour" for text in _said(edit))
    shown = ", ".join(f"{name} {count}" for name, count in sorted(colours.items()))
    materials = {text for edit in edits if edit.category == "change_material" for text in _said(edit)}
    styles = {edit.tags["to"] for edit in edits if edit.category == "change_style"}
    return "\n".join(
        [
            *lines,
            "",
            "Words of a prompt: fewest, median, most, over original and edited prompts.",
            "",
            f"- Vocabulary of prompts and instructions: {len(words_of(edits))} words (`riebench/words.txt`).",
            f"- Colours, on either side of `change_colour`: {shown}.",
            f"- {len(materials)} materials, on either side of `change_material`; {len(styles)} target styles.",
        ]
    )


def _said(edit: Edit) -> tuple[str, str]:
    return edit.tags["from"], edit.tags["to"]


def _lengths(edits: Sequence[Edit]) -> str:
    lengths = [len(prompt.split()) for edit in edits for prompt in (edit.original_prompt, edit.edited_prompt)]
    return f"{min(lengths)}, {median(lengths):g}, {max(lengths)}"


if __name__ == "__main__":
    print(format_datasheet(load_edits("riebench")))
