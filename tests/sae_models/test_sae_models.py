"""The dictionary library against slow formulas, planted dictionaries and broken files."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from riebench.core.errors import UserError
from sae_models import checkpoint, index
from sae_models.dictionary import Dictionary, Identity
from sae_models.evaluation import Tally, evaluate
from sae_models.layouts import weights_sha256
from sae_models.topk import TopKConfig, TopKSAE, keep_top


@pytest.fixture
def sae() -> TopKSAE:
    """Untied and with biases, so that every term of the formula counts."""
    sae = TopKSAE(TopKConfig(width=5, num_features=12, k=3), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.b_enc, sae.b_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae.requires_grad_(False)


@pytest.fixture(params=["trained here", "published"])
def either(request, sae, tmp_path) -> TopKSAE:
    """The same, and one read from a published checkpoint, with decoder rows that are not of unit norm."""
    if request.param == "trained here":
        return sae
    folder = tmp_path / "published"
    folder.mkdir()
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "latent_bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T * torch.linspace(0.99, 1.01, 12),
        "pre_bias": sae.b_dec,
    }
    torch.save({"state_dict": tensors}, folder / "state_dict.pth")
    (folder / "config.json").write_text(json.dumps({"n_dirs_local": 12, "d_model": 5, "k": 3}))
    return checkpoint.load(folder)


# encode and decode


def test_encode_and_decode_follow_the_formula(either):
    x_nd = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    w_enc, b_enc, w_dec, b_dec = (getattr(either, name).numpy() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    z_nf, x_hat_nd = either.encode(x_nd), either.decode(either.encode(x_nd))
    for n, x in enumerate(x_nd.numpy()):
        h = [float(np.dot(x - b_dec, w_enc[:, f]) + b_enc[f]) for f in range(12)]
        kept = sorted(range(12), key=lambda f: h[f])[-3:]
        z = np.array([max(h[f], 0.0) if f in kept else 0.0 for f in range(12)])
        np.testing.assert_allclose(z_nf[n], z, atol=1e-5)
        np.testing.assert_allclose(x_hat_nd[n], sum(z[f] * w_dec[f] for f in range(12)) + b_dec, atol=1e-5)


def test_decode_linear_is_decode_without_the_bias(either):
    z_nf = torch.rand(4, 12)
    torch.testing.assert_close(either.decode_linear(z_nf) + either.b_dec, either.decode(z_nf))
    assert not either.decode_linear(torch.zeros(1, 12)).any()


def test_keep_top_keeps_k_and_no_negative_value():
    h_nf = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    assert ((keep_top(h_nf, 5) > 0).sum(-1) == 5).all()
    assert not keep_top(-h_nf.abs(), 5).any()
    assert torch.equal(keep_top(h_nf, 30), h_nf.relu())


def test_leading_dimensions_pass_through_and_half_precision_is_cast(either):
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(either.encode(x).reshape(-1, 12), either.encode(x.reshape(-1, 5)))
    assert either.encode(x.bfloat16()).dtype == torch.float32


def test_identity_codes_exactly(either):
    identity = Identity(5)
    x_nd = torch.randn(3, 5)
    assert torch.equal(identity.decode(identity.encode(x_nd)), x_nd)
    assert torch.equal(identity.decode_linear(x_nd), x_nd)
    assert isinstance(identity, Dictionary) and isinstance(either, Dictionary)
    assert (identity.width, identity.num_features) == (5, 5)


@pytest.mark.parametrize("bad", [{"k": 13}, {"k": 0}, {"width": -1}, {"num_features": 2.5}])
def test_impossible_shapes_are_refused(bad):
    with pytest.raises(UserError):
        TopKConfig(**({"width": 5, "num_features": 12, "k": 3} | bad))


def test_encoder_starts_as_a_copy_of_the_decoder():
    sae = TopKSAE(TopKConfig(width=16, num_features=48, k=3))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.untyped_storage().data_ptr() != sae.W_dec.untyped_storage().data_ptr()
    with torch.no_grad():
        sae.W_dec.zero_()
    assert sae.W_enc.abs().sum() > 0


# evaluation


def test_evaluation_against_numpy(sae):
    rows_nd = 3 * torch.randn(50, 5, generator=torch.Generator().manual_seed(5)) + 1
    scores = evaluate(sae, rows_nd, batch_size=16)
    x, z, x_hat = (value.double().numpy() for value in (rows_nd, sae.encode(rows_nd), sae(rows_nd)))
    pooled = 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    by_dimension = np.mean([1 - np.var(x[:, d] - x_hat[:, d]) / np.var(x[:, d]) for d in range(5)])
    cosine = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, x_hat, strict=True)])
    assert scores.num_rows == 50
    assert scores.explained_variance_pooled == pytest.approx(pooled, abs=1e-6)
    assert scores.explained_variance_mean == pytest.approx(by_dimension, abs=1e-6)
    assert scores.explained_variance_pooled != pytest.approx(scores.explained_variance_mean, abs=1e-3)
    assert scores.l0 == pytest.approx(np.mean([(row != 0).sum() for row in z]))
    assert scores.dead_share == pytest.approx(np.mean([not z[:, f].any() for f in range(12)]))
    assert scores.cosine == pytest.approx(cosine, abs=1e-6)


def test_rows_that_come_in_batches_are_evaluated_as_one_set(sae):
    rows_nd = torch.randn(50, 5, generator=torch.Generator().manual_seed(6)) + 100
    tally = Tally(sae)
    latents = [tally.add(batch_nd) for batch_nd in rows_nd.split([1, 30, 19])]
    torch.testing.assert_close(torch.cat(latents), sae.encode(rows_nd))
    found, wanted = (dataclasses.asdict(each) for each in (tally.evaluation(), evaluate(sae, rows_nd)))
    assert found.pop("rare_share") is wanted.pop("rare_share") is None, "50 rows cannot tell"
    assert found == pytest.approx(wanted, rel=1e-6)


def test_dead_share_counts_features_never_active(sae):
    with torch.no_grad():
        sae.b_enc[:4] = -1e6
    assert evaluate(sae, torch.randn(4_000, 5)).dead_share == pytest.approx(4 / 12)


def test_dimensions_that_never_vary_are_left_out_of_the_mean():
    generator = torch.Generator().manual_seed(6)
    rows_nd = torch.randn(997, 96, generator=generator)
    rows_nd[:, 6:] = 10 * torch.rand(90, generator=generator)  # the sums of their squares are seldom exact
    sae = TopKSAE(TopKConfig(width=96, num_features=128, k=8)).requires_grad_(False)
    x, x_hat = (value.double().numpy() for value in (rows_nd, sae(rows_nd)))
    wanted = np.mean([1 - np.var(x[:, d] - x_hat[:, d]) / np.var(x[:, d]) for d in range(6)])
    assert evaluate(sae, rows_nd).explained_variance_mean == pytest.approx(wanted, rel=1e-5)


def test_identity_explains_everything():
    rows_nd = torch.randn(20, 3)
    rows_nd[:, 1] = 4.0
    scores = evaluate(Identity(3), rows_nd)
    assert scores.explained_variance_pooled == scores.explained_variance_mean == 1.0
    assert (scores.l0, scores.dead_share) == (3.0, 0.0)
    assert scores.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    "rows_nd",
    [torch.full((4, 3), torch.nan), torch.tensor([[1.0, 2, torch.inf]] * 2), torch.ones(4, 3), torch.ones(0, 3),
     torch.randn(4, 2)],
)  # fmt: skip
def test_rows_that_cannot_be_evaluated_on_are_refused(rows_nd):
    with pytest.raises(UserError):
        evaluate(Identity(3), rows_nd)


# checkpoints


def test_a_saved_sae_gives_equal_latents(sae, tmp_path):
    sha256 = checkpoint.save(tmp_path, sae, {"block": "up.0.1"})
    loaded = checkpoint.load(tmp_path)
    rows_nd = torch.randn(30, 5)
    assert torch.equal(loaded.encode(rows_nd), sae.encode(rows_nd))
    assert torch.equal(loaded(rows_nd), sae(rows_nd))
    assert loaded.config == sae.config
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert sha256 == weights_sha256(tmp_path) == checkpoint.save(tmp_path / "again", sae, {})


def test_half_precision_halves_the_file_and_is_read_as_float32(sae, tmp_path):
    wide = TopKSAE(TopKConfig(width=64, num_features=256, k=8))
    checkpoint.save(tmp_path / "whole", wide, {})
    checkpoint.save(tmp_path / "half", wide.half(), {})
    whole, half = ((tmp_path / name / "sae_weights.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.51 * whole
    assert json.loads((tmp_path / "half" / "cfg.json").read_text())["dtype"] == "float16"
    loaded = checkpoint.load(tmp_path / "half")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.W_enc, wide.W_enc.float())  # nothing is changed on the way, not even the norms
    torch.testing.assert_close(loaded.W_dec.norm(dim=-1), torch.ones(256), atol=5e-4, rtol=0)


def test_values_too_large_for_half_precision_are_not_saved(sae, tmp_path):
    with torch.no_grad():
        sae.b_enc[0] = 1e5
    checkpoint.save(tmp_path, sae, {})
    with pytest.raises(UserError, match="b_enc"):
        checkpoint.save(tmp_path, sae.half(), {})


def test_the_files_are_laid_out_as_saelens_does(sae, tmp_path):
    checkpoint.save(tmp_path, sae, {"block": "up.0.1"})
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["d_in"], config["d_sae"], config["k"]) == (5, 12, 3)
    assert (config["architecture"], config["dtype"], config["apply_b_dec_to_input"]) == ("topk", "float32", True)
    assert config["metadata"] == {"block": "up.0.1"}
    shapes = {name: tuple(value.shape) for name, value in load_file(tmp_path / "sae_weights.safetensors").items()}
    assert shapes == {"W_enc": (5, 12), "b_enc": (12,), "W_dec": (12, 5), "b_dec": (5,)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_broken_weights_are_refused(sae, tmp_path):
    checkpoint.save(tmp_path, sae, {})
    path = tmp_path / "sae_weights.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    for size in (0, 4, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            checkpoint.load(tmp_path)
    path.write_bytes(pickle.dumps({"W_enc": [1.0]}))
    with pytest.raises(UserError, match="pickles are not read"):
        checkpoint.load(tmp_path)
    for change in ({"W_enc": tensors["W_enc"].T.contiguous()}, {"b_dec": torch.zeros(6)}, {"extra": torch.zeros(1)}):
        save_file(tensors | change, path)
        with pytest.raises(UserError, match=next(iter(change))):
            checkpoint.load(tmp_path)
    save_file({name: value for name, value in tensors.items() if name != "b_enc"}, path)
    with pytest.raises(UserError, match="b_enc is missing"):
        checkpoint.load(tmp_path)
    save_file(tensors | {"b_enc": torch.full((12,), torch.nan)}, path)
    with pytest.raises(UserError, match="NaN"):
        checkpoint.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"lacks a part of it: it has cfg\.json alone -> .*sae_weights\.safetensors"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"architecture": "jumprelu"}, {"apply_b_dec_to_input": "false"}, {"normalize_activations": "layer_norm"},
     {"k": 13}, {"k": None}, {"d_sae": "12"}],
)  # fmt: skip
def test_a_configuration_that_is_another_function_is_refused(sae, tmp_path, change):
    checkpoint.save(tmp_path, sae, {})
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError):
        checkpoint.load(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(sae, tmp_path):
    with torch.no_grad():
        sae.b_dec[0] = torch.nan
    with pytest.raises(UserError, match="b_dec"):
        checkpoint.save(tmp_path, sae, {})
    assert not list(tmp_path.iterdir())


# the index


def entry_of(sae: TopKSAE, root, name: str = "topk-k3", block: str = "mid.0") -> index.Entry:
    sha256 = checkpoint.save(root / block / name, sae, {})
    return index.Entry(
        name=name, backbone="tinyworld-turbo", block=block, kind="topk", k=3, num_features=12, width=5,
        folder=f"{block}/{name}", sha256=sha256, evaluation={"l0": 3.0}, training={"steps": 5},
    )  # fmt: skip


def test_what_is_registered_is_found_and_opened(sae, tmp_path):
    assert index.entries(tmp_path) == []
    first, second = entry_of(sae, tmp_path), entry_of(sae, tmp_path, block="up.0.1")
    third = dataclasses.replace(second, name="other", training={})
    for entry in (first, second, third):
        index.register(entry, root=tmp_path)
    assert index.entries(tmp_path) == [first, second, third]
    assert index.find("tinyworld-turbo", "mid.0", root=tmp_path) == first
    assert index.find("tinyworld-turbo", "up.0.1", "other", root=tmp_path) == third
    rows_nd = torch.randn(9, 5)
    assert torch.equal(index.open(first, root=tmp_path).encode(rows_nd), sae.encode(rows_nd))
    replaced = dataclasses.replace(second, evaluation={"l0": 2.0})
    index.register(replaced, root=tmp_path)
    assert index.entries(tmp_path) == [first, replaced, third]


def test_without_a_name_the_default_is_found_wherever_it_is_listed(sae, tmp_path):
    first, second = entry_of(sae, tmp_path), entry_of(sae, tmp_path, name="other")
    for entry in (first, second):
        index.register(entry, root=tmp_path)
    with pytest.raises(UserError, match=f"no dictionary '{index.DEFAULT_NAME}'.* take one of topk-k3, other"):
        index.find("tinyworld-turbo", "mid.0", root=tmp_path)
    default = entry_of(sae, tmp_path, name=index.DEFAULT_NAME)
    index.register(default, root=tmp_path)
    assert index.find("tinyworld-turbo", "mid.0", root=tmp_path) == default


def test_what_is_not_there_is_told_with_what_is(sae, tmp_path):
    with pytest.raises(UserError, match="no dictionary is known"):
        index.find("tinyworld-turbo", "mid.0", root=tmp_path)
    index.register(entry_of(sae, tmp_path), root=tmp_path)
    with pytest.raises(UserError, match="did you mean 'topk-k3'"):
        index.find("tinyworld-turbo", "mid.0", "topk-k4", root=tmp_path)
    with pytest.raises(UserError, match="tinyworld-turbo mid.0"):
        index.find("tinyworld-turbo", "mid.1", root=tmp_path)


def test_a_checkpoint_that_was_changed_is_not_opened(sae, tmp_path):
    entry = entry_of(sae, tmp_path)
    with pytest.raises(UserError, match="the index says"):
        index.open(dataclasses.replace(entry, k=2), root=tmp_path)
    with torch.no_grad():
        sae.b_dec[0] += 1
    checkpoint.save(tmp_path / entry.folder, sae, {})
    with pytest.raises(UserError, match="sha256"):
        index.open(entry, root=tmp_path)


@pytest.mark.parametrize("text", ["{}", "[", "[1]", '[{"name": "a"}]', '[{"nmae": "a"}]'])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match="index.json"):
        index.entries(tmp_path)


@pytest.mark.process
def test_the_index_is_read_without_torch():
    code = (
        "import sys, sae_models, sae_models.index as index\n"
        "for entry in index.entries():\n    index.describe(entry)\n"
        "index.fingerprint(index.find('tinyworld-turbo@1', 'mid.0'))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_imported():
    import sae_models

    assert all(callable(getattr(sae_models, name)) for name in sae_models.__all__)
    with pytest.raises(AttributeError):
        sae_models.nothing  # noqa: B018
