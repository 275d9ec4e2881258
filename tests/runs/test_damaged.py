"""A dictionary, text index or backbone that is damaged is refused in one line, before anything is generated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sdxl_blocks import BLOCK_NAMES
from sdxl_configs import TINY, build_unet, build_vae

import riebench
from baselines.dense import Dense
from baselines.sae import SAE
from baselines.text_selected import TextSelected
from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.sdxl import SDXL
from riebench.core.errors import Unusable, UserError
from riebench.dictionaries.evaluate import evaluate
from riebench.dictionaries.text_index import build_text_index, index_text
from riebench.generation.sampler import Sampler
from riebench.methods.text_index import TextIndex, find_text_index, save_text_index, text_index_path
from riebench.runs.config import build_config
from riebench.runs.dictionaries import check_dictionaries
from riebench.runs.reference import Generation
from riebench.runs.setup import Setup
from sae_models import index

SPOILT = "mid.0"
SMALL = {"edits_per_category": 1, "categories": ["change_colour"], "seeds": [42], "methods": ["noop", "sae"]}


def copied(root: Path, *, indexed: bool) -> None:
    """The shipped dictionaries of ones own: with an index without hashes, or as a folder for each block."""
    entries = [index.find("tinyworld-turbo@1", block) for block in BLOCK_NAMES]
    for entry in entries:
        shutil.copytree(index.default_root() / entry.folder, root / entry.block)
    if indexed:
        words = [vars(entry) | {"folder": entry.block, "sha256": ""} for entry in entries]
        (root / "index.json").write_text(json.dumps(words))


@pytest.fixture
def root(tmp_path):
    copied(tmp_path / "mine", indexed=False)
    return tmp_path / "mine"


@pytest.fixture
def listed(tmp_path):
    copied(tmp_path / "listed", indexed=True)
    return tmp_path / "listed"


def check(root, **words):
    config = build_config(SMALL | {"dictionaries": str(root)} | words, "here")
    check_dictionaries(config.build_methods(), config.open_backbone(), config.setup("float32"))


def tensors(root, change):
    path = root / SPOILT / "sae_weights.safetensors"
    found = load_file(path)
    change(found)
    save_file({name: value.contiguous() for name, value in found.items()}, path)


def config_of(root, **values):
    path = root / SPOILT / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def bytes_of(root, change):
    path = root / SPOILT / "sae_weights.safetensors"
    path.write_bytes(change(path.read_bytes()))


def one_value(name, value):
    def change(found):
        found[name].view(-1)[11] = value

    return lambda root: tensors(root, change)


def wider(root):
    """A whole dictionary, of rows that are 32 values wider than the block."""

    def change(found):
        features = found["b_enc"].shape[0]
        found |= {"W_enc": torch.randn(128, features), "W_dec": torch.randn(features, 128), "b_dec": torch.randn(128)}

    tensors(root, change)
    config_of(root, d_in=128)
    if (root / "index.json").exists():
        entry(root, width=128)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def pickled(root):
    """The same layout as the published SAEs, with code in the place of a tensor."""
    config = json.loads((root / SPOILT / "cfg.json").read_text())
    shape = {"n_dirs_local": config["d_sae"], "d_model": config["d_in"], "k": config["k"]}
    for path in list((root / SPOILT).iterdir()):
        path.unlink()
    (root / SPOILT / "config.json").write_text(json.dumps(shape))
    torch.save({"state_dict": {"encoder.weight": Code(root / "ran")}}, root / SPOILT / "state_dict.pth")


def of_another_block(root):
    shutil.rmtree(root / SPOILT)
    shutil.copytree(root / "up.0.0", root / SPOILT)


DAMAGE = {
    "empty": (lambda root: bytes_of(root, lambda whole: b""), "not a whole safetensors file"),
    "truncated": (lambda root: bytes_of(root, lambda whole: whole[: len(whole) // 2]), "not a whole safetensors file"),
    "garbage": (lambda root: bytes_of(root, lambda whole: os.urandom(len(whole))), "not a whole safetensors file"),
    **{f"NaN in {name}": (one_value(name, float("nan")), f"NaN or infinite values in {name}") for name in ("W_enc",)},
    **{
        f"infinite {name}": (one_value(name, -float("inf")), f"NaN or infinite values in {name}")
        for name in ("b_enc", "W_dec", "b_dec")
    },
    "shape": (
        lambda root: tensors(root, lambda t: t.update(b_dec=t["b_dec"][:-1])),
        "does not fit its cfg.json: b_dec",
    ),
    "lacks": (lambda root: tensors(root, lambda t: t.pop("W_dec")), "W_dec is missing"),
    "whole numbers": (lambda root: tensors(root, lambda t: t.update(W_dec=t["W_dec"].int())), "no tensor of numbers"),
    "width": (wider, "codes rows of 128 values, and tinyworld-turbo@1 has 96 there|mid.0 codes rows of 128 values"),
    "config": (lambda root: config_of(root, d_in=95), "95|does not fit"),
    "kind": (lambda root: config_of(root, architecture="jumprelu"), "threshold is missing|the index says"),
    "k": (lambda root: config_of(root, k=10**6), "k=1000000 is more than the 768 features"),
    "code": (pickled, "not a whole file of tensors and nothing else .*code in a checkpoint is never run"),
    "another block": (of_another_block, "was trained on the block 'up.0.0', and is listed for 'mid.0'"),
}


def test_a_whole_dictionary_is_not(root, listed):
    check(root)
    check(listed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_dictionary_is_refused(root, damage):
    spoil, said = DAMAGE[damage]
    spoil(root)
    with pytest.raises(UserError, match=said) as caught:
        check(root)
    assert "\n" not in str(caught.value) and " -> " in str(caught.value)
    assert not (root / "ran").exists()
    check(root, methods=["noop", "dense"], subsets_of="dense")  # which ask for no dictionary


def entry(root, **values):
    path = root / "index.json"
    listed = json.loads(path.read_text())
    path.write_text(json.dumps([one | values if one["block"] == SPOILT else one for one in listed]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"folder": "../elsewhere"}, r"entry 2 lists \.\./elsewhere, outside of its own folder"),
        ({"folder": "mid.0/../../elsewhere"}, "outside of its own folder"),
        ({"folder": "ABSOLUTE"}, "outside of its own folder"),
        ({"folder": ""}, "lists no folder"),
        ({"folder": "a\0b"}, "outside of its own folder"),
        ({"folder": "nowhere"}, "nowhere is no checkpoint"),
        ({"folder": "up.0.0"}, "was trained on the block 'up.0.0', and is listed for 'mid.0'"),
        ({"folder": 7}, "entry 2: folder holds 7 -> give text"),
        ({"width": "96"}, "entry 2: width holds '96' -> give a whole number of at least 1"),
        ({"width": 95}, r"\(width, num_features, k\) = \(96, 768, 16\), the index says \(95, 768, 16\)"),
        ({"sha256": None}, "sha256 holds None"),
        ({"sha256": "0" * 64}, "the index says 000000000000"),
        ({"evaluation": []}, r"evaluation holds \[\]"),
        ({"site": "stream"}, "no dictionary is known for tinyworld-turbo@1 mid.0"),
        ({"block": "up.0.1"}, "lists tinyworld-turbo@1 up.0.1 topk-k16-x8 twice"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(listed, values, said):
    shutil.copytree(listed / SPOILT, listed.parent / "elsewhere")
    if values.get("folder") == "ABSOLUTE":
        values = {"folder": str(listed.parent / "elsewhere")}
    entry(listed, **values)
    with pytest.raises(UserError, match=said):
        check(listed)


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, "[null]"])
def test_an_index_that_is_none_is_refused(listed, text):
    (listed / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        check(listed)


@pytest.mark.parametrize("name", ["tinyworld-turbo@1", "tinyworld-base@25"])
def test_widths_are_told_from_the_configuration_as_the_model_has_them(sampler, name):
    from riebench.backbones.folders import channels_of, outline_of
    from riebench.backbones.table import BACKBONES

    backbone = BACKBONES.get(name)
    there = {module for module, _ in sampler.denoiser.named_modules()}  # base has turbo's shape
    channels = channels_of(backbone)
    assert set(channels) == {block for block, place in backbone.family.places.items() if place.path in there}
    assert set(BLOCK_NAMES) < set(channels) < set(backbone.family.places)
    assert channels == {block: sampler.blocks.width(Site(block)) for block in channels}
    assert outline_of(backbone).size == (64, 64)


def test_widths_of_a_model_with_attentions_at_two_levels_are_told_from_its_configuration(tmp_path):
    unet, vae = build_unet(TINY[0], "cpu"), build_vae(TINY[1], "cpu")
    unet.save_config(tmp_path / "unet")
    vae.save_config(tmp_path / "vae")
    found, blocks = SDXL.outline(tmp_path), Blocks(SDXL, unet)
    assert found.size == (64, 64)
    assert found.channels == {place.path: blocks.width(Site(block)) for block, place in SDXL.places.items()}
    assert set(found.channels.values()) == {32, 64}
    assert found.channels["mid_block.attentions.0"] == found.channels["up_blocks.0.attentions.2"] == 64


@pytest.mark.slow
def test_no_verb_generates_by_a_damaged_dictionary(listed, tmp_path, monkeypatch):
    one_value("b_dec", float("nan"))(listed)

    def generate(*_words, **_options):
        raise AssertionError("something was generated")

    monkeypatch.setattr(Sampler, "generate", generate)
    monkeypatch.setattr(Sampler, "trace", generate)
    words = {"dictionaries": str(listed), "device": "cpu"}
    verbs = (
        lambda: riebench.run({**SMALL, "dictionaries": str(listed)}, tmp_path / "run", device="cpu"),
        lambda: riebench.edit("a", "b", **words),
        lambda: index_text("tinyworld-turbo@1", 4, tmp_path / "text", **words),
        lambda: evaluate("tinyworld-turbo@1", [], 1, 0, source="captions", root=listed, device="cpu"),
    )
    for verb in verbs:
        with pytest.raises(UserError, match=r"mid\.0/sae_weights\.safetensors holds NaN or infinite values in b_dec"):
            verb()
    assert not (tmp_path / "run" / "scores.parquet").exists() and not (tmp_path / "text").exists()


def test_an_engine_that_meets_a_damaged_dictionary_stops(engine, listed, monkeypatch):
    """As where a worker's file is another than this machine's: the run ends, where a method's own error is a
    failure."""
    wider(listed)
    spoilt = Generation(engine.sampler, Setup(dictionaries=str(listed)))
    with pytest.raises(Unusable, match="codes rows of 128 values"):
        spoilt.dictionary(SPOILT)
    case = SimpleNamespace(seen=lambda kind, blocks=None: SimpleNamespace(original={"a": 1}), failure="", donors={})

    def plan(error):
        def planned(case):
            raise error

        return SimpleNamespace(name="mine", strength=1.0, sites="block", plan=planned)

    assert engine._ask(plan(UserError("too few cells")), case)[1] == "mine: too few cells"
    with pytest.raises(Unusable, match="of all"):
        engine._ask(plan(Unusable("of all")), case)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["empty", "NaN", "features"])
def test_a_damaged_text_index_is_refused(tmp_path, monkeypatch, spoil):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = build_config(SMALL | {"dictionary": "topk-k8-x4"}, "here")
    where = config.open_backbone(), config.setup("float32")
    prints = {}
    for block in BLOCK_NAMES:
        of_block, root = where[1].dictionary_of(where[0], block)
        prints[block] = index.fingerprint(of_block, root=root)
        whole = TextIndex(torch.zeros(of_block.num_features, 4), *torch.zeros(2, of_block.num_features))
        save_text_index(text_index_path(prints[block]), whole)
    check_dictionaries([TextSelected()], *where)
    path = text_index_path(prints[SPOILT])
    match spoil:
        case "empty":
            path.write_bytes(b"")
        case "NaN":
            save_file(load_file(path) | {"typical": torch.full((384,), torch.nan)}, path)
        case "features":
            save_text_index(path, TextIndex(torch.zeros(383, 4), *torch.zeros(2, 383)))
    with pytest.raises(UserError, match="is not a text index|NaN or infinite values in typical|is of 383 features"):
        check_dictionaries([TextSelected()], *where)
    check_dictionaries([SAE(), Dense()], *where)
    if spoil == "features":
        assert len(find_text_index(prints[SPOILT]).directions) == 383


def test_a_text_index_is_not_built_of_a_dictionary_that_does_not_fit(sampler):
    with pytest.raises(UserError, match=r"the dictionary of mid\.0 codes rows of 5 values"):
        build_text_index(sampler, {SPOILT: SimpleNamespace(width=5)}, ["a", "b"], 0)
