"""Published checkpoints and their place in the index: against the formula, broken files, pickles with code, and a Hub
cache made by hand."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import socket
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from memory import OUT_OF_MEMORY
from sdxl_blocks import BLOCKS
from torch import Tensor

from riebench.core.errors import UserError
from sae_models import checkpoint, index
from sae_models.released import RELEASED_WEIGHTS, released_entries
from sae_models.sdxl_unbox import load_means, load_released
from sae_models.tensors import read_pickle
from sae_models.topk import TopKConfig, TopKSAE

BACKBONE = "sdxl-turbo@1"
K160 = "unet.{}_k160_hidden5120_auxk256_bs4096_lr0.0001/final"
D, F, K = 6, 20, 10


def write_config(folder: Path, **change) -> None:
    config = {"n_dirs_local": F, "d_model": D, "k": K, "auxk": 256, "dead_steps_threshold": 2000} | change
    (folder / "config.json").write_text(json.dumps(config))


def random_tensors(d: int = D, f: int = F) -> dict[str, Tensor]:
    """Untied, with biases, and with decoder columns that are not quite of unit norm."""
    generator = torch.Generator().manual_seed(1)
    decoder_df = torch.nn.functional.normalize(torch.randn(d, f, generator=generator), dim=0)
    return {
        "encoder.weight": torch.randn(f, d, generator=generator),
        "latent_bias": 0.1 * torch.randn(f, generator=generator),
        "decoder.weight": decoder_df * (1 + 1e-2 * torch.randn(f, generator=generator)),
        "pre_bias": torch.randn(d, generator=generator),
        "stats_last_nonzero": torch.arange(f),
    }


def publish(folder: Path, tensors: dict[str, Tensor], **config) -> Path:
    """Writes the tensors as sdxl-unbox does."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, **config)
    torch.save({"state_dict": tensors}, folder / "state_dict.pth")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return publish(tmp_path / "published", random_tensors())


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty Hub cache in the place of this machine's."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def put_in_cache(cache: Path, repo: str, published: Path, name: str) -> None:
    """As the Hub's client lays a download out: blobs, and links to them in the snapshot of the commit of `main`."""
    repository, commit = cache / f"models--{repo.replace('/', '--')}", 40 * "a"
    for part in ("blobs", "refs", f"snapshots/{commit}/{name}"):
        (repository / part).mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    for file in published.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (repository / "snapshots" / commit / name / file.name).symlink_to(blob)


# the format


def test_codes_and_rows_follow_the_published_formula(folder):
    """z = relu(topk(W_enc (x - b_pre) + b_lat)), x_hat = W_dec z + b_pre, in float64 from the file itself."""
    sae = checkpoint.load(folder)
    x_nd = 2 * torch.randn(9, D, generator=torch.Generator().manual_seed(3))
    z_nf, x_hat_nd = sae.encode(x_nd), sae(x_nd)
    saved = torch.load(folder / "state_dict.pth", weights_only=True)["state_dict"]
    w_enc, b_lat, w_dec, b_pre = (
        saved[name].double().numpy() for name in ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
    )
    wanted_nf, positive_n = np.zeros((9, F)), np.zeros(9)
    for n, x in enumerate(x_nd.double().numpy()):
        h = w_enc @ (x - b_pre) + b_lat
        positive_n[n] = (h > 0).sum()
        for f in sorted(range(F), key=lambda f: -h[f])[:K]:
            wanted_nf[n, f] = max(h[f], 0)
    assert positive_n.min() < K < positive_n.max(), "or else top-k or relu would go unseen"
    np.testing.assert_allclose(z_nf, wanted_nf, atol=1e-5)
    np.testing.assert_allclose(x_hat_nd, wanted_nf @ w_dec.T + b_pre, atol=1e-5)


def test_decoder_norms_are_left_as_they_are(folder):
    norm_f = random_tensors()["decoder.weight"].norm(dim=0)
    assert (norm_f - 1).abs().max() > 1e-2
    sae = load_released(folder)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), norm_f, rtol=1e-6, atol=0)


