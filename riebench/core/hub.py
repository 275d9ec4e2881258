"""Weights on the Hugging Face Hub are files at a revision; this finds them on this machine and fetches them.

Nothing here touches the network (`riebench.core.fetching` does). It imports no torch.
"""

from __future__ import annotations

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
    """What is fetched too where the repository has it; a * stands for any text, where names are not known before."""

    @property
    def url(self) -> str:
        """Says where people can see the files, on the Hub that is used (`HF_ENDPOINT`)."""
        return f"{page(self.repo)}/tree/{self.revision}"


def page(repo: str) -> str:
    """Returns the address of a repository's page, on the Hub that is used (`HF_ENDPOINT`)."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT.rstrip('/')}/{repo}"


def missing_files(weights: Weights) -> tuple[str, ...]:
    """Returns the needed files that are not in this machine's cache (`HF_HOME`)."""
    return tuple(file for file in weights.files if cached_file(weights, file) is None)


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
    return snapshot_folder(weights)


def fetched_revision(weights: Weights) -> str:
    """Returns the commit of the files on this machine; "" where none of them is there. Where the revision is a branch
    this is what it stood for when it was fetched."""
    there = any(cached_file(weights, file) for file in weights.files)
    return snapshot_folder(weights).name if there else ""


def snapshot_folder(weights: Weights) -> Path:
    """Returns the folder of the snapshot, of which a file is there."""
    path, file = next((path, file) for file in weights.files if (path := cached_file(weights, file)))
    return path.parents[len(Path(file).parts) - 1]


def cached_file(weights: Weights, file: str) -> Path | None:
    """Returns where a file of the weights lies in this machine's cache; None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.repo, file, revision=weights.revision)
    return Path(found) if isinstance(found, str) else None
