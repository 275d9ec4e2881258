"""What images lose when a block's update is replaced by its reconstruction: the dictionary's error as it is seen.

The same is done with two updates that say nothing of the image, zero and the mean: their loss is what there is to
recover, as the loss recovered of SAEs of language models is measured (Rajamanoharan et al. 2024, arXiv 2407.14435).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from riebench.errors import UserError
from riebench.lens import Lens, Site, block_module
from riebench.metrics.models import ScoringModels
from riebench.progress import Progress
from riebench.rewriting import Reconstruct
from riebench.sampling import Request, Sampler
from riebench.scoring import eight_bits
from sae_models.dictionary import Dictionary
from sae_models.pca import PCA

RECONSTRUCTION, ZERO, MEAN = "reconstruction", "zero", "mean"
ALL_BLOCKS = "all"


def reconstruction_effect(
    sampler: Sampler,
    dictionaries: Mapping[str, Dictionary],
    prompts: Sequence[str],
    seeds: Sequence[int],
    models: ScoringModels,
) -> pd.DataFrame:
    """How far images move when the update of a block is replaced at every step, in every row that the U-Net sees.

    dictionaries: block -> its dictionary, on the sampler's device. Image i is of prompt i and seed i. A row for each
    image, for each block and for "all" of them together where there are several, and for each replacement:

    - `block`, `replacement` ("reconstruction", "zero", "mean"), `prompt`, `seed`;
    - `lpips`, `clip_image`: LPIPS-Alex and CLIP cosine to the undisturbed image from the same noise.

    "mean" is the mean update of a block over all these images, undisturbed: their steps, cells and rows; under guidance
    the rows are those with and without the prompt. Raises `UserError` where there is nothing to generate, or a
    dictionary does not fit its block.
    """
    if not dictionaries or not prompts or len(prompts) != len(seeds):
        raise UserError(
            f"{len(dictionaries)} dictionaries, {len(prompts)} prompts and {len(seeds)} seeds cannot be evaluated",
            remedy="give at least one dictionary, and a seed for each prompt",
        )
    for block, dictionary in dictionaries.items():
        channels = block_module(sampler.unet, block).config.in_channels
        if dictionary.width != channels:
            raise UserError(
                f"the dictionary of {block} codes {dictionary.width} values, the block's update has {channels}",
                remedy="use a dictionary that was trained on this block",
            )
    requests = [Request(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    places = {block: (block,) for block in dictionaries}
    if len(dictionaries) > 1:
        places[ALL_BLOCKS] = tuple(dictionaries)
    rows = []
    with Progress(
        f"reconstructing on {sampler.backbone.name}", total=len(requests) * (1 + 3 * len(places)), unit="image"
    ) as progress:
        originals, means = _undisturbed(sampler, requests, tuple(dictionaries), progress)
        replacements = {
            RECONSTRUCTION: dictionaries,
            ZERO: {block: _constant(torch.zeros_like(mean_c)) for block, mean_c in means.items()},
            MEAN: {block: _constant(mean_c) for block, mean_c in means.items()},
        }
        done = len(requests)
        for place, blocks in places.items():
            for name, replacement in replacements.items():
                hooks = {Site(block): (Reconstruct(replacement[block]).delta,) for block in blocks}
                for start, chunk in _chunks(sampler, requests):
                    with Lens(sampler.unet, rewrites=hooks):
                        images = eight_bits(torch.stack([sample.image for sample in sampler.generate(chunk)]))
                    rows += [
                        {"block": place, "replacement": name, "prompt": request.prompt, "seed": request.seed} | scores
                        for request, scores in zip(
                            chunk, _scores(models, images, originals[start : start + len(chunk)]), strict=True
                        )
                    ]
                    done += len(chunk)
                    progress.update(done)
    return pd.DataFrame(rows)


def summarise(effect: pd.DataFrame) -> pd.DataFrame:
    """Means over the images of `reconstruction_effect`, indexed by (block, replacement), in its order.

    `lpips`, `clip_image`, and `recovered`: the share of the LPIPS of zero updates that is gone,
    (LPIPS_zero - LPIPS) / LPIPS_zero, of the means; 1 for images that do not move, NaN where zero moves none.
    """
    means = effect.groupby(["block", "replacement"], sort=False)[["lpips", "clip_image"]].mean()
    zero = means["lpips"].xs(ZERO, level="replacement").reindex(means.index.get_level_values("block")).to_numpy()
    return means.assign(recovered=((zero - means["lpips"]) / zero).where(zero > 0))


def _undisturbed(
    sampler: Sampler, requests: Sequence[Request], blocks: Sequence[str], progress: Progress
) -> tuple[Tensor, dict[str, Tensor]]:
    """(Images `[n, 3, height, width]`, block -> its mean update `[C]`, float32 on the sampler's device)."""
    images, sums = [], dict.fromkeys(blocks, 0.0)
    for start, chunk in _chunks(sampler, requests):
        for sample in sampler.generate(chunk, [Site(block) for block in blocks]):
            images.append(sample.image)
            for trace in (sample.trace, sample.uncond_trace):
                for site, value_tchw in trace.items():
                    sums[site.block] += value_tchw.double().mean(dim=(0, 2, 3))
        progress.update(start + len(chunk))
    count = len(requests) * (2 if sampler.backbone.guided else 1)
    return eight_bits(torch.stack(images)), {
        block: (sum_c / count).float().to(sampler.device) for block, sum_c in sums.items()
    }


def _constant(vector_c: Tensor) -> Dictionary:
    """The dictionary without features, which codes every row as one vector `[C]`."""
    return PCA(vector_c.new_zeros(0, len(vector_c)), vector_c)


def _chunks(sampler: Sampler, requests: Sequence[Request]) -> Iterator[tuple[int, Sequence[Request]]]:
    """(Number of the first, requests) of a batch each."""
    start = 0
    while start < len(requests):
        chunk = requests[start : start + sampler.batch_size]
        yield start, chunk
        start += len(chunk)


def _scores(models: ScoringModels, images_bchw: Tensor, originals_bchw: Tensor) -> list[dict[str, float]]:
    """LPIPS and CLIP cosine of each image to its original."""
    lpips = models.lpips.distance(images_bchw, originals_bchw).double().tolist()
    clip = (models.clip.images(images_bchw) * models.clip.images(originals_bchw)).sum(axis=1).tolist()
    return [{"lpips": distance, "clip_image": cosine} for distance, cosine in zip(lpips, clip, strict=True)]
