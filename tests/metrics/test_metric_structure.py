"""Structure distance beside a slow loop over tokens, on a small DINO of random weights."""

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from metric_batches import images, make_batch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from riebench.core.errors import UserError
from riebench.metrics import score_batch, scorers
from riebench.metrics.models import ScoringModels
from riebench.metrics.networks import dino
from riebench.metrics.networks.key_similarity import KeySimilarity, self_similarity
from riebench.metrics.networks.remembered import Remembered
from riebench.metrics.networks.table import METRIC_WEIGHTS
from riebench.metrics.structure import StructureDistance

CONFIG = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**CONFIG, image_size=224, patch_size=56), add_pooling_layer=False).eval()


def keys_of(model):
    return KeySimilarity(model, dino.SIZE, dino.MEAN, dino.STD)


def slow_similarity(model, image_chw):
    """The cosine of every two tokens' keys, one pair at a time, from what the last layer reads."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = F.interpolate(image_chw[None], size=(224, 224), mode="bilinear", antialias=True)[0]
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        before_last = model(pixels[None], output_hidden_states=True).hidden_states[-2][0]
    state = {
        name: value for name, value in model.state_dict().items() if f".{CONFIG['num_hidden_layers'] - 1}." in name
    }
    (weight,) = (value for name, value in state.items() if name.endswith(("k_proj.weight", "key.weight")))
    (bias,) = (value for name, value in state.items() if name.endswith(("k_proj.bias", "key.bias")))
    (scale,) = (value for name, value in state.items() if "before" in name and name.endswith("weight"))
    (shift,) = (value for name, value in state.items() if "before" in name and name.endswith("bias"))
    keys = []
    for token in before_last:
        normed = (token - token.mean()) / (token.var(correction=0) + 1e-12).sqrt() * scale + shift
        keys.append((weight @ normed + bias).double().numpy())
    return np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in keys] for a in keys])


def test_the_distance_is_the_mean_squared_difference_of_all_cosines(model):
    a, b = images(1, b=2, size=96), images(2, b=2, size=96)
    metric = StructureDistance(ScoringModels(loaded={"dino": Remembered(keys_of(model))}))
    found = score_batch([metric], make_batch(a, original=b))["structure_distance"]
    for i in range(2):
        ours, theirs = (slow_similarity(model, side[i]) for side in (a, b))
        assert ours.shape == (17, 17)  # 4 x 4 patches and [CLS]
        assert found[i] == pytest.approx(np.mean((ours - theirs) ** 2), abs=1e-6, rel=1e-4)
    assert (found > 1e-5).all()


def test_hooks_come_off_also_when_the_model_fails(model):
    model(torch.zeros(1, 3, 224, 224))  # transformers puts some on of its own
    before = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ValueError):
        self_similarity(model, torch.zeros(1, 3, 100, 100))
    self_similarity(model, torch.zeros(1, 3, 224, 224))
    assert [len(module._forward_hooks) for module in model.modules()] == before


def test_weights_are_read_from_the_hub_s_cache(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(dino, "weights_folder", lambda *given: asked.append(given) or tmp_path)
    batch = make_batch(images(1, b=2), original=images(2, b=2))
    found = score_batch(scorers(["structure_distance"], "sdxl"), batch)["structure_distance"]
    assert asked == [("dino-vitb8", METRIC_WEIGHTS["dino-vitb8"][0])]
    ours, theirs = (keys_of(model)(x)[0] for x in (batch.intervened, batch.original))
    np.testing.assert_allclose(found, (ours - theirs).square().mean(dim=(1, 2)), rtol=1e-5)


def test_missing_weights_are_named_with_the_command_that_gets_them(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_args, **_kwargs: None)
    with pytest.raises(UserError, match="facebook/dino-vitb8.*run `riebench fetch dino-vitb8`"):
        scorers(["structure_distance"], "tinyworld")


def test_a_dino_that_lacks_a_tensor_is_refused(tmp_path, monkeypatch):
    (weights,) = dino.DINO.weights
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / f"models--{weights.repo.replace('/', '--')}" / "snapshots" / weights.revision
    small = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, patch_size=32)
    ViTModel(small).save_pretrained(snapshot)  # with the pooling layer that the file has and DINO does not use
    dino.DINO.load("cpu", 2, keep_marks=False)
    tensors = load_file(snapshot / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, snapshot / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        dino.DINO.load("cpu", 2, keep_marks=False)
    message, _, remedy = str(error.value).partition(" -> ")
    assert f"dino-vitb8 cannot be loaded: the weights in {snapshot} lack layernorm.weight" in message
    assert "`riebench fetch dino-vitb8`" in remedy
