"""Indexing: learns from many generations which features of a dictionary go with which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.backbones.loading import choose_device
from riebench.backbones.own import backbone_from
from riebench.backbones.table import BACKBONES
from riebench.core.claims import claim_folder, refuse_others
from riebench.core.errors import UserError
from riebench.core.files import named_path
from riebench.core.progress import Progress
from riebench.dictionaries.prompts import CAPTIONS, EDITS, read_prompts
from riebench.generation.sampler import Request, Sampler, load_sampler
from riebench.methods.text_index import TextIndex, cache_folder, index_file, save_text_index
from sae_models import index
from sae_models.dictionary import Dictionary

RIDGE = 0.01  # times the text vectors' mean variance, added to the variance in every direction
FIRST_SEED = 30_000  # of the generations that an index is built from; dictionaries were trained on seeds below
BATCH = 32
KIND = "folder of text indices"
ROWS = 2**14  # the most vectors encoded at once: 5120 features of them are 0.3 GB


@torch.no_grad()
def build_text_index(
    sampler: Sampler, dictionaries: Mapping[str, Dictionary], prompts: Sequence[str], seed: int, site: str = "update"
) -> dict[str, TextIndex]:
    """Returns block -> the index of its dictionary, from one generation a prompt, prompt i from the noise of seed + i.

    dictionaries: block -> dictionary, on the sampler's device; site: the kind of site that they read. A feature's
    direction is the ridge regression of its mean activation a_p over a picture's cells and steps on the prompts'
    vectors t_p (`Sampler.text_vector`), both centred: (sum t t^T + r I)^-1 sum a t, of unit length. Dividing by the
    covariance of the text keeps a feature from answering to words that merely stand beside its own. The autoencoder of
    the pipeline is not run, and no more than a batch of traces is held. Raises `UserError` for fewer than two prompts,
    and where a dictionary does not fit its block.
    """
    if len(prompts) < 2:
        raise UserError(f"{len(prompts)} prompts show no contrast", remedy="give some thousands")
    sites = sampler.blocks.sites(dictionaries, site)
    for place in sites:
        width, channels = dictionaries[place.block].width, sampler.blocks.width(place)
        index.refuse_width(place.block, width, channels, sampler.backbone.name)
    text = _Moments()
    sums = {block: _FeatureSums() for block in dictionaries}
    with Progress("relating features to words", total=len(prompts), unit="prompt") as progress:
        for start in range(0, len(prompts), sampler.batch_size):
            chunk = prompts[start : start + sampler.batch_size]
            text_pe = torch.stack([sampler.text_vector(prompt) for prompt in chunk]).double()
            text.add(text_pe, text_pe)
            traces = sampler.trace([Request(prompt, seed + start + i) for i, prompt in enumerate(chunk)], sites)
            for site in sites:
                rows_pnc = torch.stack([trace[site].flatten(0, 1) for trace in traces])
                pictures = max(1, ROWS // rows_pnc.shape[1])
                for some_pnc, some_pe in zip(rows_pnc.split(pictures), text_pe.split(pictures), strict=True):
                    rows = some_pnc.flatten(0, 1).float().to(sampler.device)
                    z_pnf = dictionaries[site.block].encode(rows).unflatten(0, some_pnc.shape[:2])
                    sums[site.block].add(z_pnf, some_pe)
            progress.update(start + len(chunk))
    covariance = text.covariance()
    ridged = covariance + RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    return {block: found.index(ridged) for block, found in sums.items()}


class _Moments:
    """Keeps running sums of pairs of vectors x `[p, m]` and y `[p, n]`, float64."""

    def __init__(self) -> None:
        self.count, self.x, self.y, self.xy = 0, 0.0, 0.0, 0.0

    def add(self, x_pm: Tensor, y_pn: Tensor) -> None:
        self.count += len(x_pm)
        self.x, self.y, self.xy = self.x + x_pm.sum(0), self.y + y_pn.sum(0), self.xy + x_pm.T @ y_pn

    def covariance(self) -> Tensor:
        """Returns the covariance `[m, n]`."""
        return self.xy / self.count - torch.outer(self.x / self.count, self.y / self.count)


class _FeatureSums:
    """Sums over pictures what one block's index is made of."""

    def __init__(self) -> None:
        self.moments = _Moments()
        self.total_f, self.cells_f, self.pictures_f = 0.0, 0.0, 0.0

    def add(self, z_pnf: Tensor, text_pe: Tensor) -> None:
        """Adds the features of some pictures at every cell and step, summed where they are, and their prompts'
        vectors."""
        fires_pnf = z_pnf > 0
        self.moments.add(z_pnf.mean(1, dtype=torch.float64).cpu(), text_pe)
        self.total_f = self.total_f + z_pnf.sum((0, 1), dtype=torch.float64).cpu()
        self.cells_f = self.cells_f + fires_pnf.sum((0, 1)).cpu()
        self.pictures_f = self.pictures_f + fires_pnf.any(1).sum(0).cpu()

    def index(self, ridged_ee: Tensor) -> TextIndex:
        """Returns the index of what was added. ridged_ee: covariance of the prompts' vectors with the ridge."""
        slopes_fe = torch.linalg.solve(ridged_ee, self.moments.covariance().T).T
        unit_fe = slopes_fe / slopes_fe.norm(dim=1, keepdim=True).clamp_min(1e-300)
        fired = self.pictures_f > 0
        return TextIndex(
            directions=(unit_fe * fired[:, None]).float(),
            typical=(self.total_f / self.cells_f.clamp_min(1)).float(),
            active=(self.pictures_f / self.moments.count).float(),
        )


