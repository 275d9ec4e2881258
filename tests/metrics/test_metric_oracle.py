"""The oracle's scores by hand."""

import numpy as np
import pytest
import torch
from metric_batches import images, make_batch, make_edit

from riebench.core.errors import UserError
from riebench.metrics import oracle, score_batch
from riebench.metrics.models import ScoringModels
from riebench.metrics.networks.oracle import Attributes
from riebench.metrics.networks.remembered import Remembered
from riebench.tinyworld.captions import caption
from riebench.tinyworld.scenes import ATTRIBUTES, Scene


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
    models = ScoringModels(loaded={"attributes": Remembered(Attributes(Reader()))})
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
    models = ScoringModels(loaded={"attributes": Remembered(Attributes(Reader()))})
    with pytest.raises(UserError, match="not in tinyworld's vocabulary"):
        oracle.OracleSuccess(models).score(make_batch(images(0), edits=[make_edit(original="a photo of a dog")] * 3))
