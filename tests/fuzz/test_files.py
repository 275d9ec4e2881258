"""Files of runs, entries, dictionaries and pictures, damaged: each is as good as it was, or refused in words."""

from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from fuzzing import Tally, changed, damaged, fuzz, leaves, odd_text, odd_values, written
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from site_entries import metrics_of, scores_frame

from riebench.analysis import Run
from riebench.analysis.compare import compare_runs
from riebench.analysis.frames import read_scores, write_scores
from riebench.core.files import MARKER, data_folder
from riebench.core.pictures import read_mask, read_picture
from riebench.core.scores import describe_scores
from riebench.leaderboard import read_entry, submit, validate
from riebench.leaderboard.packing import picture_problems
from riebench.methods.text_index import TextIndex, load_text_index, save_text_index
from riebench.runs.rescore import score_run
from sae_models import checkpoint, index
from sae_models.entry import Entry
from sae_models.topk import TopKConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:PIL")]  # of broken pictures

BACKBONE, BLOCKS = "tinyworld-turbo@1", ["down.2.1", "mid.0", "up.0.0", "up.0.1"]
MANIFEST = {
    **{"status": "finished", "mode": "strict", "blocks": BLOCKS, "device": "cpu", "machine": "x", "python": "3.11"},
    **{"methods": [{"name": "sae", "strength": 1.0}], "config": {"edits": "tinyworld", "backbone": BACKBONE}},
    **{"edits": {"sha256": "0" * 64}, "setup": {"grounder": {"name": "tinyworld"}, "mask_rule": "touched"}},
    **{"made": 10, "forwards": 10.0, "seconds": 1.0, "scoring": "0", "versions": {"riebench": "0.1.0"}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    frame = scores_frame(BACKBONE, "sae", 0)
    frame = frame[frame["category"] == "change_pose"]
    write_scores(describe_scores(frame, metrics_of(BACKBONE)), folder / "scores.parquet")
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / MARKER).touch()
    return folder


def test_manifests_say_what_is_asked_of_them_or_are_refused(run, tmp_path):
    tally, folder = Tally("manifests"), shutil.copytree(run, tmp_path / "run")
    path = folder / "manifest.json"
    asked = [
        lambda: compare_runs([folder], metrics=["lpips_original"]),
        lambda: submit(folder, tmp_path / "board"),
        lambda: score_run(folder, ["mse"], "cpu"),
        lambda: Run.open(folder).images(("change_pose-00", 42)),
    ]

    @fuzz(50)
    @given(changed(MANIFEST, leaves(MANIFEST)).map(written) | damaged(written(MANIFEST)), st.sampled_from(asked[1:]))
    def check(data, call):
        path.write_bytes(data)
        tally.refuses(call)
        if not tally.refuses(lambda: Run.open(folder)):
            tally.refuses(asked[0])

    check()
    tally.check()


def test_damaged_scores_are_read_or_refused(run, tmp_path):
    tally, path = Tally("scores"), tmp_path / "scores.parquet"

    @fuzz(60)
    @given(damaged((run / "scores.parquet").read_bytes()))
    def check(data):
        path.write_bytes(data)
        tally.refuses(lambda: read_scores(path))

    check()
    tally.check()


FREE = {
    "title",
    "description",
    "authors",
    "code",
    "submitted",
    "versions",
    "hashes",
    "method",
    "cost",
}  # a word of a person, or of no known value


def test_no_change_of_an_entry_goes_unseen(tmp_path, monkeypatch):
    tally, folder = Tally("entries"), tmp_path / BACKBONE / "sae"
    shutil.copytree(data_folder() / "leaderboard" / BACKBONE / "sae", folder)
    content, rows = json.loads((folder / "entry.json").read_text()), read_scores(folder / "scores.parquet")
    figures = {key: content[key] for key in ("aggregates", "dominance", "failures")}
    module = sys.modules[validate.__module__]
    monkeypatch.setattr(module, "figures_of", lambda *_: figures | {"cost": {}})  # they cost most
    monkeypatch.setattr(module, "read_scores", lambda _: rows)
    for name in ("rows_problems", "_bounds_problems"):
        monkeypatch.setattr(module, name, lambda *_: [])
    monkeypatch.setattr(module, "_examples", lambda *_: content["images"])
    assert validate(folder) == []
    places = [place for place in leaves(content) if place[0] not in FREE]

    @fuzz(30)
    @given(changed(content, places))
    def check(change):
        (folder / "entry.json").write_bytes(written(change))
        problems = validate(folder)
        tally.tried, tally.bad = tally.tried + 1, tally.bad + bool(problems)
        assert problems and all(problem.strip() for problem in problems)

    @fuzz(25)
    @given(damaged(written(content)))
    def check_bytes(data):
        (folder / "entry.json").write_bytes(data)
        tally.refuses(lambda: read_entry(folder))

    check()
    check_bytes()
    tally.check()


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    """A folder with a small SAE, listed in its index."""
    root = tmp_path_factory.mktemp("saes")
    checkpoint.save(root / "mid.0", TopKConfig(k=2, num_features=8, width=4).sae(), {})
    index.register(Entry("mine", BACKBONE, "mid.0", "topk", 2, 8, 4, folder="mid.0", sha256=""), root=root)
    return root


def test_indices_list_dictionaries_or_are_refused(dictionary, tmp_path):
    tally, root = Tally("indices"), shutil.copytree(dictionary, tmp_path / "saes")
    (item,) = json.loads((root / "index.json").read_text())
    lists = changed({"items": [item]}, leaves({"items": [item]})).map(lambda value: written(value.get("items")))

    @fuzz(160)
    @given(lists | damaged((root / "index.json").read_bytes()) | odd_values.map(written))
    def check(data):
        (root / "index.json").write_bytes(data)
        tally.refuses(lambda: index.open(index.find(BACKBONE, "mid.0", root=root), root=root))

    check()
    tally.check()


def test_checkpoints_are_whole_or_refused(dictionary, tmp_path):
    tally, folder = Tally("checkpoints"), shutil.copytree(dictionary / "mid.0", tmp_path / "sae")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(files["cfg.json"])
    used = [place for place in leaves(config) if place[0] in ("architecture", "d_in", "d_sae", "k", "activation_fn")]
    damages = [
        changed(config, used).map(lambda value: ("cfg.json", written(value))),
        *(damaged(data).map(lambda made, name=name: (name, made)) for name, data in files.items()),
    ]

    @fuzz(160)
    @given(st.one_of(damages))
    def check(damage):
        for name, data in {**files, damage[0]: damage[1]}.items():
            (folder / name).write_bytes(data)
        tally.refuses(lambda: checkpoint.shape_of(folder))
        tally.refuses(lambda: checkpoint.load(folder))

    check()
    tally.check()


def test_text_indices_are_whole_or_refused(tmp_path):
    tally, path = Tally("text indices"), tmp_path / "a.safetensors"
    save_text_index(path, TextIndex(torch.ones(4, 3), torch.ones(4), torch.ones(4)))
    data = path.read_bytes()

    @fuzz(60)
    @given(damaged(data) | st.binary(max_size=20))
    def check(made):
        path.write_bytes(made)
        tally.refuses(lambda: load_text_index(path))

    check()
    tally.check()


PICTURES = [
    *((mode, kind) for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16") for kind in ("PNG", "TIFF")),
    *(
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("P", "GIF"),
        ("RGB", "BMP"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
        ("F", "TIFF"),
    ),
]


def picture_bytes(mode, kind, side=16, pictures=1):
    values = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    grey = Image.fromarray(values)
    made = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    file = io.BytesIO()
    more = {"save_all": True, "append_images": [made.transpose(0)] * (pictures - 1)} if pictures > 1 else {}
    made.save(file, kind, **more)
    return file.getvalue()


def test_pictures_are_whole_or_refused(tmp_path):
    tally, path = Tally("pictures"), tmp_path / "a.png"
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    several = [picture_bytes("P", "GIF", pictures=3), picture_bytes("RGB", "PNG", pictures=2), bomb.getvalue()]
    sources = [picture_bytes(*source) for source in PICTURES]
    case = dict.fromkeys(("original", "edited", "regions", "intervened"), "a.png") | {"edit": "a"}

    @fuzz(110)
    @given(
        st.sampled_from(sources).flatmap(damaged)
        | st.sampled_from(several)
        | st.binary(max_size=20)
        | odd_text.map(written)
    )
    def check(data):
        path.write_bytes(data)
        for read in (lambda: read_picture(path), lambda: read_mask(path, (16, 16))):
            tally.refuses(read)
        problems = list(picture_problems(tmp_path, [case]))
        assert problems or Image.open(path).format == "PNG"

    check()
    tally.check()
    for data in several:
        path.write_bytes(data)
        assert tally.refuses(lambda: read_picture(path)) and tally.refuses(lambda: read_mask(path, (16, 16)))
