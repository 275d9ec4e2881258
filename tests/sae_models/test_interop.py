"""Ours beside the packages whose formats are read: what one saves the other loads, with equal latents.

Needs the extra `interop`; where a package is missing, its tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_models import checkpoint
from sae_models.convert import convert
from sae_models.jumprelu import JumpReLUConfig, JumpReLUSAE
from sae_models.tensors import SAE
from sae_models.topk import TopKConfig, TopKSAE

D, F, K = 16, 64, 5


def randomise(module: torch.nn.Module, *, threshold: float = 0.5) -> None:
    """Every parameter from a normal distribution; decoder rows of several norms; thresholds around the one given."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
            if "threshold" in name:
                value.mul_(0.1).add_(threshold)


def rows() -> Tensor:
    return 2 * torch.randn(200, D, generator=torch.Generator().manual_seed(2))


def assert_same(ours: SAE, encode, decode) -> None:
    """Equal support, and equal values to float32's rounding; some latents on and some off, on every row or nearly."""
    mine, theirs = ours.encode(rows()), encode(rows()).detach()
    assert 0 < int((theirs > 0).sum()) < theirs.numel()
    assert torch.equal(mine > 0, theirs > 0)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(ours.decode(mine), decode(theirs).detach(), rtol=1e-5, atol=2e-4)


def our_topk() -> TopKSAE:
    sae = TopKSAE(TopKConfig(width=D, num_features=F, k=K))
    randomise(sae)
    return sae.requires_grad_(False)


def our_jumprelu() -> JumpReLUSAE:
    sae = JumpReLUSAE(JumpReLUConfig(width=D, num_features=F))
    randomise(sae)
    return sae.requires_grad_(False)


# SAELens


@pytest.fixture
def sae_lens():
    return pytest.importorskip("sae_lens", reason="needs sae-lens (pip install 'riebench[interop]')")


@pytest.mark.parametrize("make", [our_topk, our_jumprelu])
def test_saelens_loads_what_we_save(sae_lens, tmp_path, make):
    ours = make()
    checkpoint.save(tmp_path, ours, {"block": "up.0.1"})
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    assert type(theirs).__name__ == type(ours).__name__
    assert theirs.cfg.metadata["block"] == "up.0.1"
    assert_same(ours, theirs.encode, theirs.decode)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", ["TopKSAE", "TopKSAE rescaled", "JumpReLUSAE", "StandardSAE", "GatedSAE"])
def test_we_load_what_saelens_saves(sae_lens, tmp_path, kind, subtract):
    name, _, rescaled = kind.partition(" ")
    settings = {"d_in": D, "d_sae": F, "apply_b_dec_to_input": subtract}
    if name == "TopKSAE":
        settings |= {"k": K, "rescale_acts_by_decoder_norm": bool(rescaled)}
    theirs = getattr(sae_lens, name)(getattr(sae_lens, f"{name}Config")(**settings))
    randomise(theirs)
    theirs.save_model(tmp_path)
    assert_same(checkpoint.load(tmp_path), theirs.encode, theirs.decode)


def test_we_load_what_saelens_exports_from_a_batchtopk_training(sae_lens, tmp_path):
    config = sae_lens.BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=K)
    training = sae_lens.BatchTopKTrainingSAE(config)
    randomise(training)
    training.topk_threshold.fill_(1.5)
    training.save_inference_model(tmp_path)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    ours = checkpoint.load(tmp_path)
    assert isinstance(ours, JumpReLUSAE) and float(ours.threshold[0]) == 1.5
    assert_same(ours, theirs.encode, theirs.decode)


# sparsify


@pytest.fixture
def sparsify(monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")  # its kernels need a GPU; read when it is imported
    return pytest.importorskip("sparsify", reason="needs eai-sparsify (pip install 'riebench[interop]')")


def dense(encoded) -> Tensor:
    """Their k values and indices a row as latents `[n, f]`."""
    return torch.zeros(len(encoded.top_acts), F).scatter(-1, encoded.top_indices, encoded.top_acts)


def as_functions(coder):
    def decode(z_nf: Tensor) -> Tensor:
        values_nk, features_nk = z_nf.topk(K, dim=-1)
        return coder.decode(values_nk, features_nk)

    return lambda x_nd: dense(coder.encode(x_nd)), decode


def test_sparsify_loads_what_we_convert(sparsify, tmp_path):
    ours = our_topk()
    checkpoint.save(tmp_path / "ours", ours, {})
    convert(tmp_path / "ours", tmp_path / "theirs", "sparsify")
    assert_same(ours, *as_functions(sparsify.SparseCoder.load_from_disk(tmp_path / "theirs")))


@pytest.mark.parametrize("settings", [{"num_latents": F}, {"expansion_factor": F // D}])
def test_we_load_what_sparsify_saves(sparsify, tmp_path, settings):
    coder = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(k=K, **settings))
    randomise(coder)
    coder.save_to_disk(tmp_path)
    assert_same(checkpoint.load(tmp_path), *as_functions(coder))


def test_what_sparsify_saves_reaches_saelens(sparsify, sae_lens, tmp_path):
    coder = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(k=K, num_latents=F))
    randomise(coder)
    coder.save_to_disk(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    encode, _ = as_functions(coder)
    torch.testing.assert_close(sae_lens.SAE.load_from_disk(tmp_path / "ours").encode(rows()), encode(rows()))


# dictionary_learning


@pytest.fixture
def dictionary_learning():
    return pytest.importorskip("dictionary_learning", reason="needs dictionary-learning")


def save_as_its_training_does(folder: Path, dictionary: torch.nn.Module, **trainer) -> None:
    of_trainer = {"dict_class": type(dictionary).__name__, "activation_dim": D, "dict_size": F} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": of_trainer}))
    torch.save(dictionary.state_dict(), folder / "ae.pt")


@pytest.mark.parametrize(
    "name",
    [
        "AutoEncoder",
        "AutoEncoderNew",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
    ],
)
def test_we_load_what_dictionary_learning_saves(dictionary_learning, tmp_path, name):
    utils = pytest.importorskip("dictionary_learning.utils", reason="needs dictionary-learning whole")
    with_k = {"k": K} if "TopK" in name else {}
    theirs = getattr(utils, name)(D, F, **with_k)
    randomise(theirs)
    if name == "BatchTopKSAE":
        theirs.threshold.fill_(1.5)
    save_as_its_training_does(tmp_path, theirs, **with_k)
    loaded, _ = utils.load_dictionary(str(tmp_path), "cpu")
    assert_same(checkpoint.load(tmp_path), loaded.encode, loaded.decode)