def test_half_precision_is_read_as_float32_and_nothing_has_gradients(tmp_path):
    tensors = random_tensors()
    half = {name: torch.nn.Parameter(tensors[name].half()) for name in tensors if name != "stats_last_nonzero"}
    sae = load_released(publish(tmp_path / "half", half))
    assert {value.dtype for value in sae.state_dict().values()} == {torch.float32}
    assert torch.equal(sae.b_dec, tensors["pre_bias"].half().float())
    assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_what_was_read_can_be_saved_in_our_layout(folder, tmp_path):
    sae = load_released(folder)
    checkpoint.save(tmp_path / "ours", sae, {})
    for name, value in checkpoint.load(tmp_path / "ours").state_dict().items():
        assert torch.equal(value, sae.state_dict()[name]), name


def test_a_folder_is_read_by_the_layout_that_lies_in_it(folder, tmp_path):
    ours = TopKSAE(TopKConfig(width=D, num_features=F, k=2))
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(
            UserError, match=r"cfg\.json and sae_weights\.safetensors .*config\.json and state_dict\.pth"
        ):
            checkpoint.load(nothing)
    assert checkpoint.load(folder).config == TopKConfig(width=D, num_features=F, k=K)
    checkpoint.save(folder, ours, {})
    assert checkpoint.load(folder).config.k == 2


# files that are broken


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(folder, zipped):
    path = folder / "state_dict.pth"
    torch.save({"state_dict": random_tensors()}, path, _use_new_zipfile_serialization=zipped)
    checkpoint.load(folder)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"state_dict\.pth is not a whole file.* -> .*fetch it again"):
            checkpoint.load(folder)


