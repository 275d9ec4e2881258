"""Checkpoints of every layout, written here by hand: latents and rows against each format's own formula in float64,
broken files, conversion, and what is asked of the Hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from riebench.core.errors import UserError
from sae_models import checkpoint, index, layouts
from sae_models.convert import convert
from sae_models.jumprelu import JumpReLUConfig, JumpReLUSAE
from sae_models.pca import PCA
from sae_models.publish import from_hub, publish
from sae_models.topk import TopKConfig, TopKSAE

D, F, K = 6, 20, 5
Array = np.ndarray


def rows(n: int = 40) -> Tensor:
    return 2 * torch.randn(n, D, generator=torch.Generator().manual_seed(3))


def parts() -> SimpleNamespace:
    """Untied, with biases, thresholds of which some are below zero, and decoder rows of norms from 0.3 to 3."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dec_fd = torch.nn.functional.normalize(normal(F, D), dim=-1) * torch.linspace(0.3, 3, F)[:, None]
    return SimpleNamespace(enc_df=normal(D, F), b_f=0.3 * normal(F), dec_fd=dec_fd, b_d=normal(D), theta_f=normal(F))


def as_float64(tensors: dict[str, Tensor]) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in tensors.items()}


def slow_top(h_nf: Array, k: int) -> Array:
    z_nf = np.zeros_like(h_nf)
    for n, h_f in enumerate(h_nf):
        for f in sorted(range(len(h_f)), key=lambda f: -h_f[f])[:k]:
            z_nf[n, f] = max(h_f[f], 0)
    return z_nf


def relu(h_nf: Array) -> Array:
    return np.maximum(h_nf, 0)


# the formats: each writes a folder and says, from what it wrote, what latents and rows are


