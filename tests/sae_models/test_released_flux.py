"""SAEs and ITDA as they were published for FLUX: each against its authors' formula, worked out here from the numbers of
its files; what is another function, or broken, is refused; all are in the index, and found in a Hub cache."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_released import Payload, hub_cache, no_network, put_in_cache, zipped  # noqa: F401

from riebench.cli import main
from riebench.core.errors import UserError
from sae_models import checkpoint, index, layouts
from sae_models.convert import convert
from sae_models.entry import Shape
from sae_models.fae import CLIP
from sae_models.nonnegative_itda import NonNegativeITDA, nonnegative_pursuit
from sae_models.publish import publish
from sae_models.released import RELEASED_WEIGHTS, published_place
from sae_models.released_flux import PAPER, RENY
from sae_models.saved import describe_dictionary, rebuild_dictionary
from sae_models.whitened import WhitenedTopK

ORBAX = Path(__file__).parents[1] / "data" / "checkpoints" / "fae-2025"
TREE = ORBAX / "sae_double_l18_img" / "30000" / "default"
D, F, K = 6, 20, 3


def values(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# RE-N-Y


def reny(folder: Path, change: dict | None = None, **config) -> Path:
    tensors = {
        "encoder.weight": values(F, D, seed=1),
        "encoder.bias": 0.1 * values(F, seed=2),
        "decoder.weight": values(D, F, seed=3),
        "bias": values(D, seed=4),
    } | (change or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"features": D, "k": K, "pages": F} | config))
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "model.safetensors")
    return folder


def test_codes_of_re_n_y_follow_the_authors_formula(tmp_path):
    """relu, then the k largest; rows with fewer than k positive latents are among these."""
    sae, x_nd = checkpoint.load(reny(tmp_path, {"encoder.bias": values(F, seed=2) - 5})), values(40, D, seed=5)
    saved = {name: value.double().numpy() for name, value in load_file(tmp_path / "model.safetensors").items()}
    h_nf = np.maximum((x_nd.double().numpy() - saved["bias"]) @ saved["encoder.weight"].T + saved["encoder.bias"], 0)
    kept = np.argsort(-h_nf, axis=1, kind="stable")[:, :K]
    wanted = np.zeros_like(h_nf)
    np.put_along_axis(wanted, kept, np.take_along_axis(h_nf, kept, 1), 1)
    assert (h_nf > 0).sum(1).min() < K < (h_nf > 0).sum(1).max()
    np.testing.assert_allclose(sae.encode(x_nd), wanted, atol=1e-5)
    np.testing.assert_allclose(sae(x_nd), wanted @ saved["decoder.weight"].T + saved["bias"], atol=1e-5)
    assert layouts.layout_of(tmp_path) is layouts.FINEBOORU
    assert checkpoint.shape_of(tmp_path) == Shape("topk", K, F, D)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"bias": None}, {}, r"bias is missing, should be \(6,\)"),
        ({"encoder.weight": torch.zeros(D, F)}, {}, r"encoder\.weight is \(6, 20\), should be \(20, 6\)"),
        ({"logthres": torch.zeros(F)}, {}, r"logthres is \(20,\), should be absent"),
        ({"bias": torch.full((D,), torch.nan)}, {}, "NaN or infinite values in bias"),
        ({}, {"features": 7}, r"model\.safetensors does not fit its config\.json"),
        ({}, {"k": 21}, "k=21 is more than the 20 features"),
        ({}, {"jumpthreshold": 0.001}, "unknown key 'jumpthreshold'"),
    ],
)
def test_what_re_n_y_has_besides_or_is_broken_is_refused(tmp_path, change, config, message):
    with pytest.raises(UserError, match=f"{message}.* -> "):
        checkpoint.load(reny(tmp_path, change, **config))


def test_broken_files_of_re_n_y_are_refused(tmp_path):
    reny(tmp_path)
    (tmp_path / "config.json").write_text('{"features": 6, "pages": 20}')
    with pytest.raises(UserError, match=r"config\.json lacks k -> "):
        checkpoint.load(tmp_path)
    weights = reny(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-9], whole[:5], b"", zipped(Payload(tmp_path / "trace"))):
        weights.write_bytes(broken)
        with pytest.raises(
            UserError, match=r"model\.safetensors is not a whole safetensors file.*pickles are not read"
        ):
            checkpoint.load(tmp_path)
    assert not (tmp_path / "trace").exists()


def test_copies_are_found_by_their_repositories_names_and_those_of_text_tokens_refused(tmp_path):
    for name in ("transformer_blocks.18-1", "single_transformer_blocks.9"):
        reny(tmp_path / f"cc3m-{name}")
    found = index.own_entries(tmp_path, "flux-schnell@1")
    assert [(entry.block, entry.name) for entry in found] == [("single.9", "cc3m"), ("double.18", "cc3m")]
    assert published_place("cc3m-vision-topk-lr-3e-4-k-4-expansion-4") == ("", "")
    reny(tmp_path / "cc3m-transformer_blocks.18-0")
    with pytest.raises(UserError, match="blocks.18-0 codes text tokens, and riebench reads those of the image -> move"):
        index.own_entries(tmp_path, "flux-schnell@1")


# ITDA of arXiv 2505.24360


def itda(folder: Path, change: dict | None = None, **config) -> Path:
    """f = 20 atoms in room for 32, which holds what was never written."""
    atoms_fd = torch.cat([torch.nn.functional.normalize(values(F, D, seed=6), dim=-1), torch.full((12, D), torch.nan)])
    means, stds = values(D, seed=7), 0.5 + torch.rand(D, generator=torch.Generator().manual_seed(8))
    tensors = {f"{name}_{side}": value.clone() for name, value in (("mean", means), ("std", stds)) for side in "xy"}
    tensors |= {"xs": atoms_fd, "ys": atoms_fd.clone(), "weight": torch.full((D, D), torch.nan)} | (change or {})
    settings = {
        "d_model": D, "target_l0": K, "loss_threshold": 0.3, "add_error": False, "subtract_mean": True,
        "fvu_loss": True, "start_size": 0, "error_k": None, "skip_connection": False, "preprocessing_steps": 1,
        "dictionary_size": F, "steps": 77,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(settings | config))
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "sae.safetensors")
    return folder


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("divides", [True, False])
def test_itda_reads_rows_as_the_authors_code_does(tmp_path, subtracts, divides):
    without = {} if divides else {"std_x": None, "std_y": None}
    found = checkpoint.load(itda(tmp_path, without, subtract_mean=subtracts))
    saved, x_nd = load_file(tmp_path / "sae.safetensors"), values(30, D, seed=9)
    std_d = saved["std_x"] if divides else torch.ones(D)
    mean_d = saved["mean_x"] if subtracts else torch.zeros(D)
    z_nf = nonnegative_pursuit(x_nd / std_d - mean_d, saved["xs"][:F], K)
    torch.testing.assert_close(found.encode(x_nd), z_nf, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.decode(z_nf), (z_nf @ saved["ys"][:F] + mean_d) * std_d, atol=1e-4, rtol=0)
    assert isinstance(found, NonNegativeITDA) and layouts.layout_of(tmp_path) is layouts.FLUX_ITDA
    assert checkpoint.shape_of(tmp_path) == Shape("nonnegative-itda", K, F, D)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"ys": torch.zeros(32, D)}, {}, "is a transcoder.*ys are not xs"),
        ({"mean_y": torch.zeros(D)}, {}, "is a transcoder"),
        ({}, {"skip_connection": True}, "skip_connection is True"),
        ({}, {"skip_connection": 1}, "skip_connection is 1, not true or false"),
        ({"std_y": None}, {}, r"std_y is missing, should be \(6,\)"),
        ({"mean_x": torch.zeros(7)}, {}, r"mean_x is \(7,\), should be \(6,\)"),
        ({"scale": torch.zeros(7)}, {}, r"scale is \(7,\), should be absent"),
        ({name: torch.eye(6) for name in ("xs", "ys")}, {}, r"xs is \(6, 6\), should be \(20, 6\)"),
        ({}, {"dictionary_size": 21}, "NaN or infinite values in xs"),
        ({name: 2 * torch.ones(32, D) for name in ("xs", "ys")}, {}, "atoms that are not of unit norm"),
        ({name: torch.zeros(D) for name in ("std_x", "std_y")}, {}, "std_x that are not above zero"),
        ({}, {"target_l0": 0}, "k is 0"),
        ({}, {"d_model": "6"}, "width is '6'"),
    ],
)
def test_itda_of_another_function_or_broken_is_refused(tmp_path, change, config, message):
    with pytest.raises(UserError, match=f"{message}.* -> "):
        checkpoint.load(itda(tmp_path, change, **config))


def test_itda_lacking_its_size_or_truncated_is_refused(tmp_path):
    config = json.loads((itda(tmp_path) / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({key: config[key] for key in config if key != "dictionary_size"}))
    with pytest.raises(UserError, match=r"cfg\.json lacks dictionary_size -> "):
        checkpoint.load(tmp_path)
    weights = itda(tmp_path) / "sae.safetensors"
    for broken in (weights.read_bytes()[:-9], b""):
        weights.write_bytes(broken)
        with pytest.raises(UserError, match=r"sae\.safetensors is not a whole safetensors file"):
            checkpoint.load(tmp_path)


# the SAEs of arXiv 2505.24360


def whitened(**change) -> WhitenedTopK:
    tensors = {
        "whitening_dd": values(D, D, seed=10), "mean_d": values(D, seed=11), "W_enc": values(D, F, seed=12),
        "b_enc": values(F, seed=13), "W_dec": values(F, D, seed=14), "b_dec": values(D, seed=15),
    }  # fmt: skip
    return WhitenedTopK(**tensors | {"k": K, "clip": 2.0} | change)


def test_a_whitened_topk_clips_and_keeps_negative_latents():
    """With latents all far below zero the k largest of them are active all the same."""
    sae, x_nd = whitened(b_enc=values(F, seed=13) - 30), values(50, D, seed=16)
    y_nd = np.clip(x_nd.double().numpy() @ sae.whitening_dd.double().numpy() - sae.mean_d.double().numpy(), -2, 2)
    assert (np.abs(y_nd) == 2).any() and (np.abs(y_nd) < 2).any()
    h_nf = y_nd @ sae.W_enc.double().numpy() + sae.b_enc.double().numpy()
    wanted = np.where(h_nf >= np.sort(h_nf, axis=1)[:, [-K]], h_nf, 0)
    np.testing.assert_allclose(sae.encode(x_nd), wanted, atol=1e-4)
    assert (wanted < 0).sum() == 50 * K
    assert not sae.decode_linear(torch.zeros(2, F)).any()
    torch.testing.assert_close(sae.decode(torch.zeros(1, F))[0], sae.b_dec)
    assert torch.equal(sae.directions(torch.tensor([4, 2])), sae.W_dec[[4, 2]])


def test_a_whitened_topk_is_saved_and_read_as_it_was(tmp_path):
    sae, x_nd = whitened(), values(5, D, seed=17)
    sha256 = sae.save(tmp_path, {})
    assert sha256 == layouts.weights_sha256(tmp_path)
    for read in (checkpoint.load(tmp_path), rebuild_dictionary(*describe_dictionary(sae))):
        assert type(read) is WhitenedTopK and torch.equal(read.encode(x_nd), sae.encode(x_nd))
    assert checkpoint.shape_of(tmp_path) == Shape("whitened-topk", K, F, D)
    config = json.loads((tmp_path / "cfg.json").read_text())
    for changed in ({"clip": 0}, {"clip": "10"}, {"clip": None}, {"k": 21}, {"k": True}, {"d_in": 7}):
        (tmp_path / "cfg.json").write_text(json.dumps(config | changed))
        with pytest.raises(UserError):
            checkpoint.load(tmp_path)


@pytest.fixture
def tensorstore():
    return pytest.importorskip("tensorstore")


def of_tree(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstructions of rows by the authors' formula, from what `make.py` wrote into the tree."""
    saved = {name: value.astype(np.float64) for name, value in np.load(ORBAX / "arrays.npz").items()}
    w, mean = saved["whitening_matrix"], saved["feature_means"]
    sigma = np.sqrt(np.maximum(saved["feature_square_means"] - mean**2, 1e-6))
    y = np.clip((x @ w - mean) / sigma, -CLIP, CLIP)
    h = (y - saved["b_post"] + saved["b_pre"]) @ saved["W_enc"]
    return h, ((h @ saved["W_dec"] + saved["b_post"]) * sigma + mean) @ w.T


