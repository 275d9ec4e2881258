"""What holds of every metric: its description, its bounds, its direction, and that company does not matter."""

import hashlib
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from memory import OUT_OF_MEMORY
from metric_batches import images, make_batch, make_edit
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.core.scores import SCORE_BY_NAME, SCORES
from riebench.edits.edit import load_edits
from riebench.generation.sharing import twin_of
from riebench.metrics import (
    ANY_CLIP,
    METRICS,
    ONLY,
    default_metrics,
    describe,
    score_batch,
    scorers,
)
from riebench.metrics.models import ScoringModels
from riebench.metrics.networks import dino, key_similarity, lpips_distance, openclip
from riebench.metrics.networks.lpips import ALEX, VGG
from riebench.metrics.networks.table import NETWORKS
from riebench.runs.scoring import Pictures, Scorer
from riebench.tinyworld import clip as tinyworld_clip
from riebench.tinyworld import oracle as tinyworld_oracle

OTHER_CLIP = "clip_region_edited@ViT-B-32/laion2b_s34b_b79k"
EVERY = (*METRICS.names(), OTHER_CLIP)


def metrics_of(family: str) -> tuple[str, ...]:
    """The names of the registered metrics that can score a family's pictures."""
    others = {name for other, names in ONLY.items() if other != family for name in names}
    return tuple(name for name in METRICS.names() if name not in others)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(
    "wrong",
    [
        {"original": images(0, b=2)},
        {"edited": images(0, size=32)},
        {"outside": torch.ones(3, 8, 8, dtype=torch.bool)},
        {"regions": torch.ones(3, 64, 64, dtype=torch.bool)},
        {"edits": [make_edit()]},
    ],
)
def test_a_batch_whose_shapes_disagree_is_refused(wrong):
    with pytest.raises(ValueError):
        make_batch(images(0), **wrong)


def returning(values, name="mine", bounds=(0.0, 1.0)):
    return SimpleNamespace(name=name, bounds=bounds, score=lambda batch: values)


def test_score_batch_names_the_metric_that_returns_something_else():
    good = returning(np.zeros(3), "good")
    assert list(score_batch([good], make_batch(images(0)))) == ["good"]
    for values in (np.zeros(2), np.zeros((3, 1)), 0.0, np.zeros(3, dtype=np.float32)):
        with pytest.raises(UserError, match="metric 'mine' returned"):
            score_batch([good, returning(values)], make_batch(images(0)))


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1.1, -0.1])
def test_score_batch_names_the_metric_and_the_row_of_an_impossible_value(value):
    edits = [make_edit(edited=colour) for colour in ("red", "blue", "green")]
    edits[1] = type(edits[1])("the-second", *list(asdict(edits[1]).values())[1:])
    with pytest.raises(UserError, match=r"'mine' returned .* for the-second \(row 1\).*within 0 and 1"):
        score_batch([returning(np.array([0.5, value, np.nan]))], make_batch(images(0), edits=edits))


def test_rounding_beyond_a_bound_and_undefined_rows_pass():
    values = np.array([1.0 + 1e-7, np.nan, -1e-7])
    np.testing.assert_array_equal(score_batch([returning(values)], make_batch(images(0)))["mine"], values)


# ---------------------------------------------------------------- names