def write_saelens(folder: Path, architecture: str, tensors: dict[str, Tensor], **settings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12"},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config | settings))
    save_file(tensors, folder / "sae_weights.safetensors")


def saelens_tensors(*, threshold: bool = False) -> dict[str, Tensor]:
    p = parts()
    tensors = {"W_enc": p.enc_df, "b_enc": p.b_f, "W_dec": p.dec_fd, "b_dec": p.b_d}
    return tensors | ({"threshold": p.theta_f} if threshold else {})


def saelens_topk(folder: Path, subtract: bool = True, rescale: bool = False) -> Callable:
    tensors = saelens_tensors()
    write_saelens(folder, "topk", tensors, k=K, apply_b_dec_to_input=subtract, rescale_acts_by_decoder_norm=rescale)
    w = as_float64(tensors)
    norm_f = np.linalg.norm(w["W_dec"], axis=1) if rescale else np.ones(F)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        h_nf = ((x_nd - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm_f
        z_nf = slow_top(h_nf, K)
        return z_nf, (z_nf / norm_f) @ w["W_dec"] + w["b_dec"]

    return formula


def saelens_jumprelu(folder: Path, subtract: bool = True) -> Callable:
    tensors = saelens_tensors(threshold=True)
    write_saelens(folder, "jumprelu", tensors, apply_b_dec_to_input=subtract)
    w = as_float64(tensors)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        h_nf = (x_nd - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        z_nf = relu(h_nf) * (h_nf > w["threshold"])
        return z_nf, z_nf @ w["W_dec"] + w["b_dec"]

    return formula


def saelens_standard(folder: Path, subtract: bool = True) -> Callable:
    tensors = saelens_tensors()
    write_saelens(folder, "standard", tensors, apply_b_dec_to_input=subtract)
    w = as_float64(tensors)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        z_nf = relu((x_nd - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        return z_nf, z_nf @ w["W_dec"] + w["b_dec"]

    return formula


def sparsify_tensors() -> dict[str, Tensor]:
    p = parts()
    return {"encoder.weight": p.enc_df.T.contiguous(), "encoder.bias": p.b_f, "W_dec": p.dec_fd, "b_dec": p.b_d}


def sparsify_topk(folder: Path, **settings) -> Callable:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config | settings))
    tensors = sparsify_tensors()
    save_file(tensors, folder / "sae.safetensors")
    w = as_float64(tensors)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        z_nf = slow_top(relu((x_nd - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]), K)
        return z_nf, z_nf @ w["W_dec"] + w["b_dec"]

    return formula


def sdxl_unbox(folder: Path) -> Callable:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"n_dirs_local": F, "d_model": D, "k": K, "auxk": 256}))
    p = parts()
    tensors = {
        "encoder.weight": p.enc_df.T, "latent_bias": p.b_f, "decoder.weight": p.dec_fd.T, "pre_bias": p.b_d,
    }  # fmt: skip
    torch.save({"state_dict": tensors}, folder / "state_dict.pth")
    w = as_float64(tensors)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        z_nf = slow_top((x_nd - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"], K)
        return z_nf, z_nf @ w["decoder.weight"].T + w["pre_bias"]

    return formula


def write_dictionary_learning(folder: Path, dict_class: str, tensors: dict[str, Tensor], **trainer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    of_trainer = {"dict_class": dict_class, "activation_dim": D, "dict_size": F, "lr": 1e-3, "layer": 3} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": of_trainer, "buffer": {"ctx_len": 128}}))
    torch.save(tensors, folder / "ae.pt")


def linear_tensors(bias: str) -> dict[str, Tensor]:
    p = parts()
    return {"encoder.weight": p.enc_df.T, "encoder.bias": p.b_f, "decoder.weight": p.dec_fd.T, bias: p.b_d}


def autoencoder(folder: Path) -> Callable:
    tensors = linear_tensors("bias")
    write_dictionary_learning(folder, "AutoEncoder", tensors)
    w = as_float64(tensors)
    norm_f = np.linalg.norm(w["decoder.weight"], axis=0)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        """As the package codes after loading, when it has made the columns of the decoder unit vectors."""
        z_nf = relu((x_nd - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"])
        return z_nf * norm_f, z_nf @ w["decoder.weight"].T + w["bias"]

    return formula


def count(k: int = K) -> Tensor:
    return torch.tensor(k, dtype=torch.int)


def autoencoder_topk(folder: Path) -> Callable:
    tensors = linear_tensors("b_dec")
    extra = {"k": count(), "threshold": torch.tensor(0.7)}
    write_dictionary_learning(folder, "AutoEncoderTopK", tensors | extra, k=K)
    w = as_float64(tensors)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        z_nf = slow_top((x_nd - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], K)
        return z_nf, z_nf @ w["decoder.weight"].T + w["b_dec"]

    return formula


def batch_topk(folder: Path, threshold: float = 1.1) -> Callable:
    tensors = linear_tensors("b_dec")
    extra = {"k": count(), "threshold": torch.tensor(threshold)}
    write_dictionary_learning(folder, "BatchTopKSAE", tensors | extra, k=K)
    w = as_float64(tensors)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        h_nf = relu((x_nd - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
        z_nf = h_nf * (h_nf > threshold)
        return z_nf, z_nf @ w["decoder.weight"].T + w["b_dec"]

    return formula


def jumprelu_autoencoder(folder: Path) -> Callable:
    tensors = saelens_tensors(threshold=True)
    write_dictionary_learning(folder, "JumpReluAutoEncoder", tensors)
    w = as_float64(tensors)

    def formula(x_nd: Array) -> tuple[Array, Array]:
        h_nf = x_nd @ w["W_enc"] + w["b_enc"]
        z_nf = relu(h_nf * (h_nf > w["threshold"]))
        return z_nf, z_nf @ w["W_dec"] + w["b_dec"]

    return formula


TOPK, JUMPRELU = TopKConfig(width=D, num_features=F, k=K), JumpReLUConfig(width=D, num_features=F)
S, P, U, L = layouts.SAELENS, layouts.SPARSIFY, layouts.SDXL_UNBOX, layouts.DICTIONARY_LEARNING
FORMATS = {
    "SAELens topk": (saelens_topk, S, TOPK),
    "SAELens topk, x whole": (lambda folder: saelens_topk(folder, subtract=False), S, TOPK),
    "SAELens topk, rescaled": (lambda folder: saelens_topk(folder, rescale=True), S, TOPK),
    "SAELens topk, both": (lambda folder: saelens_topk(folder, subtract=False, rescale=True), S, TOPK),
    "SAELens jumprelu": (saelens_jumprelu, S, JUMPRELU),
    "SAELens jumprelu, x whole": (lambda folder: saelens_jumprelu(folder, subtract=False), S, JUMPRELU),
    "SAELens standard": (saelens_standard, S, JUMPRELU),
    "SAELens standard, x whole": (lambda folder: saelens_standard(folder, subtract=False), S, JUMPRELU),
    "sparsify": (sparsify_topk, P, TOPK),
    "sdxl-unbox": (sdxl_unbox, U, TOPK),
    "AutoEncoder": (autoencoder, L, JUMPRELU),
    "AutoEncoderTopK": (autoencoder_topk, L, TOPK),
    "BatchTopKSAE": (batch_topk, L, JUMPRELU),
    "BatchTopKSAE before its threshold": (lambda folder: batch_topk(folder, threshold=-1.0), L, JUMPRELU),
    "JumpReluAutoEncoder": (jumprelu_autoencoder, L, JUMPRELU),
}  # what writes it, the layout it is, and what it is read as


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_follows_its_own_formula(tmp_path, name):
    write, layout, config = FORMATS[name]
    formula = write(tmp_path)
    x_nd = rows()
    sae = checkpoint.load(tmp_path)
    wanted_z, wanted_x = formula(x_nd.double().numpy())
    np.testing.assert_allclose(sae.encode(x_nd), wanted_z, atol=2e-5)
    np.testing.assert_allclose(sae(x_nd), wanted_x, atol=5e-5)
    assert layouts.layout_of(tmp_path) is layout
    assert sae.config == checkpoint.read_config(tmp_path) == config
    assert not any(value.requires_grad or value.dtype != torch.float32 for value in sae.parameters())


def test_what_distinguishes_the_formats_shows_in_these_weights(tmp_path):
    """Or else a setting that is not read would go unseen."""
    x_nd = rows().double().numpy()
    codes = {name: write(tmp_path / name)(x_nd)[0] for name, (write, _, _) in FORMATS.items()}
    same = {"SAELens topk": {"sparsify", "sdxl-unbox", "AutoEncoderTopK"},
            "SAELens standard": {"BatchTopKSAE before its threshold"},
            "SAELens jumprelu, x whole": {"JumpReluAutoEncoder"}}  # fmt: skip
    groups = [{first, *others} for first, others in same.items()]
    for one in codes:
        for other in codes:
            alike = one == other or any({one, other} <= group for group in groups)
            assert np.allclose(codes[one], codes[other]) == alike, (one, other)


def test_sparsify_counts_latents_by_the_factor_where_it_states_none(tmp_path):
    sparsify_topk(tmp_path, num_latents=0, expansion_factor=F // D)
    with pytest.raises(UserError, match=rf"sae\.safetensors does not fit its cfg\.json.*\({F // D * D},\)"):
        checkpoint.load(tmp_path)
    tensors = sparsify_tensors()
    kept = {name: value if name == "b_dec" else value[:18].contiguous() for name, value in tensors.items()}
    save_file(kept, tmp_path / "sae.safetensors")
    assert checkpoint.load(tmp_path).config == TopKConfig(width=D, num_features=18, k=K)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_read_as_float32(tmp_path, dtype):
    cast = {name: value.to(dtype) for name, value in sparsify_tensors().items()}
    sparsify_topk(tmp_path)
    save_file(cast, tmp_path / "sae.safetensors")
    assert torch.equal(checkpoint.load(tmp_path).W_dec, cast["W_dec"].float())


def test_a_decoder_row_of_zeros_is_a_feature_that_is_never_active(tmp_path):
    tensors = saelens_tensors()
    tensors["W_dec"][3] = 0
    write_saelens(tmp_path, "topk", tensors, k=F, rescale_acts_by_decoder_norm=True)
    sae = checkpoint.load(tmp_path)
    z_nf = sae.encode(rows())
    assert not z_nf[:, 3].any() and z_nf[:, 4].any() and torch.isfinite(sae(rows())).all()


# saving


def jumprelu() -> JumpReLUSAE:
    sae = JumpReLUSAE(JUMPRELU)
    p = parts()
    named = {"W_enc": p.enc_df, "b_enc": p.b_f, "W_dec": p.dec_fd, "b_dec": p.b_d, "threshold": p.theta_f.abs()}
    sae.load_state_dict(named)
    return sae.requires_grad_(False)


def test_a_saved_jumprelu_is_the_same_function_in_saelens_layout(tmp_path):
    sae = jumprelu()
    sha256 = checkpoint.save(tmp_path, sae, {"block": "mid.0"})
    assert torch.equal(checkpoint.load(tmp_path).encode(rows()), sae.encode(rows()))
    assert sha256 == hashlib.sha256((tmp_path / "sae_weights.safetensors").read_bytes()).hexdigest()
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("jumprelu", D, F) and "k" not in config
    assert sorted(load_file(tmp_path / "sae_weights.safetensors")) == ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]
    assert checkpoint.read_metadata(tmp_path) == {"block": "mid.0"}


def test_a_threshold_below_zero_is_not_saved(tmp_path):
    sae = jumprelu()
    sae.threshold[2] = -0.1
    with pytest.raises(UserError, match="thresholds below zero -> raise them"):
        checkpoint.save(tmp_path, sae, {})
    assert not list(tmp_path.iterdir())


# what cannot be read


def drop(name: str) -> Callable[[dict], dict]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def put(**change) -> Callable[[dict], dict]:
    return lambda tensors: tensors | {name.replace("__", "."): value for name, value in change.items()}


NAN = torch.full((D,), torch.nan)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "batchtopk"}, "architecture is 'batchtopk'.*only topk, jumprelu, standard.*inference"),
        ({"architecture": "jumprel"}, "did you mean 'jumprelu'"),
        ({"architecture": None}, "architecture is None"),
        ({"architecture": ["topk"]}, "architecture is "),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'.* -> .*fold"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations is"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is True"),
        ({"activation_fn_str": "relu"}, "activation_fn_str is 'relu', and only 'topk'"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
        ({"architecture": "standard", "rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is set"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1"),
        ({"architecture": "jumprelu"}, r"threshold is missing, should be \(20,\)"),
        ({"d_in": D + 1}, r"sae_weights\.safetensors does not fit its cfg\.json.*b_dec is \(6,\), should be \(7,\)"),
        ({"k": F + 1}, "k=21 is more than the 20 features"),
        ({"d_sae": "20"}, "num_features is '20'"),
    ],
)
def test_settings_of_saelens_that_are_another_function_are_refused(tmp_path, settings, message):
    write_saelens(tmp_path, **{"architecture": "topk", "tensors": saelens_tensors(), "k": K} | settings)
    with pytest.raises(UserError, match=f"{message}(.|\n)*"):
        checkpoint.load(tmp_path)


def test_a_saelens_file_without_its_shape_is_refused(tmp_path):
    write_saelens(tmp_path, "topk", saelens_tensors())
    with pytest.raises(UserError, match=r"cfg\.json lacks k -> "):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "groupmax"}, "activation is 'groupmax', and only 'topk'"),
        ({"transcode": True}, "transcode is True"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"signed": True}, "signed is True"),
        ({"num_latent": F}, "unknown key 'num_latent'; did you mean 'num_latents'"),
        ({"k": F + 1}, "k=21 is more than the 20 features"),
        ({"k": None}, "k is None"),
        ({"num_latents": F + 1}, r"W_dec is \(20, 6\), should be \(21, 6\)"),
        ({"num_latents": 0, "expansion_factor": "32"}, "num_features is 0"),
    ],
)
def test_settings_of_sparsify_that_are_another_function_are_refused(tmp_path, settings, message):
    sparsify_topk(tmp_path, **settings)
    with pytest.raises(UserError, match=rf"(cfg\.json|sae\.safetensors).*{message}.* -> "):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("encoder.bias"), r"encoder\.bias is missing"),
        (put(W_skip=torch.zeros(D, D)), r"W_skip is \(6, 6\), should be absent"),
        (put(encoder__weight=torch.zeros(D, F)), r"encoder\.weight is \(6, 20\), should be \(20, 6\)"),
        (put(b_dec=NAN), "NaN or infinite values in b_dec"),
        (put(b_dec=torch.zeros(D, dtype=torch.int64)), "no tensor of numbers: b_dec"),
    ],
)
def test_tensors_of_sparsify_that_do_not_fit_are_refused(tmp_path, change, message):
    sparsify_topk(tmp_path)
    save_file(change(sparsify_tensors()), tmp_path / "sae.safetensors")
    with pytest.raises(UserError, match=rf"sae\.safetensors.*{message}.* -> .*again"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"dict_class": "IdentityDict"}, "class 'IdentityDict' cannot be read, which .* -> use one of AutoEncoder, "),
        ({"dict_class": "BatchTopkSAE"}, "did you mean 'BatchTopKSAE'"),
        ({"dict_class": None}, "class None cannot be read"),
        ({"dict_size": F + 1}, r"ae\.pt does not fit its config\.json.*\(21,\).* -> "),
        ({"k": K + 1}, r"ae\.pt has another k than its config\.json: 6 -> "),
        ({"k": None}, r"config\.json.*k is None"),
        ({"activation_dim": 0}, r"config\.json.*width is 0"),
    ],
)
def test_settings_of_dictionary_learning_that_cannot_be_read_are_refused(tmp_path, trainer, message):
    autoencoder_topk(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"trainer": config["trainer"] | trainer}))
    with pytest.raises(UserError, match=message):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("config", ["{}", '{"trainer": 3}', '{"trainer": {}}', "{"])
