"""`riebench fetch` against a Hub on this machine: what goes wrong is one line with the right remedy, exit code 2."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import huggingface_hub
import pytest
from hub_server import COMMIT, serve

from riebench import doctor
from riebench.cli import main
from riebench.core.hub import Weights, fetched_revision, missing_files, weights_folder

REPO = "someone/model"
FILES = {"config.json": b"{}", "unet/weights.safetensors": bytes(range(256)) * 300, "notes.md": b"not asked for"}
WEIGHTS = Weights(REPO, COMMIT, ("config.json", "unet/weights.safetensors"), 6.5)


@pytest.fixture(scope="module")
def server():
    with serve(REPO, FILES) as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch, capsys):
    """The Hub, an empty cache, nobody logged in, and clients that do not wait before they try again."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    for module in ("huggingface_hub.file_download.time", "huggingface_hub.utils._http.time"):
        monkeypatch.setattr(module, SimpleNamespace(sleep=lambda _: None, time=lambda: 0.0))
    server.refusals, server.cut, server.waits = {}, {}, 0.0
    server.asked.clear()
    server.tokens.clear()
    offer(monkeypatch, WEIGHTS)
    return server


def offer(monkeypatch, weights):
    """Makes these the weights that `riebench fetch model` fetches."""
    monkeypatch.setattr(doctor, "fetch_names", lambda: {"model": (weights,)})


def fetch(capsys):
    """Runs `riebench fetch model`; returns its exit code, what it printed, and its last line of errors."""
    capsys.readouterr()
    code = main(["fetch", "model"])
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert "Traceback" not in said.err
    return code, said.out.strip(), lines[-1] if lines else ""


def refusal(capsys):
    """Runs `riebench fetch model`, which fails; returns (message, remedy) of the one line that says so."""
    code, out, line = fetch(capsys)
    assert code == 2 and out == "" and line.count(" -> ") == 1
    message, remedy = line.split(" -> ")
    return message, remedy


def test_what_is_asked_for_comes_and_nothing_else(hub, capsys):
    code, out, _ = fetch(capsys)
    assert code == 0 and out == str(weights_folder("model", WEIGHTS))
    folder = weights_folder("model", WEIGHTS)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == sorted(WEIGHTS.files)
    assert (folder / "unet/weights.safetensors").read_bytes() == FILES["unet/weights.safetensors"]
    hub.asked.clear()
    assert fetch(capsys)[0] == 0 and not hub.asked, "what is there is not asked for again"


def test_a_branch_is_known_by_the_commit_that_it_stood_for(hub, capsys, monkeypatch):
    branch = Weights(REPO, "main", WEIGHTS.files, 6.5)
    offer(monkeypatch, branch)
    assert fetched_revision(branch) == ""
    assert fetch(capsys)[0] == 0
    assert fetched_revision(branch) == COMMIT and weights_folder("model", branch).name == COMMIT


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model someone/model is restricted."}
BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
FINE_GRAINED = {"X-Error-Message": "Please enable access to public gated repositories in your fine-grained token"}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["", "/resolve/"], ids=["everywhere", "files"])
def test_a_gated_repository_asks_for_its_terms_and_a_login(hub, capsys, monkeypatch, status, where):
    hub.refusals[where] = status, GATED
    if status == 403:
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    message, remedy = refusal(capsys)
    assert REPO in message and "those who ask for it" in message
    assert ("account of this token has not" in message) == (status == 403)
    assert f"accept its terms at {hub.address}/{REPO}" in remedy and "hf auth login" in remedy and "HF_TOKEN" in remedy
    assert "network" not in remedy


@pytest.mark.parametrize("headers", [BAD_TOKEN, {}, {"X-Error-Message": "Invalid username or password."}])
@pytest.mark.parametrize("where", ["", "/resolve/"], ids=["everywhere", "files"])
def test_a_wrong_token_is_said_to_be_wrong(hub, capsys, monkeypatch, headers, where):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    hub.refusals[where] = 401, headers
    message, remedy = refusal(capsys)
    assert "does not take the token" in message and hub.tokens == {"Bearer hf_" + "x" * 30}
    assert "hf auth login" in remedy and "HF_TOKEN" in remedy and "network" not in remedy


