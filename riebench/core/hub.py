"""Weights on the Hugging Face Hub are files at a revision; this finds them on this machine and fetches them.

Nothing here touches the network but `fetch`. It imports no torch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from riebench.core.errors import UserError


@dataclass(frozen=True)
class Weights:
    """Files of one repository at one revision."""

    repo: str
    """As on the Hub: "owner/name"."""
    revision: str
    """A commit, or a branch where its owner promises to keep it as it is."""
    files: tuple[str, ...]
    """What is needed, relative to the repository's root."""
    gigabytes: float
    """Size of the download, in 10^9 bytes."""
    optional: tuple[str, ...] = ()
    """What is fetched too where the repository has it."""

    @property
    def page(self) -> str:
        """Says where people can read what it is, on the Hub that is used."""
        return page(self.repo)

    @property
    def url(self) -> str:
        """Says where people can see the files, on the Hub that is used (`HF_ENDPOINT`)."""
        return f"{self.page}/tree/{self.revision}"


def page(repo: str) -> str:
    """Returns the address of a repository's page, on the Hub that is used (`HF_ENDPOINT`)."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT.rstrip('/')}/{repo}"


def missing_files(weights: Weights) -> tuple[str, ...]:
    """Returns the needed files that are not in this machine's cache (`HF_HOME`)."""
    return tuple(file for file in weights.files if _cached(weights, file) is None)


def weights_folder(name: str, weights: Weights) -> Path:
    """Returns the folder in the cache where the files lie, without asking the network.

    name: what `riebench fetch` calls them. Raises `UserError` with that command where a file is missing.
    """
    missing = missing_files(weights)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(weights.files)} files of {weights.repo} are not on this machine"
            f" ({missing[0]}{', ...' if len(missing) > 1 else ''})",
            remedy=f"run `riebench fetch {name}` ({weights.gigabytes:g} GB)",
        )
    return _folder(weights)


def fetched_revision(weights: Weights) -> str:
    """Returns the commit of the files on this machine; "" where none of them is there. Where the revision is a branch
    this is what it stood for when it was fetched."""
    there = any(_cached(weights, file) for file in weights.files)
    return _folder(weights).name if there else ""


def fetch(name: str, weights: Weights) -> Path:
    """Downloads what is missing, with progress, and returns the folder; a stopped download goes on where it was.

    Raises `UserError` where a needed file cannot be had, with what to do about it: see `riebench.core.hub_errors`.
    """
    import huggingface_hub

    from riebench.core.hub_errors import explained

    missing = missing_files(weights)
    extra = [file for file in weights.optional if _cached(weights, file) is None]
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if not missing and (offline or not extra):
        return _folder(weights)
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
        if still := missing_files(weights):
            raise explained(name, weights, error, still[0]) from error
    return _folder(weights)


def _folder(weights: Weights) -> Path:
    """Returns the folder of the snapshot, of which a file is there."""
    path, file = next((path, file) for file in weights.files if (path := _cached(weights, file)))
    return path.parents[len(Path(file).parts) - 1]


def _cached(weights: Weights, file: str) -> Path | None:
    """Returns where a file of the weights lies in this machine's cache; None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.repo, file, revision=weights.revision)
    return Path(found) if isinstance(found, str) else None
