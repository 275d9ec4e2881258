import hashlib
import io
import math
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

from riebench.edits import Edit, strip_marks
from riebench.errors import UserError
from riebench.files import data_folder
from riebench.metrics import METRICS, ScoreBatch, clip, convert_alexnet, oracle, remembered, score_batch, scorers
from riebench.metrics import lpips as lpips_metrics
from riebench.metrics.models import ScoringModels
from riebench.metrics.openclip import preprocess
from riebench.tinyworld.captions import caption
from riebench.tinyworld.scenes import ATTRIBUTES, Scene

TRUNK = data_folder() / "lpips" / "alex.safetensors"


def make_edit(original="red [circle]", edited="blue [square]"):
    return Edit("e", "change_object", original, edited, "circle", "square")


def make_batch(intervened, original=None, edited=None, edits=None, outside=None):
    b, _, h, w = intervened.shape
    return ScoreBatch(
        intervened=intervened,
        original=intervened if original is None else original,
        edited=intervened if edited is None else edited,
        edits=edits or [make_edit()] * b,
        outside=torch.ones(b, h, w, dtype=torch.bool) if outside is None else outside,
    )


def images(seed, b=3, size=64):
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(
    "wrong",
    [
        {"original": images(0, b=2)},
        {"edited": images(0, size=32)},
        {"outside": torch.ones(3, 8, 8, dtype=torch.bool)},
        {"edits": [make_edit()]},
    ],
)
def test_a_batch_whose_shapes_disagree_is_refused(wrong):
    with pytest.raises(ValueError):
        make_batch(images(0), **wrong)


def test_score_batch_names_the_metric_that_returns_something_else():
    good = SimpleNamespace(name="good", score=lambda batch: np.zeros(3))
    assert list(score_batch([good], make_batch(images(0)))) == ["good"]
    for values in (np.zeros(2), np.zeros((3, 1)), 0.0, np.zeros(3, dtype=np.float32)):
        wrong = SimpleNamespace(name="wrong", score=lambda batch, values=values: values)
        with pytest.raises(UserError, match="metric 'wrong' returned"):
            score_batch([good, wrong], make_batch(images(0)))


def test_the_registry_describes_what_it_builds():
    models = SimpleNamespace(clip=None, lpips=None, attributes=None)
    expected_lower = {"lpips_original", "lpips_edited", "lpips_outside"}
    for name in METRICS.names():
        metric = METRICS.get(name)(models)
        assert metric.name == name
        assert metric.summary == METRICS.summary(name) != ""
        assert metric.higher_is_better == (name not in expected_lower)
        assert metric.bounds[0] < metric.bounds[1]


def test_unknown_names_and_families():
    with pytest.raises(UserError, match="did you mean 'lpips_original'"):
        scorers(["lpips_orginal"])
    with pytest.raises(UserError, match="did you mean 'tinyworld'"):
        scorers([], "tinywolrd")
    with pytest.raises(UserError, match="oracle reads tinyworld's pictures"):
        scorers(["oracle_success"], "sdxl")


# ---------------------------------------------------------------- CLIP


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
    models = SimpleNamespace(clip=clip.Embeddings(encoder, **options))
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
    models = SimpleNamespace(clip=clip.Embeddings(encoder or ColourEncoder()))
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


def test_the_images_used_longest_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr(remembered, "REMEMBERED_IMAGES", 3)
    encoder = ColourEncoder()
    embeddings = clip.Embeddings(encoder, batch_size=1)
    a, b, c, d = images(1, b=4).split(1)
    for image in (a, b, c, a, d):  # room for three: b is the one that was not used since
        embeddings.images(image)
    assert len(encoder.images_seen) == 4
    for image in (c, a, d):
        embeddings.images(image.clone())
    assert len(encoder.images_seen) == 4
    embeddings.images(b)
    assert len(encoder.images_seen) == 5


def test_batches_are_filled_up_so_that_company_does_not_matter():
    encoder = ColourEncoder()
    embeddings = clip.Embeddings(encoder, batch_size=4)
    embeddings.images(images(1, b=5))
    embeddings.texts(["red circle"])
    assert encoder.images_seen == [4, 4] and encoder.texts_seen == [["red circle"] * 4]