def test_a_dictionary_learning_folder_that_names_no_class_is_refused(tmp_path, config):
    autoencoder_topk(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config\.json .* -> "):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("write", "change", "message"),
    [
        (autoencoder_topk, drop("b_dec"), "b_dec is missing"),
        (autoencoder_topk, put(W_enc=torch.zeros(1)), r"W_enc is \(1,\), should be absent"),
        (autoencoder_topk, put(b_dec=NAN), "NaN or infinite values in b_dec"),
        (autoencoder_topk, put(b_dec=[0.0] * D), "no tensor of numbers: b_dec"),
        (batch_topk, drop("threshold"), "threshold is missing"),
        (batch_topk, put(threshold=torch.ones(F)), r"threshold is \(20,\), should be \(\)"),
        (jumprelu_autoencoder, put(threshold=torch.full((F,), torch.inf)), "infinite values in threshold"),
        (jumprelu_autoencoder, drop("threshold"), r"threshold is missing, should be \(20,\)"),
        (autoencoder, put(b_dec=torch.zeros(D)), r"b_dec is \(6,\), should be absent"),
        (autoencoder, lambda tensors: list(tensors.values()), "no dictionary of tensors"),
    ],
)
def test_tensors_of_dictionary_learning_that_do_not_fit_are_refused(tmp_path, write, change, message):
    write(tmp_path)
    path = tmp_path / "ae.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(UserError, match=rf"ae\.pt.*{message}.* -> .*again"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("write", [saelens_jumprelu, sparsify_topk, autoencoder_topk])
