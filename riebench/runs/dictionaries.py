"""The dictionaries that methods are given are opened before anything is generated: one that is damaged fails every
case, so it ends the run."""

from __future__ import annotations

from collections.abc import Sequence

from riebench.backbones.folders import channels_of
from riebench.backbones.table import Backbone
from riebench.methods.method import Method, uses_sae
from riebench.methods.text_index import find_text_index
from riebench.runs.needs import index_remedy
from riebench.runs.setup import Setup
from sae_models import index


def check_dictionaries(methods: Sequence[Method], backbone: Backbone, setup: Setup) -> None:
    """Opens what methods are given on every block, on the CPU, one after the other, and forgets it again.

    Raises `UserError` where a dictionary is missing, damaged or not the registered one, or does not fit its block; and
    where a method needs text indices, likewise for these.
    """
    if not any(uses_sae(method) for method in methods):
        return
    with_text = any("text index" in getattr(method, "needs", ()) for method in methods)
    for block in backbone.blocks:
        entry, root = setup.dictionary_of(backbone, block)
        index.open(entry, root=root)
        channels = channels_of(backbone, setup.dtype).get(
            block, entry.width
        )  # loading tells of a block that is missing
        index.refuse_width(block, entry.width, channels, backbone.name)
        if with_text:
            fingerprint = index.fingerprint(entry, root=root)
            find_text_index(fingerprint, index_remedy(backbone, setup), num_features=entry.num_features)