@pytest.mark.parametrize("where", ["", "/resolve/"], ids=["everywhere", "files"])
def test_a_token_that_may_not_read_the_repository_is_no_trouble_of_the_network(hub, capsys, monkeypatch, where):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    hub.refusals[where] = 403, FINE_GRAINED
    message, remedy = refusal(capsys)
    assert "may not read someone/model (403: Please enable access" in message
    assert f"{hub.address}/settings/tokens" in remedy and "network" not in remedy and "connection" not in message


@pytest.mark.parametrize("status", [401, 404])
def test_a_repository_that_is_not_there(hub, capsys, status):
    hub.refusals[""] = status, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
    message, remedy = refusal(capsys)
    assert message.endswith(f"{hub.address} has no someone/model, or does not show it to guests")
    assert "check HF_ENDPOINT, or log in" in remedy and "hf auth login" in remedy and "network" not in remedy


def test_a_revision_that_is_not_there(hub, capsys, monkeypatch):
    offer(monkeypatch, Weights(REPO, "f" * 40, WEIGHTS.files, 6.5))
    message, remedy = refusal(capsys)
    assert message.endswith(f"someone/model has no revision {'f' * 40} at {hub.address}")
    assert "another mirror: HF_ENDPOINT" in remedy
    # on the usual Hub there is no other to ask
    monkeypatch.setattr(huggingface_hub.constants, "_HF_DEFAULT_ENDPOINT", hub.address)
    assert refusal(capsys)[1] == "report this to riebench"


def test_a_file_that_is_not_there(hub, capsys, monkeypatch):
    offer(monkeypatch, Weights(REPO, COMMIT, ("config.json", "other.bin"), 6.5))
    message, remedy = refusal(capsys)
    assert message.endswith(f"someone/model at {COMMIT} has no other.bin")
    assert "another mirror: HF_ENDPOINT" in remedy and "network" not in remedy


def test_a_line_that_drops_within_a_file_is_mended_by_fetching_again(hub, capsys):
    hub.cut["unet/weights.safetensors"] = 50_000
    whole = hub.files["unet/weights.safetensors"]
    hub.files["unet/weights.safetensors"] = whole + bytes(1_000_000)  # longer than all tries together bring
    message, remedy = refusal(capsys)
    assert "cannot be fetched" in message and hub.address in message
    assert "check the network and HF_ENDPOINT" in remedy and "`riebench fetch model` goes on where it was" in remedy
    assert missing_files(WEIGHTS) == ("unet/weights.safetensors",)
    hub.cut.clear()
    hub.files["unet/weights.safetensors"] = whole
    assert fetch(capsys)[0] == 0 and missing_files(WEIGHTS) == ()