def test_truncated_and_missing_weights_are_refused(tmp_path, write):
    write(tmp_path)
    path = tmp_path / layouts.layout_of(tmp_path).weights
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"{path.name} is not a whole .* -> .*again"):
            checkpoint.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=rf"lacks a part of it: it has .*\.json alone -> .*{path.name}"):
        checkpoint.load(tmp_path)


class Payload:
    """Unpickled by the usual loader, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("file", ["ae.pt", "sae.safetensors"])
@pytest.mark.parametrize("pack", ["torch", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, file, pack):
    folder, trace = tmp_path / "folder", tmp_path / "trace"
    (autoencoder_topk if file == "ae.pt" else sparsify_topk)(folder)
    content = linear_tensors("b_dec") | {"k": Payload(trace)}
    copy = tmp_path / "copy.pt"  # by this name, since torch's loader goes by the suffix too
    if pack == "torch":
        torch.save(content, copy)
    else:
        copy.write_bytes(pickle.dumps(content, protocol=2))
    (folder / file).write_bytes(copy.read_bytes())
    with suppress(Exception):  # of a plain pickle the loader reads only the start, and that holds the code
        torch.load(copy, weights_only=False)
    assert trace.exists(), "the payload does nothing, so what follows could not fail"
    trace.unlink()
    with pytest.raises(UserError, match=f"{file} is not a whole .*(never run|pickles are not read)"):
        checkpoint.load(folder)
    assert not trace.exists()


def test_where_two_layouts_lie_in_a_folder_ours_is_read(tmp_path):
    autoencoder_topk(tmp_path)
    saelens_jumprelu(tmp_path)
    assert layouts.layout_of(tmp_path) is layouts.SAELENS and checkpoint.load(tmp_path).config == JUMPRELU


# the index


def test_folders_of_all_layouts_are_found_by_block(tmp_path):
    for block, write in {"down.2.1": sparsify_topk, "mid.0": jumprelu_autoencoder, "up.0.1": saelens_topk}.items():
        write(tmp_path / block)
    found = index.own_entries(tmp_path, "my-model@1")
    assert [(entry.block, entry.kind, entry.k) for entry in found] == [
        ("down.2.1", "topk", K), ("mid.0", "jumprelu", 0), ("up.0.1", "topk", K),
    ]  # fmt: skip
    for entry in found:
        sae = index.open(entry, root=tmp_path)
        assert torch.equal(sae.encode(rows()), checkpoint.load(tmp_path / entry.block).encode(rows()))
    assert "k=" not in index.describe(found[1]) and f"jumprelu  {F} features" in index.describe(found[1])


# conversion


@pytest.mark.parametrize("name", FORMATS)
def test_a_converted_checkpoint_has_the_same_latents_to_the_bit(tmp_path, name):
    """As they were read: what had to be folded was folded then."""
    write, layout, config = FORMATS[name]
    write(tmp_path / "source")
    before = checkpoint.load(tmp_path / "source")
    sha256 = convert(tmp_path / "source", tmp_path / "out", metadata={"block": "mid.0"})
    after = checkpoint.load(tmp_path / "out")
    assert after.config == config and layouts.layout_of(tmp_path / "out") is layouts.SAELENS
    assert torch.equal(after.encode(rows()), before.encode(rows())) and torch.equal(after(rows()), before(rows()))
    assert sha256 == layouts.weights_sha256(tmp_path / "out")
    kept = checkpoint.read_metadata(tmp_path / "out")
    source = (tmp_path / "source" / layout.weights).read_bytes()
    assert kept["block"] == "mid.0"
    assert kept["converted_from"] == {"layout": layout.name, "weights_sha256": hashlib.sha256(source).hexdigest()}


@pytest.mark.parametrize("name", [name for name, (_, _, config) in FORMATS.items() if config == TOPK])
def test_there_and_back_through_sparsify_nothing_changes(tmp_path, name):
    FORMATS[name][0](tmp_path / "source")
    first, again = tmp_path / "ours", tmp_path / "ours again"
    convert(tmp_path / "source", first)
    sha256 = convert(first, tmp_path / "theirs", "sparsify")
    assert sha256 == layouts.weights_sha256(tmp_path / "theirs")
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == ["cfg.json", "sae.safetensors"]
    assert convert(tmp_path / "theirs", again) == layouts.weights_sha256(first)


def test_metadata_of_the_source_is_kept(tmp_path):
    checkpoint.save(tmp_path / "source", jumprelu(), {"block": "mid.0", "seed": 3})
    convert(tmp_path / "source", tmp_path / "out", metadata={"seed": 4})
    kept = checkpoint.read_metadata(tmp_path / "out")
    assert (kept["block"], kept["seed"]) == ("mid.0", 4)


def test_what_cannot_be_converted_is_told(tmp_path):
    checkpoint.save(tmp_path / "source", jumprelu(), {})
    with pytest.raises(UserError, match="'sparsfy'; did you mean 'sparsify'. -> use saelens or sparsify"):
        convert(tmp_path / "source", tmp_path / "out", "sparsfy")
    with pytest.raises(UserError, match="sparsify has TopK autoencoders alone"):
        convert(tmp_path / "source", tmp_path / "out", "sparsify")
    with pytest.raises(UserError, match="no place for metadata"):
        convert(tmp_path / "source", tmp_path / "out", "sparsify", {"a": 1})
    with pytest.raises(UserError, match="already holds a checkpoint"):
        convert(tmp_path / "source", tmp_path / "source")
    with pytest.raises(UserError, match="no checkpoint"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    PCA.fit(torch.randn(9, 3)).save(tmp_path / "pca", {})
    for target in ("saelens", "sparsify"):
        with pytest.raises(UserError, match="pca holds no sparse autoencoder -> copy its folder"):
            convert(tmp_path / "pca", tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


# the Hub


class FakeHub:
    """In the place of `HfApi`: notes what is asked, and keeps what is committed in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple] = []

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool):
        self.asked.append(("create_repo", repo, private, exist_ok))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo}")

    def create_commit(self, repo: str, operations, *, commit_message: str):
        self.asked.append(("create_commit", repo, commit_message))
        for operation in operations:
            path = self.folder / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                path.write_bytes(file.read())
        return SimpleNamespace(oid="c0ffee")

    def snapshot_download(self, repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        self.asked.append(("snapshot_download", repo, revision))
        local = self.folder.with_name("local")
        here = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]
        for file in huggingface_hub.utils.filter_repo_objects(here, allow_patterns=allow_patterns):
            (local / file).parent.mkdir(parents=True, exist_ok=True)
            (local / file).write_bytes((self.folder / file).read_bytes())
        return str(local)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def hub(tmp_path, monkeypatch) -> FakeHub:
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def indexed(root: Path) -> list[index.Entry]:
    """An index of a TopK and a JumpReLU, the first with an evaluation; beside them what is nobody's business."""
    topk = TopKSAE(TOPK).requires_grad_(False)
    saes = {"mid.0/[k5]": (topk, "topk", K), "up.0.1/jump": (jumprelu(), "jumprelu", 0)}
    for folder, (sae, kind, k) in saes.items():
        sha256 = checkpoint.save(root / folder, sae, {})
        block, name = folder.split("/")
        scores = {"explained_variance_pooled": 0.8125, "l0": 4.75, "dead_share": 0.05} if kind == "topk" else {}
        training = {"steps": 77} if kind == "topk" else {}
        index.register(
            index.Entry(name, "my-model@1", block, kind, k, F, D, folder, sha256, evaluation=scores, training=training),
            root=root,
        )
    (root / "state").mkdir()
    (root / "state" / "rows.pt").write_bytes(b"private")
    (root / "mid.0" / "[k5]" / "notes.txt").write_text("private")
    return index.entries(root)