def test_missing_files_are_told(folder):
    (folder / "state_dict.pth").rename(folder / "away")
    with pytest.raises(UserError, match=r"state_dict\.pth does not exist -> .*config\.json and state_dict\.pth"):
        load_released(folder)
    with pytest.raises(UserError, match=r"config\.json and state_dict\.pth"):
        checkpoint.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load_released(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": F + 1}, r"config\.json.*k=21 is more than the 20 features"),
        ({"k": None}, r"config\.json.*k is None"),
        ({"d_model": D + 1}, r"state_dict\.pth does not fit its config\.json.*pre_bias is \(6,\), should be \(7,\)"),
        ({"n_dirs_local": F + 1}, r"latent_bias is \(20,\), should be \(21,\)"),
        ({"n_dirs_locl": F}, r"unknown key 'n_dirs_locl'; did you mean 'n_dirs_local'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder, change, message):
    write_config(folder, **change)
    with pytest.raises(UserError, match=f"{message}.* -> "):
        checkpoint.load(folder)


def test_a_configuration_that_lacks_its_shape_or_is_no_json_is_refused(folder):
    (folder / "config.json").write_text('{"k": 3}')
    with pytest.raises(UserError, match=r"config\.json lacks d_model, n_dirs_local -> "):
        checkpoint.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read.* -> "):
        checkpoint.load(folder)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_bias": None}, r"latent_bias is missing, should be \(20,\)"),
        ({"encoder.bias": torch.zeros(F)}, r"encoder\.bias is \(20,\), should be absent"),
        ({"encoder.weight": torch.zeros(D, F)}, r"encoder\.weight is \(6, 20\), should be \(20, 6\)"),
        ({"pre_bias": torch.full((D,), torch.nan)}, "NaN or infinite values in pre_bias"),
        ({"pre_bias": torch.full((D,), 1e300, dtype=torch.float64)}, "NaN or infinite values in pre_bias"),
        ({"pre_bias": [0.0] * D}, "no tensor of numbers: pre_bias"),
        ({"pre_bias": torch.zeros(D, dtype=torch.int64)}, "no tensor of numbers: pre_bias"),
        ({"pre_bias": torch.zeros(D, device="meta")}, "no tensor of numbers: pre_bias"),
        ({"pre_bias": torch.zeros(D).to_sparse()}, "no tensor of numbers: pre_bias"),
        ({7: torch.zeros(D)}, "no tensor of numbers: 7"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, message):
    tensors = {name: value for name, value in (random_tensors() | change).items() if value is not None}
    publish(folder, tensors)
    with pytest.raises(UserError, match=rf"state_dict\.pth.*{message}.* -> .*fetch it again"):
        checkpoint.load(folder)


@pytest.mark.parametrize("content", [random_tensors(), {"state_dict": [1.0]}, [random_tensors()], torch.zeros(3)])
def test_what_is_not_a_dictionary_with_a_state_dict_is_refused(folder, content):
    torch.save(content, folder / "state_dict.pth")
    with pytest.raises(UserError, match=r'state_dict\.pth is not \{"state_dict": tensors\} -> '):
        checkpoint.load(folder)


# pickles with code in them


class Payload:
    """Unpickled by the usual loader, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def zipped(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def pickled(content: object) -> bytes:
    return pickle.dumps(content, protocol=2)


def tarred(content: object) -> bytes:
    """The oldest of torch's formats; its loader begins with the member "storages"."""
    buffer, data = io.BytesIO(), pickled(content)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("storages")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [zipped, legacy, tarred, pickled])
def test_code_in_a_pickle_is_refused_and_not_run(folder, tmp_path, pack):
    trace, file = tmp_path / "trace", "state_dict.pth"
    content = {"state_dict": random_tensors() | {"stats_last_nonzero": Payload(trace)}}
    (folder / file).write_bytes(pack(content))
    with suppress(Exception):  # of some formats only the start is written here, and that holds the code
        torch.load(folder / file, weights_only=False)
    assert trace.exists(), "the payload does nothing, so what follows could not fail"
    trace.unlink()
    with pytest.raises(UserError, match=f"{file}.*nothing else.*never run"):
        checkpoint.load(folder)
    assert not trace.exists()


def test_statistics_beside_the_weights_are_not_opened(folder, tmp_path):
    for file in ("mean.pt", "std.pt"):
        (folder / file).write_bytes(zipped(Payload(tmp_path / "trace")))
    assert checkpoint.load(folder).config == TopKConfig(width=D, num_features=F, k=K)
    assert not (tmp_path / "trace").exists()


def test_means_are_read_where_they_are_and_one_that_was_never_active_is_zero(folder, tmp_path):
    assert load_means(folder, F) is None
    means = torch.rand(F)
    for saved in (means, means[None], means.double(), torch.nn.Parameter(means)):
        torch.save(saved, folder / "mean.pt")
        torch.testing.assert_close(load_means(folder, F), means)
        assert not load_means(folder, F).requires_grad
    torch.save(torch.where(torch.arange(F) == 4, torch.nan, means), folder / "mean.pt")
    torch.testing.assert_close(load_means(folder, F), torch.where(torch.arange(F) == 4, 0, means))
    for wrong in (means[1:], {"mean": means}, means.long(), 3.0):
        torch.save(wrong, folder / "mean.pt")
        with pytest.raises(UserError, match=f"mean.pt is not one number for each of {F} features -> .*fetch it again"):
            load_means(folder, F)
    (folder / "mean.pt").write_bytes(zipped(Payload(tmp_path / "trace")))
    with pytest.raises(UserError, match="mean.pt.*nothing else.*never run"):
        load_means(folder, F)
    assert not (tmp_path / "trace").exists()


# the index


def test_released_entries_are_listed_for_all_four_blocks_after_the_shipped():
    known = index.entries()
    shipped = json.loads((index.default_root() / "index.json").read_text())
    assert [entry.name for entry in known[: len(shipped)]] == [item["name"] for item in shipped]
    listed = {entry.key: entry for entry in known[len(shipped) :] if entry.backbone == BACKBONE}
    assert sorted(listed) == sorted(
        (BACKBONE, block, name) for block in BLOCKS for name in ("released-k160-x4", "released-k10-x4")
    )
    for block, path in BLOCKS.items():
        default = index.find(BACKBONE, block)
        assert default == listed[BACKBONE, block, "released-k160-x4"]
        assert (default.k, default.num_features, default.width, default.kind) == (160, 5120, 1280, "topk")
        assert default.folder == K160.format(path)
        other = index.find(BACKBONE, block, "released-k10-x4")
        assert (other.k, other.num_features, other.width) == (10, 5120, 1280)
        assert other.folder == K160.format(path).replace("k160", "k10")


def test_what_is_fetched_is_all_files_of_all_blocks():
    for name, repo in (("released-k160-x4", "wendlerc/sdxl-turbo-saes"), ("released-k10-x4", "surokpro2/sdxl-saes")):
        (weights,) = RELEASED_WEIGHTS[name]
        assert (weights.repo, weights.revision) == (repo, "main")
        folders = {index.find(BACKBONE, block, name).folder for block in BLOCKS}
        for files, found in (
            (("config.json", "state_dict.pth"), weights.files),
            (("mean.pt", "std.pt"), weights.optional),
        ):
            assert sorted(found) == sorted(f"{folder}/{file}" for folder in folders for file in files)
        numbers = 2 * 1280 * 5120 + 1280 + 5120  # of one SAE, in float32
        assert weights.gigabytes == pytest.approx(4 * 4 * numbers / 1e9, abs=0.005)


def test_a_shipped_dictionary_is_still_the_default_of_its_backbone():
    entry = index.find("tinyworld-turbo@1", "mid.0")
    assert entry.name == index.DEFAULT_NAME
    assert index.fingerprint(entry) == entry.sha256


@pytest.mark.parametrize("name", ["released-k160-x4", "released-k10-x4"])
def test_missing_weights_say_how_to_fetch_them(hub_cache, no_network, name):
    entry = index.find(BACKBONE, "up.0.0", name)
    for ask in (index.open, index.fingerprint):
        with pytest.raises(UserError, match=rf"run `riebench fetch {name}` \(0\.21 GB\)"):
            ask(entry)


@pytest.mark.slow
def test_released_weights_in_the_cache_are_opened_without_the_network(hub_cache, no_network, tmp_path):
    entry = index.find(BACKBONE, "mid.0")
    tensors = random_tensors(1280, 5120)
    published = publish(tmp_path / "download", tensors, n_dirs_local=5120, d_model=1280, k=160)
    sha256 = hashlib.sha256((published / "state_dict.pth").read_bytes()).hexdigest()
    put_in_cache(hub_cache, "wendlerc/sdxl-turbo-saes", published, K160.format("mid_block.attentions.0"))
    sae = index.open(entry)
    assert torch.equal(sae.W_dec, tensors["decoder.weight"].T)
    assert ((sae.encode(torch.randn(3, 1280)) > 0).sum(-1) == 160).all()
    assert index.fingerprint(entry) == sha256
    with pytest.raises(UserError, match="riebench fetch released-k160-x4"):
        index.open(index.find(BACKBONE, "up.0.1"))


def test_released_weights_of_another_shape_are_refused(hub_cache, folder):
    entry = index.find(BACKBONE, "up.0.1", "released-k10-x4")
    put_in_cache(hub_cache, "surokpro2/sdxl-saes", folder, entry.folder)
    with pytest.raises(UserError, match=r"\(6, 20, 10\), the index says \(1280, 5120, 10\)"):
        index.open(entry)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:30])
