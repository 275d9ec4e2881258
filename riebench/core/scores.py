"""A table of scores has this schema: its columns, and what each score says of itself. Imports neither torch nor
pandas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from riebench.core.errors import UserError
from riebench.core.json_text import json_text

if TYPE_CHECKING:
    import pandas as pd

NOOP = "noop"
#: LPIPS below which an image has not changed to speak of. What divides by it is withheld there: one grey level moves a
#: CLIP cosine by up to 2e-4, and so the quotient by more than 0.1.
LEAST_COST = 0.002
CASE = ["category", "edit", "seed"]
SETTING = ["method", "strength", "blocks"]


class Setting(NamedTuple):
    """A setting says what was done to a case. `blocks`: names joined by "+" in the model's order, "" for none."""

    method: str
    strength: float
    blocks: str


@dataclass(frozen=True)
class Score:
    """A score of the intervened image, as tables and pages speak of it."""

    name: str
    """The column."""
    label: str
    better: Literal["higher", "lower", "neither"]
    meaning: str
    always: bool = True
    """Whether every result that did not fail has this score."""
    bounds: tuple[float | None, float | None] = (None, None)
    """Least and greatest value; None for none."""
    needs: tuple[str, ...] = ()
    """What it cannot be had without: "region", "prompts", "edited image", "oracle", weights by name."""
    source: str = ""
    """The paper it comes from."""
    network: str = ""
    """Architecture and weights of the network behind it; "" for none."""
    weights_sha256: str = ""
    """The sha256 of the weights' files; "" for none."""
    preprocessing: str = ""
    """What is done to an image in [0, 1] before it is scored."""


SCORES = (
    Score("clip_text_edited", "CLIP, edited prompt", "higher", "cosine of the image with the edited prompt"),
    Score("clip_text_original", "CLIP, original prompt", "neither", "cosine of the image with the original prompt"),
    Score("clip_image_edited", "CLIP, edited image", "higher", "cosine of the image with the edited image"),
    Score("clip_image_original", "CLIP, original image", "higher", "cosine of the image with the original image"),
    Score(
        "clip_directional",
        "Directional CLIP",
        "higher",
        "cosine of the image's change from the original with the prompt's; empty where the image has not changed",
        always=False,
    ),
    Score("lpips_original", "LPIPS to original", "lower", "LPIPS-Alex distance to the original image"),
    Score("lpips_edited", "LPIPS to edited", "lower", "LPIPS-Alex distance to the edited image"),
    Score(
        "lpips_outside",
        "LPIPS outside region",
        "lower",
        "LPIPS-Alex distance to the original image outside the region; empty where the region is the whole image",
        always=False,
    ),
    Score(
        "oracle_success",
        "Oracle success",
        "higher",
        "1 where the attributes that the edit changes have the wanted value, else 0",
        always=False,
    ),
    Score(
        "oracle_preservation",
        "Oracle preservation",
        "higher",
        "share of the other attributes that read as they do in the original image",
        always=False,
    ),
)
SCORE_BY_NAME = {score.name: score for score in SCORES}

#: Where a frame keeps the `Score` of each of its score columns, as dicts; parquet files keep it with the table.
METRICS_KEY = "metrics"
#: And what it says of the set that its edits are out of: name, version, sha256.
EDITS_KEY = "edits"

#: Column -> dtype, in the order of the file. The scores come behind them.
COLUMNS: dict[str, type] = {
    "edit": str,
    "category": str,
    "seed": int,
    "backbone": str,
    "steps": int,
    "method": str,
    "strength": float,
    "blocks": str,
    "status": str,
    "reason": str,
    "image": str,
    "injected_norm": float,
    "num_features": int,
    "features": str,
    "cells_original": int,
    "cells_edited": int,
    "mode": str,
    "dtype": str,
    "branch": str,
    "window": str,
    "original": str,
    "edited": str,
    "regions": str,
    "edit_sha256": str,
}
#: The scores that every frame has: the headline of gain and of preservation.
NEEDED = ("clip_text_edited", "lpips_original")


def ids_digest(ids: Iterable[str]) -> str:
    """Returns the sha256 of the ids of edits, sorted, one a line."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def scores_of(frame: pd.DataFrame) -> tuple[Score, ...]:
    """Returns what the frame says of its score columns. Of a frame that says nothing, as pandas leaves them behind many
    an operation, it returns those of `SCORES` that are there. Raises `UserError` where what it says is broken.
    """
    described = frame.attrs.get(METRICS_KEY)
    if described is None:
        return tuple(score for score in SCORES if score.name in frame.columns)
    try:
        return tuple(score for score in map(score_from_words, described) if score.name in frame.columns)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"what the scores say of their metrics cannot be read: {error}", remedy="score the run again"
        ) from error


def describe_scores(frame: pd.DataFrame, scores: Sequence[Score]) -> pd.DataFrame:
    """Returns the frame with what `scores_of` is to say of it."""
    return _described(frame, [score_words(score) | {"always": score.always} for score in scores])


def keep_description(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a frame read from a file, such that pandas carries along for nothing what it says of its scores."""
    words = frame.attrs.get(METRICS_KEY)
    return _described(frame, words) if isinstance(words, list) else frame


class _Words(list):
    """What a frame says of its scores. pandas makes a deep copy of it at every step, and nobody changes it."""

    def __deepcopy__(self, memo: dict) -> _Words:
        return self


def _described(frame: pd.DataFrame, words: list) -> pd.DataFrame:
    described = frame.copy(deep=False)
    described.attrs = {**frame.attrs, METRICS_KEY: _Words(words)}
    return described


def score_words(score: Score) -> dict:
    """Returns the fields of a score that tell what it measures, as JSON has them: all but `always`, which is of the
    table."""
    words = json.loads(json_text(asdict(score)))
    del words["always"]
    return words


def score_from_words(words: dict) -> Score:
    """Returns the score that `score_words` describes. Raises `TypeError` or `KeyError` for other words."""
    return Score(**{**words, "bounds": tuple(words["bounds"]), "needs": tuple(words["needs"])})