def index_text(
    backbone: str | Mapping[str, Any],
    prompts: int | str | Path = 4096,
    out: Path | None = None,
    device: str = "auto",
    *,
    blocks: Sequence[str] = (),
    dictionary: str = "",
    dictionaries: str | Path = "",
    site: str = "",
) -> dict[str, Path]:
    """Builds and writes the index of each dictionary that runs on a backbone are given. Returns block -> its file.

    backbone: a name, or one's own as in a run's YAML. prompts: how many, of captions of tinyworld's training scenes or,
    on other models, of what the dev split of the shipped edits shows (`riebench.dictionaries.edit_prompts`); or a
    source as `read_prompts` takes it. out: folder to write to (default: the user's cache, where runs look, for released
    dictionaries too). An index is known by its dictionary, so one that was made on a model in one step serves its runs
    in more. blocks, dictionary, dictionaries, site: as in a run's configuration. Raises `UserError` where there are no
    such prompts or dictionaries, and where `out` holds something else.
    """
    found = BACKBONES.get(backbone) if isinstance(backbone, str) else backbone_from(backbone, "backbone")
    if out is not None:
        refuse_others(named_path(out), KIND)
    site, root = site or found.family.default_site, named_path(dictionaries) if dictionaries else None
    if isinstance(prompts, int):
        source = CAPTIONS if found.judges == "tinyworld" else EDITS
        texts = read_prompts(source, count=prompts, seed=FIRST_SEED)
    else:
        texts = read_prompts(str(prompts))
    where, folder = choose_device(device), cache_folder() if out is None else named_path(out)
    named = found.family.in_order(blocks or found.blocks)
    entries = {block: index.find(found.trained_on, block, dictionary or None, root=root, site=site) for block in named}
    opened = {block: index.open(entry, root=root, device=str(where)) for block, entry in entries.items()}
    indices = build_text_index(load_sampler(found, where, BATCH), opened, texts, FIRST_SEED, site)
    paths = {block: folder / index_file(index.fingerprint(entry, root=root)) for block, entry in entries.items()}
    if out is not None:
        claim_folder(out, KIND)
    for block, path in paths.items():
        save_text_index(path, indices[block])
    return paths
