"""From named tensors to a `TopKSAE`: what must hold of them, whatever file they came from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from riebench.errors import UserError
from sae_models.topk import TopKConfig, TopKSAE


def refuse_misfit(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str, config_file: str, remedy: str
) -> None:
    """Raises `UserError` where names and shapes are not exactly those, which follow from the configuration."""
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
    if wrong:
        told = "; ".join(
            f"{name} is {found.get(name, 'missing')}, should be {shapes.get(name, 'absent')}" for name in wrong
        )
        raise UserError(f"{where} does not fit its {config_file}: {told}", remedy=remedy)


def refuse_not_finite(tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Raises `UserError` naming the tensors with NaN or infinite values."""
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise UserError(f"{where} holds NaN or infinite values in {', '.join(bad)}", remedy=remedy)


def for_inference(config: TopKConfig, tensors: Mapping[str, Tensor], device: str | torch.device) -> TopKSAE:
    """The SAE with these parameters, named and laid out as in `TopKSAE`, in float32 and without gradients."""
    with torch.device("meta"):
        sae = TopKSAE(config)
    sae.load_state_dict({name: value.float().contiguous() for name, value in tensors.items()}, assign=True)
    return sae.to(device).eval().requires_grad_(False)
