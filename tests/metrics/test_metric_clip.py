"""The metrics of CLIP: by hand, on an encoder of colours, and open_clip's preparation of images beside its own."""

import json
import math
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from metric_batches import images, make_batch, make_edit
from PIL import Image
from safetensors.torch import load_file, save_file
from siglip_tokenizer import write_siglip_tokenizer
from torch.nn import functional as F

from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.edits.edit import Edit, load_edits, strip_marks
from riebench.metrics import METRICS, describe, score_batch, scorers
from riebench.metrics.clip_region import crop_boxes, phrase_text
from riebench.metrics.models import ScoringModels
from riebench.metrics.networks import openclip, remembered
from riebench.metrics.networks.clip import OPENAI_CLIP, OpenClip
from riebench.metrics.networks.embeddings import Embeddings
from riebench.metrics.networks.openclip import Preprocessing, check_model
from riebench.metrics.networks.siglip import SIGLIP2
from riebench.tinyworld.clip import load_clip


class ColourEncoder:
    """Embeds an image by its mean colour and a text by a table; keeps what it was asked."""

    table = {"red circle": [1.0, 0.0, 0.0], "blue square": [0.0, 0.6, 0.8]}

    def __init__(self):
        self.images_seen, self.texts_seen = [], []

    def encode_images(self, images_bchw):
        self.images_seen.append(len(images_bchw))
        return F.normalize(images_bchw.mean(dim=(2, 3)), dim=1)

    def encode_texts(self, texts):
        self.texts_seen.append(list(texts))
        return torch.tensor([self.table[text] for text in texts])


def plain(*colours):
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()


def clip_metrics(encoder, **options):
    models = ScoringModels(loaded={"clip": Embeddings(encoder, **options)})
    return [METRICS.get(f"clip_{kind}_{side}")(models) for kind in ("text", "image") for side in ("edited", "original")]


def test_clip_cosines_by_hand():
    batch = make_batch(
        plain([0.0, 0.0, 0.5], [0.3, 0.4, 0.0]),
        original=plain([0.7, 0.0, 0.0], [0.7, 0.0, 0.0]),
        edited=plain([0.0, 0.3, 0.3], [0.0, 0.9, 0.0]),
    )
    scores = score_batch(clip_metrics(ColourEncoder()), batch)
    np.testing.assert_allclose(scores["clip_text_edited"], [0.8, 0.8 * 0.6], atol=1e-6)
    np.testing.assert_allclose(scores["clip_text_original"], [0.0, 0.6], atol=1e-6)
    np.testing.assert_allclose(scores["clip_image_edited"], [math.sqrt(0.5), 0.8], atol=1e-6)
    np.testing.assert_allclose(scores["clip_image_original"], [0.0, 0.6], atol=1e-6)


def directional(batch, encoder=None):
    models = ScoringModels(loaded={"clip": Embeddings(encoder or ColourEncoder())})
    return score_batch([METRICS.get("clip_directional")(models)], batch)["clip_directional"]


def test_directional_clip_by_hand():
    # texts go from (1, 0, 0) to (0, .6, .8); images from (1, 0, 0) to the unit vectors along the colours below
    found = directional(
        make_batch(
            plain([0.0, 0.3, 0.4], [0.0, 0.8, 0.0], [0.6, 0.0, 0.8], [0.4, 0.0, 0.0]),
            original=plain([0.7, 0.0, 0.0], [0.7, 0.0, 0.0], [0.7, 0.0, 0.0], [0.0, 0.3, 0.4]),
        )
    )
    third = (0.4 * 1 + 0.8 * 0.8) / math.sqrt((0.4**2 + 0.8**2) * 2)  # (-.4, 0, .8) with (-1, .6, .8)
    np.testing.assert_allclose(found, [1.0, (1 + 0.6) / 2, third, -1.0], atol=1e-6)


