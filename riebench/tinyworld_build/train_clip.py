"""Training of tinyworld's CLIP on rendered scenes, and how well it tells them apart."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from riebench.core.files import write_json
from riebench.tinyworld.captions import CONTEXT_LENGTH, captions
from riebench.tinyworld.clip import CONFIG_FILE, MEAN, STD, WEIGHTS_FILE, Clip, tokenize
from riebench.tinyworld.render import SIZE, Rendering, render
from riebench.tinyworld.scenes import ATTRIBUTES, VALUES, Scene, sample_attributes, sample_layouts
from riebench.tinyworld.weights import save_weights
from riebench.tinyworld_build.augment import USES, degrade, unit_images
from riebench.tinyworld_build.batches import random_scenes
from riebench.tinyworld_build.fit import fit
from riebench.tinyworld_build.models import write_tokenizer

STEPS, NUM_GROUPS, GROUP = 2600, 16, 5
EMBED_DIM = 64
#: How often an attribute is the one that a hard negative changes: most where pictures differ least.
_CHANGED = dict.fromkeys(ATTRIBUTES, 1) | {"shape": 3, "material": 5, "style": 2}
_HEAD_SCALE = 10.0  # of the unit embeddings that the training-only classifiers read
_MAX_LOGIT_SCALE = 100.0


def model_config(vocab_size: int) -> dict:
    """Returns open_clip's `model_cfg`: a ModifiedResNet of one block a stage, and a text transformer of two layers."""
    return {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": 64,
            "heads": 4,
            "layers": 2,
            "hf_tokenizer_name": "tinyworld",  # of a local folder open_clip only asks whether a name is there
        },
    }


class _Trainee(nn.Module):
    """The model and, for training only, one linear classifier per attribute that both embeddings share."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.clip = open_clip.CLIP(**model_config(vocab_size))
        for name, weight in self.clip.visual.named_parameters():
            if name.endswith("bn3.weight"):
                nn.init.ones_(weight)  # open_clip's zero shuts the convolutions out, and patterns are averaged away
        self.heads = nn.Linear(EMBED_DIM, sum(map(len, VALUES.values())))


def change_attribute(rng: np.random.Generator, row: np.ndarray, column: int) -> np.ndarray:
    """Returns a copy of an attribute row with another value, drawn uniformly, in one column."""
    num_values = len(VALUES[ATTRIBUTES[column]])
    changed = row.copy()
    changed[column] = (row[column] + rng.integers(1, num_values)) % num_values
    return changed


@lru_cache(maxsize=1)
def _groups(seed: int, index: int) -> tuple[np.ndarray, Rendering]:
    """Returns attributes and pictures of `NUM_GROUPS` scenes, each followed by `GROUP - 1` hard negatives: the same
    layout and all attributes but one, never a combination that is held out."""
    rng = np.random.default_rng([seed, index])
    often = np.array([_CHANGED[name] for name in ATTRIBUTES], dtype=float)
    attributes, layouts = [], []
    for base, layout in zip(sample_attributes(rng, NUM_GROUPS, "train"), sample_layouts(rng, NUM_GROUPS), strict=True):
        columns = rng.choice(len(ATTRIBUTES), size=len(ATTRIBUTES), replace=False, p=often / often.sum())
        variants = [change_attribute(rng, base, column) for column in columns]
        seen = [variant for variant in variants if not Scene.from_indices(variant).held_out]
        rows = [base, *seen[: GROUP - 1]]
        attributes += rows
        layouts += [layout] * len(rows)
    return np.stack(attributes), render(np.stack(attributes), np.stack(layouts))


def train_clip(folder: Path, device: torch.device, *, seed: int = 0, steps: int = STEPS) -> Clip:
    """Trains by symmetric InfoNCE (Radford et al. 2021) on degraded renderings, with hard negatives that differ in one
    attribute.

    In training only, classifiers of the eight attributes read both embeddings: without them a model this small takes
    many times as many steps. They are not part of the model that is returned.
    """
    write_tokenizer(folder / "clip_tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip_tokenizer")
    torch.manual_seed(seed)

    def loss(model: _Trainee, step: int) -> torch.Tensor:
        attributes, rendering = _groups(seed, step // USES)
        generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + step)
        images = degrade(unit_images(rendering), generator).to(device)
        ids = tokenize(tokenizer, captions(attributes)).to(device)
        seen = model.clip.encode_image((images - MEAN) / STD, normalize=True)
        read = model.clip.encode_text(ids, normalize=True)
        logits = model.clip.logit_scale.exp().clamp(max=_MAX_LOGIT_SCALE) * seen @ read.T
        pairs = torch.arange(len(logits), device=device)
        contrastive = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
        targets = torch.from_numpy(attributes).to(device).repeat(2, 1)
        answers = model.heads(_HEAD_SCALE * torch.cat([seen, read])).split([*map(len, VALUES.values())], dim=1)
        auxiliary = torch.stack([F.cross_entropy(answer, targets[:, i]) for i, answer in enumerate(answers)])
        return contrastive + 2 * auxiliary.mean()

    trainee = _Trainee(len(tokenizer)).to(device)
    trained = fit("clip", trainee, loss, steps=steps, folder=folder, lr=2e-3, warmup=100, ema=0.99)
    return Clip(trained.clip, tokenizer)


def save_clip(clip: Clip, folder: Path) -> None:
    """Writes a folder that `open_clip.create_model("local-dir:<folder>")` loads: configuration, tokenizer, and the
    weights in half precision."""
    write_tokenizer(folder)
    preprocess = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic"}
    write_json(folder / CONFIG_FILE, {"model_cfg": model_config(len(clip.tokenizer)), "preprocess_cfg": preprocess})
    save_weights(clip.model, folder / WEIGHTS_FILE, torch.float16)


def evaluate_clip(clip: Clip, seed: int, count: int, *, split: str = "held_out") -> dict[str, float]:
    """Returns how well the embeddings tell `count` rendered scenes of a split apart. Every score is a share of scenes.

    "text_of_image" and "image_of_text": the right one is first among 64. "swap_<attribute>": the picture is nearer to
    its caption than to the caption with that attribute changed, and the caption nearer to its picture than to the
    picture, of the same layout, with that attribute changed. "swap_mean" is over the attributes.
    """
    device = clip.model.positional_embedding.device
    rng = np.random.default_rng([seed, 1])
    attributes, layouts, rendering = random_scenes(seed, 0, count, split)
    seen = clip.encode_images(unit_images(rendering).to(device))
    read = clip.encode_texts(captions(attributes))
    firsts = []
    for chunk_seen, chunk_read in zip(seen.split(64), read.split(64), strict=True):
        cosines = chunk_seen @ chunk_read.T
        pairs = torch.arange(len(cosines), device=device)
        firsts.append(torch.stack([cosines.argmax(dim=1) == pairs, cosines.argmax(dim=0) == pairs], dim=1))
    text_of_image, image_of_text = torch.cat(firsts).double().mean(dim=0).tolist()
    swaps = {}
    own = (seen * read).sum(dim=1)
    for column, name in enumerate(ATTRIBUTES):
        changed = np.stack([change_attribute(rng, row, column) for row in attributes])
        other_read = clip.encode_texts(captions(changed))
        other_seen = clip.encode_images(unit_images(render(changed, layouts)).to(device))
        right = (own > (seen * other_read).sum(dim=1)) & (own > (other_seen * read).sum(dim=1))
        swaps[f"swap_{name}"] = right.double().mean().item()
    means = {"text_of_image": text_of_image, "image_of_text": image_of_text}
    return means | swaps | {"swap_mean": sum(swaps.values()) / len(swaps)}
