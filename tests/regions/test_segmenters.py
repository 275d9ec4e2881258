"""The grounders, each on small random weights of its true classes, loaded as the real ones are."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from memory import OUT_OF_MEMORY
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import BertTokenizerFast, CLIPTokenizerFast

from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.regions.grounders import GROUNDER_WEIGHTS, GROUNDERS, SHIPPED_WEIGHTS, THRESHOLDS, grounder_settings
from riebench.regions.grounding import ground
from riebench.regions.segmenters.grounding_dino_sam2 import POSITIONS, SENTENCE

DINO_SAM2 = "grounding-dino+sam2"
PHRASES = [("cat",), ("dog", "red star")]
#: GroundingDINO knows the ids of its separators by heart.
BERT_WORDS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"} | dict(
    enumerate(["red", "cat", "dog", "star", "foreground"], start=1030)
)
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


def bert_tokenizer(folder: Path) -> BertTokenizerFast:
    """A tokenizer of whole words, which does not lower their case itself."""
    words = [BERT_WORDS.get(i, f"[unused{i}]") for i in range(1036)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 32})
    )
    return BertTokenizerFast.from_pretrained(folder)


def clip_tokenizer(folder: Path) -> CLIPTokenizerFast:
    """tinyworld's, also written as the vocab.json and merges.txt that it is made of."""
    tokenizer = CLIPTokenizerFast.from_pretrained(data_folder() / "tinyworld" / "turbo" / "tokenizer")
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return tokenizer


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """The model with larger weights, so that scores and masks differ from each other."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter += torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 / 2
    return model


def grounding_dino(folder: Path):
    words = bert_tokenizer(folder)
    swin = transformers.SwinConfig(
        image_size=64, window_size=2, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], out_indices=[2, 3, 4]
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config=transformers.BertConfig(vocab_size=len(words), num_hidden_layers=1, **SMALL),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
        max_text_len=32,
        disable_custom_kernels=True,
        init_std=0.3,
    )
    looks = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return transformers.GroundingDinoForObjectDetection(config), transformers.GroundingDinoProcessor(looks, words)


def sam2(folder: Path):
    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[4],
        window_positional_embedding_background_size=[2, 2],
    )
    config = transformers.Sam2Config(
        vision_config=transformers.Sam2VisionConfig(
            backbone_config=hiera,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(
            hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    looks = transformers.Sam2ImageProcessor(size={"height": 64, "width": 64})
    return spread(transformers.Sam2Model(config)), transformers.Sam2Processor(looks)


def sam3(folder: Path):
    words = clip_tokenizer(folder)
    vit = transformers.Sam3ViTConfig(
        num_hidden_layers=2,
        image_size=56,
        patch_size=14,
        window_size=2,
        global_attn_indexes=[1],
        pretrain_image_size=28,
        **SMALL,
    )
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        projection_dim=16,
        num_hidden_layers=1,
        max_position_embeddings=32,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        **SMALL,
    )
    config = transformers.Sam3Config(
        vision_config=transformers.Sam3VisionConfig(
            backbone_config=vit, fpn_hidden_size=32, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]
        ),
        text_config=text,
        geometry_encoder_config={"num_layers": 1, **SMALL},
        detr_encoder_config={"num_layers": 1, **SMALL},
        detr_decoder_config={"num_layers": 1, "num_queries": 6, **SMALL},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    looks = transformers.Sam3ImageProcessor(size={"height": 56, "width": 56}, mask_size={"height": 16, "width": 16})
    return spread(transformers.Sam3Model(config)), transformers.Sam3Processor(looks, words)


def clipseg(folder: Path):
    words = clip_tokenizer(folder)
    text = transformers.CLIPSegTextConfig(
        vocab_size=len(words),
        num_hidden_layers=1,
        max_position_embeddings=24,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **SMALL,
    )
    vision = transformers.CLIPSegVisionConfig(num_hidden_layers=2, image_size=32, patch_size=8, **SMALL)
    config = transformers.CLIPSegConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    looks = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return spread(transformers.CLIPSegForImageSegmentation(config)).bfloat16(), transformers.CLIPSegProcessor(
        looks, words
    )


STAND_INS = {DINO_SAM2: (grounding_dino, sam2), "sam3": (sam3,), "clipseg": (clipseg,)}


@pytest.fixture(scope="module", autouse=True)
def hub_cache(tmp_path_factory):
    """A cache of the Hub that holds, of every grounder's weights, exactly the files that are listed, but small."""
    cache = tmp_path_factory.mktemp("hub")
    for name, makers in STAND_INS.items():
        for weights, make in zip(GROUNDER_WEIGHTS[name], makers, strict=True):
            made = tmp_path_factory.mktemp("made")
            torch.manual_seed(0)
            model, processor = make(made)
            model.save_pretrained(made)
            processor.image_processor.save_pretrained(made)
            processor.save_pretrained(made)
            if hasattr(processor, "tokenizer"):
                (made / "special_tokens_map.json").write_text(json.dumps(processor.tokenizer.special_tokens_map))
            folder = cache / f"models--{weights.repo.replace('/', '--')}" / "snapshots" / weights.revision
            folder.mkdir(parents=True)
            for file in weights.files:
                (folder / file).write_bytes((made / file).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        yield cache


@pytest.fixture
def images():
    """Two of 48 x 64 px."""
    coarse = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(2))
    return F.interpolate(coarse, size=(48, 64), mode="bicubic").clamp(0, 1)