def test_directional_clip_is_of_unit_length_differences_so_a_small_change_counts_as_much():
    rng = np.random.default_rng(0)
    start = torch.tensor(rng.uniform(0.3, 0.7, (1, 3)))
    step = torch.tensor(rng.uniform(-1, 1, (1, 3)))
    near, nearer = (plain(*(start + length * step).tolist()) for length in (1e-2, 1e-3))
    original = plain(*start.tolist())
    assert directional(make_batch(near, original)) == pytest.approx(directional(make_batch(nearer, original)), abs=0.02)


def test_directional_clip_of_no_change_is_undefined():
    original = plain([0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1])
    intervened = original.clone()
    intervened[1] += 1e-6  # below what the encoder can tell from rounding
    intervened[2, 0] += 0.1
    assert np.isnan(directional(make_batch(intervened, original))).tolist() == [True, True, False]
    encoder = ColourEncoder()
    encoder.table = {"red circle": [1.0, 0.0, 0.0], "red disc": [1.0, 1e-6, 0.0]}
    same, near = make_edit("red [circle]", "[red] circle"), make_edit("red [circle]", "red [disc]")
    edits = [make_edit("red [disc]", "red [disc]"), near, same]
    assert np.isnan(directional(make_batch(intervened[[2, 2, 2]], original, edits=edits), encoder)).all()


def test_every_image_and_prompt_is_embedded_once():
    encoder = ColourEncoder()
    metrics = clip_metrics(encoder, batch_size=1)
    original, edited = images(1), images(2)
    score_batch(metrics, make_batch(images(3), original, edited))
    score_batch(metrics, make_batch(images(4), original.clone(), edited.clone()))
    assert sum(encoder.images_seen) == 3 * 3 + 3
    assert encoder.texts_seen == [["blue square"], ["red circle"]]


def test_the_images_used_longest_ago_are_forgotten():
    seen = []
    known = remembered.Remembered(lambda batch: seen.append(len(batch)) or (batch,), batch_size=1, keep=3)
    a, b, c, d = images(1, b=4).split(1)
    for image in (a, b, c, a, d):  # room for three: b is the one that was not used since
        known(image)
    assert len(seen) == 4
    for image in (c, a, d):
        known(image.clone())
    assert len(seen) == 4
    known(b)
    assert len(seen) == 5


def test_what_one_call_asks_for_is_kept_for_the_next_however_little_is_to_be_kept():
    seen = []
    known = remembered.Remembered(lambda batch: seen.append(len(batch)) or (batch,), batch_size=1, keep=0)
    several = images(1, b=4)
    known(several)
    known(several.clone())
    assert len(seen) == 4
    known(several[:1].clone())
    known(several[1:2].clone())
    assert len(seen) == 5


def test_batches_are_filled_up_so_that_company_does_not_matter():
    encoder = ColourEncoder()
    embeddings = Embeddings(encoder, batch_size=4)
    embeddings.images(images(1, b=5))
    embeddings.texts(["red circle"])
    assert encoder.images_seen == [4, 4] and encoder.texts_seen == [["red circle"] * 4]


def test_an_image_that_was_written_to_is_another_image():
    encoder = ColourEncoder()
    embeddings = Embeddings(encoder, batch_size=1)
    image = torch.zeros(1, 3, 4, 4)
    embeddings.images(image)
    image[0, 0] = 1.0
    np.testing.assert_allclose(embeddings.images(image), [[1.0, 0.0, 0.0]])


def test_images_of_equal_bytes_and_other_shape_are_not_confused():
    encoder = ColourEncoder()
    embeddings = Embeddings(encoder, batch_size=1)
    embeddings.images(torch.zeros(1, 3, 4, 8))
    embeddings.images(torch.zeros(1, 3, 8, 4))
    assert encoder.images_seen == [1, 1]


@pytest.mark.parametrize(
    ("prompt", "bare"),
    [
        ("a [red] circle", "a red circle"),
        ("[a circle] in the sky", "a circle in the sky"),
        ("a circle [ ] in the sky", "a circle in the sky"),
        ("a circle", "a circle"),
    ],
)
def test_marks_are_stripped(prompt, bare):
    assert strip_marks(prompt) == bare


