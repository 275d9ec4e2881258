"""`riebench new-edits` writes an example of an edit file, which validates as it is and runs on tinyworld."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from riebench.core import files
from riebench.core.errors import UserError
from riebench.edits.edit import Edit

_CIRCLE = "flat poster of a standing red plain circle"
EXAMPLES = (
    Edit(
        id="blue-circle",
        category="change_colour",
        original_prompt=f"{_CIRCLE} on a meadow",
        edited_prompt=f"{_CIRCLE.replace('red', 'blue')} on a meadow",
        original_region="circle",
        edited_region="circle",
        instruction="make the circle blue",
    ),
    Edit(
        id="hat-for-the-circle",
        category="add_object",
        original_prompt=f"{_CIRCLE} by the sea",
        edited_prompt=f"{_CIRCLE} wearing a hat by the sea",
        original_region="hat",
        edited_region="hat",
        instruction="put a hat on the circle",
    ),
)

_HEAD = """\
# Edits of your own for riebench. Check them:  riebench validate {name}
# Run them:                                   riebench run quickstart --edits {name}
#
# An edit is two prompts that differ in one thing, and where in each picture it lies. These run on tinyworld, whose
# models know the words of its captions alone; for SDXL write what you like, "a photo of a red bicycle by a wall".

# A category that is not one of the nine (riebench ls categories) is declared here:
# categories: [change_season]

edits:
"""

_TAIL = """
# Quotes are needed where text begins with [ or #, or holds a colon and a space.
#
#   - id: one-more                    # any text, once in a file
#     category: change_background
#     original_prompt: "[a cat] on a sofa: evening"      # [ ] marks are left out before anything is drawn or scored
#     edited_prompt: "[a cat] on a beach: evening"
#     original_region: background     # a region is a noun that can be seen in that picture (several, with commas),
#     edited_region: not cat          # everything, background, `not` one of these, or mask:FILE: a picture of the
#                                     # image's size beside this file, white where the image may change
#     instruction: take the cat to the beach             # may be left out
#     tags: {split: dev, look: photo}                    # may be left out; split: dev or test (docs/custom-edits.md)
"""


def write_template(path: Path) -> Path:
    """Writes an example of edits, YAML with comments or CSV by the path's suffix, and returns the path.

    Raises `UserError` for another suffix, and where there is such a file already.
    """
    path = files.named_path(path)
    writers = {".yaml": _as_yaml, ".yml": _as_yaml, ".csv": _as_csv}
    if path.suffix not in writers:
        raise UserError(f"no example of edits can be written to {path}", remedy=f"end the name in {', '.join(writers)}")
    if os.path.lexists(path):
        raise UserError(f"{path} is there already", remedy="give another name")
    files.write_text(path, writers[path.suffix](path))
    return path


def _as_yaml(path: Path) -> str:
    lines = [[f"{name}: {value}" for name, value in _written(edit).items()] for edit in EXAMPLES]
    blocks = ["  - " + "\n    ".join(of_edit) + "\n" for of_edit in lines]
    return _HEAD.format(name=path.name) + "\n".join(blocks) + _TAIL


def _as_csv(path: Path) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_written(EXAMPLES[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_written(edit) for edit in EXAMPLES)
    return text.getvalue()


def _written(edit: Edit) -> dict[str, str]:
    return {name: value for name, value in vars(edit).items() if name != "tags"}
