"""How much memory live tensors take."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def only_new_objects() -> Iterator[None]:
    """While open, what lives already is not looked at, which is most of what an interpreter with torch holds."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def live_bytes() -> int:
    """Returns the bytes of the storages of all dense tensors on the CPU, each storage once."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor]
    tensors = [t for t in tensors if t.layout == torch.strided and t.device.type == "cpu"]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