def test_reference_mode_keeps_the_marks():
    encoder = ColourEncoder()
    encoder.table = {"red [circle]": [1.0, 0.0, 0.0], "blue [square]": [0.0, 1.0, 0.0]}
    score_batch(clip_metrics(encoder, keep_marks=True, batch_size=1), make_batch(images(0)))
    assert encoder.texts_seen == [["blue [square]"], ["red [circle]"]]


# ---------------------------------------------------------------- regions


def test_a_crop_is_the_region_s_box_grown_by_15_percent_and_kept_within_the_image():
    regions = torch.zeros(4, 64, 48, dtype=torch.bool)
    regions[0, 20:40, 10:20] = True  # 20 x 10: grown by 3 and by 1.5, which Python rounds to 2
    regions[1, 0, 0] = regions[1, 63, 47] = True
    regions[2, 5, 7] = True
    assert crop_boxes(regions) == [
        (slice(17, 43), slice(8, 22)),
        (slice(0, 64), slice(0, 48)),
        (slice(5, 6), slice(7, 8)),
        None,
    ]


@pytest.mark.parametrize(
    ("region", "text"),
    [
        ("a red hat", "a red hat"),
        ("cat, dog", "cat and dog"),
        ("everything", ""),
        ("#everything", ""),
        ("background", ""),
        ("not hat", ""),
        ("~hat", ""),
        ("mask:some/file.png", ""),
    ],
)
def test_only_what_has_a_noun_is_compared_with_a_crop(region, text):
    assert phrase_text(region) == text


def test_region_cosines_by_hand():
    encoder = ColourEncoder()
    encoder.table = {"circle": [1.0, 0.0, 0.0], "square": [0.0, 0.6, 0.8]}
    images_bchw = torch.zeros(3, 3, 40, 40)
    images_bchw[:, 1] = 1.0  # green, with a red region and a blue one
    regions = torch.zeros(3, 2, 40, 40, dtype=torch.bool)
    regions[:2, 0, 2:6, 2:6], regions[:, 1, 20:24, 20:24] = True, True  # the third has no original region
    images_bchw[:, :, 1:7, 1:7] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    images_bchw[:, :, 19:25, 19:25] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    edits = [make_edit(), Edit("e", "change_style", "a", "b", "everything", "not square"), make_edit()]
    models = ScoringModels(loaded={"clip": Embeddings(encoder)})
    metrics = [METRICS.get(f"clip_region_{side}")(models) for side in ("original", "edited")]
    scores = score_batch(metrics, make_batch(images_bchw, edits=edits, regions=regions))
    np.testing.assert_allclose(scores["clip_region_original"], [1.0, np.nan, np.nan], atol=1e-6)
    np.testing.assert_allclose(scores["clip_region_edited"], [0.8, np.nan, 0.8], atol=1e-6)


def test_crops_of_any_size_are_brought_to_the_size_of_the_encoder():
    encoder = ColourEncoder()
    embeddings = Embeddings(encoder, resize=Preprocessing.from_config({"size": 16}).resize)
    found = embeddings.crops([torch.full((3, *size), 0.5) for size in ((1, 1), (5, 30), (16, 16), (40, 9))])
    np.testing.assert_allclose(found, np.full((4, 3), 3**-0.5), atol=1e-6)