FULL = {
    "OSError": OSError(errno.ENOSPC, "No space left on device"),
    "hf_xet": RuntimeError(
        "Data processing error: File reconstruction error: IO Error: No space left on device (os error 28)"
    ),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_says_how_much_is_needed_and_where(hub, capsys, monkeypatch, tmp_path, kind):
    def full(*_args, **_kwargs):
        raise FULL[kind]

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    message, remedy = refusal(capsys)
    assert f"the disk of {tmp_path / 'hub'} is full: someone/model takes 6.5 GB" in message and "GB are free" in message
    assert "HF_HOME" in remedy and "goes on where it was" in remedy and "network" not in remedy


def test_what_else_hf_xet_says_is_a_line_too(hub, capsys, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("Data processing error: CAS service error : reqwest error\nmore")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", broken)
    message, remedy = refusal(capsys)
    assert message.endswith("CAS service error : reqwest error") and "HF_HUB_DISABLE_XET=1" in remedy


def test_a_folder_that_may_not_be_written_to(hub, capsys, monkeypatch, tmp_path):
    def refused(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", refused)
    message, remedy = refusal(capsys)
    assert f"cannot be written to {tmp_path / 'hub'}: Permission denied" in message and "HF_HOME" in remedy


def partly_fetched(hub, capsys, monkeypatch):
    offer(monkeypatch, Weights(REPO, COMMIT, ("config.json",), 6.5))
    assert fetch(capsys)[0] == 0
    offer(monkeypatch, WEIGHTS)


def test_a_partly_fetched_repository_offline_asks_for_the_network_and_then_goes_on(hub, capsys, monkeypatch):
    partly_fetched(hub, capsys, monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message, remedy = refusal(capsys)
    assert "HF_HUB_OFFLINE is set: 1 of 2 files of someone/model" in message
    assert remedy == "unset it and run `riebench fetch model`, which fetches only what is missing"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.asked.clear()
    assert fetch(capsys)[0] == 0 and not any("config.json" in path for _, path in hub.asked)


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_a_partly_fetched_repository_without_a_network_is_the_network_s_trouble(hub, capsys, monkeypatch, listed):
    partly_fetched(hub, capsys, monkeypatch)
    if not listed:  # as older versions of huggingface_hub left it: nothing on disk says which files there are
        for tree in (weights_folder("model", Weights(REPO, COMMIT, ("config.json",), 1)).parents[1]).glob("trees/*"):
            tree.unlink()
    nowhere = "http://127.0.0.1:9"  # where nobody listens
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    )
    message, remedy = refusal(capsys)
    assert f"cannot be fetched from {nowhere}" in message and "check the network and HF_ENDPOINT" in remedy
    assert "`riebench fetch model` goes on where it was" in remedy and "report" not in remedy


@pytest.mark.slow
def test_a_hub_that_does_not_answer_in_time(hub, capsys, monkeypatch):
    hub.waits = 0.05

    class Hasty(type(huggingface_hub.utils.get_session())):
        def send(self, request, **options):
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), 0.01)
            return super().send(request, **options)

    huggingface_hub.set_client_factory(Hasty)
    try:
        message, remedy = refusal(capsys)
    finally:
        huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)
    assert f"cannot be fetched from {hub.address}" in message and "check the network" in remedy


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("where", ["", "/resolve/"], ids=["everywhere", "files"])
def test_a_hub_that_is_out_of_order(hub, capsys, status, where):
    hub.refusals[where] = status, {}
    message, remedy = refusal(capsys)
    assert message.endswith(f"{hub.address} is out of order ({status})")
    assert remedy == "try again in some minutes; `riebench fetch model` goes on where it was"


@pytest.mark.parametrize("token", ["", "hf_" + "x" * 30], ids=["guest", "token"])
def test_a_hub_that_was_asked_too_often(hub, capsys, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    hub.refusals[""] = 429, {}
    message, remedy = refusal(capsys)
    assert "takes no more requests for now (429)" in message and ("hf auth login" in remedy) == (not token)
    assert "try again in some minutes" in remedy


def test_addresses_are_those_of_the_hub_that_is_used(hub, monkeypatch):
    assert WEIGHTS.url == f"{hub.address}/someone/model/tree/{COMMIT}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.example/hf/")
    assert WEIGHTS.url == f"https://hub.example/hf/someone/model/tree/{COMMIT}"


def test_what_is_optional_comes_where_the_repository_has_it(hub, capsys, monkeypatch):
    offer(monkeypatch, Weights(REPO, COMMIT, WEIGHTS.files, 6.5, optional=("notes.md", "more.pt")))
    code, out, _ = fetch(capsys)
    assert code == 0 and (weights_folder("model", WEIGHTS) / "notes.md").read_bytes() == FILES["notes.md"]
    assert fetch(capsys)[:2] == (0, out), "what the repository lacks is no error, however often it is asked for"
    hub.refusals[""] = 500, {}
    assert fetch(capsys)[:2] == (0, out), "nor is a Hub out of order, where all that is needed is there"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(capsys)[:2] == (0, out)