def load(name: str, **settings):
    return GROUNDERS.get(name)("cpu", **settings)


def sure(name: str) -> dict[str, float]:
    """Settings with which every stand-in finds something."""
    return dict.fromkeys(THRESHOLDS[name], 0.01)


@pytest.mark.slow
def test_every_grounder_is_tested_here_and_has_its_settings():
    assert set(GROUNDERS.names()) == set(THRESHOLDS) == {*STAND_INS, *SHIPPED_WEIGHTS, "everything"}
    assert set(GROUNDER_WEIGHTS) == set(STAND_INS)


@pytest.mark.parametrize("name", [*STAND_INS, "tinyworld", "everything"])
def test_the_contract(name, images):
    size = (64, 64) if name == "tinyworld" else (48, 64)
    images = F.interpolate(images, size=size)
    phrases = [("hat",), ("object", "red star")] if name == "tinyworld" else PHRASES
    grounder = load(name, **sure(name))
    found = grounder.detections(images, phrases)
    assert len(found) == 2
    for masks in found:
        assert masks.dtype == torch.bool and masks.dim() == 3 and masks.shape[1:] == size
        assert not masks.requires_grad
    if name != "tinyworld":  # which finds nothing in noise
        assert all(len(masks) for masks in found)
    united = ground(grounder, images, [", ".join(nouns) for nouns in phrases])
    assert torch.equal(united, torch.stack([masks.any(dim=0) for masks in found]))
    for i in range(2):
        alone = grounder.detections(images[i : i + 1], phrases[i : i + 1])
        assert len(alone) == 1 and torch.equal(alone[0], found[i])
    assert json.loads(json.dumps(dict(grounder.settings))) == grounder_settings(name, sure(name))


