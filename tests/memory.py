"""How much memory live tensors take."""

import gc

import torch


def live_bytes() -> int:
    """Returns the bytes of the storages of all dense tensors on the CPU, each storage once."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor]
    tensors = [t for t in tensors if t.layout == torch.strided and t.device.type == "cpu"]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
