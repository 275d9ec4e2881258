"""What goes wrong between this machine and the Hub, as one line with what to do about it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from riebench.core.errors import UserError
from riebench.core.hub import Weights, missing_files, page


def explained(name: str, weights: Weights, error: Exception) -> UserError:
    """Returns the error that people see in the place of one that fetching raised.

    name: what `riebench fetch` calls the weights. Errors are known by their kind and by the Hub's answer, wherever in
    the chain of causes they stand: huggingface_hub wraps many into "check your internet connection". hf_xet raises a
    RuntimeError of words alone for a full disk.
    """
    again = f"`riebench fetch {name}` goes on where it was"
    causes = list(_chain(error))
    if any(_is_full_disk(cause) for cause in causes):
        return _full_disk(weights, again)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _refused(name, weights, cause, again)
    for cause in causes:
        if isinstance(cause, PermissionError):
            return UserError(
                f"{name} cannot be written to {constants.HF_HUB_CACHE}: {cause.strerror}",
                remedy=f"point HF_HOME to a folder of yours; {again}",
            )
    if type(error) is RuntimeError:  # hf_xet's, for whatever goes wrong in it
        return UserError(
            f"{name} cannot be fetched: {_first_line(error)}",
            remedy=f"set HF_HUB_DISABLE_XET=1, which downloads another way; {again}",
        )
    return UserError(
        f"{name} cannot be fetched from {constants.ENDPOINT}: {_first_line(causes[-1])}",
        remedy=f"check the network{_mirror(' and HF_ENDPOINT')}; {again}",
    )


def _refused(name: str, weights: Weights, error: HfHubHTTPError, again: str) -> UserError:
    """Returns what an answer of the Hub means."""
    status, home = error.response.status_code, page(weights.repo)
    said = error.response.headers.get("X-Error-Message") or ""
    answer = f"({status}{f': {said}' if said else ''})"
    token = get_token()
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{weights.repo} is given to those who ask for it{', and the account of this token has not' * bool(token)}",
            remedy=f"accept its terms at {home}, then log in as that account: `hf auth login`, or HF_TOKEN",
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"{weights.repo} has no revision {weights.revision} at {constants.ENDPOINT}",
            remedy=_mirror("ask another mirror: HF_ENDPOINT") or "report this to riebench",
        )
    if isinstance(error, EntryNotFoundError):
        return _no_such_file(weights)
    if status == 401 and token:
        return UserError(
            f"{constants.ENDPOINT} does not take the token of this machine {answer}",
            remedy=f"`hf auth login` with a valid one, or set HF_TOKEN to it; {again}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{constants.ENDPOINT} has no {weights.repo}, or does not show it to {'this token' if token else 'guests'}",
            remedy=f"{_mirror('check HF_ENDPOINT, or ')}log in as one who may see it: `hf auth login`, or HF_TOKEN",
        )
    if status in (401, 403) and not token:
        return UserError(
            f"{weights.repo} is not given to guests {answer}", remedy="log in: `hf auth login`, or HF_TOKEN"
        )
    if status == 403:
        return UserError(
            f"the token of this machine may not read {weights.repo} {answer}",
            remedy=f"let it read public gated repositories at {constants.ENDPOINT}/settings/tokens, or take a token of"
            f' the kind "read": `hf auth login`, or HF_TOKEN; {again}',
        )
    if status == 429:
        more = "" if token else "; those who log in, with `hf auth login` or HF_TOKEN, may ask more often"
        return UserError(
            f"{constants.ENDPOINT} takes no more requests for now {answer}",
            remedy=f"try again in some minutes{more}; {again}",
        )
    if status >= 500:
        return UserError(f"{constants.ENDPOINT} is out of order {answer}", remedy=f"try again in some minutes; {again}")
    return UserError(
        f"{name} cannot be fetched from {constants.ENDPOINT}: {said or _first_line(error)} ({status})",
        remedy=_mirror("check HF_ENDPOINT") or "report this to riebench",
    )


def _no_such_file(weights: Weights) -> UserError:
    return UserError(
        f"{weights.repo} at {weights.revision} has no {next(iter(missing_files(weights)), 'such file')}",
        remedy=_mirror("ask another mirror: HF_ENDPOINT") or "report this to riebench",
    )


def _full_disk(weights: Weights, again: str) -> UserError:
    folder = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free / 1e9
    return UserError(
        f"the disk of {folder} is full: {weights.repo} takes {weights.gigabytes:g} GB, and {free:.1f} GB are free",
        remedy=f"free some, or point HF_HOME to another disk; {again}",
    )


def _is_full_disk(error: BaseException) -> bool:
    words = str(error).lower()
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        sign in words for sign in ("no space left on device", "os error 28", "disk quota exceeded", "os error 122")
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, its cause, the cause of that and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _mirror(words: str) -> str:
    """Returns the words where another Hub than the usual one is asked, and "" where not."""
    return words if constants.ENDPOINT != constants._HF_DEFAULT_ENDPOINT else ""
