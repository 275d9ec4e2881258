"""Saving and loading the weights of tinyworld's small models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load, save
from torch import nn

from riebench.core.errors import UserError
from riebench.core.files import write_bytes
from riebench.core.memory import is_out_of_memory, room_for

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong in reading a shipped file into a `UserError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing", remedy="install riebench again, or train tinyworld") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {reason})",
            remedy="the file is broken or of another version: install riebench again, or train tinyworld",
        ) from error


def save_weights(model: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes the model's state as safetensors, whole or not at all, its floating-point values as `dtype`."""
    state = {
        name: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    write_bytes(path, save(state))


def load_weights(model: Model, path: Path, device: torch.device | str = "cpu") -> Model:
    """Loads the state of a safetensors file into `model`, which it returns frozen and in evaluation mode on `device`.

    Raises `UserError` naming the file where it is missing, broken, or made for another architecture, and where there is
    no room for it.
    """
    with room_for(f"tinyworld's {Path(path).name}", device):
        with reading(path):
            model.load_state_dict(load(Path(path).read_bytes()))
        return model.eval().requires_grad_(False).to(device)
