"""What images lose when a block's update is replaced by its reconstruction: the dictionary's error as it is seen.

The same is done with two updates that say nothing of the image, zero and the mean: their loss is what there is to
recover, as the loss recovered of SAEs of language models is measured (Rajamanoharan et al. 2024, arXiv 2407.14435).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from riebench.backbones.family import Family, Site, blocks_text
from riebench.core.errors import UserError
from riebench.core.pictures import eight_bits
from riebench.core.progress import Progress
from riebench.dictionaries.kept import Kept
from riebench.generation.replacement import Scope, recorded_outputs, replaced
from riebench.generation.sampler import Request, Sample, Sampler
from riebench.metrics.models import ScoringModels
from sae_models.dictionary import Dictionary
from sae_models.pca import PCA

RECONSTRUCTION, ZERO, MEAN = "reconstruction", "zero", "mean"
WHERE = ["blocks", "branch", "window"]
CONDITION = ["blocks", "dictionary", "replacement", "branch", "window"]


def reconstruction_effect(
    sampler: Sampler,
    dictionaries: Mapping[str, Mapping[str, Dictionary]],
    prompts: Sequence[str],
    seeds: Sequence[int],
    models: ScoringModels,
    scopes: Sequence[Scope] = (Scope(),),
    site: str = "update",
    kept: Kept | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Returns how far images move when the updates of blocks are replaced.

    dictionaries: name -> block -> a dictionary, on the sampler's device. Image i is of prompt i and seed i. Each block
    of a name is replaced alone, and all of them together where there are several. There is a row for each scope, for
    each of these, for each image and replacement:

    - `blocks` (joined by "+"), `dictionary` (its name; "" of zero and mean, which are the same for all of them),
      `replacement` ("reconstruction", "zero", "mean"), `branch`, `window`, `prompt`, `seed`;
    - `lpips`, `clip_image`: LPIPS-Alex and CLIP cosine to the undisturbed image from the same noise.

    "mean" is the mean update of a block over all these images, undisturbed: their steps, cells and rows; under guidance
    the rows are those with and without the prompt. kept: where rows are written now and then, and taken up again;
    quiet: show no progress.
    Raises `UserError` where there is nothing to generate, a dictionary
    does not fit its block, or the backbone has no such branch or step.
    """
    _check(sampler, dictionaries, prompts, seeds, scopes)
    requests = [Request(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    places = _places(dictionaries, sampler.backbone.family)
    conditions = num_conditions(dictionaries, scopes, sampler.backbone.family)
    kept, name = kept or Kept(), f"images-{sampler.backbone.name}"
    before, rows = list(kept.read(name) or []), []
    done = len(before)
    with Progress(
        f"replacing on {sampler.backbone.name}", len(requests) * (1 + conditions), done, unit="image", quiet=quiet
    ) as progress:
        undisturbed = []
        blocks = sampler.backbone.family.in_order(block for by_block in dictionaries.values() for block in by_block)
        for chunk in _chunks(sampler, requests):
            undisturbed.append(_generate_undisturbed(sampler, chunk, sampler.blocks.sites(blocks, site)))
            progress.update(done := done + len(chunk))
        means = _means(undisturbed, sampler.device)
        for scope in scopes:
            for labels, replacements in _replacements(dictionaries, places, means):
                for original in undisturbed:
                    known = before[len(rows) : len(rows) + len(original.requests)]
                    if len(known) == len(original.requests):
                        rows += known
                        continue
                    before = []
                    with replaced(sampler, replacements, scope, original.outputs, site):
                        images = _images(sampler.generate(original.requests))
                    rows += [
                        labels | vars(scope) | {"prompt": request.prompt, "seed": request.seed} | scores
                        for request, scores in zip(
                            original.requests, _scores(models, images, original.images), strict=True
                        )
                    ]
                    progress.update(done := done + len(images))
                    if kept.is_due:
                        kept.write(name, rows)
    return pd.DataFrame(rows)


def num_conditions(
    dictionaries: Mapping[str, Mapping[str, Dictionary]], scopes: Sequence[Scope], family: Family
) -> int:
    """Returns how many pictures `reconstruction_effect` makes with updates replaced, of each prompt."""
    return len(scopes) * sum(2 + len(names) for names in _places(dictionaries, family).values())


def summarise(effect: pd.DataFrame) -> pd.DataFrame:
    """Returns the means over the images of `reconstruction_effect`, a row for each of its `CONDITION`s, in its order.

    `lpips`, `clip_image`, and `recovered`: the share of the LPIPS of zero updates in the same scope that is gone,
    (LPIPS_zero - LPIPS) / LPIPS_zero, of the means; 1 for images that do not move, NaN where zero moves none.
    """
    means = effect.groupby(CONDITION, sort=False)[["lpips", "clip_image"]].mean().reset_index()
    zero = means[means["replacement"] == ZERO].set_index(WHERE)["lpips"]
    lost = means[WHERE].join(zero, on=WHERE)["lpips"]
    return means.assign(recovered=((lost - means["lpips"]) / lost).where(lost > 0))


@dataclass(frozen=True)
class _Undisturbed:
    """Holds what is known of a batch of images of which nothing is replaced."""

    requests: Sequence[Request]
    images: Tensor
    """`[n, 3, height, width]`."""
    sums: Mapping[str, Tensor]
    """Block -> the sum `[C]` over images and rows of the mean update over steps and cells, float64."""
    num_rows: int
    outputs: Sequence[Tensor]
    """The denoiser's, a step each; none where memory ran out and the batch was halved."""


def _generate_undisturbed(sampler: Sampler, requests: Sequence[Request], sites: Sequence[Site]) -> _Undisturbed:
    with recorded_outputs(sampler.denoiser) as outputs:
        samples = sampler.generate(requests, sites)
    traces = [trace for sample in samples for trace in (sample.trace, sample.uncond_trace) if trace]
    sums = {site.block: sum(trace[site].double().mean(dim=(0, 1)) for trace in traces) for site in sites}
    whole = len(outputs) == sampler.backbone.steps
    return _Undisturbed(requests, _images(samples), sums, len(traces), outputs if whole else ())


def _means(undisturbed: Sequence[_Undisturbed], device: torch.device) -> dict[str, Tensor]:
    """Returns block -> its mean update `[C]`, float32 on a device."""
    count = sum(each.num_rows for each in undisturbed)
    sums = {block: sum(each.sums[block] for each in undisturbed) for block in undisturbed[0].sums}
    return {block: (sum_c / count).float().to(device) for block, sum_c in sums.items()}


def _places(dictionaries: Mapping[str, Mapping[str, Dictionary]], family: Family) -> dict[tuple[str, ...], list[str]]:
    """Returns blocks that are replaced together -> the names that have a dictionary of each."""
    places: dict[tuple[str, ...], list[str]] = {}
    for name, by_block in dictionaries.items():
        blocks_of_name = family.in_order(by_block)
        for blocks in dict.fromkeys([*((block,) for block in blocks_of_name), blocks_of_name]):
            places.setdefault(blocks, []).append(name)
    return places


def _replacements(
    dictionaries: Mapping[str, Mapping[str, Dictionary]],
    places: Mapping[tuple[str, ...], Sequence[str]],
    means: Mapping[str, Tensor],
) -> Iterator[tuple[dict[str, str], dict[str, Dictionary]]]:
    """Yields (what a row says of it, block -> what codes its update) of each replacement at each place."""
    for blocks, names in places.items():
        where = {"blocks": blocks_text(blocks)}
        for name in names:
            labels = where | {"dictionary": name, "replacement": RECONSTRUCTION}
            yield labels, {block: dictionaries[name][block] for block in blocks}
        for replacement, share in ((ZERO, 0), (MEAN, 1)):
            labels = where | {"dictionary": "", "replacement": replacement}
            yield labels, {block: _constant(share * means[block]) for block in blocks}


def _constant(vector_c: Tensor) -> Dictionary:
    """Returns the dictionary without features, which codes every row as one vector `[C]`."""
    return PCA(vector_c.new_zeros(0, len(vector_c)), vector_c)


def _chunks(sampler: Sampler, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    """Yields the requests of a batch each."""
    start = 0
    while start < len(requests):
        chunk = requests[start : start + sampler.batch_size]
        yield chunk
        start += len(chunk)


def _images(samples: Sequence[Sample]) -> Tensor:
    return eight_bits(torch.stack([sample.image for sample in samples]))


def _scores(models: ScoringModels, images_bchw: Tensor, originals_bchw: Tensor) -> list[dict[str, float]]:
    """Returns LPIPS and CLIP cosine of each image to its original."""
    lpips = models["lpips"].distance(images_bchw, originals_bchw).double().tolist()
    clip = (models["clip"].images(images_bchw) * models["clip"].images(originals_bchw)).sum(axis=1).tolist()
    return [{"lpips": distance, "clip_image": cosine} for distance, cosine in zip(lpips, clip, strict=True)]


def _check(
    sampler: Sampler,
    dictionaries: Mapping[str, Mapping[str, Dictionary]],
    prompts: Sequence[str],
    seeds: Sequence[int],
    scopes: Sequence[Scope],
) -> None:
    """Raises `UserError` for what `reconstruction_effect` cannot do."""
    given = dictionaries and all(dictionaries.values()) and scopes and prompts
    if not given or len(prompts) != len(seeds):
        raise UserError(
            f"{len(dictionaries)} dictionaries, {len(scopes)} scopes, {len(prompts)} prompts and {len(seeds)} seeds "
            "cannot be evaluated",
            remedy="give at least one dictionary of a block, one scope, and a seed for each prompt",
        )
    for scope in scopes:
        scope.steps(sampler.backbone)
    for name, by_block in dictionaries.items():
        for block, dictionary in by_block.items():
            channels = sampler.blocks.width(Site(block))
            if dictionary.width != channels:
                raise UserError(
                    f"the dictionary {name} of {block} codes {dictionary.width} values, the block's update has "
                    f"{channels}",
                    remedy="use a dictionary that was trained on this block",
                )
