"""Weights on the Hub: what is missing is named with the command that fetches it, and only `fetch` asks the network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from riebench import doctor
from riebench.cli import main
from riebench.core.errors import UserError
from riebench.core.fetching import fetch
from riebench.core.hub import Weights, missing_files, weights_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = Weights("someone/model", COMMIT, ("config.json", "unet/weights.safetensors"), 1.5)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    return tmp_path


def put(cache: Path, *files: str) -> Path:
    folder = cache / "models--someone--model" / "snapshots" / COMMIT
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    return folder


def test_a_whole_snapshot_is_a_folder(cache):
    folder = put(cache, *WEIGHTS.files)
    assert missing_files(WEIGHTS) == () and weights_folder("model", WEIGHTS) == folder
    assert fetch("model", WEIGHTS) == folder  # without asking the network
    assert weights_folder("model", Weights("someone/model", COMMIT, ("unet/weights.safetensors",), 1)) == folder


def test_what_is_missing_is_named_with_the_command_that_fetches_it(cache):
    with pytest.raises(
        UserError, match=r"2 of 2 files .*\(config.json, ...\) -> run `riebench fetch model` \(1.5 GB\)"
    ):
        weights_folder("model", WEIGHTS)
    put(cache, "config.json")
    assert missing_files(WEIGHTS) == ("unet/weights.safetensors",)
    with pytest.raises(UserError, match=r"1 of 2 files of someone/model .*\(unet/weights.safetensors\)"):
        weights_folder("model", WEIGHTS)


def test_fetching_asks_for_the_pinned_files_alone_and_says_how_much(cache, monkeypatch, capsys):
    asked = []

    def download(repo, *, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        return str(put(cache, *allow_patterns))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = fetch("model", WEIGHTS)
    assert folder == weights_folder("model", WEIGHTS) and asked == [("someone/model", COMMIT, list(WEIGHTS.files))]
    said = capsys.readouterr().err
    assert "2 files" in said and "1.5 GB" in said and f"someone/model/tree/{COMMIT}" in said


def failing(error):
    def download(*_args, **_kwargs):
        raise error

    return download


class Response:
    """What the Hub's errors are made of."""

    headers, status_code, text, request = {}, 403, "", None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LocalEntryNotFoundError("no connection\nat all"),
            "fetched from https:.*: no connection -> check the network;",
        ),
        (OSError(28, "No space left on device"), r"disk of .* is full: .* takes 1.5 GB.* -> free some, .* HF_HOME"),
        (GatedRepoError("403", response=Response()), "given to those who ask .* accept its terms at https://hugg"),
    ],
    ids=["network", "disk", "gated"],
)
def test_what_goes_wrong_is_one_line(cache, monkeypatch, error, message):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
    with pytest.raises(UserError, match=message):
        fetch("model", WEIGHTS)


def test_a_repository_without_a_file_that_is_wanted_is_said(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(put(cache, "config.json")))
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", failing(RemoteEntryNotFoundError("404", response=Response()))
    )
    with pytest.raises(UserError, match="has no unet/weights.safetensors -> report this to riebench"):
        fetch("model", WEIGHTS)


def test_offline_means_offline(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(
        UserError, match="HF_HUB_OFFLINE is set: 2 of 2 files .* -> unset it and run `riebench fetch model`"
    ):
        fetch("model", WEIGHTS)


def test_the_command_fetches_by_name_whatever_the_steps(cache, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "fetch_names", lambda: {"model": (WEIGHTS,)})
    folder = put(cache, *WEIGHTS.files)
    assert main(["fetch", "model@4"]) == 0 and capsys.readouterr().out.strip() == str(folder)
    assert main(["fetch"]) == 0
    assert "model  " in capsys.readouterr().out
    assert main(["fetch", "model", "modle"]) == 2
    assert "did you mean 'model'" in capsys.readouterr().err


def test_every_pinned_revision_is_a_commit_or_said_to_be_none():
    """Names that move are those whose commit could not be looked up."""
    moving = {w.repo for parts in doctor.fetch_names().values() for w in parts if len(w.revision) != 40}
    blocks = ("transformer_blocks.0-1", "transformer_blocks.18-1")
    blocks += ("single_transformer_blocks.9", "single_transformer_blocks.37")
    of_flux = {f"RE-N-Y/cc3m-{block}" for block in blocks}
    assert moving == {"wendlerc/sdxl-turbo-saes", "surokpro2/sdxl-saes", "nev/flux1-saes"} | of_flux
