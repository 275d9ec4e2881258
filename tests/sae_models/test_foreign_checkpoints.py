"""Checkpoints as other people have them: SAELens of every year, sparsify and its forks, every trainer of
dictionary_learning. Each is held against its package's formula, worked out here a row and a feature at a time; what
is another function is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from riebench.core.errors import UserError
from sae_models import checkpoint

CASES = Path(__file__).parents[1] / "data" / "checkpoints"
D, F, K = 4, 9, 3
ROWS = 1.5 * torch.randn(7, D, generator=torch.Generator().manual_seed(5))
Array = np.ndarray


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ENC, B_ENC, DEC, B_DEC = values(D, F, seed=1), values(F, seed=2), values(F, D, seed=3), values(D, seed=4)
GATE, MAG, R_MAG = values(F, seed=6), values(F, seed=7), 0.5 * values(F, seed=8)
THETA, FACTOR = values(F, seed=9).abs(), values(F, seed=10)


def before(x: Sequence[float], enc_df: Tensor, bias_f: Tensor, minus_d: Tensor | None) -> list[float]:
    """The latents of a row before anything is done to them, a sum at a time."""
    seen = [x[d] - (0 if minus_d is None else float(minus_d[d])) for d in range(len(x))]
    return [sum(seen[d] * float(enc_df[d, f]) for d in range(len(x))) + float(bias_f[f]) for f in range(len(bias_f))]


def after(z: Sequence[float], dec_fd: Tensor, bias_d: Tensor) -> list[float]:
    return [sum(z[f] * float(dec_fd[f, d]) for f in range(len(z))) + float(bias_d[d]) for d in range(len(bias_d))]


def relu(h: Sequence[float]) -> list[float]:
    return [max(value, 0.0) for value in h]


def top(h: Sequence[float], k: int) -> list[float]:
    kept = sorted(range(len(h)), key=lambda f: -h[f])[:k]
    return [max(h[f], 0.0) if f in kept else 0.0 for f in range(len(h))]


def above(h: Sequence[float], threshold: Sequence[float]) -> list[float]:
    return [value if value > max(limit, 0.0) else 0.0 for value, limit in zip(h, threshold, strict=True)]


def gated(x: Sequence[float], minus_d: Tensor | None) -> list[float]:
    """The gate and the magnitude each by itself, as the paper has them."""
    open_f = before(x, ENC, GATE, minus_d)
    size_f = before(x, ENC * R_MAG.exp(), MAG, minus_d)
    return [size if gate > 0 else 0.0 for gate, size in zip(open_f, relu(size_f), strict=True)]


def assert_same(folder: Path, latents, rows, x_nd: Tensor = ROWS) -> None:
    """latents: a row to its latents; rows: latents to the row."""
    sae = checkpoint.load(folder)
    wanted = [latents(x.tolist()) for x in x_nd]
    assert any(value > 0 for z in wanted for value in z), "nothing is active, so nothing is tested"
    np.testing.assert_allclose(sae.encode(x_nd), wanted, atol=2e-5)
    np.testing.assert_allclose(sae(x_nd), [rows(z) for z in wanted], atol=5e-5)
    shape = checkpoint.shape_of(folder)
    assert (shape.kind, shape.k) == (sae.config.kind, sae.config.k)


# the cases that strangers brought


@pytest.mark.parametrize(
    ("name", "k"), [("saelens-2024-05", 0), ("saelens-2024-05-noscale", 0), ("saelens-v5-topk", 3)]
)
def test_what_saelens_saved_in_other_years_is_the_same_function(name, k):
    w = load_file(CASES / name / "sae_weights.safetensors")
    minus = None if k else w["b_dec"]  # the TopK one reads x whole

    def latents(x):
        h = before(x, w["W_enc"], w["b_enc"], minus)
        return top(h, k) if k else relu(h)

    assert_same(CASES / name, latents, lambda z: after(z, w["W_dec"], w["b_dec"]), values(20, 6, seed=11))
    assert checkpoint.read_config(CASES / name).k == k


def test_settings_of_sparsify_that_do_nothing_change_nothing():
    w = load_file(CASES / "sparsify-2026" / "sae.safetensors")
    assert_same(
        CASES / "sparsify-2026",
        lambda x: top(before(x, w["encoder.weight"].T, w["encoder.bias"], w["b_dec"]), 3),
        lambda z: after(z, w["W_dec"], w["b_dec"]),
        values(20, 6, seed=11),
    )


# SAELens

TENSORS = {"W_enc": ENC, "b_enc": B_ENC, "W_dec": DEC, "b_dec": B_DEC}
GATED = {"W_enc": ENC, "b_gate": GATE, "b_mag": MAG, "r_mag": R_MAG, "W_dec": DEC, "b_dec": B_DEC}
YEARS = {
    "2024-03": {"dtype": "torch.float32", "device": "cuda", "noise_scale": 0.0, "l1_coefficient": 1e-3, "lp_norm": 1,
                "normalize_activations": False, "hook_point": "h", "activation_fn": "relu", "d_out": None},
    "3.0": {"activation_fn_str": "relu", "finetuning_scaling_factor": False, "normalize_activations": "none",
            "sae_lens_training_version": "3.0.0", "hook_name": "blocks.7.hook_z"},
    "5.0": {"architecture": "standard", "activation_fn_str": "relu", "activation_fn_kwargs": {},
            "normalize_activations": None, "seqpos_slice": [None]},
    "6.54": {"architecture": "standard", "normalize_activations": "none", "reshape_activations": "none",
             "metadata": {"sae_lens_version": "6.54.12"}},
}  # fmt: skip


def saelens(folder: Path, tensors: dict[str, Tensor], **settings) -> Path:
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": F} | settings))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("subtract", [{}, {"apply_b_dec_to_input": True}, {"apply_b_dec_to_input": False}])
@pytest.mark.parametrize("year", YEARS)
def test_a_relu_autoencoder_of_saelens_is_read_in_every_years_words(tmp_path, year, subtract):
    minus = B_DEC if subtract.get("apply_b_dec_to_input", True) else None
    folder = saelens(tmp_path, TENSORS, **YEARS[year], **subtract)
    assert_same(folder, lambda x: relu(before(x, ENC, B_ENC, minus)), lambda z: after(z, DEC, B_DEC))


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"activation_fn": "topk", "activation_fn_kwargs": {"k": K}},
        {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"architecture": "topk", "activation_fn_kwargs": {"k": K}},
        {"architecture": "topk", "k": K, "activation_fn_kwargs": {"k": K}},
        {"architecture": "topk", "k": K, "activation_fn_kwargs": {}},
        {"architecture": "topk", "k": K},
    ],
)
def test_topk_of_saelens_has_its_k_wherever_that_stands(tmp_path, settings):
    folder = saelens(tmp_path, TENSORS, **settings)
    assert_same(folder, lambda x: top(before(x, ENC, B_ENC, B_DEC), K), lambda z: after(z, DEC, B_DEC))
    assert checkpoint.read_config(folder).k == K


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"finetuning_scaling_factor": False},
        {"finetuning_scaling_factor": True},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"apply_b_dec_to_input": False},
        {"architecture": "gated"},
    ],
)
def test_a_scaling_factor_of_saelens_is_between_latents_and_decoder(tmp_path, settings, name):
    is_gated = settings.get("architecture") == "gated"
    minus = B_DEC if settings.get("apply_b_dec_to_input", True) else None
    folder = saelens(tmp_path, (GATED if is_gated else TENSORS) | {name: FACTOR}, **settings)

    def latents(x):
        if is_gated:
            return gated(x, minus)
        h = before(x, ENC, B_ENC, minus)
        return top(h, K) if "activation_fn_kwargs" in settings else relu(h)

    assert_same(folder, latents, lambda z: after([a * float(b) for a, b in zip(z, FACTOR, strict=True)], DEC, B_DEC))


def test_a_scaling_factor_of_ones_leaves_every_bit(tmp_path):
    plain = checkpoint.load(saelens(tmp_path, TENSORS)).state_dict()
    ones = checkpoint.load(saelens(tmp_path, TENSORS | {"scaling_factor": torch.ones(F)})).state_dict()
    assert all(torch.equal(plain[name], ones[name]) for name in plain | ones)


@pytest.mark.parametrize("subtract", [True, False])
def test_gated_and_jumprelu_of_saelens(tmp_path, subtract):
    minus = B_DEC if subtract else None
    folder = saelens(tmp_path, GATED, architecture="gated", activation_fn_str="relu", apply_b_dec_to_input=subtract)
    assert_same(folder, lambda x: gated(x, minus), lambda z: after(z, DEC, B_DEC))
    tensors = TENSORS | {"threshold": THETA}
    folder = saelens(tmp_path, tensors, architecture="jumprelu", activation_fn="relu", apply_b_dec_to_input=subtract)
    wanted = THETA.tolist()
    assert_same(folder, lambda x: above(before(x, ENC, B_ENC, minus), wanted), lambda z: after(z, DEC, B_DEC))


TOPK = {"activation_fn_str": "topk"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "batchtopk", "k": K}, "'batchtopk', whose training keeps the largest latents of a whole"),
        ({"architecture": "matryoshka_batchtopk"}, "'matryoshka_batchtopk', whose training keeps .* -> .*inference"),
        ({"architecture": "transcoder", "d_out": D}, "'transcoder', a transcoder, from the rows of one place"),
        ({"architecture": "skip_transcoder"}, "'skip_transcoder', a transcoder"),
        ({"architecture": "jumprelu_transcoder"}, "'jumprelu_transcoder', a transcoder"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit', which finds latents by a pursuit"),
        ({"architecture": "temporal"}, "'temporal', which reads rows in their order"),
        ({"architecture": "abstopk"}, "'abstopk', whose latents may be negative"),
        ({"architecture": "gate"}, "'gate'; did you mean 'gated'"),
        ({"normalize_activations": "layer_norm"}, "'layer_norm' .each row less its own mean"),
        ({"normalize_activations": "constant_norm_rescale"}, "'constant_norm_rescale' .each row divided by its"),
        ({"normalize_activations": "expected_average_only_in"}, "'expected_average_only_in' .the rows times a number"),
        ({"normalize_activations": True}, "'expected_average_only_in' .the rows times a number"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening' .the rows whitened"),
        ({"normalize_activations": "sphere"}, "normalize_activations is 'sphere', and only 'none'"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str is 'tanh-relu', and only 'relu'"),
        ({"activation_fn_str": None}, "activation_fn_str is None, and only 'relu'"),
        ({"architecture": "gated", "activation_fn_str": "topk"}, "activation_fn_str is 'topk', and only 'relu'"),
        ({"activation_fn_str": "topk", "activation_fn": "relu"}, "activation_fn is 'relu', and only 'topk'"),
        (TOPK, "lacks k"),
        (TOPK | {"activation_fn_kwargs": {}}, "lacks k"),
        (TOPK | {"activation_fn_kwargs": {"k": 0}}, "k is 0"),
        (TOPK | {"activation_fn_kwargs": {"k": F + 1}}, f"k={F + 1} is more than the {F} features"),
        (TOPK | {"activation_fn_kwargs": {"k": K, "postact_fn": "gelu"}}, "activation_fn_kwargs holds postact_fn"),
        (TOPK | {"activation_fn_kwargs": [K]}, "activation_fn_kwargs holds no object"),
        (TOPK | {"activation_fn_kwargs": {"k": K}, "k": K + 1}, "k is 4, and 3 in activation_fn_kwargs"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is True, and .* holds no such factor"),
        ({"finetuning_scaling_factor": 2.0}, "finetuning_scaling_factor is 2.0, not true or false"),
        ({"architecture": "gated"}, r"b_gate is missing, should be \(9,\)"),
    ],
)  # fmt: skip
def test_what_saelens_has_besides_is_refused_by_its_name(tmp_path, settings, message):
    saelens(tmp_path, TENSORS, **settings)
    with pytest.raises(UserError, match=rf"(cfg\.json|sae_weights\.safetensors).*{message}(.* -> |.*)"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (TENSORS | {"scaling_factor": FACTOR[:-1]}, r"scaling_factor is \(8,\), should be \(9,\)"),
        (TENSORS | {"scaling_factor": FACTOR * torch.nan}, "NaN or infinite values in scaling_factor"),
        (TENSORS | dict.fromkeys(("scaling_factor", "finetuning_scaling_factor"), FACTOR), "should be absent"),
        (TENSORS | {"log_threshold": THETA}, r"log_threshold is \(9,\), should be absent"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path, tensors, message):
    saelens(tmp_path, {name: value.clone() for name, value in tensors.items()})
    with pytest.raises(UserError, match=message):
        checkpoint.load(tmp_path)


def test_a_gate_beyond_float32_is_refused(tmp_path):
    saelens(tmp_path, GATED | {"r_mag": torch.full((F,), 100.0)}, architecture="gated")
    with pytest.raises(UserError, match="comes to holds NaN or infinite values in W_enc"):
        checkpoint.load(tmp_path)


# sparsify


def sparsify(folder: Path, **settings) -> Path:
    plain = {"activation": "topk", "expansion_factor": 4, "num_latents": F, "k": K, "d_in": D}
    (folder / "cfg.json").write_text(json.dumps(plain | settings))
    tensors = {"encoder.weight": ENC.T.contiguous(), "encoder.bias": B_ENC, "W_dec": DEC, "b_dec": B_DEC}
    save_file(tensors, folder / "sae.safetensors")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"embed_skip": False, "gram_lookup": False, "lookup_max_order": 4, "gram_table_hash": None},
        {"gram_table_hash": "c0ffee", "lookup_max_order": 7},
        {"normalize_decoder": False, "multi_topk": True, "signed": False, "skip_connection": None},
        {"n_targets": 0, "n_sources": 0, "coalesce_topk": "none", "normalize_io": False, "train_post_encoder": True},
        {"hookpoints": [], "extra": {}, "note": "", "scale": 0.0},
    ],
)
def test_settings_of_forks_that_are_off_change_nothing(tmp_path, settings):
    folder = sparsify(tmp_path, **settings)
    assert_same(folder, lambda x: top(before(x, ENC, B_ENC, B_DEC), K), lambda z: after(z, DEC, B_DEC))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_skip": True}, "embed_skip is True, and only False"),
        ({"gram_lookup": True, "lookup_max_order": 4}, "gram_lookup is True, and only False"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"activation": "batchtopk"}, "activation is 'batchtopk', and only 'topk'"),
        ({"activation": None}, "activation is None, and only 'topk'"),
        ({"coalesce_topk": "concat"}, "at the value 'concat', an unknown key 'coalesce_topk'"),
        ({"n_targets": 6}, "at the value 6, an unknown key 'n_targets'"),
        ({"post_encoder_scale": True}, "at the value True, an unknown key 'post_encoder_scale'"),
        ({"divide": 0.5}, "at the value 0.5, an unknown key 'divide'"),
    ],
)
def test_settings_of_forks_that_are_on_are_refused_by_their_name(tmp_path, settings, message):
    with pytest.raises(UserError, match=rf"cfg\.json.*{message}.* -> "):
        checkpoint.load(sparsify(tmp_path, **settings))


# dictionary_learning

LINEAR = {"encoder.weight": ENC.T, "encoder.bias": B_ENC, "decoder.weight": DEC.T}
PLAIN_TENSORS = {"W_enc": ENC, "b_enc": B_ENC, "W_dec": DEC, "b_dec": B_DEC}
COUNT = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.6)}
GATED_LINEAR = {"encoder.weight": ENC.T, "decoder.weight": DEC.T, "decoder_bias": B_DEC,
                "r_mag": R_MAG, "gate_bias": GATE, "mag_bias": MAG}  # fmt: skip
GROUPS = {"group_sizes": torch.tensor([2, F - 2])}


def minus(x):
    return before(x, ENC, B_ENC, B_DEC)


def whole(x):
    return before(x, ENC, B_ENC, None)


def standard(x):
    """As the package codes once it has loaded it, with decoder columns of unit norm."""
    norm = DEC.double().norm(dim=1).tolist()
    return [value * each for value, each in zip(relu(minus(x)), norm, strict=True)]


#: Trainer -> (class, tensors, settings, latents of a row, whether its decoder's columns are made unit vectors)
TRAINERS = {
    "StandardTrainer": ("AutoEncoder", LINEAR | {"bias": B_DEC}, {}, standard),
    "StandardTrainerAprilUpdate": ("AutoEncoder", LINEAR | {"bias": B_DEC}, {"norm_factor": 3.1}, standard),
    "PAnnealTrainer": ("AutoEncoder", LINEAR | {"bias": B_DEC}, {"p_start": 1, "p_end": 0.2}, standard),
    "StandardTrainerNew": ("AutoEncoderNew", LINEAR | {"decoder.bias": B_DEC}, {}, lambda x: relu(whole(x))),
    "GatedSAETrainer": ("GatedAutoEncoder", GATED_LINEAR, {}, lambda x: gated(x, B_DEC)),
    "GatedAnnealTrainer": ("GatedAutoEncoder", GATED_LINEAR, {"p_start": 1}, lambda x: gated(x, B_DEC)),
    "TopKTrainer": ("AutoEncoderTopK", LINEAR | {"b_dec": B_DEC} | COUNT, {"k": K}, lambda x: top(minus(x), K)),
    "TrainerTopK": ("AutoEncoderTopK", LINEAR | {"b_dec": B_DEC}, {"k": K}, lambda x: top(minus(x), K)),
    "BatchTopKTrainer": (
        "BatchTopKSAE", LINEAR | {"b_dec": B_DEC} | COUNT, {"k": K}, lambda x: above(minus(x), [0.6] * F),
    ),
    "MatryoshkaBatchTopKTrainer": (
        "MatryoshkaBatchTopKSAE", PLAIN_TENSORS | COUNT | GROUPS, {"k": K, "group_sizes": [2, F - 2]},
        lambda x: above(minus(x), [0.6] * F),
    ),
    "MatroyshkaBatchTopKTrainer": (
        "MatroyshkaBatchTopKSAE", PLAIN_TENSORS | COUNT | GROUPS, {"k": K}, lambda x: above(minus(x), [0.6] * F),
    ),
    "JumpReluTrainer": (
        "JumpReluAutoEncoder", PLAIN_TENSORS | {"threshold": THETA}, {}, lambda x: above(whole(x), THETA.tolist()),
    ),
}  # fmt: skip


def dictionary_learning(folder: Path, tensors: dict[str, Tensor], buffer: dict | None = None, **trainer) -> Path:
    of_trainer = {"activation_dim": D, "dict_size": F, "lr": 1e-3, "wandb_name": "x"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": of_trainer, "buffer": buffer or {"io": "out"}}))
    torch.save(tensors, folder / "ae.pt")
    return folder


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_of_dictionary_learning_is_read(tmp_path, trainer, early):
    """early: a file that names the trainer alone."""
    kind, tensors, settings, latents = TRAINERS[trainer]
    named = {"trainer_class": trainer} | ({} if early else {"dict_class": kind})
    folder = dictionary_learning(tmp_path, tensors, **named, **settings)
    norm_f = DEC.norm(dim=1, keepdim=True) if kind == "AutoEncoder" else 1
    assert_same(folder, latents, lambda z: after(z, DEC / norm_f, B_DEC))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dict_class": "IdentityDict"}, "class 'IdentityDict' cannot be read, which is no dictionary"),
        ({"dict_class": "CrossCoder"}, "class 'CrossCoder' cannot be read, which reads the rows of several layers"),
        ({"dict_class": "GatedAutoencoder"}, "did you mean 'GatedAutoEncoder'"),
        ({"buffer": {"io": "in_and_out"}}, "io of its buffer is 'in_and_out': a transcoder"),
        ({"tensors": PLAIN_TENSORS | COUNT | {"group_sizes": torch.tensor([2, 2])}}, "group_sizes does not come to 9"),
    ],
)
def test_what_dictionary_learning_has_besides_is_refused_by_its_name(tmp_path, change, message):
    plain = {"tensors": PLAIN_TENSORS | COUNT | GROUPS, "dict_class": "MatryoshkaBatchTopKSAE", "k": K}
    dictionary_learning(tmp_path, **plain | change)
    with pytest.raises(UserError, match=rf"{message}.* -> "):
        checkpoint.load(tmp_path)