# ---------------------------------------------------------------- open_clip


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(48, 80), (90, 40), (20, 24), (64, 64), (2, 90)])
def test_preprocessing_is_open_clip_s_own(resize_mode, interpolation, shape):
    """On noise of all levels, where a resize that is clipped once and not rounded in between is off by a third."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    config = {"size": 32, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.3, 0.2)}
    config |= {"interpolation": interpolation, "resize_mode": resize_mode, "fill_color": 51}
    expected = open_clip.image_transform(
        32, is_train=False, **{key: value for key, value in config.items() if key != "size"}
    )(Image.fromarray(pixels))
    found = Preprocessing.from_config(config)(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0]
    assert found.shape == expected.shape == (3, 32, 32)
    assert (found - expected).abs().max() < 1e-5


def test_a_size_with_two_sides_is_fitted_too():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    expected = open_clip.image_transform((24, 32), is_train=False)(Image.fromarray(pixels))
    found = Preprocessing.from_config({"size": (24, 32)})(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0]
    assert (found - expected).abs().max() < 1e-5


def test_a_picture_s_embedding_is_that_of_plain_open_clip(monkeypatch):
    """A picture of SDXL's size from the file to the cosine, with a small model in the place of ViT-L/14."""
    name = "ViT-L-14-quickgelu"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, small_clip(name))
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: model)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 512, 512, 3), dtype=np.uint8)
    encoder = openclip.Encoder(f"{name}/openai")
    plain = open_clip.image_transform(224, is_train=False)
    with torch.no_grad():
        expected = model.encode_image(torch.stack([plain(Image.fromarray(one)) for one in pixels]), normalize=True)
    found = encoder.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert float((found[0] @ found[1] - expected[0] @ expected[1]).abs()) < 1e-5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_both_activations_that_may_have_made_the_published_scores_are_offered(monkeypatch, tmp_path):
    """On the same weights, each as open_clip itself runs them."""
    names = ("ViT-L-14-quickgelu", "ViT-L-14")
    for name in names:
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, small_clip(name))
    (weights,) = OPENAI_CLIP.weights
    torch.manual_seed(0)
    models = {name: open_clip.create_model(name).eval() for name in names}
    for weights_of_layers in models["ViT-L-14-quickgelu"].visual.transformer.parameters():
        weights_of_layers.data.mul_(8)  # so that it matters what is between
    models["ViT-L-14"].load_state_dict(models["ViT-L-14-quickgelu"].state_dict())
    assert {type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ for model in models.values()} == {
        "QuickGELU",
        "GELU",
    }
    save_file(models["ViT-L-14"].state_dict(), tmp_path / weights.files[0])
    monkeypatch.setattr(openclip, "weights_folder", lambda name, _: tmp_path if name == "clip-vit-l-14" else None)
    metrics = [f"clip_image_original@{name}/openai" for name in names]
    batch = make_batch(images(0, size=224), original=images(1, size=224))
    scores = score_batch(scorers(metrics, "sdxl"), batch)
    assert list(scores) == metrics and [score.name for score in describe(metrics, "sdxl")] == metrics
    for metric, model in zip(metrics, models.values(), strict=True):
        prepare = open_clip.image_transform(224, is_train=False).transforms[-1]
        with torch.no_grad():
            one, two = (
                model.encode_image(prepare(side), normalize=True) for side in (batch.intervened, batch.original)
            )
        np.testing.assert_allclose(scores[metric], (one * two).sum(dim=1), rtol=0, atol=1e-6)
    assert abs(scores[metrics[0]] - scores[metrics[1]]).max() > 2e-5
    with pytest.raises(UserError, match="another activation.*use ViT-B-32-quickgelu/openai"):
        check_model("ViT-B-32/openai")


def small_clip(name: str) -> dict:
    """open_clip's configuration of a model, with little in it."""
    whole = open_clip.get_model_config(name)
    small = {"width": 64, "heads": 2, "layers": 2}
    return whole | {
        "embed_dim": 16,
        "vision_cfg": whole["vision_cfg"] | {"layers": 2, "width": 64},
        "text_cfg": whole["text_cfg"] | small | {"width": 16},
    }


def test_what_has_the_model_s_size_is_only_normalised():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    preprocessing = Preprocessing.from_config({"size": 32, "mean": 0.5, "std": 0.25})
    assert preprocessing.resize(image) is image
    torch.testing.assert_close(preprocessing(image), (image - 0.5) / 0.25)


