"""Fetching weights from the Hub into this machine's cache: the one place that touches the network. Imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub

from riebench.core.errors import UserError
from riebench.core.hub import Weights, cached_file, missing_files, snapshot_folder
from riebench.core.hub_errors import explained


def fetch(name: str, weights: Weights) -> Path:
    """Downloads what is missing, with progress, and returns the folder; a stopped download goes on where it was.

    Raises `UserError` where a needed file cannot be had, with what to do about it: see `riebench.core.hub_errors`.
    """
    missing = missing_files(weights)
    extra = [file for file in weights.optional if cached_file(weights, file) is None]
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if not missing and (offline or not extra):
        return snapshot_folder(weights)
    if offline:
        raise UserError(
            f"{name} cannot be fetched while HF_HUB_OFFLINE is set: {len(missing)} of {len(weights.files)} files of"
            f" {weights.repo} are not on this machine",
            remedy=f"unset it and run `riebench fetch {name}`, which fetches only what is missing",
        )
    print(
        f"fetching {len(missing) + len(extra)} files of {weights.url}, at most {weights.gigabytes:g} GB",
        file=sys.stderr,
        flush=True,
    )
    try:
        huggingface_hub.snapshot_download(
            weights.repo, revision=weights.revision, allow_patterns=[*weights.files, *weights.optional]
        )
        for file in missing_files(weights):  # what a partial folder and a dead network leave: this says which it is
            huggingface_hub.hf_hub_download(weights.repo, file, revision=weights.revision)
    except Exception as error:
        if missing_files(weights):
            raise explained(name, weights, error) from error
    return snapshot_folder(weights)
