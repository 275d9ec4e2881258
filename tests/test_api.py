"""The Python API: one's own pair, one's own method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import riebench
from riebench.backbones.family import Site
from riebench.backbones.folders import is_shipped
from riebench.backbones.table import BACKBONES
from riebench.runs.engine import Engine, open_engine

RED = "flat poster of a standing red plain heart in the sky"
BLUE = RED.replace("red", "blue")


@pytest.mark.slow
def test_edit_one_pair_of_ones_own(engine):
    result = riebench.edit(RED, BLUE, region="heart", engine=engine)
    assert result.original.size == result.edited.size == result.intervened.size == (64, 64)
    assert result.strip(scale=2).size == (3 * 128 + 4, 2 * (14 + 128) + 2)  # a line of names above each row
    assert result.scores["status"] == "ok" and np.isfinite(result.scores["clip_text_edited"])
    nothing = riebench.edit(RED, BLUE, region="heart", method="noop", engine=engine)
    assert nothing.scores["blocks"] == ""
    assert nothing.intervened.tobytes() == nothing.original.tobytes() == result.original.tobytes()
    other = riebench.edit(RED, BLUE, region="heart", seed=5, engine=engine)
    assert other.original.tobytes() != result.original.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [name for name in BACKBONES.names() if is_shipped(BACKBONES.get(name))])
def test_every_backbone_can_be_edited_with_its_dictionaries(backbone):
    engine = open_engine(backbone, "cpu", batch_size=2)
    nothing, edited = (
        riebench.edit(RED, BLUE, region="heart", method=method, seed=3, engine=engine) for method in ("noop", "sae")
    )
    assert nothing.intervened.tobytes() == nothing.original.tobytes() == edited.original.tobytes()
    assert edited.intervened.tobytes() != edited.original.tobytes()
    assert edited.scores["status"] == "ok" and edited.scores["steps"] == engine.backbone.steps
    assert edited.scores["num_features"] > 0 and np.isfinite(edited.scores["lpips_original"])


@pytest.mark.slow
def test_a_method_of_ones_own(engine):
    @dataclass(frozen=True)
    class Mean:
        name: str = "mean-difference"
        strength: float = 1.0
        sites: str = "update"

        def plan(self, case):
            additions = {}
            for site, edited in case.edited.items():
                cells = case.edited_cells[site.block]
                difference = (edited - case.original[site])[:, cells].mean(dim=1, keepdim=True)
                additions[site] = self.strength * difference * cells[:, None]
            return riebench.Intervention(additions)

    result = riebench.edit(RED, BLUE, region="heart", method=Mean(), engine=engine)
    assert result.scores["method"] == "mean-difference" and result.scores["injected_norm"] > 0
    still = riebench.edit(RED, BLUE, region="heart", method=Mean(strength=0.0), engine=engine)
    assert still.intervened.tobytes() == still.original.tobytes()


@pytest.mark.slow
def test_one_image_of_a_prompt_with_features_of_ones_choice(engine):
    """No grounder and no judge is needed, and nothing but what is added changes."""
    plain = riebench.edit(RED, BLUE, region="heart", method="noop", seed=5, engine=engine).original
    bare = Engine(engine.generation)
    assert riebench.generate(RED, seed=5, engine=bare).tobytes() == plain.tobytes()
    pushed = bare.generation.intervention({"up.0.1": {12: 300.0}, "mid.0": {3: -200.0}})
    assert pushed.features == {"mid.0": 1, "up.0.1": 1}
    shown = riebench.generate(RED, seed=5, intervention=pushed, engine=bare)
    assert shown.size == plain.size and shown.tobytes() != plain.tobytes()
    dictionary = bare.generation.dictionary("up.0.1")
    values = 300.0 * dictionary.W_dec[12].detach()
    one = bare.generation.intervention({"up.0.1": {12: 300.0}})
    torch.testing.assert_close(one.additions[Site("up.0.1")].dense(64)[0], values.expand(64, -1), atol=1e-4, rtol=1e-5)
    assert bare._regions is None and bare._scorer is None


@pytest.mark.slow
def test_what_cannot_be_edited_says_why(engine):
    with pytest.raises(riebench.UserError, match="no region found"):
        riebench.edit(RED, BLUE, region="hat", engine=engine)
    with pytest.raises(riebench.UserError, match="did you mean 'sae'"):
        riebench.edit(RED, BLUE, method="sea", engine=engine)
    with pytest.raises(riebench.UserError, match="unknown block"):
        riebench.edit(RED, BLUE, blocks=["up.7.7"], engine=engine)
    with pytest.raises(riebench.UserError, match="magenta"):
        riebench.edit(RED, RED.replace("red", "magenta"), region="heart", engine=engine)


def test_names_are_found_and_unknown_ones_are_not():
    assert set(riebench.__all__) <= {name for name in riebench.__all__ if getattr(riebench, name)}
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = riebench.runn