def test_a_model_is_described_by_its_name_as_it_will_read_images(monkeypatch):
    openai, siglip = OPENAI_CLIP.describe(), SIGLIP2.describe()
    assert "bicubic" in openai.preprocessing and "224 x 224 (shorter side, centre crop)" in openai.preprocessing
    assert "mean 0.48145466 0.4578275 0.40821073" in openai.preprocessing
    assert "224 x 224 (both sides), mean 0.5 0.5 0.5" in siglip.preprocessing
    for network in (OPENAI_CLIP, SIGLIP2, OpenClip("ViT-B-32/laion2b_s34b_b79k")):
        check_model(network.model)
        architecture, _, weights = network.model.partition("/")
        blank = {"size": open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]}
        config = blank | open_clip.get_pretrained_cfg(architecture, weights)
        assert str(Preprocessing.from_config(config)) == network.describe().preprocessing


def test_open_clip_s_model_reads_images_as_it_says_and_texts_by_its_tokenizer(monkeypatch):
    """On tinyworld's CLIP, which is a folder of open_clip's: our own loader of it is the reference."""
    folder = data_folder() / "tinyworld" / "clip"
    make, tokenizer = open_clip.create_model, load_clip().tokenizer
    monkeypatch.setattr(open_clip, "create_model", lambda _name, pretrained, device: make(f"local-dir:{folder}"))
    monkeypatch.setattr(
        open_clip,
        "get_tokenizer",
        lambda _: lambda texts: tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt").input_ids,
    )
    encoder, shipped = openclip.Encoder("any/weights"), load_clip()
    batch, texts = images(0), ["a red circle", "a blue square at night"]
    torch.testing.assert_close(encoder.encode_images(batch), shipped.encode_images(batch), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.encode_texts(texts), shipped.encode_texts(texts), rtol=0, atol=1e-6)
    small, large = (F.interpolate(images(1, size=8), size=size, mode="bilinear") for size in (64, 192))
    assert (encoder.encode_images(large) * encoder.encode_images(small)).sum(dim=1).min() > 0.99


def test_weights_that_cannot_be_had_are_named_with_the_command_that_gets_them(monkeypatch, tmp_path):
    def nothing(*_args, **_kwargs):
        raise FileNotFoundError("Failed to download file (open_clip_model.safetensors) for laion/CLIP-ViT-B-32.\nmore")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(open_clip, "create_model", nothing)
    with pytest.raises(UserError, match="timm/ViT-B-16-SigLIP2 are not on .*`riebench fetch siglip2-vit-b-16`"):
        scorers(["siglip2_text_edited"], "sdxl")
    with pytest.raises(
        UserError, match="laion2b_s34b_b79k cannot be loaded: Failed.*where there is a network"
    ) as error:
        scorers(["clip_image_edited@ViT-B-32/laion2b_s34b_b79k"], "sdxl")
    assert "\n" not in str(error.value)


SMALL_TEXT = {"context_length": 64, "vocab_size": 256000, "width": 8, "heads": 1, "layers": 1}
SMALL_VISION = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1}


@pytest.fixture(scope="module")
def siglip():
    """(configuration, file) of a small random model of SigLIP 2's class, with all of its vocabulary."""
    whole = open_clip.get_model_config("ViT-B-16-SigLIP2")
    text = {key: value for key, value in whole["text_cfg"].items() if key not in SMALL_TEXT} | SMALL_TEXT
    small = whole | {"embed_dim": 8, "text_cfg": text, "vision_cfg": SMALL_VISION}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-16-SigLIP2", small)
        torch.manual_seed(0)
        yield small, open_clip.create_model("ViT-B-16-SigLIP2").eval()


