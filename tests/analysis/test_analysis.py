"""The schema of the scores: what is read, what is refused."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from planted import PLANTED, make_row, make_scores

from riebench.analysis import read_scores, write_scores
from riebench.analysis.frames import validate_scores
from riebench.core.errors import UserError
from riebench.core.scores import COLUMNS, METRICS_KEY, SCORES, Score, describe_scores, scores_of


def test_scores_round_trip(tmp_path):
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1)
    write_scores(frame.sample(frac=1, axis=1, random_state=0), tmp_path / "scores.parquet")
    back = read_scores(tmp_path / "scores.parquet")
    assert list(back.columns) == [*COLUMNS, *(score.name for score in SCORES)]
    pd.testing.assert_frame_equal(back, validate_scores(frame))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_a_score_that_not_every_result_has_may_be_empty():
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1)
    sometimes = [score.name for score in SCORES if not score.always]
    assert "clip_directional" in sometimes and "clip_text_edited" not in sometimes
    assert validate_scores(frame.assign(**dict.fromkeys(sometimes, math.nan)))[sometimes].isna().all().all()
    with pytest.raises(UserError, match="columns missing: lpips_original -> score the run again"):
        validate_scores(frame.drop(columns="lpips_original"))


def test_a_frame_says_what_its_scores_are_also_when_it_was_written_and_read(tmp_path):
    shiny = Score("shiny", "Shininess", "higher", "how shiny it is", bounds=(0.0, None), needs=("region",))
    frame = make_scores({"alone": PLANTED["alone"]}, num_edits=1).assign(shiny=1)
    assert [score.name for score in scores_of(frame)] == [score.name for score in SCORES]
    described = describe_scores(frame, [*SCORES[:6], shiny, Score("gone", "Gone", "lower", "not in the table")])
    write_scores(described, tmp_path / "scores.parquet")
    back = read_scores(tmp_path / "scores.parquet")
    assert scores_of(back) == (*SCORES[:6], shiny) and back["shiny"].dtype == float
    assert METRICS_KEY not in frame.attrs
    back.attrs[METRICS_KEY] = [{"name": "shiny"}]
    with pytest.raises(UserError, match="what the scores say of their metrics cannot be read"):
        scores_of(back)


def test_reading_what_is_missing_or_broken_says_so(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_scores(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match="cannot be read"):
        read_scores(tmp_path / "broken.parquet")
    make_scores({"a": PLANTED["alone"]}, num_edits=1).drop(columns=["reason", "mode"]).to_parquet(
        tmp_path / "old.parquet"
    )
    with pytest.raises(UserError, match="reason, mode"):
        read_scores(tmp_path / "old.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "done"}, "unknown status"),
        ({"status": "failed"}, "without a reason"),
        ({"clip_text_edited": math.nan}, "lacks clip_text_edited"),
        ({"lpips_outside": math.inf}, "has lpips_outside inf"),
        ({"seed": "first"}, "not int"),
        ({"edit": None}, "empty values"),
        ({"edit": "a"}, "two rows"),
    ],
)
def test_bad_rows_are_refused(change, message):
    rows = [make_row("a", "c", 0, "noop"), make_row("b", "c", 0, "noop") | change]
    with pytest.raises(UserError, match=message):
        validate_scores(pd.DataFrame(rows))
