"""SDXL's four blocks under test, and where they are."""

from riebench.backbones.sdxl import SDXL

BLOCK_NAMES = SDXL.default_blocks
BLOCKS = {block: SDXL.places[block].path for block in BLOCK_NAMES}
