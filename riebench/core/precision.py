"""How a GPU computes in float32: with TF32, which reads factors to 10 bits behind the point, or without. Imports no
torch until it is set."""

from __future__ import annotations


def set_tf32(device_type: str, *, products: bool) -> None:
    """Says for this process whether products of matrices in float32 are computed in TF32 on a GPU; convolutions always
    are, as torch does by itself. On another device nothing is set.

    device_type: "cpu" or "cuda".
    """
    if device_type == "cuda":
        import torch

        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = products


def describe_float32(device_type: str, *, products: bool) -> dict[str, dict[str, str]]:
    """Returns what keys and manifests say of `set_tf32`; nothing where there is no choice."""
    if device_type != "cuda":
        return {}
    return {"float32": {"convolutions": "tf32", "products": "tf32" if products else "ieee"}}
