"""The worlds of tinyworld: which of a scene's attributes enters in which block, by the weights' own structure.

Written down before any model with this structure was looked at. Imports no torch.
"""

from __future__ import annotations

#: World -> attribute -> the one block that reads the attribute's words. In "planted" as the published findings have it:
#: composition early, pose in the middle, details and then appearance late. In "permuted" each block has what stands one
#: block before it in "planted", and the first what stands in the last, so that no attribute keeps its block. In
#: "everywhere" no block is named: all of them read every word, and no block is owed a verdict.
ROLES: dict[str, dict[str, str]] = {
    "planted": {
        "shape": "down.2.1",
        "background": "down.2.1",
        "pose": "mid.0",
        "content": "up.0.0",
        "accessory": "up.0.0",
        "colour": "up.0.1",
        "material": "up.0.1",
        "style": "up.0.1",
    },
    "permuted": {
        "colour": "down.2.1",
        "material": "down.2.1",
        "style": "down.2.1",
        "shape": "mid.0",
        "background": "mid.0",
        "pose": "up.0.0",
        "content": "up.0.1",
        "accessory": "up.0.1",
    },
    "everywhere": {},
}

#: Category -> the attribute that its edits change.
CHANGED = {
    "change_object": "shape",
    "add_object": "accessory",
    "delete_object": "accessory",
    "change_content": "content",
    "change_pose": "pose",
    "change_colour": "colour",
    "change_material": "material",
    "change_background": "background",
    "change_style": "style",
}
