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

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repo}/tree/{self.revision}"


def missing_files(weights: Weights) -> tuple[str, ...]:
    """Returns the files that are not in this machine's cache (`HF_HOME`)."""
    return tuple(file for file in weights.files if _cached(weights, file) is None)


def weights_folder(name: str, weights: Weights) -> Path:
    """Returns the folder in the cache where the files lie, without asking the network.

    name: what `riebench fetch` calls them. Raises `UserError` with that command where a file is missing.
    """
    paths = {file: path for file in weights.files if (path := _cached(weights, file))}
    missing = [file for file in weights.files if file not in paths]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(weights.files)} files of {weights.repo} are not on this machine"
            f" ({missing[0]}{', ...' if len(missing) > 1 else ''})",
            remedy=f"run `riebench fetch {name}` ({weights.gigabytes:g} GB)",
        )
    first = weights.files[0]
    return paths[first].parents[len(Path(first).parts) - 1]


def fetch(name: str, weights: Weights) -> Path:
    """Downloads what is missing, with progress, and returns the folder; a stopped download goes on where it was.

    Raises `UserError` where the Hub cannot be reached, `HF_HUB_OFFLINE` forbids it, or the repository asks for a login.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    missing = missing_files(weights)
    if not missing:
        return weights_folder(name, weights)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError(f"{name} cannot be fetched while HF_HUB_OFFLINE is set", remedy="unset it")
    print(
        f"fetching {len(missing)} files of {weights.url}, at most {weights.gigabytes:g} GB", file=sys.stderr, flush=True
    )
    try:
        folder = huggingface_hub.snapshot_download(
            weights.repo, revision=weights.revision, allow_patterns=list(weights.files)
        )
    except GatedRepoError as error:
        raise UserError(
            f"{weights.repo} is given to those who ask for it",
            remedy=f"accept its terms at {weights.url}, then `hf auth login`",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{name} cannot be fetched: {str(error).splitlines()[0]}",
            remedy="check the network and the disk; what was downloaded is kept",
        ) from error
    missing = missing_files(weights)
    if missing:
        raise UserError(f"{weights.repo} at {weights.revision} has no {missing[0]}", remedy="report this to riebench")
    return Path(folder)


def _cached(weights: Weights, file: str) -> Path | None:
    """Returns where a file of the weights lies in this machine's cache; None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.repo, file, revision=weights.revision)
    return Path(found) if isinstance(found, str) else None