@pytest.mark.usefixtures("tensorstore")
def test_an_orbax_tree_that_orbax_wrote_follows_the_authors_formula():
    """The tree has 64 features, so that all are active: what clips, and what is negative, is seen by itself."""
    x_nd = 3 * values(40, 8, seed=18)
    found = checkpoint.load(TREE)
    z, x_hat = of_tree(x_nd.double().numpy())
    assert (z < 0).any()
    np.testing.assert_allclose(found.encode(x_nd), z, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(found.decode(found.encode(x_nd)), x_hat, rtol=1e-3, atol=2e-2)
    assert bool(((x_nd @ found.whitening_dd - found.mean_d).abs() > CLIP).any())
    assert layouts.layout_of(TREE) is layouts.FAE
    assert checkpoint.shape_of(TREE) == Shape("whitened-topk", 64, 64, 8)


@pytest.mark.usefixtures("tensorstore")
def test_k_is_that_of_the_folder_and_text_tokens_are_refused_by_it(tmp_path):
    few = Path(shutil.copytree(TREE, tmp_path / "sae_double_l9_img-k5" / "30000" / "default"))
    found = checkpoint.load(few)
    z, x_nd = of_tree((3 * values(9, 8, seed=19)).double().numpy())[0], 3 * values(9, 8, seed=19)
    np.testing.assert_allclose(found.encode(x_nd), np.where(z >= np.sort(z)[:, [-5]], z, 0), rtol=1e-3, atol=2e-3)
    for tokens in ("txt", "both"):
        text = Path(shutil.copytree(TREE, tmp_path / f"sae_double_l18_{tokens}" / "30000" / "default"))
        with pytest.raises(UserError, match=f"codes text tokens .{tokens}.* -> take one"):
            checkpoint.load(text)


@pytest.mark.usefixtures("tensorstore")
def test_broken_orbax_trees_are_refused(tmp_path):
    for number, file in enumerate(sorted(path.relative_to(TREE) for path in TREE.rglob("*") if path.is_file())):
        folder = Path(shutil.copytree(TREE, tmp_path / str(number)))
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: len(data) // 2])
        try:
            found = checkpoint.load(folder)
        except UserError as error:
            assert "\n" not in str(error) and error.remedy.startswith(("fetch or save", "mend the file"))
        else:  # a file of the training's state alone
            assert torch.equal(found.W_enc, checkpoint.load(TREE).W_enc)
            assert str(file) not in ("_METADATA", "manifest.ocdbt")
    missing = Path(shutil.copytree(TREE, tmp_path / "missing"))
    shutil.rmtree(missing / "d")
    with pytest.raises(UserError, match="-> fetch or save the checkpoint again"):
        checkpoint.load(missing)
    (missing / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"_METADATA alone -> .*_METADATA and manifest\.ocdbt \(fae\)"):
        checkpoint.load(missing)


def test_a_tree_without_the_array_is_refused(tensorstore, tmp_path):
    (tmp_path / "_METADATA").write_text("{}")
    place = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{tmp_path}/"}, "path": "sae_params.W_enc/"}
    spec = {"driver": "zarr", "kvstore": place}
    tensorstore.open(spec, create=True, dtype=tensorstore.int32, shape=[2, 3]).result().write(1).result()
    with pytest.raises(UserError, match=r"sae_params\.W_enc is of type int32, not of numbers"):
        checkpoint.load(tmp_path)
    tensorstore.open(spec, create=True, delete_existing=True, dtype=tensorstore.float32, shape=[2, 70]).result()
    with pytest.raises(UserError, match=r"holds no array sae_params\.W_dec, or lacks a file of it -> "):
        checkpoint.load(tmp_path)


def test_without_tensorstore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    for ask in (checkpoint.load, checkpoint.shape_of):
        with pytest.raises(UserError, match=r'tensorstore reads.* -> pip install "riebench\[orbax\]"'):
            ask(TREE)


# converting and publishing


@pytest.mark.parametrize("name", ["reny", "itda", "orbax"])
def test_each_is_converted_to_ours_with_the_same_latents(tmp_path, name, request):
    if name == "orbax":
        request.getfixturevalue("tensorstore")
    source = TREE if name == "orbax" else {"reny": reny, "itda": itda}[name](tmp_path / "source")
    sha256 = convert(source, tmp_path / "ours", metadata={"block": "double.18"})
    first, second = checkpoint.load(source), checkpoint.load(tmp_path / "ours")
    x_nd = values(9, first.width, seed=20)
    assert torch.equal(first.encode(x_nd), second.encode(x_nd))
    assert torch.equal(first.decode(first.encode(x_nd)), second.decode(second.encode(x_nd)))
    assert sha256 == layouts.weights_sha256(tmp_path / "ours")
    kept = checkpoint.read_metadata(tmp_path / "ours")
    assert kept["block"] == "double.18" and kept["converted_from"]["layout"] == layouts.layout_of(source).name
    if name != "reny":
        with pytest.raises(UserError, match="holds no sparse autoencoder -> write SAELens's"):
            convert(source, tmp_path / "theirs", "sparsify")
        with pytest.raises(UserError, match="holds no sparse autoencoder -> copy its folder"):
            convert(tmp_path / "ours", tmp_path / "again")


@pytest.mark.usefixtures("tensorstore")
def test_an_orbax_tree_is_not_published():
    with pytest.raises(UserError, match="Orbax checkpoint, with the state of its training -> riebench convert"):
        publish(TREE, "owner/name")


# the index


def test_all_are_listed_as_streams_of_schnell(capsys):
    listed = [entry for entry in index.entries() if entry.backbone == "flux-schnell@1"]
    assert [(entry.name, entry.block) for entry in listed] == [
        (RENY, "double.0"), (RENY, "double.18"), (RENY, "single.9"), (RENY, "single.37"),
        (PAPER, "double.9"), (PAPER, "double.18"),
    ]  # fmt: skip
    assert {entry.site for entry in listed} == {"stream"} and {entry.width for entry in listed} == {3072}
    assert index.find("flux-schnell@1", "double.18", site="stream").name == RENY
    assert index.find("flux-schnell@1", "double.9", site="stream").name == PAPER
    with pytest.raises(UserError, match="no dictionary is known for flux-schnell@1 double.18"):
        index.find("flux-schnell@1", "double.18")
    assert not main(["ls", "dictionaries", "--released"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14
    assert f"{PAPER}  flux-schnell@1  double.9 stream  whitened-topk  k=64  65536 features  not evaluated here" in lines
    assert main(["ls", "methods", "--released"]) == 2


def test_what_is_fetched():
    for name, count, gigabytes, k in ((RENY, 4, 1.21, 49152), (PAPER, 2, 6.5, 65536)):
        parts = RELEASED_WEIGHTS[name]
        assert len(parts) == count and {part.gigabytes for part in parts} == {gigabytes}
        of_weights = 4 * (2 * 3072 * k + k + 3072) / 1e9
        assert gigabytes == pytest.approx(of_weights * (4 if name == PAPER else 1), abs=0.1)
    assert RELEASED_WEIGHTS[RENY][1].files == ("config.json", "model.safetensors")
    assert RELEASED_WEIGHTS[PAPER][1].optional == ("sae_double_l18_img/30000/default/*",)


@pytest.mark.parametrize(("name", "size"), [(RENY, "1.21"), (PAPER, "6.5")])
@pytest.mark.usefixtures("no_network", "hub_cache")
def test_missing_weights_say_how_to_fetch_them(name, size):
    with pytest.raises(UserError, match=rf"run `riebench fetch {name}` \({size} GB\)"):
        index.open(index.find("flux-schnell@1", "double.18", name, site="stream"))


@pytest.mark.usefixtures("no_network")
def test_each_is_opened_from_its_own_place_in_the_cache(hub_cache, tmp_path):  # noqa: F811
    """Their shapes are not the true ones, and that is what is told of them."""
    put_in_cache(hub_cache, "RE-N-Y/cc3m-transformer_blocks.18-1", reny(tmp_path / "reny"), ".")
    with pytest.raises(UserError, match=r"18-1/snapshots/a+ has .* \(6, 20, 3\), the index says \(3072, 49152, 16\)"):
        index.open(index.find("flux-schnell@1", "double.18", RENY, site="stream"))
    with pytest.raises(UserError, match="riebench fetch"):
        index.open(index.find("flux-schnell@1", "double.0", RENY, site="stream"))


@pytest.mark.usefixtures("no_network", "tensorstore")
def test_a_tree_is_opened_in_the_cache(hub_cache):  # noqa: F811
    entry = index.find("flux-schnell@1", "double.18", PAPER, site="stream")
    snapshot = hub_cache / "models--nev--flux1-saes" / "snapshots" / (40 * "a")
    shutil.copytree(TREE, snapshot / entry.folder)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    with pytest.raises(UserError, match=r"\(8, 64, 64\), the index says \(3072, 65536, 64\)"):
        index.open(entry)
