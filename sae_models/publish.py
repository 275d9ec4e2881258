"""Checkpoints go to the Hugging Face Hub and back. What is published is a checkpoint, or a folder with an index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path, PurePosixPath

from riebench.core.errors import UserError
from riebench.core.hub import page
from riebench.core.json_text import json_text
from sae_models import checkpoint, index
from sae_models.entry import Entry
from sae_models.layouts import FAE, LAYOUTS, SDXL_UNBOX, STATISTICS_FILES, layout_of

CARD = "README.md"
FRONT = "---\ntags:\n- sparse-autoencoder\n- riebench\n---\n"
FIGURES = {"explained_variance_pooled": "EV", "l0": "L0", "dead_share": "dead", "cosine": "cosine"}
"""Field of an evaluation -> the head of its column."""


def publish(folder: Path, repo: str, *, private: bool = False, message: str = "Add sparse autoencoders") -> str:
    """Uploads a checkpoint, or an index with the checkpoints that it lists, in one commit; returns its address.

    repo: "owner/name", made where it is not there; private: then make it so. Nothing else in the folder goes along but
    its own README.md, in whose place one is written that tells settings and evaluations. Every checkpoint is read
    before anything is sent. Raises `UserError` for a folder with neither, a checkpoint that is broken or not the one
    in the index, and where the Hub cannot be reached or does not let this user write there.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    entries = index.entries(folder)
    if entries:
        files = _files_of_index(folder, entries)
    else:
        checkpoint.load(folder)
        files = _files_of_checkpoint(folder)
    card = folder / CARD
    text = card.read_bytes() if card.is_file() else (FRONT + _card(folder, repo, entries)).encode()
    operations = [CommitOperationAdd(file, str(folder / file)) for file in files]
    with _asking_the_hub(repo):
        api = HfApi()
        made = api.create_repo(repo, private=private, exist_ok=True)
        done = api.create_commit(made.repo_id, [*operations, CommitOperationAdd(CARD, text)], commit_message=message)
    return f"{made}/tree/{done.oid}"


def from_hub(repo: str, revision: str, subfolder: str = "") -> Path:
    """Returns the local folder of a checkpoint on the Hub, for `checkpoint.load`, or of an index with all that it
    lists.

    revision: a commit, a tag or a branch. subfolder: where in the repository it lies. What is in this machine's cache
    is not downloaded again. Raises `UserError` where the Hub cannot be reached or has no such thing there.
    """
    from huggingface_hub import snapshot_download

    def download(files: list[str]) -> Path:
        patterns = [escape(str(PurePosixPath(subfolder) / file)) for file in files]
        with _asking_the_hub(repo):
            return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns)) / subfolder

    parts = sorted({file for layout in LAYOUTS for file in layout.files} | set(STATISTICS_FILES))
    folder = download([index.INDEX_FILE, *parts])
    entries = index.entries(folder)
    if entries:
        return download([index.INDEX_FILE, *(f"{entry.folder}/{part}" for entry in entries for part in parts)])
    layout_of(folder)
    return folder


def _files_of_checkpoint(folder: Path) -> list[str]:
    """Returns a checkpoint's files, relative to its folder. Raises `UserError` for an Orbax tree."""
    layout = layout_of(folder)
    if layout is FAE:
        raise UserError(
            f"{folder} is an Orbax checkpoint, with the state of its training",
            remedy="riebench convert it, then publish",
        )
    statistics = STATISTICS_FILES if layout is SDXL_UNBOX else ()
    return [*layout.files, *(file for file in statistics if (folder / file).is_file())]


def _files_of_index(folder: Path, entries: list[Entry]) -> list[str]:
    files = [index.INDEX_FILE]
    for entry in entries:
        place = PurePosixPath(entry.folder)
        index.open(entry, root=folder)
        files += [str(place / file) for file in _files_of_checkpoint(folder / place)]
    return files


def _card(folder: Path, repo: str, entries: list[Entry]) -> str:
    """Returns the model card, in markdown, without its front matter."""
    title = f"# {PurePosixPath(repo).name}\n\n"
    if not entries:
        config = checkpoint.shape_of(folder)
        told = {"architecture": config.kind, "k": config.k, "features": config.num_features, "width": config.width}
        rows = [f"| {name} | {value} |" for name, value in told.items() if value]
        metadata = json_text(checkpoint.read_metadata(folder), indent=2, sort_keys=True)
        return (
            f"{title}A sparse autoencoder in the layout of {layout_of(folder).name}.\n\n"
            + _table(["setting", "value"], rows)
            + f"\n## Metadata\n```json\n{metadata}\n```\n"
            + _how_to_load(repo, "")
        )
    heads = ["backbone", "block", "site", "name", "architecture", "k", "features", "width", *FIGURES.values()]
    rows = [_row(entry) for entry in entries]
    training = {" ".join(entry.key): entry.training for entry in entries if entry.training}
    settings = f"\n## Training\n```json\n{json_text(training, indent=2, sort_keys=True)}\n```\n" if training else ""
    return (
        f"{title}{len(entries)} dictionaries of what the blocks of a diffusion model do.\n\n"
        + _table(heads, rows)
        + "\nEV: explained variance, pooled; L0: active features a row; dead: share of features never active; on rows "
        "that were not trained on. A dash: not evaluated.\n" + settings + _how_to_load(repo, entries[0].folder)
    )


def _row(entry: Entry) -> str:
    told = [entry.backbone, entry.block, entry.site, entry.name, entry.kind, entry.k or "-"]
    found = [entry.evaluation.get(name) for name in FIGURES]
    figures = ["-" if value is None else f"{value:.3f}" for value in found]
    return f"| {' | '.join(map(str, [*told, entry.num_features, entry.width, *figures]))} |"


def _table(heads: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *rows]) + "\n"


def _how_to_load(repo: str, subfolder: str) -> str:
    place = f"{repo!r}, 'main'" + (f", {subfolder!r}" if subfolder else "")
    return (
        "\n## Loading\n```python\nfrom sae_models.checkpoint import load\nfrom sae_models.publish import from_hub\n\n"
        f"sae = load(from_hub({place}))\n```\n"
    )


@contextmanager
def _asking_the_hub(repo: str) -> Iterator[None]:
    """Turns what the Hub's client raises into a `UserError` with what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of the client's own HTTP library, whichever that is
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no repository's name or revision: {error}", remedy="use owner/name") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{repo} cannot be reached while HF_HUB_OFFLINE is set", remedy="unset it") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"{repo}: you are not logged in to the Hub", remedy="run `hf auth login`") from error
    except GatedRepoError as error:
        remedy = f"accept its terms at {page(repo)}, then `hf auth login`"
        raise UserError(f"{repo} is given to those who ask for it", remedy=remedy) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo} has no such revision", remedy="give a branch, a tag or a commit") from error
    except RepositoryNotFoundError as error:
        remedy = "check the name, or run `hf auth login` where it is private"
        raise UserError(f"the Hub has no repository {repo} for you", remedy=remedy) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "check the network"
        if status in (401, 403):
            remedy = "run `hf auth login` with a token that may write there"
        raise UserError(f"the Hub did not do what was asked of {repo}: {told}", remedy=remedy) from error
