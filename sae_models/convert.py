"""A checkpoint of any layout that is read becomes one of ours here, or of sparsify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import named_path
from sae_models import checkpoint, sparsify
from sae_models.autoencoder import Autoencoder
from sae_models.layouts import SAELENS, holds_part, layout_of, weights_sha256

TARGETS = ("saelens", "sparsify")


def convert(source: Path, out: Path, to: str = "saelens", metadata: dict[str, Any] | None = None) -> str:
    """Writes the checkpoint in the folder `source` to the folder `out`, in float32; returns the sha256 of its weights.

    The latents are the same, to the bit where the source's function has ours' form, to rounding where something had to
    be folded. metadata: goes into SAELens's cfg.json, beside that of the source and what it was converted from;
    sparsify has no place for any. Statistics beside the weights (`mean.pt`, `std.pt` of sdxl-unbox) are not carried
    over. Raises `UserError` for a source that cannot be read, a target that cannot hold it, and an `out` with a
    checkpoint in it.
    """
    if to not in TARGETS:
        raise UserError(
            f"checkpoints cannot be written as {to!r}{did_you_mean(to, TARGETS)}", remedy=f"use {' or '.join(TARGETS)}"
        )
    if to == "sparsify" and metadata:
        raise UserError("sparsify's checkpoints have no place for metadata", remedy="leave it out")
    source, out = named_path(source), named_path(out)
    sae = checkpoint.load(source)
    layout = layout_of(source)
    if holds_part(out):
        raise UserError(f"{out} already holds a checkpoint or a part of one", remedy="choose another folder")
    origin = {"layout": layout.name, "weights_sha256": weights_sha256(source)}
    kept = checkpoint.read_metadata(source) | (metadata or {}) | {"converted_from": origin}
    if isinstance(sae, Autoencoder):
        return sparsify.save(out, sae) if to == "sparsify" else checkpoint.save(out, sae, kept)
    if layout is SAELENS or to == "sparsify":
        remedy = (
            "copy its folder: no other layout can hold it" if layout is SAELENS else "write SAELens's, which is ours"
        )
        raise UserError(f"{source} holds no sparse autoencoder", remedy=remedy)
    return sae.save(out, kept)