def test_unknown_names_and_families():
    with pytest.raises(UserError, match="did you mean 'lpips_original'"):
        scorers(["lpips_orginal"])
    with pytest.raises(UserError, match="did you mean 'tinyworld'"):
        scorers([], "tinywolrd")
    with pytest.raises(UserError, match="oracle reads tinyworld's pictures"):
        scorers(["oracle_success"], "sdxl")
    with pytest.raises(UserError, match="named twice"):
        scorers(["psnr", "psnr"])


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:30])
def test_no_room_for_a_network_that_scores_is_one_line(error, tmp_path, monkeypatch):
    """Whatever is raised, and though loading has errors of its own to tell of."""

    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(openclip, "weights_folder", lambda *_asked: tmp_path)
    monkeypatch.setattr(openclip.open_clip, "create_model", full)
    monkeypatch.setattr(lpips_distance, "load", full)
    models = ScoringModels("sdxl", "cpu")
    with pytest.raises(
        UserError, match="CLIP, which scores, does not fit into the memory of cpu: it takes about 1.7 GB"
    ):
        models["clip"]
    with pytest.raises(
        UserError, match="LPIPS.*, which scores, does not fit into the memory of cpu -> free some of it"
    ):
        models["lpips"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clip_text_edited@ViT-B-32/laion2b_s34b_b78k", "did you mean 'ViT-B-32/laion2b_s34b_b79k'"),
        ("clip_text_edited@", "no model ''"),
        ("clip_text_edited@ViT-B-16/openai", "use ViT-B-16-quickgelu/openai"),
        ("psnr@ViT-B-32/laion2b_s34b_b79k", "'psnr' takes no other CLIP"),
        ("clip_txt_edited@ViT-B-32/laion2b_s34b_b79k", "did you mean 'clip_text_edited'"),
    ],
)
def test_a_wrong_name_of_another_clip_is_told_before_anything_is_loaded(name, words, monkeypatch):
    monkeypatch.setattr(openclip, "Encoder", None)
    for ask in (scorers, describe):
        with pytest.raises(UserError, match=words):
            ask([name], "sdxl")


def test_a_run_is_scored_by_what_was_published_and_what_strict_mode_adds():
    published = {"clip_image_original", "clip_image_edited", "clip_text_original", "clip_text_edited"}
    for family in NETWORKS:
        names = default_metrics(family)
        assert published | {"lpips_original", "lpips_edited", "edit_efficiency"} <= set(names) <= set(METRICS.names())
        assert set(names) <= set(metrics_of(family)) and len(set(names)) == len(names)
        assert ("oracle_success" in names) == ("oracle_success" in metrics_of(family)) == (family == "tinyworld")
    assert {score.name for score in SCORES} <= set(default_metrics("tinyworld"))


def test_a_scorer_takes_the_default_metrics_or_those_that_are_named():
    assert Scorer("tinyworld", "cpu").names == default_metrics("tinyworld")
    image = images(0, b=1)[0]
    regions = torch.zeros(2, 64, 64, dtype=torch.bool)
    regions[1, 10:20, 30:50] = True
    (row,) = Scorer("tinyworld", "cpu", names=["mse", "mse_outside"]).score(
        [(make_edit(), Pictures(image, image, regions), 0 * image)]
    )
    squares = image.double().square().mean(dim=0)
    assert row["mse"] == pytest.approx(squares.mean().item(), rel=1e-6)
    far = squares.clone()
    far[9:21, 29:51] = 0  # 12 px at 512 px are 1.5 at 64, which Python rounds to 2
    far[8:22, 28:52] = 0
    assert row["mse_outside"] == pytest.approx(far.sum().item() / (64 * 64 - 14 * 24), rel=1e-6)


def test_a_metric_of_ones_own_is_a_class_with_five_names():
    @METRICS.register("brightness", "mean of the image")
    class Brightness:
        name, higher_is_better, bounds, summary = "brightness", None, (0.0, np.inf), "mean of the image"

        def __init__(self, models):
            pass

        def score(self, batch):
            return batch.intervened.double().mean(dim=(1, 2, 3)).numpy()

    (score,) = describe(["brightness"], "sdxl")
    words = (score.name, score.label, score.better, score.meaning, score.always, score.bounds)
    assert words == ("brightness", "brightness", "neither", "mean of the image", False, (0.0, None))
    grey = torch.full((2, 3, 8, 8), 0.25)
    assert score_batch(scorers(["brightness"]), make_batch(grey))["brightness"].tolist() == [0.25, 0.25]
    assert "brightness" not in default_metrics("sdxl") and "brightness" in metrics_of("sdxl")


# ---------------------------------------------------------------- descriptions