def test_a_checkpoint_goes_to_the_hub_and_comes_back(tmp_path, hub):
    sae = jumprelu()
    checkpoint.save(tmp_path / "mine", sae, {"block": "mid.0"})
    (tmp_path / "mine" / "state.pt").write_bytes(b"private")
    url = publish(tmp_path / "mine", "me/sae", private=True, message="first")
    assert url == "https://huggingface.co/me/sae/tree/c0ffee"
    assert hub.asked == [("create_repo", "me/sae", True, True), ("create_commit", "me/sae", "first")]
    assert hub.files() == ["README.md", "cfg.json", "sae_weights.safetensors"]
    card = (hub.folder / "README.md").read_text()
    assert "| architecture | jumprelu |" in card and f"| features | {F} |" in card and '"block": "mid.0"' in card
    folder = from_hub("me/sae", "c0ffee")
    assert torch.equal(checkpoint.load(folder).encode(rows()), sae.encode(rows()))
    assert hub.asked[2:] == [("snapshot_download", "me/sae", "c0ffee")]


def test_an_index_goes_with_its_checkpoints_alone_and_comes_back_whole(tmp_path, hub):
    entries = indexed(tmp_path / "mine")
    publish(tmp_path / "mine", "me/saes")
    checkpoints = [f"{entry.folder}/{file}" for entry in entries for file in layouts.SAELENS.files]
    assert hub.files() == sorted(["README.md", "index.json", *checkpoints])
    card = (hub.folder / "README.md").read_text()
    assert card.startswith("---\n") and "| EV | L0 | dead |" in card
    assert f"| my-model@1 | mid.0 | update | [k5] | topk | {K} | {F} | {D} | 0.812 | 4.750 | 0.050 | - |" in card
    assert f"| my-model@1 | up.0.1 | update | jump | jumprelu | - | {F} | {D} | - | - | - | - |" in card
    assert '"steps": 77' in card and "from_hub('me/saes', 'main', 'mid.0/[k5]')" in card
    folder = from_hub("me/saes", "main")
    assert index.entries(folder) == entries
    for entry in entries:
        assert index.open(entry, root=folder).width == D
    assert not (folder / "README.md").exists()


