"""What suits a kind of backbone where a run says nothing: its edits, and the settings of methods. Imports no torch.

The kind of a backbone is the family of networks that judge its pictures (`Backbone.judges`); one's own has that of the
backbone that it is `like`. Its presets lie in `presets/<kind>/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Kind -> the shipped edit set whose prompts its models understand.
EDITS = {"tinyworld": "tinyworld", "sdxl": "riebench"}

#: Kind -> method -> settings in the place of its dataclass's defaults, which suit tinyworld's 768 features a block. The
#: published sweep of SDXL is of 80 to 640 of 4 x 5120 features and of 5,000 to 80,000 of 204,800 neurons, over all
#: blocks (protocol §5): with k a block's own, as in strict mode, and with k over all of them these lie in it.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {
        **{name: {"k": 160} for name in ("sae", "random", "other-seed", "mismatched", "pca")},
        "neurons": {"k": 5000},
        "text-selected": {"k": 80},
    }
}


def edits_for(kind: str) -> str:
    """Returns the name of the edit set that suits a kind of backbone; SDXL's for a kind that is not known here."""
    return EDITS.get(kind, EDITS["sdxl"])


def settings_for(kind: str, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a method on a kind of backbone: those given, and what suits in the place of others."""
    return {**SETTINGS.get(kind, {}).get(method, {}), **given}