def test_no_room_for_a_dictionary_is_one_line(error, monkeypatch):
    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(checkpoint, "load", full)
    with pytest.raises(
        UserError, match="the dictionary topk-k16-x8 of mid.0 does not fit into the memory of cpu -> free"
    ):
        index.open(index.find("tinyworld-turbo@1", "mid.0"))


def test_no_room_for_a_pickle_is_not_taken_for_a_broken_one(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(MemoryError):
        read_pickle(tmp_path / "state_dict.pth", "fetch it again")


def test_registering_writes_no_released_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "default_root", lambda: tmp_path)
    entry = index.Entry("mine", BACKBONE, "mid.0", "topk", 3, 12, 5, "folder", "00")
    index.register(entry)
    assert [item["name"] for item in json.loads((tmp_path / "index.json").read_text())] == ["mine"]
    assert index.entries() == [entry, *released_entries()]
    assert index.fingerprint(entry) == "00"  # as registered, whatever lies there


def test_a_line_on_every_entry():
    for entry in index.entries():
        line = index.describe(entry)
        assert all(word in line for word in (entry.backbone, entry.block, f"k={entry.k} ", str(entry.num_features)))
        if entry.backbone in (BACKBONE, "flux-schnell@1"):
            assert line.endswith("not evaluated here")
        else:
            assert f"EV {entry.evaluation['explained_variance_pooled']:.3f}" in line and "dead " in line


# one's own folder


