"""A small leaderboard on disk for tests of the site: made-up scores, whose aggregates are means of those scores."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from riebench.analysis.frames import write_scores
from riebench.core.scores import SCORE_BY_NAME, Score, describe_scores, score_words
from riebench.edits.edit import CATEGORY_NAMES

BLOCKS = ("down.2.1", "mid.0", "up.0.0", "up.0.1")
EVERY = "+".join(BLOCKS)
SEEDS, EDITS = (42, 43), 3
EFFICIENCY = Score("edit_efficiency", "Edit efficiency", "higher", "gain in CLIP over LPIPS", always=False)
ORACLE = ("oracle_success", "oracle_preservation")
CONTROLS = ("noop", "oracle-prompt", "random")
#: Backbone -> entry -> (gain in clip_text_edited, LPIPS to the original).
PLANTED = {
    "tinyworld-turbo@1": {
        "sae": (0.20, 0.30),
        "dense": (0.35, 0.55),
        "pca": (0.10, 0.25),
        "text-selected": (0.14, 0.28),
        "random": (0.01, 0.30),
        "oracle-prompt": (0.40, 0.60),
        "noop": (0.0, 0.0),
    },
    "tinyworld-base@25": {"sae": (0.12, 0.20), "dense": (0.30, 0.50)},
    "sdxl-turbo@4": {"sae": (0.05, 0.15), "pca": (0.08, 0.35)},
}
SEES = {"sae", "dense", "pca", "oracle-prompt"}


def metrics_of(backbone: str) -> list[Score]:
    scores = [score for score in SCORE_BY_NAME.values() if score.name not in ORACLE] + [EFFICIENCY]
    return scores + [SCORE_BY_NAME[name] for name in ORACLE] if backbone.startswith("tinyworld") else scores


def scores_frame(backbone: str, method: str, seed: int) -> pd.DataFrame:
    """Rows of the method and of the controls on `EDITS` edits of every category under `SEEDS`."""
    rows = []
    for name in dict.fromkeys((method, *CONTROLS)):
        gain, cost = PLANTED["tinyworld-turbo@1"][name] if name in CONTROLS else PLANTED[backbone][name]
        case, noise = np.random.default_rng(0), np.random.default_rng([seed, len(name)])
        for category in CATEGORY_NAMES:
            for i in range(EDITS):
                for case_seed in SEEDS:
                    base, still = case.normal(0.2, 0.03), name == "noop"
                    moved = 0.0 if still else gain + noise.normal(0, 0.1)
                    lpips = 0.0 if still else abs(cost + noise.normal(0, 0.05))
                    row = {score.name: 0.5 for score in metrics_of(backbone)}
                    row |= {"clip_text_edited": base + moved, "lpips_original": lpips}
                    row["edit_efficiency"] = np.nan if still else moved / lpips
                    row["clip_directional"] = np.nan if still else moved
                    if "oracle_success" in row:
                        row["oracle_success"] = float(noise.random() < 2 * gain)
                    rows.append(
                        {
                            "edit": f"{category}-{i:02d}",
                            "category": category,
                            "seed": case_seed,
                            "backbone": backbone,
                            "steps": int(backbone.rpartition("@")[2]),
                            "method": name,
                            "strength": 0.0 if still else 1.0,
                            "blocks": "" if name in ("noop", "oracle-prompt") else EVERY,
                            "status": "ok",
                            "reason": "",
                            "image": "",
                            "injected_norm": 0.0 if still else 12.5,
                            "num_features": 0 if still else 32,
                            "features": "",
                            "cells_original": 10,
                            "cells_edited": 10,
                            "mode": "strict",
                            "dtype": "float32",
                            "window": "all",
                            **dict.fromkeys(("branch", "original", "edited", "regions", "edit_sha256"), ""),
                            **row,
                        }
                    )
    return pd.DataFrame(rows)


def interval(by_edit: pd.Series) -> dict | None:
    """Mean over edits, and an interval that is wide enough to be seen; for tests of drawing, not of statistics."""
    by_edit = by_edit.dropna()
    if by_edit.empty:
        return None
    half = 2 * by_edit.std(ddof=0) / len(by_edit) ** 0.5
    return {"mean": by_edit.mean(), "low": by_edit.mean() - half, "high": by_edit.mean() + half, "withheld": ""}


def aggregate(frame: pd.DataFrame, names: list[str], method: str, category: str | None) -> dict:
    rows = (frame if category is None else frame[frame["category"] == category]).set_index(["edit", "seed"])
    own, noop = rows[rows["method"] == method], rows[rows["method"] == "noop"]
    scores_by_edit = own[names].groupby(level="edit").mean()
    gains_by_edit = (own[names] - noop[names]).groupby(level="edit").mean()
    gains = {name: interval(gains_by_edit[name]) if method != "noop" else None for name in names}
    return {
        **{"method": method, "strength": float(own["strength"].iloc[0]), "blocks": own["blocks"].iloc[0]},
        "edits": int(own.index.get_level_values("edit").nunique()),
        "cases": len(own),
        "scores": {name: interval(scores_by_edit[name]) for name in names},
        "gains": {name: cell and {**cell, "p_holm": 0.004} for name, cell in gains.items()},
        "seed_spread": {name: 0.01 for name in names},
        "counted": {},
    }


def dominance_table(method: str, seed: int) -> dict:
    generator = np.random.default_rng(seed)

    def effects(worth: float, verdict: str) -> dict:
        values = dict(zip(BLOCKS, generator.normal(0, 0.004, 4) + np.array([0, 0, 0, worth]), strict=True))
        around = {b: {"mean": v, "low": v - 0.01, "high": v + 0.01, "withheld": ""} for b, v in values.items()}
        blocks = {
            b: {"share": 0.25, "solo": cell, "leave_one_out": cell, "shapley": cell} for b, cell in around.items()
        }
        names = ("clip_text_edited", "lpips_original")
        return {
            "edits": EDITS,
            "cases": EDITS * len(SEEDS),
            "effects": dict.fromkeys(names, blocks),
            "dominant": dict.fromkeys(names, verdict),
            "lead": dict.fromkeys(names, {"mean": worth, "low": worth - 0.01, "high": worth + 0.01, "withheld": ""}),
            "edits_needed": dict.fromkeys(names),
        }

    return {
        **{"method": method, "strength": 1.0, "window": "all", "estimator": "exact", "subsets": 16},
        "overall": effects(0.01, "not separable: blocks share it"),
        "categories": {
            name: effects(0.08, "up.0.1") if i % 2 else effects(0.0, "not separable: no block has an effect")
            for i, name in enumerate(CATEGORY_NAMES)
            for i, name in enumerate(CATEGORY_NAMES)
        },
    }


def picture(path: Path, *key: object) -> str:
    """A flat 64 px PNG of a colour of its own; returns its sha256."""
    colour = hashlib.sha256(repr(key).encode()).digest()[:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), tuple(colour)).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_entry(root: Path, backbone: str, method: str, **changed: object) -> Path:
    """A folder of an entry. changed: keys of `entry.json` with other values."""
    folder, seed = root / backbone / str(changed.get("name", method)), len(method)
    metrics = [score_words(score) for score in metrics_of(backbone)]
    names, frame = [metric["name"] for metric in metrics], scores_frame(backbone, method, seed)
    folder.mkdir(parents=True)
    write_scores(describe_scores(frame, metrics_of(backbone)), folder / "scores.parquet")
    images, hashes = [], {}
    for category in CATEGORY_NAMES:
        files = {kind: f"{category}-{kind}.png" for kind in ("original", "edited", "regions", "intervened")}
        for kind, file in files.items():
            hashes[file] = picture(folder / "images" / file, backbone, method, category, kind)
        case = frame[(frame["edit"] == f"{category}-00") & (frame["seed"] == 42) & (frame["method"] == method)].iloc[0]
        images.append(
            {
                **{"category": category, "edit": f"{category}-00", "seed": 42, **files},
                "prompt_original": "a red circle on a white table",
                "prompt_edited": "a blue circle on a white table",
                "scores": {m["name"]: float(case[m["name"]]) for m in metrics if np.isfinite(case[m["name"]])},
            }
        )
    words = {
        "schema": 1,
        "name": method,
        "title": f"{method} on {backbone}",
        "description": f"The shipped baseline {method} with its default settings.",
        "authors": "the riebench authors",
        "code": "https://example.org/riebench",
        "submitted": f"2026-11-{10 + seed:02d}",
        "backbone": backbone,
        "steps": int(backbone.rpartition("@")[2]),
        "mode": "strict",
        "dtype": "float32",
        "edits": {"name": "tinyworld", "count": EDITS * 9, "sha256": "ab" * 32, "ids_sha256": "cd" * 32},
        "seeds": list(SEEDS),
        "blocks": list(BLOCKS),
        "method": {"name": method, "strength": 1.0, "k": 32},
        "sees_edited_image": method in SEES,
        "metrics": metrics,
        "controls": list(CONTROLS),
        "resamples": 300,
        "seed": 0,
        "aggregates": {
            "overall": aggregate(frame, names, method, None),
            "categories": {category: aggregate(frame, names, method, category) for category in CATEGORY_NAMES},
        },
        "dominance": dominance_table(method, seed) if method == "sae" else None,
        "failures": {"change_pose": {"the region is empty": 2}} if method == "pca" else {},
        "cost": {
            "num_features": None if method == "noop" else 32,
            "injected_norm": None if method in CONTROLS else 12.5,
            "forwards_per_image": 1.25,
            "seconds_per_image": 0.031,
            "device": "cpu",
            "machine": "2 cores",
        },
        "versions": {"riebench": "0.1.0", "torch": "2.9"},
        "hashes": {
            "scores": hashlib.sha256((folder / "scores.parquet").read_bytes()).hexdigest(),
            "scoring": "ef" * 16,
            "code": ["12" * 16],
            "images": hashes,
        },
        "chosen": "the first edit of each category by digest of its name",
        "images": images,
        **changed,
    }
    (folder / "entry.json").write_text(json.dumps(words, allow_nan=False))
    return folder


def write_leaderboard(root: Path) -> Path:
    for backbone, methods in PLANTED.items():
        for method in methods:
            write_entry(root, backbone, method)
    return root