@pytest.fixture
def snapshot(siglip, tmp_path, monkeypatch):
    """The folder of SigLIP 2's files in a cache of the Hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (weights,) = SIGLIP2.weights
    folder = tmp_path / f"models--{weights.repo.replace('/', '--')}" / "snapshots" / weights.revision
    folder.mkdir(parents=True)
    save_file(siglip[1].state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": siglip[0]}))
    write_siglip_tokenizer(folder, side="left")  # whatever they say: what fills up stands on the right
    return folder


def test_siglip_reads_texts_as_it_was_trained_to_and_out_of_the_pinned_folder(siglip, snapshot):
    encoder = SIGLIP2.load("cpu", 2, keep_marks=False)
    expected = siglip[1].encode_text(torch.tensor([[235250, 2686, 576, 476, 4401, 1] + [0] * 58]), normalize=True)
    np.testing.assert_allclose(encoder.texts(["A photo of a Cat"]), expected.detach(), rtol=0, atol=1e-6)
    assert SIGLIP2.describe().files == [snapshot / "open_clip_model.safetensors"]


@pytest.mark.parametrize("template", ["<bos> $A <eos>", "$A"])
def test_a_tokenizer_that_makes_other_tokens_is_refused(snapshot, template):
    write_siglip_tokenizer(snapshot, template=template)
    with pytest.raises(
        UserError, match=r"SigLIP2/webli makes \[.* of 'A photo of a Cat!', .* \[235250, .* 4401, 1, 0\] and 57 more"
    ):
        SIGLIP2.load("cpu", 2, keep_marks=False)


def test_texts_that_were_filled_up_on_the_left_are_refused(snapshot, monkeypatch):
    plain = openclip.HFTokenizer
    monkeypatch.setattr(openclip, "HFTokenizer", lambda *a, **kw: plain(*a, **kw | {"padding_side": "left"}))
    with pytest.raises(UserError, match=r"makes \[0, 0, 0.* where the model was trained on \[235250, 2686, 576, 476"):
        SIGLIP2.load("cpu", 2, keep_marks=False)


def test_a_clip_that_lacks_a_tensor_is_refused(snapshot):
    file = snapshot / "open_clip_model.safetensors"
    tensors = load_file(file)
    del tensors["text.ln_final.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError) as error:
        SIGLIP2.load("cpu", 2, keep_marks=False)
    message, _, remedy = str(error.value).partition(" -> ")
    assert "siglip2-vit-b-16 cannot be loaded" in message and "riebench fetch siglip2-vit-b-16" in remedy


def test_openai_s_clip_has_the_tokens_that_it_was_trained_on():
    tokenizer = open_clip.get_tokenizer("ViT-L-14-quickgelu")
    assert tuple(tokenizer([OPENAI_CLIP.text])[0].tolist()) == OPENAI_CLIP.tokens
    assert len(OPENAI_CLIP.tokens) == 77 and len(SIGLIP2.tokens) == 64


# ---------------------------------------------------------------- efficiency


def test_edit_efficiency_by_hand():
    distances = torch.tensor([0.5, 0.25, 0.9e-4])
    models = ScoringModels(
        loaded={
            "clip": Embeddings(ColourEncoder()),
            "lpips": SimpleNamespace(distance=lambda a, b: distances),
        }
    )
    batch = make_batch(
        plain([0.0, 0.0, 0.5], [0.7, 0.0, 0.0], [0.0, 0.0, 0.5]),
        original=plain([0.7, 0.0, 0.0], [0.0, 0.3, 0.4], [0.7, 0.0, 0.0]),
    )
    scores = score_batch([METRICS.get("edit_efficiency")(models)], batch)["edit_efficiency"]
    np.testing.assert_allclose(scores, [(0.8 - 0.0) / 0.5, (0.0 - 1.0) / 0.25, np.nan], atol=1e-6)


def test_edit_efficiency_is_made_of_the_two_scores_that_it_names():
    batch = make_batch(images(0), original=images(1), edited=images(2), edits=load_edits()[:3])
    models = ScoringModels("tinyworld")
    names = ("clip_text_edited", "lpips_original", "edit_efficiency")
    metrics = [METRICS.get(name)(models) for name in names]
    ours = score_batch(metrics, batch)
    before = score_batch(metrics[:1], make_batch(batch.original, edits=batch.edits))["clip_text_edited"]
    expected = (ours["clip_text_edited"] - before) / ours["lpips_original"]
    np.testing.assert_allclose(ours["edit_efficiency"], expected, rtol=1e-9)
