"""Small batches to score."""

import torch

from riebench.edits.edit import Edit
from riebench.metrics import ScoreBatch


def make_edit(original="red [circle]", edited="blue [square]"):
    return Edit("e", "change_object", original, edited, "circle", "square")


def make_batch(intervened, original=None, edited=None, edits=None, outside=None, regions=None):
    b, _, h, w = intervened.shape
    return ScoreBatch(
        intervened=intervened,
        original=intervened if original is None else original,
        edited=intervened if edited is None else edited,
        edits=edits or [make_edit()] * b,
        outside=torch.ones(b, h, w, dtype=torch.bool) if outside is None else outside,
        regions=torch.zeros(b, 2, h, w, dtype=torch.bool) if regions is None else regions,
    )


def images(seed, b=3, size=64):
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(seed))
