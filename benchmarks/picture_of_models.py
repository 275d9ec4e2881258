"""docs/tinyworld.png: held-out prompts beside what tinyworld's three samplers make of them, two noises each.

python benchmarks/picture_of_models.py [--out docs/tinyworld.png]     about a minute on two cores
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from riebench.backbones.table import BACKBONES
from riebench.core.files import replacing
from riebench.core.pictures import to_picture
from riebench.dictionaries.prompts import world_prompts
from riebench.generation.sampler import Request, load_sampler
from riebench.tinyworld_build.evaluate import GENERATORS

PROMPTS, SEEDS, PROMPT_SEED = 6, (2, 5), 4
SIDE, GAP, TEXT, HEAD = 128, 8, 250, 34


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/tinyworld.png"))
    arguments = parser.parse_args()
    prompts = world_prompts(PROMPTS, PROMPT_SEED, "held_out")
    step = SIDE + GAP
    width = TEXT + len(GENERATORS) * (len(SEEDS) * step + GAP)
    sheet = Image.new("RGB", (width, HEAD + PROMPTS * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, prompt in enumerate(prompts):
        text = "\n".join(textwrap.wrap(prompt, 30))
        draw.text((GAP, HEAD + row * step + SIDE // 2), text, "black", font, anchor="lm")
    for number, name in enumerate(GENERATORS):
        left = TEXT + number * (len(SEEDS) * step + GAP)
        draw.text((left, GAP), name, "black", font)
        requests = [Request(prompt, seed) for prompt in prompts for seed in SEEDS]
        samples = load_sampler(BACKBONES.get(name), torch.device("cpu"), len(requests)).generate(requests)
        for index, sample in enumerate(samples):
            row, column = divmod(index, len(SEEDS))
            picture = to_picture(sample.image).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + column * step, HEAD + row * step))
    with replacing(arguments.out) as temporary:
        sheet.save(temporary, optimize=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