def test_metrics_are_described_without_a_network(monkeypatch):
    for place, name in (
        (tinyworld_clip, "load_clip"),
        (tinyworld_oracle, "load_oracle"),
        (openclip, "Encoder"),
        (lpips_distance, "Lpips"),
        (key_similarity, "load_vit"),
    ):
        monkeypatch.setattr(place, name, None)
    for family in NETWORKS:
        names = (*metrics_of(family), OTHER_CLIP)
        described = describe(names, family)
        assert tuple(score.name for score in described) == names
        for score in described:
            assert score.label and score.meaning and score.bounds != (None, None) or score.name == "edit_efficiency"
            assert score.source or "mse" in score.name
            assert score.preprocessing
            json.dumps(asdict(score), allow_nan=False)
        assert len({score.label for score in described}) == len(names)


def test_the_words_of_the_tables_are_kept():
    for score in describe([score.name for score in SCORES], "tinyworld"):
        known = SCORE_BY_NAME[score.name]
        words = ("label", "better", "meaning", "always")
        assert [getattr(score, word) for word in words] == [getattr(known, word) for word in words]


def test_the_metrics_say_the_same_direction_as_the_tables():
    for metric in scorers(default_metrics("tinyworld")):
        better = {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better]
        assert better == (SCORE_BY_NAME[metric.name].better if metric.name in SCORE_BY_NAME else better)
        assert metric.summary == METRICS.summary(metric.name) != ""
        assert metric.bounds[0] < metric.bounds[1]


def test_the_hash_is_of_the_bytes_of_the_weights():
    files = data_folder() / "tinyworld" / "clip" / "open_clip_model.safetensors", ALEX.head_path
    clip_text, lpips = describe(["clip_text_edited", "lpips_original"], "tinyworld")
    assert clip_text.weights_sha256 == hashlib.sha256(files[0].read_bytes()).hexdigest()
    trunk = (data_folder() / "lpips" / "alex.safetensors").read_bytes()
    assert lpips.weights_sha256 == hashlib.sha256(trunk + files[1].read_bytes()).hexdigest()


def test_what_is_not_on_this_machine_has_no_hash_and_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(openclip, "try_to_load_from_cache", lambda *_: None)
    text, vgg, siglip = describe(["clip_text_edited", "lpips_vgg_edited", "siglip2_text_edited"], "sdxl")
    assert {score.weights_sha256 for score in (text, vgg, siglip)} == {""}
    assert text.needs == ("prompts", "clip-vit-l-14") and siglip.needs == ("prompts", "siglip2-vit-b-16")
    assert vgg.needs == ("edited image", "torchvision's VGG16_Weights.IMAGENET1K_V1")


def test_a_changed_file_has_another_hash(monkeypatch, tmp_path):
    file = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    file.parent.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = set()
    for text in (b"one", b"other"):
        file.write_bytes(text)
        (score,) = describe(["lpips_vgg_original"], "sdxl")
        assert score.weights_sha256 == hashlib.sha256(text + VGG.head_path.read_bytes()).hexdigest()
        found.add(score.weights_sha256)
    assert len(found) == 2


def test_the_description_says_where_prompts_keep_their_marks():
    plain, marked = (describe(["clip_text_edited", "lpips_original"], "tinyworld", keep_marks=m) for m in (False, True))
    assert "[ ]" in marked[0].preprocessing and "[ ]" not in plain[0].preprocessing
    assert plain[1] == marked[1]


# ---------------------------------------------------------------- every metric


class RandomClip:
    """A CLIP of random weights in open_clip's place."""

    def __init__(self, name, device, **_):
        generator = torch.Generator().manual_seed(len(name))
        self.weight = torch.randn(16, 3 * 8 * 8, generator=generator)
        self.words = torch.randn(128, 16, generator=generator)
        self.preprocessing = openclip.Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", "squash", 0)

    def encode_images(self, images_bchw):
        cells = F.adaptive_avg_pool2d(self.preprocessing(images_bchw), 8).flatten(1)
        return F.normalize(cells @ self.weight.T, dim=1)

    def encode_texts(self, texts):
        return F.normalize(torch.stack([self.words[[ord(c) for c in text]].sum(dim=0) for text in texts]), dim=1)