def test_a_folder_for_each_block_is_found_and_opened_in_either_layout(tmp_path):
    ours = TopKSAE(TopKConfig(width=D, num_features=F, k=2))
    sha256 = checkpoint.save(tmp_path / "mine" / "up.0.1", ours, {})
    publish(tmp_path / "mine" / "mid.0", random_tensors())
    (tmp_path / "mine" / "notes").mkdir()
    (tmp_path / "mine" / "README.md").write_text("")
    root = tmp_path / "mine"
    first, second = index.own_entries(root, "my-model@1")
    assert [entry.key for entry in (first, second)] == [
        ("my-model@1", "mid.0", "mine"), ("my-model@1", "up.0.1", "mine"),
    ]  # fmt: skip
    assert (first.width, first.num_features, first.k) == (D, F, K)
    assert index.find("my-model@1", "up.0.1", root=root) == second
    assert index.find("my-model@1", "mid.0", "mine", root=root) == first
    assert torch.equal(index.open(second, root=root).W_dec, ours.W_dec)
    assert torch.equal(index.open(first, root=root).b_dec, random_tensors()["pre_bias"])
    assert index.fingerprint(second, root=root) == sha256
    weights = (root / "mid.0" / "state_dict.pth").read_bytes()
    assert index.fingerprint(first, root=root) == hashlib.sha256(weights).hexdigest()
    with pytest.raises(UserError, match="no dictionary is known for my-model@1 up.0.0 in .*there are some for"):
        index.find("my-model@1", "up.0.0", root=root)
    assert "not evaluated here" in index.describe(first)


def test_a_copy_of_the_published_repository_is_found_by_its_own_names(tmp_path):
    """Of all blocks of SDXL, not of the published four alone; with and without `final`, and of other settings."""
    root, name = tmp_path / "sdxl-turbo-saes", "k160_hidden5120_auxk256_bs4096_lr0.0001"
    for path in BLOCKS.values():
        publish(root / K160.format(path), random_tensors())
    (root / "README.md").write_text("")
    (root / "unet.up_blocks.0.attentions.2_k20_hidden20_auxk256_bs4096_lr0.001").mkdir()  # holds nothing
    publish(root / "unet.down_blocks.1.attentions.0_k20_mine", random_tensors())
    found = {entry.block: entry for entry in index.own_entries(root, BACKBONE)}
    assert set(found) == {*BLOCKS, "down.1.0"}
    for block, path in BLOCKS.items():
        entry = index.find(BACKBONE, block, root=root)
        assert (entry, entry.name, entry.folder) == (found[block], name, K160.format(path))
        assert torch.equal(index.open(entry, root=root).b_dec, random_tensors()["pre_bias"])
        weights = (root / entry.folder / "state_dict.pth").read_bytes()
        assert index.fingerprint(entry, root=root) == hashlib.sha256(weights).hexdigest()
    assert found["down.1.0"].name == "k20_mine"
    publish(root / K160.format(BLOCKS["mid.0"]).replace("k160", "k10"), random_tensors())
    with pytest.raises(UserError, match=f"take one of {name.replace('k160', 'k10')}, {name}"):
        index.find(BACKBONE, "mid.0", root=root)
    assert index.find(BACKBONE, "mid.0", name, root=root) == found["mid.0"]


def test_the_checkpoint_of_one_block_in_the_place_of_the_folder_of_all_is_told(tmp_path):
    root = tmp_path / "saes"
    one = publish(root / K160.format(BLOCKS["up.0.1"]), random_tensors())
    ours = publish(root / "mid.0", random_tensors())
    for folder in (one, one.parent, ours):
        with pytest.raises(UserError, match=f"{folder} is the checkpoint of one block -> give .* {root}$"):
            index.find(BACKBONE, "up.0.1", root=folder)


def test_an_index_in_the_folder_is_what_counts(tmp_path):
    publish(tmp_path / "mid.0", random_tensors())
    entry = index.Entry("listed", "my-model@1", "up.0.1", "topk", K, F, D, "mid.0", "")
    index.register(entry, root=tmp_path)
    assert index.own_entries(tmp_path, "another@1") == [entry]
    assert index.open(entry, root=tmp_path).config.k == K


def test_a_broken_block_or_a_folder_that_is_not_there_is_told(tmp_path):
    publish(tmp_path / "mid.0", random_tensors())
    (tmp_path / "mid.0" / "state_dict.pth").unlink()
    with pytest.raises(UserError, match=r"mid\.0 is no checkpoint or lacks a part"):
        index.find("my-model@1", "mid.0", root=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no dictionary is known.* -> put a checkpoint into its folder mid.0"):
        index.find("my-model@1", "mid.0", root=tmp_path / "empty")
    with pytest.raises(UserError, match="there is no folder"):
        index.find("my-model@1", "mid.0", root=tmp_path / "nowhere")