def test_an_image_that_was_written_to_is_another_image():
    encoder = ColourEncoder()
    embeddings = clip.Embeddings(encoder, batch_size=1)
    image = torch.zeros(1, 3, 4, 4)
    embeddings.images(image)
    image[0, 0] = 1.0
    np.testing.assert_allclose(embeddings.images(image), [[1.0, 0.0, 0.0]])


def test_images_of_equal_bytes_and_other_shape_are_not_confused():
    encoder = ColourEncoder()
    embeddings = clip.Embeddings(encoder, batch_size=1)
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


def test_openclip_preprocessing_is_open_clips_own():
    pixels = np.random.default_rng(0).integers(64, 192, (48, 80, 3), dtype=np.uint8)
    expected = open_clip.image_transform(32, is_train=False)(Image.fromarray(pixels))
    found = preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, 32)[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.02  # PIL rounds to whole levels: 1/255 of a spread of about 0.27


# ---------------------------------------------------------------- LPIPS


@pytest.fixture(scope="module")
def alex():
    return lpips_metrics.LpipsAlex()


def layer_distances(a, b):
    """LPIPS's five maps written out from the paper: unit features, squared difference, weighted by the head."""
    with safe_open(TRUNK, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    heads = lpips_metrics.head_state()
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = ((2 * images_bchw - 1 - shift) / scale for images_bchw in (a, b))
    convolution = {0: {"stride": 4, "padding": 2}, 3: {"padding": 2}}
    maps = []
    for index, layer in enumerate((0, 3, 6, 8, 10)):
        if layer in (3, 6):
            a, b = F.max_pool2d(a, 3, 2), F.max_pool2d(b, 3, 2)
        kernel, bias = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
        a, b = (F.relu(F.conv2d(x, kernel, bias, **convolution.get(layer, {"padding": 1}))) for x in (a, b))
        unit_a, unit_b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        maps.append(((unit_a - unit_b).square() * heads[f"lin{index}.model.1.weight"]).sum(1))
    return maps


@pytest.mark.parametrize("size", [64, 96])
def test_lpips_is_the_papers_formula(alex, size):
    a, b = images(1, size=size), images(2, size=size)
    maps = layer_distances(a, b)
    torch.testing.assert_close(alex.distance(a, b), sum(m.mean(dim=(1, 2)) for m in maps), rtol=1e-4, atol=1e-6)
    raised = [F.interpolate(m[:, None], size=(size, size), mode="bilinear")[:, 0] for m in maps]
    torch.testing.assert_close(alex.distance_map(a, b), sum(raised), rtol=1e-4, atol=1e-6)


def test_lpips_properties(alex):
    a, noise = images(1), images(2) - 0.5
    assert alex.distance(a, a).tolist() == [0.0, 0.0, 0.0]
    near, far = ((a + strength * noise).clamp(0, 1) for strength in (0.1, 0.5))
    assert (alex.distance(a, near) < alex.distance(a, far)).all()
    torch.testing.assert_close(alex.distance(a, far), alex.distance(far, a))
    alone = torch.cat([alex.distance(a[i : i + 1], far[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alex.distance(a, far), alone, rtol=1e-5, atol=1e-7)


def test_building_lpips_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    lpips_metrics.LpipsAlex()
    assert torch.equal(before, torch.get_rng_state())


def test_lpips_scores_name_their_reference(alex):
    a, b = images(1), images(2)
    models = SimpleNamespace(lpips=alex)
    batch = make_batch(a, original=a, edited=b)
    metrics = [METRICS.get(name)(models) for name in ("lpips_original", "lpips_edited", "lpips_outside")]
    scores = score_batch(metrics, batch)
    np.testing.assert_array_equal(scores["lpips_original"], np.zeros(3))
    np.testing.assert_allclose(scores["lpips_edited"], alex.distance(a, b).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(scores["lpips_outside"], np.zeros(3))


def test_lpips_outside_by_hand():
    distance_map = torch.arange(3 * 4 * 4, dtype=torch.float32).reshape(3, 4, 4)
    models = SimpleNamespace(lpips=SimpleNamespace(distance_map=lambda a, b: distance_map))
    outside = torch.zeros(3, 4, 4, dtype=torch.bool)
    outside[0, 1, 1:3] = True  # cells 5 and 6
    outside[1] = True  # cells 16..31; nothing is outside in the third
    scores = lpips_metrics.LpipsOutside(models).score(make_batch(images(0, size=4), outside=outside))
    np.testing.assert_array_equal(scores, [5.5, 23.5, np.nan])


def test_lpips_outside_compares_with_the_original(alex):
    a, b = images(1), images(2)
    metric = lpips_metrics.LpipsOutside(SimpleNamespace(lpips=alex))
    outside = torch.zeros(3, 64, 64, dtype=torch.bool)
    outside[:, :, :32] = True
    found = metric.score(make_batch(a, original=b, edited=a, outside=outside))
    np.testing.assert_allclose(found, alex.distance_map(a, b)[:, :, :32].mean(dim=(1, 2)).numpy(), rtol=1e-5)


def test_a_missing_or_broken_trunk_is_an_error_to_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(lpips_metrics, "data_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="install riebench again"):
        lpips_metrics.trunk_state()
    (tmp_path / "lpips").mkdir()
    (tmp_path / "lpips" / "alex.safetensors").write_bytes(TRUNK.read_bytes()[:1000])
    with pytest.raises(UserError, match="install riebench again"):
        lpips_metrics.trunk_state()


# ---------------------------------------------------------------- the conversion of AlexNet


def test_the_trunks_archive_holds_lpips_own_heads():
    with safe_open(TRUNK, "np") as file:
        recorded = file.metadata()
    heads = lpips_metrics.head_state()
    for index in range(5):
        found = hashlib.sha256(heads[f"lin{index}.model.1.weight"].numpy().astype("<f4").tobytes()).hexdigest()
        assert found == recorded[f"sha256_lin{index}"]
    assert recorded["source_sha256"] in (TRUNK.parent / "NOTICE.md").read_text()


def foreign_parameters():
    rng = np.random.default_rng(0)
    widths = (3, *convert_alexnet.CHANNELS)
    convolutions = {
        f"Conv_{i}": {
            "kernel": rng.normal(size=(2, 5, widths[i], widths[i + 1])).astype(np.float32),
            "bias": rng.normal(size=widths[i + 1]).astype(np.float32),
        }
        for i in range(5)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.normal(size=(1, 1, width, 1)).astype(np.float32)}}
        for i, width in enumerate(convert_alexnet.CHANNELS)
    }
    return {"AlexNet_0": convolutions, **heads}


def old_numpy_pickle(value):
    """A pickle as NumPy 1 wrote it, when its core module had no underscore."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_a_pickle_of_arrays_is_converted_to_torchvisions_layout(tmp_path):
    parameters = foreign_parameters()
    data = old_numpy_pickle(parameters)
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as files:
        member = tarfile.TarInfo(convert_alexnet.MEMBER)
        member.size = len(data)
        files.addfile(member, io.BytesIO(data))
    convert_alexnet.main(archive, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        for i, layer in enumerate((0, 3, 6, 8, 10)):
            weight = file.get_tensor(f"features.{layer}.weight")
            kernel = parameters["AlexNet_0"][f"Conv_{i}"]["kernel"]
            for h, w in np.ndindex(2, 5):
                np.testing.assert_array_equal(weight[:, :, h, w], kernel[h, w].T)
            np.testing.assert_array_equal(
                file.get_tensor(f"features.{layer}.bias"), parameters["AlexNet_0"][f"Conv_{i}"]["bias"]
            )
            head = parameters[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
            assert file.metadata()[f"sha256_lin{i}"] == hashlib.sha256(head.tobytes()).hexdigest()
        assert file.metadata()["source_sha256"] == hashlib.sha256(data).hexdigest()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"AlexNet_0": [np.zeros(2, np.float32), bomb]}])
def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(tmp_path, wrap):
    touched = tmp_path / "touched"
    data = old_numpy_pickle(wrap(Bomb(touched)))
    with pytest.raises(UserError, match="the pickle asks for .*: it holds more than arrays"):
        convert_alexnet.read_arrays(data)
    assert not touched.exists()
    pickle.loads(data)
    assert touched.exists()  # the bomb was live


def test_a_pickle_cut_short_is_an_error_to_mend():
    with pytest.raises(UserError, match="cannot be read"):
        convert_alexnet.read_arrays(old_numpy_pickle(foreign_parameters())[:500])


# ---------------------------------------------------------------- the oracle


class Reader:
    """An oracle that reads an image's attributes from its first eight pixels."""

    def attributes(self, images_bchw):
        return (images_bchw[:, 0, 0, :8] * 100).round().long()


def picture(scene):
    image = torch.zeros(3, 8, 8)
    image[0, 0] = torch.tensor(scene.indices()) / 100
    return image


def oracle_scores(cases):
    """Rows of (original scene, edited scene, what the intervened image shows)."""
    edits = [make_edit(f"[{caption(original)}]", caption(edited)) for original, edited, _ in cases]
    batch = make_batch(
        torch.stack([picture(shown) for *_, shown in cases]),
        original=torch.stack([picture(original) for original, *_ in cases]),
        edits=edits,
    )
    models = SimpleNamespace(attributes=remembered.Remembered(lambda images: (Reader().attributes(images),)))
    return score_batch([oracle.OracleSuccess(models), oracle.OraclePreservation(models)], batch)


def test_oracle_scores_by_hand():
    start = Scene()
    blue, blue_star = start.with_(colour="blue"), start.with_(colour="blue", shape="star")
    scores = oracle_scores(
        [
            (start, blue, blue),
            (start, blue, start),
            (start, blue, blue.with_(background="sea", style="sketch")),
            (start, blue_star, blue),  # one of the two changes is missing
            (start, blue_star, blue_star.with_(pose="leaning")),
            (start, start, start),  # nothing to change
        ]
    )
    np.testing.assert_array_equal(scores["oracle_success"], [1, 0, 1, 0, 1, np.nan])
    np.testing.assert_allclose(scores["oracle_preservation"], [1, 1, 5 / 7, 1, 5 / 6, 1])


def test_oracle_preservation_of_an_edit_that_changes_all():
    everything = Scene("star", "blue", "dotted", "leaning", "sad", "hat", "sea", "sketch")
    assert all(getattr(Scene(), name) != getattr(everything, name) for name in ATTRIBUTES)
    scores = oracle_scores([(Scene(), everything, everything)])
    assert scores["oracle_success"].tolist() == [1.0]
    assert np.isnan(scores["oracle_preservation"]).all()


def test_oracle_refuses_prompts_of_another_world():
    models = SimpleNamespace(attributes=remembered.Remembered(lambda images: (Reader().attributes(images),)))
    with pytest.raises(UserError, match="not in tinyworld's vocabulary"):
        oracle.OracleSuccess(models).score(make_batch(images(0), edits=[make_edit(original="a photo of a dog")] * 3))


def test_models_are_built_once_and_on_demand(monkeypatch):
    built = []
    monkeypatch.setattr(lpips_metrics, "LpipsAlex", lambda device, _size: built.append(device) or object())
    models = ScoringModels("sdxl", "cpu")
    assert built == []
    assert models.lpips is models.lpips
    assert built == ["cpu"]


def test_lpips_computes_each_distinct_image_once_and_in_any_company_the_same():
    alex = lpips_metrics.LpipsAlex(batch_size=4)
    function, seen = alex._features._function, []
    alex._features._function = lambda images: seen.append(len(images)) or function(images)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 3, 64, 64, generator=generator) for _ in "ab")
    first = alex.distance(a, b[[0, 0, 0]])
    assert seen == [4, 4]  # three images and one, filled up
    again = torch.cat([alex.distance(a[i : i + 1].clone(), b[:1]) for i in range(3)])
    alex.distance_map(a, b[[0, 0, 1]])
    assert seen == [4, 4, 4] and torch.equal(first, again)
    alex.forget()
    assert torch.equal(torch.cat([alex.distance(a[i : i + 1], b[:1]) for i in (2, 1, 0)]), first.flip(0))