def random_trunk(net):
    """torchvision's weights of a net, drawn at random."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = lpips_distance.lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False).net
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in found.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        state[f"features.{name.partition('.')[2]}"] = drawn / max(tensor[0].numel(), 1) ** 0.5
    return state


def small_vit():
    """A small DINO of random weights."""
    torch.manual_seed(0)
    small = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=32)
    return ViTModel(small, add_pooling_layer=False).eval()


@pytest.fixture(scope="module")
def networks():
    """Every metric on tinyworld, with random networks in the place of those that are not shipped."""
    patch = pytest.MonkeyPatch()
    patch.setattr(openclip, "Encoder", RandomClip)
    shipped = lpips_distance.trunk_state
    patch.setattr(lpips_distance, "trunk_state", lambda n: shipped(n) if n is ALEX else random_trunk(n.net))
    model = small_vit()
    patch.setattr(dino, "weights_folder", lambda *_: None)
    patch.setattr(key_similarity, "load_vit", lambda *_: model)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def metrics(networks):
    return scorers(EVERY)


@pytest.fixture(scope="module")
def varied():
    """Seven rows of different edits: a smooth picture with an object in it, edited and intervened; one region is the
    whole image, one is empty, and one row's image is the original."""
    edits = [edit for edit in load_edits() if edit.id.endswith("-03")][:7]
    coarse = images(5, b=21, size=8)
    pictures = (F.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1) * 255).round() / 255
    original, edited, intervened = pictures.split(7)
    intervened = (0.7 * original + 0.3 * intervened).mul(255).round() / 255
    intervened[2] = original[2]
    regions = torch.zeros(7, 2, 64, 64, dtype=torch.bool)
    for i in range(7):
        regions[i, :, 5 * i : 5 * i + 20, 20 : 24 + 5 * i] = True
    regions[3], regions[4] = True, False
    outside = torch.stack([Pictures(*pair).outside for pair in zip(original, edited, regions, strict=True)])
    return {
        "intervened": intervened,
        "original": original,
        "edited": edited,
        "edits": edits,
        "outside": outside,
        "regions": regions,
    }


def rows_of(fields, rows):
    return {name: [value[i] for i in rows] if name == "edits" else value[rows] for name, value in fields.items()}


def forget(metrics):
    for metric in metrics:
        metric.models.forget()


@pytest.fixture(scope="module")
def together(metrics, varied):
    return score_batch(metrics, make_batch(**varied))


@pytest.mark.slow
def test_a_row_has_the_same_scores_in_any_company(metrics, varied, together):
    assert set(together) == set(EVERY)
    shuffled = [5, 0, 3, 6, 2, 4, 1]
    forget(metrics)
    again = score_batch(metrics, make_batch(**rows_of(varied, shuffled)))
    for name, values in together.items():
        assert np.isfinite(values).sum() >= 4, name
        np.testing.assert_allclose(again[name], values[shuffled], rtol=0, atol=1e-6, err_msg=name)
    for row in (0, 2, 6):
        forget(metrics)
        alone = score_batch(metrics, make_batch(**rows_of(varied, [row])))
        for name, values in alone.items():
            np.testing.assert_allclose(values, together[name][[row]], rtol=0, atol=1e-6, err_msg=name)


def test_scores_that_every_result_has_are_defined_everywhere_and_the_others_say_so(together):
    for score in describe(EVERY, "tinyworld"):
        assert not (score.always and np.isnan(together[score.name]).any()), score.name
    for name in EVERY:
        if name.endswith("_outside"):
            assert np.flatnonzero(np.isnan(together[name])).tolist() == [3], name


@pytest.mark.slow
def test_no_change_is_the_best_preservation_and_more_change_is_worse(metrics, varied, together):
    same = score_batch(metrics, make_batch(**varied | {"intervened": varied["original"]}))
    of_preservation = [
        metric
        for metric in metrics
        if metric.name.endswith(("_outside", "image_original", "_preservation", "structure_distance"))
        or metric.name.startswith(("psnr", "ssim", "mse"))
        or (metric.name.startswith("lpips") and metric.name.endswith("_original"))
    ]
    assert len(of_preservation) == 16
    for metric in of_preservation:
        sign = 1 if metric.higher_is_better else -1
        best = sign * same[metric.name] - sign * together[metric.name]
        best = best[np.isfinite(best)]
        assert (best >= -1e-6).all() and (best > 1e-6).any(), metric.name
    assert np.isnan(same["edit_efficiency"]).all() and np.isnan(same["clip_directional"]).all()