@pytest.mark.parametrize("name", STAND_INS)
def test_nothing_is_found_above_every_score(name, images):
    found = load(name, **dict.fromkeys(THRESHOLDS[name], 1.0)).detections(images, PHRASES)
    assert [masks.shape for masks in found] == [(0, 48, 64)] * 2
    assert all(masks.dtype == torch.bool for masks in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_another_precision_work(name, dtype, images):
    grounder = load(name, **sure(name))
    for model in vars(grounder).values():
        if isinstance(model, torch.nn.Module):
            model.to(dtype)
    assert all(len(masks) for masks in grounder.detections(images.to(dtype), PHRASES))


@pytest.mark.slow
def test_weights_are_loaded_in_float32_and_for_inference():
    for name in STAND_INS:
        models = [model for model in vars(load(name)).values() if isinstance(model, torch.nn.Module)]
        assert len(models) == len(STAND_INS[name])
        assert all(model.dtype == torch.float32 and not model.training for model in models)


@pytest.mark.parametrize("name", STAND_INS)
def test_missing_weights_are_named_with_the_command_that_fetches_them(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        load(name)
    assert f"riebench fetch {name}`" in str(error.value)
    assert GROUNDER_WEIGHTS[name][0].repo in str(error.value)


@pytest.mark.parametrize("name", STAND_INS)
def test_no_room_for_a_grounder_is_one_line(name, monkeypatch):
    def full(*_args, **_kwargs):
        raise OUT_OF_MEMORY[1]

    monkeypatch.setattr(torch.nn.Module, "to", full)
    first = GROUNDER_WEIGHTS[name][0]
    said = (
        f"the grounder's {first.repo} does not fit into the memory of cpu: it takes about {first.gigabytes:.1f} GB ->"
    )
    with pytest.raises(UserError, match=re.escape(said)):
        load(name)


def test_the_second_model_of_a_grounder_is_missed_too(monkeypatch, tmp_path, hub_cache):
    first, second = GROUNDER_WEIGHTS[DINO_SAM2]
    (tmp_path / f"models--{first.repo.replace('/', '--')}").symlink_to(
        hub_cache / f"models--{first.repo.replace('/', '--')}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=second.repo):
        load(DINO_SAM2)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_unknown_settings_are_refused_before_anything_is_loaded(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"'{name.replace('+', '[+]')}' has no setting 'treshold'"):
        load(name, treshold=0.3)


def test_settings_are_completed_and_checked():
    assert grounder_settings("everything", {}) == {}
    dino = grounder_settings(DINO_SAM2, {"box_threshold": 1})
    assert (dino["box_threshold"], dino["text_threshold"]) == (1.0, 0.25)
    assert dino["models"] == [f"{weights.repo}@{weights.revision}" for weights in GROUNDER_WEIGHTS[DINO_SAM2]]
    with pytest.raises(UserError, match="did you mean 'mask_threshold'.*threshold, mask_threshold"):
        grounder_settings("sam3", {"mask_treshold": 0.5})
    for value in ("0.5", True, -0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="from 0 to 1"):
            grounder_settings("clipseg", {"threshold": value})
    assert grounder_settings("from another package", {"any": "thing"}) == {"any": "thing"}


def test_an_installed_transformers_without_sam3_is_named(monkeypatch):
    older = SimpleNamespace(__version__="4.56.0")
    monkeypatch.setattr(importlib.import_module("riebench.regions.segmenters.sam3"), "transformers", older)
    with pytest.raises(UserError, match="4.56.0 has no SAM 3.*install transformers"):
        load("sam3")


def test_grounding_dino_gets_several_nouns_as_sentences_in_lower_case(images):
    grounder = load(DINO_SAM2)
    seen = []
    grounder.detector.register_forward_pre_hook(
        lambda _, args, kwargs: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    grounder.detections(images, [("Cat",), ("Dog", "red STAR")])
    ids = {word: i for i, word in BERT_WORDS.items()}
    sentences = ("[CLS] cat . [SEP] [PAD] [PAD] [PAD]", "[CLS] dog . red star . [SEP]")
    assert seen == [[ids[word] for word in sentence.split()] for sentence in sentences]


@pytest.mark.slow
def test_every_box_of_grounding_dino_becomes_sam_s_mask_of_that_box(images):
    """The boxes and masks worked out here from the models' raw outputs."""
    grounder, shown = load(DINO_SAM2), [_pil(images[0])]
    seen = {
        processor: processor.image_processor(images=shown, return_tensors="pt")["pixel_values"]
        for processor in (grounder.detector_processor, grounder.segmenter_processor)
    }
    text = grounder.detector_processor.tokenizer("cat . dog .", return_tensors="pt")
    with torch.no_grad():
        detected = grounder.detector(pixel_values=seen[grounder.detector_processor], **text)
    scores = detected.logits[0].sigmoid().max(dim=1).values
    middle = scores.median().item()
    assert scores.min() < middle < scores.max()
    x, y, w, h = detected.pred_boxes[0][scores > middle].unbind(dim=1)
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1) * 64  # SAM sees 64 x 64 px
    with torch.no_grad():
        segmented = grounder.segmenter(
            pixel_values=seen[grounder.segmenter_processor], input_boxes=boxes[None], multimask_output=False
        )
    expected = F.interpolate(segmented.pred_masks[0], size=(48, 64), mode="bilinear") > 0

    found = load(DINO_SAM2, box_threshold=middle).detections(images[:1], [("cat", "dog")])[0]
    assert found.shape == expected[:, 0].shape
    assert (found != expected[:, 0]).float().mean() < 1e-3
    assert 0.01 < found.float().mean() < 0.99
    more = load(DINO_SAM2, box_threshold=scores.min().item()).detections(images[:1], [("cat", "dog")])[0]
    assert len(more) == len(scores) - 1 > len(found)
    assert all((mask == more).all(dim=2).all(dim=1).any() for mask in found)


@pytest.mark.slow
def test_sam3_finds_the_instances_of_each_noun_above_its_thresholds(images):
    """Scores and masks worked out here from the model's raw outputs."""
    grounder = load("sam3", threshold=0.01)
    inputs = grounder.processor(images=[_pil(images[1])] * 2, text=["dog", "red star"], return_tensors="pt")
    with torch.no_grad():
        outputs = grounder.model(
            pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        )
    scores = outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()
    likely = F.interpolate(outputs.pred_masks.sigmoid(), size=(48, 64), mode="bilinear")
    for threshold, mask_threshold in ((0.01, 0.5), (scores.median().item(), 0.5), (0.01, likely.median().item())):
        grounder = load("sam3", threshold=threshold, mask_threshold=mask_threshold)
        found = grounder.detections(images, [("cat",), ("dog", "red star")])[1]
        expected = (likely > mask_threshold)[scores > threshold]
        assert found.shape == expected.shape and (found != expected).float().mean() < 1e-3
        assert len(found) > 0 and (threshold == 0.01 or len(found) < scores.numel())
    assert 0.1 < found.float().mean() < 0.9


def test_clipseg_cuts_the_soft_mask_of_each_noun(images):
    """The probabilities worked out here from the model's raw output."""
    grounder = load("clipseg", threshold=0.3)
    text = grounder.processor.tokenizer(["dog", "red star"], padding=True, return_tensors="pt")
    shown = F.interpolate((images[1:] * 255).round() / 255, size=(32, 32), mode="bilinear", antialias=True)
    mean = deviation = 0.5
    with torch.no_grad():
        logits = grounder.model(pixel_values=((shown - mean) / deviation).expand(2, -1, -1, -1), **text).logits
    likely = F.interpolate(logits[:, None], size=(48, 64), mode="bilinear")[:, 0].sigmoid()
    wider = grounder.detections(images, PHRASES)[1]
    for threshold in (0.3, 0.4, 0.6):
        found = load("clipseg", threshold=threshold).detections(images, PHRASES)[1]
        assert found.shape == (2, 48, 64)
        assert (found != (likely > threshold)).float().mean() < 0.02  # 8-bit rounding of the resized image
        assert not (found & ~wider).any()
        assert threshold == 0.3 or found.sum() < wider.sum()


def test_clipseg_cuts_a_phrase_that_is_too_long(images):
    grounder = load("clipseg", threshold=0.3)
    long, longer = (grounder.detections(images[:1], [("red star " * count,)])[0] for count in (30, 40))
    assert len(long) and torch.equal(long, longer)


def test_everything_is_everything(images):
    for masks in load("everything").detections(images, PHRASES):
        assert masks.shape == (1, 48, 64) and masks.all()


def test_tinyworld_finds_each_noun_by_itself():
    from riebench.tinyworld_build.augment import unit_images
    from riebench.tinyworld_build.batches import random_scenes

    images = unit_images(random_scenes(3, 0, 24, "held_out")[2])
    grounder = load("tinyworld")
    nouns = ("the object", "hat", "crown", "boots")
    alone = [ground(grounder, images, [noun] * 24) for noun in nouns]
    for i, masks in enumerate(grounder.detections(images, [nouns] * 24)):
        shown = [mask[i] for mask in alone if mask[i].any()]  # none is worn everywhere
        assert torch.equal(masks, torch.stack(shown))
    united = ground(grounder, images, ["the object, hat, crown . boots"] * 24)
    assert torch.equal(united, torch.stack(alone).any(dim=0))
    assert len({len(masks) for masks in grounder.detections(images, [nouns] * 24)}) > 1


def _pil(image_chw: torch.Tensor):
    from riebench.regions.segmenters.inputs import pil_images

    return pil_images(image_chw[None])[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "index", "part"),
    [
        (DINO_SAM2, 0, "text_projection"),
        (DINO_SAM2, 1, "positional_embedding"),
        ("sam3", 0, "detr"),
        ("clipseg", 0, "decoder"),
    ],
)
def test_weights_that_lack_a_tensor_are_refused(name, index, part, hub_cache, monkeypatch):
    weights = GROUNDER_WEIGHTS[name][index]
    snapshot = hub_cache / f"models--{weights.repo.replace('/', '--')}" / "snapshots" / weights.revision
    file = snapshot / "model.safetensors"
    kept = file.read_bytes()
    tensors = load_file(file)
    lost = next(key for key in sorted(tensors) if part in key)
    try:
        save_file({key: tensor for key, tensor in tensors.items() if key != lost}, file, metadata={"format": "pt"})
        with pytest.raises(UserError) as error:
            load(name)
    finally:
        file.write_bytes(kept)
    message, _, remedy = str(error.value).partition(" -> ")
    assert f"{name} cannot be loaded: the weights in {snapshot} lack " in message and lost in message
    assert f"delete {snapshot.parents[1]} and run `riebench fetch {name}`" in remedy
    file.write_bytes(kept[:200])  # and a broken file is a line too
    try:
        with pytest.raises(UserError, match=f"{name.replace('+', '.')} cannot be loaded: .*riebench fetch"):
            load(name)
    finally:
        file.write_bytes(kept)


def test_grounding_dino_s_separators_count_with_the_words_before_them(monkeypatch):
    """As in the original code; by transformers 5.0 to 5.22 a full stop has position 0, which is refused."""
    module = transformers.models.grounding_dino.modeling_grounding_dino
    right = module.generate_masks_with_special_tokens_and_transfer_map

    def wrong(input_ids, **options):
        masks, positions = right(input_ids, **options)
        return masks, positions * (input_ids != 1012)

    monkeypatch.setattr(module, "generate_masks_with_special_tokens_and_transfer_map", wrong)
    with pytest.raises(UserError, match=r"positions: \[0, 0, 1, 0, 0, 0, 0\] .* -> .*transformers>=5.23"):
        load(DINO_SAM2)


def test_positions_of_a_sentence_are_worked_out_by_hand():
    def positions(ids, separators=(101, 102, 1012, 1029)):
        """Counts up behind each separator; the last one begins a count too, since nothing stands before it."""
        found, count = [], 0
        for token in ids[:-1]:
            found.append(count)
            count = 0 if token in separators else count + 1
        return [*found, count]

    words = {"[CLS]": 101, "[SEP]": 102, ".": 1012}
    ids = [words.get(word, 2000) for word in f"[CLS] {SENTENCE} [SEP]".split()]
    assert tuple(positions(ids)) == POSITIONS