def test_one_checkpoint_of_many_is_fetched_alone(tmp_path, hub):
    entries = indexed(tmp_path / "mine")
    publish(tmp_path / "mine", "me/saes")
    folder = from_hub("me/saes", "main", entries[0].folder)
    assert checkpoint.load(folder).config == TOPK
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert not (folder.parents[1] / "up.0.1").exists()


def test_statistics_of_published_saes_go_along(tmp_path, hub):
    sdxl_unbox(tmp_path / "mine")
    for file in ("mean.pt", "std.pt"):
        torch.save(torch.rand(F), tmp_path / "mine" / file)
    publish(tmp_path / "mine", "me/sae")
    assert hub.files() == ["README.md", "config.json", "mean.pt", "state_dict.pth", "std.pt"]
    assert (from_hub("me/sae", "main") / "std.pt").exists()


def test_a_card_of_ones_own_is_kept(tmp_path, hub):
    checkpoint.save(tmp_path / "mine", jumprelu(), {})
    (tmp_path / "mine" / "README.md").write_text("# mine")
    publish(tmp_path / "mine", "me/sae")
    assert (hub.folder / "README.md").read_text() == "# mine"


def test_nothing_is_sent_of_what_is_broken(tmp_path, hub):
    first, second = indexed(tmp_path / "mine")
    path = tmp_path / "mine" / second.folder / "sae_weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"have sha256"):
        publish(tmp_path / "mine", "me/saes")
    path.write_bytes(whole)
    index.register(dataclasses.replace(first, folder="../elsewhere"), root=tmp_path / "mine")
    with pytest.raises(UserError, match=r"lists \.\./elsewhere, outside of"):
        publish(tmp_path / "mine", "me/saes")
    saelens_topk(tmp_path / "alone")
    (tmp_path / "alone" / "sae_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        publish(tmp_path / "alone", "me/saes")
    with pytest.raises(UserError, match="no checkpoint"):
        publish(tmp_path / "nowhere", "me/saes")
    assert hub.asked == []


def test_a_repository_without_a_checkpoint_is_told(tmp_path, hub):
    hub.folder.mkdir()
    (hub.folder.with_name("local")).mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        from_hub("me/saes", "main")


def refused(status: int) -> HfHubHTTPError:
    response = SimpleNamespace(status_code=status, headers={}, text="", request=None)
    return HfHubHTTPError("refused", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("no token"), "me/sae: you are not logged in.* -> run `hf auth login`"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set -> unset it"),
        (HFValidationError("bad"), "'me/sae' is no repository's name.* -> use owner/name"),
        (HTTPError("no route"), "asked of me/sae: no route -> check the network"),
        (OSError(), "asked of me/sae: OSError -> check the network"),
        (refused(401), "-> run `hf auth login` with a token that may write"),
        (refused(403), "-> run `hf auth login` with a token that may write"),
        (refused(500), "refused -> check the network"),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(tmp_path, hub, monkeypatch, error, message):
    checkpoint.save(tmp_path / "mine", jumprelu(), {})

    def fail(*_args, **_settings):
        raise error

    monkeypatch.setattr(hub, "create_repo", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=message):
        publish(tmp_path / "mine", "me/sae")
    with pytest.raises(UserError, match=message):
        from_hub("me/sae", "main")