@pytest.mark.slow
def test_the_edited_image_itself_is_the_best_edit_on_every_score_against_it(metrics, varied, together):
    edited = score_batch(metrics, make_batch(**varied | {"intervened": varied["edited"]}))
    against = [
        m for m in metrics if m.name.endswith("_edited") and m.name.startswith(("lpips", "clip_im", "siglip2_im"))
    ]
    assert len(against) == 5
    for metric in against:
        sign = 1 if metric.higher_is_better else -1
        assert (sign * edited[metric.name] > sign * together[metric.name]).all(), metric.name


def test_metrics_of_one_other_clip_share_it_and_bear_its_name(networks, monkeypatch):
    built = []

    def build(name, device, **_):
        built.append(name)
        return RandomClip(name, device)

    monkeypatch.setattr(openclip, "Encoder", build)
    names = [f"{name}@ViT-B-32/laion2b_s34b_b79k" for name in ANY_CLIP]
    found = scorers([*names, "siglip2_text_edited", "siglip2_image_original"], "sdxl")
    assert [metric.name for metric in found][: len(names)] == names
    assert built == ["ViT-B-32/laion2b_s34b_b79k", "ViT-B-16-SigLIP2/webli"]


def test_networks_are_loaded_once_on_demand_and_for_all_metrics(monkeypatch):
    built = []
    monkeypatch.setattr(lpips_distance, "Lpips", lambda network, *_: built.append(network.net) or nn.Identity())
    describe(["lpips_original", "lpips_vgg_original"], "sdxl")
    assert built == []
    scorers(["lpips_original", "lpips_outside", "lpips_vgg_original", "lpips_edited", "mse"], "sdxl")
    assert built == ["alex", "vgg"]


# ---------------------------------------------------------------- twins


def modules_of(thing):
    """Every module that an object holds, found through its attributes."""
    waiting, seen = [thing], {}
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
        waiting += vars(item).values() if hasattr(item, "__dict__") and not isinstance(item, type) else ()
    return {key: item for key, item in seen.items() if isinstance(item, nn.Module)}


def test_a_twin_s_networks_are_its_own_and_share_their_weights(metrics):
    ours, theirs = modules_of(metrics), modules_of(twin_of(metrics))
    assert len(ours) == len(theirs) > 100 and not set(ours) & set(theirs)
    (one,), (other,) = ([m for m in found.values() if isinstance(m, ViTModel)] for found in (ours, theirs))
    assert one is not other and all(a is b for a, b in zip(one.parameters(), other.parameters(), strict=True))
    weights, others = ({id(p) for m in found.values() for p in m.parameters()} for found in (ours, theirs))
    assert weights == others


@pytest.mark.slow
def test_two_twins_in_two_threads_score_as_one_after_the_other(networks, varied, monkeypatch):
    """The threads meet in the midst of DINO, where a hook of either is on the module that it runs."""
    model, meetings = small_vit(), []

    def meet(*_):
        for meeting in meetings:
            meeting.wait(60)

    model.embeddings.register_forward_hook(meet)
    monkeypatch.setattr(key_similarity, "load_vit", lambda *_: model)
    names = ["structure_distance", "clip_text_edited", "clip_region_edited", "siglip2_image_edited", "lpips_outside"]
    names += ["lpips_squeeze_edited", "edit_efficiency", "oracle_preservation"]
    scorer = Scorer("tinyworld", "cpu", names=names)
    pictures = [Pictures(*case) for case in zip(varied["original"], varied["edited"], varied["regions"], strict=True)]
    rows = list(zip(varied["edits"], pictures, varied["intervened"], strict=True))
    tasks = (rows[0:1], rows[1:2]), (rows[4:5], rows[5:6])  # DINO reads two new images of each row

    def work(twin, batches):
        return [[list(row.values()) for row in twin.score(batch)] for batch in batches]

    expected = [work(scorer.twin(), batches) for batches in tasks]
    twins = scorer.twin(), scorer.twin()
    meetings.append(Barrier(2))
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(work, twins, tasks))
    np.testing.assert_array_equal(np.array(together), np.array(expected))
