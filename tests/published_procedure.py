"""The published RIEBench procedure for one case, written out slowly: the peer that the reference mode is checked by.

Nothing here comes from riebench's engine: plain hooks on a diffusers pipeline, one image at a time, every image made
again for every setting. Facts and words are those of `docs/protocol.md` (edited and original, not "source" and
"target"). `published` is the whole procedure; the functions above it are its parts, each on plain tensors.

What is followed: wendlerc/RIEBench at 6338fd2 and surkovv/sdxl-unbox at 4152bc9; in deleting objects the former's
616990f of 2025-10-21, "fix deletion intervention", and not what it replaced.

Shapes: T steps, C channels, h and w the grid's sides, F features (or neurons of a layer), k chosen ones, `cells` the
cells of a region in row order. A place is a block's short name, or (block, layer) for the neurons of a layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from riebench.core.files import data_folder

SEED = 42

# in the order in which features are concatenated
BLOCKS = {
    "down.2.1": "down_blocks.2.attentions.1",
    "up.0.1": "up_blocks.0.attentions.1",
    "up.0.0": "up_blocks.0.attentions.0",
    "mid.0": "mid_block.attentions.0",
}

Place = str | tuple[str, int]
Rule = Tensor | Callable[[int, Tensor], Tensor]


# ---- a pipeline and dictionaries to try it on ------------------------------------------------------------------------


@functools.cache
def sdxl_shaped_pipeline(channels: int = 1280, seed: int = 0, side: int = 16) -> StableDiffusionXLPipeline:
    """A pipeline with SDXL's modules at the four blocks, tiny elsewhere, with random weights drawn from `seed`.

    The four blocks on a grid of `side` x `side` cells with `channels` channels (a multiple of 64); latents have four
    times as many places to a side, images 32 times: 512 px for 16 cells.
    To save time the blocks have two layers and `mid.0` one. Made once for the same arguments: leave it as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # the default start of 500 million weights takes longer than ours
        unet = UNet2DConditionModel(
            sample_size=4 * side,
            block_out_channels=(32, 64, channels),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 1, [1, 2]],  # the middle takes the first of the last
            reverse_transformer_layers_per_block=[[2, 2, 1], 1, 1],
            attention_head_dim=(4, 4, channels // 64),
            norm_num_groups=16,
            cross_attention_dim=64 + 64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
            use_linear_projection=True,
        )
    unet = unet.to_empty(device="cpu")
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    folder = data_folder() / "tinyworld" / "turbo"
    tokenizers = [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]
    text = CLIPTextConfig(
        vocab_size=len(tokenizers[0]),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizers[0].model_max_length,
        bos_token_id=tokenizers[0].bos_token_id,
        eos_token_id=tokenizers[0].eos_token_id,
        pad_token_id=tokenizers[0].pad_token_id,
    )
    encoders = [CLIPTextModel(text), CLIPTextModelWithProjection(text)]
    for model in (unet, vae, *encoders):
        _fill(model, generator)
    vae.decoder.conv_out.weight.mul_(0.8)  # few pixels are cut at 0 and 1
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            timestep_spacing="trailing",
        ),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _fill(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the variance, but for loud words, so that prompts differ, and for updates of order one."""
    model.eval().requires_grad_(False)
    for name, weights in model.named_parameters():
        if weights.ndim == 1:
            weights.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        spread = weights[0].numel() ** -0.5
        if "token_embedding" in name:
            spread = 1.0
        elif "proj_out" in name:
            spread *= 0.4
        weights.uniform_(-(3**0.5) * spread, 3**0.5 * spread, generator=generator)


@dataclass
class PlainSAE:
    """A TopK sparse autoencoder: W_enc [C, F], b_lat [F], W_dec [F, C], b_pre [C]."""

    W_enc: Tensor
    b_lat: Tensor
    W_dec: Tensor
    b_pre: Tensor
    k: int

    def encode(self, x: Tensor) -> Tensor:
        """[..., C] to [..., F]."""
        values, features = ((x - self.b_pre) @ self.W_enc + self.b_lat).topk(self.k, dim=-1)
        return torch.zeros(*x.shape[:-1], len(self.b_lat)).scatter(-1, features, values.relu())


def random_sae(seed: int, channels: int = 1280, features: int = 2048, k: int = 16) -> PlainSAE:
    """Random directions; the decoder's rows have norms between 0.5 and 1.5."""
    generator = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(features, channels, generator=generator), dim=1)
    norms = 0.5 + torch.rand(features, 1, generator=generator)
    b_lat = 0.1 * torch.randn(features, generator=generator)
    b_pre = 0.1 * torch.randn(channels, generator=generator)
    return PlainSAE(directions.T.contiguous(), b_lat, directions * norms, b_pre, k)


# ---- generating, with hooks ------------------------------------------------------------------------------------------


def module_at(pipe: StableDiffusionXLPipeline, place: Place) -> nn.Module:
    """The block, or the GEGLU of one of its layers."""
    if isinstance(place, str):
        return pipe.unet.get_submodule(BLOCKS[place])
    block, layer = place
    return pipe.unet.get_submodule(f"{BLOCKS[block]}.transformer_blocks.{layer}.ff.net.0")


def neuron_places(pipe: StableDiffusionXLPipeline) -> list[Place]:
    return [(block, layer) for block in BLOCKS for layer in range(len(module_at(pipe, block).transformer_blocks))]


def generate(pipe: StableDiffusionXLPipeline, prompt: str, steps: int) -> Tensor:
    """[3, H, W] in [0, 1], from the seed of every case."""
    images = pipe(
        prompt=prompt.replace("[", "").replace("]", ""),
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="pt",
    ).images
    assert len(images) == 1
    return images[0]


@torch.no_grad()
def trace(
    pipe: StableDiffusionXLPipeline, prompt: str, steps: int, places: Iterable[Place]
) -> tuple[Tensor, dict[Place, Tensor]]:
    """The image [3, H, W], and by place the updates of a block [T, C, h, w] or the values of a layer [T, h*w, F]."""
    seen: dict[Place, list[Tensor]] = {place: [] for place in places}
    hooks = []

    def hook_for(place: Place) -> Callable:
        def hook(module, inputs, output):
            # a block is called with its input first and gives a tuple; a layer's GEGLU gives a tensor
            seen[place].append((output[0] - inputs[0] if isinstance(place, str) else output)[0].clone())

        return hook

    try:
        for place in seen:
            hooks.append(module_at(pipe, place).register_forward_hook(hook_for(place)))
        image = generate(pipe, prompt, steps)
    finally:
        for hook in hooks:
            hook.remove()
    assert all(len(values) == steps for values in seen.values())
    return image, {place: torch.stack(values) for place, values in seen.items()}


@torch.no_grad()
def intervene(
    pipe: StableDiffusionXLPipeline, prompt: str, steps: int, rules: Mapping[Place, Rule]
) -> tuple[Tensor, dict[Place, Tensor]]:
    """The image [3, H, W] with something added to each place's output, and by place what was added, [T, ...].

    rules: by place what to add at each step, [T, C, h, w] (a layer: [T, h*w, F]); or, for a block, a function of the
        step and of the running update [C, h, w] that gives it.
    """
    added: dict[Place, list[Tensor]] = {place: [] for place in rules}
    hooks = []

    def hook_for(place: Place, rule: Rule) -> Callable:
        def hook(module, inputs, output):
            step = len(added[place])
            delta = rule[step] if isinstance(rule, Tensor) else rule(step, (output[0] - inputs[0])[0])
            added[place].append(delta)
            return (output[0] + delta[None], *output[1:]) if isinstance(place, str) else output + delta[None]

        return hook

    try:
        for place, rule in rules.items():
            hooks.append(module_at(pipe, place).register_forward_hook(hook_for(place, rule)))
        image = generate(pipe, prompt, steps)
    finally:
        for hook in hooks:
            hook.remove()
    assert all(len(deltas) == steps for deltas in added.values())
    return image, {place: torch.stack(deltas) for place, deltas in added.items()}


# ---- regions and features --------------------------------------------------------------------------------------------


def region_rows(update: Tensor, mask: Tensor) -> Tensor:
    """[T, C, h, w] at the cells of `mask` [h, w]: [T, cells, C]."""
    return update[:, :, mask].transpose(1, 2)


def statistic(values: Tensor, stat: str) -> Tensor:
    """[T, cells, F] over the cells: [T, F]."""
    if stat == "mean":
        return values.mean(dim=1)
    if stat == "quantile":
        return torch.quantile(values, 0.95, dim=1)
    if stat == "max":
        return values.max(dim=1).values
    raise ValueError(f"unknown statistic {stat!r}")


def select(
    values_e: Mapping[Place, Tensor],
    values_o: Mapping[Place, Tensor],
    k: int,
    *,
    aggregate: str = "first",
    combine_blocks: bool = True,
    divide_by_norm: bool = False,
) -> tuple[dict[Place, np.ndarray], dict[Place, np.ndarray]]:
    """(on, off): by place the chosen features, on ones from the highest score down, off ones from the lowest up.

    values_e, values_o: by place the values at the cells of the edited and the original side's region, [T, cells, F].
    combine_blocks: k of each kind for all places together; otherwise k for each block (all its layers together).
    divide_by_norm: for neurons, by each one's L2 norm over the cells in each step; 0 / 0 is NaN, and stays so.
    """
    if k < 1:
        raise ValueError(f"k is {k}")
    if not combine_blocks:
        on: dict[Place, np.ndarray] = {}
        off: dict[Place, np.ndarray] = {}
        for block in dict.fromkeys(_block_of(place) for place in values_e):
            own = [place for place in values_e if _block_of(place) == block]
            chosen = select(
                {place: values_e[place] for place in own},
                {place: values_o[place] for place in own},
                k,
                aggregate=aggregate,
                divide_by_norm=divide_by_norm,
            )
            on.update(chosen[0])
            off.update(chosen[1])
        return on, off

    def summary(values: Tensor) -> Tensor:
        if divide_by_norm:
            values = values / values.norm(dim=1, keepdim=True)
        if aggregate == "first":
            return values[0].mean(dim=0)
        if aggregate == "mean":
            return values.mean(dim=0).mean(dim=0)
        raise ValueError(f"unknown aggregation {aggregate!r}")

    mu_e = torch.cat([summary(values) for values in values_e.values()])
    mu_o = torch.cat([summary(values_o[place]) for place in values_e])
    score = mu_e / mu_e.sum() - mu_o / mu_o.sum()
    order = np.argsort(score.to(torch.float32).numpy())
    return _split(order[-k:][::-1], values_e), _split(order[:k], values_e)


def _block_of(place: Place) -> str:
    return place if isinstance(place, str) else place[0]


def _split(numbers: np.ndarray, values: Mapping[Place, Tensor]) -> dict[Place, np.ndarray]:
    """Numbers in the concatenation of all places, as numbers within each place, in the same order."""
    parts = {}
    start = 0
    for place, tensor in values.items():
        stop = start + tensor.shape[-1]
        parts[place] = numbers[(numbers >= start) & (numbers < stop)] - start
        start = stop
    return parts


# ---- what is added ---------------------------------------------------------------------------------------------------


def on_part(
    values_e: Tensor,
    on: np.ndarray,
    mask_e: Tensor,
    mask_o: Tensor,
    *,
    stat: str,
    keep_spatial: bool,
    placement: str,
) -> tuple[Tensor, Tensor]:
    """The on features' values [T, cells, k] and the mask [h, w] of the cells they go to, from `values_e` [T, cells, F].

    With placement "original" the statistic goes to `mask_o` whatever `keep_spatial` says.
    """
    chosen = values_e[..., on]
    if placement == "original":
        return _on_every_cell(statistic(chosen, stat), mask_o), mask_o
    if placement != "edited":
        raise ValueError(f"unknown placement {placement!r}")
    return chosen if keep_spatial else _on_every_cell(statistic(chosen, stat), mask_e), mask_e


def off_part(values_o: Tensor, off: np.ndarray, mask_o: Tensor, *, stat: str, keep_spatial: bool) -> Tensor:
    """The off features' values [T, cells, k] at the cells of `mask_o`, from `values_o` [T, cells, F]."""
    chosen = values_o[..., off]
    return chosen if keep_spatial else _on_every_cell(statistic(chosen, stat), mask_o)


def _on_every_cell(row: Tensor, mask: Tensor) -> Tensor:
    """[T, F] to [T, cells, F]."""
    return row[:, None, :].repeat(1, int(mask.sum()), 1)


def static_delta(
    z_e: Tensor,
    z_o: Tensor,
    W_dec: Tensor,
    on: np.ndarray,
    off: np.ndarray,
    mask_e: Tensor,
    mask_o: Tensor,
    *,
    strength: float,
    stat: str = "mean",
    keep_spatial: bool = True,
    placement: str = "edited",
) -> Tensor:
    """What a block's static intervention adds, [T, C, h, w]; z_e, z_o are the latents at the regions, [T, cells, F]."""
    z_on, place = on_part(z_e, on, mask_e, mask_o, stat=stat, keep_spatial=keep_spatial, placement=placement)
    z_off = off_part(z_o, off, mask_o, stat=stat, keep_spatial=keep_spatial)
    delta = torch.zeros(len(z_e), W_dec.shape[1], *mask_e.shape)
    delta[:, :, place] += (strength * z_on @ W_dec[on]).transpose(1, 2)
    delta[:, :, mask_o] -= (strength * z_off @ W_dec[off]).transpose(1, 2)
    return delta


def adaptive_rule(
    z_on: Tensor,
    place: Tensor,
    sae: PlainSAE,
    on: np.ndarray,
    off: np.ndarray,
    mask_o: Tensor,
    *,
    strength: float,
    keep_spatial: bool = True,
) -> Callable[[int, Tensor], Tensor]:
    """The function of step and running update [C, h, w] that gives what an adaptive intervention adds, [C, h, w].

    z_on: the on features' values at the cells of `place`, with the strength in them, [T, cells, k].
    """
    columns_on, columns_off = sae.W_dec[on], sae.W_dec[off]
    ratio = float(columns_on.norm(dim=1).sum() / columns_off.norm(dim=1).sum()) if len(off) else 0.0

    def rule(step: int, update: Tensor) -> Tensor:
        delta = torch.zeros_like(update)
        delta[:, place] += (z_on[step] @ columns_on).T
        z_off = sae.encode(update[:, mask_o].T)[:, off]
        if not keep_spatial:
            z_off = z_off.mean(dim=0, keepdim=True).repeat(len(z_off), 1)
        delta[:, mask_o] -= ratio * strength * (z_off @ columns_off).T
        return delta

    return rule


def dense_delta(
    update_e: Tensor,
    update_o: Tensor,
    mask_e: Tensor,
    mask_o: Tensor,
    *,
    strength: float,
    keep_spatial: bool = True,
    placement: str = "edited",
    only_add: bool = False,
) -> Tensor:
    """What a block's dense patch adds, from its updates; all [T, C, h, w]. Where a statistic is wanted, the mean."""
    mean_e = update_e[:, :, mask_e].mean(dim=2, keepdim=True)
    mean_o = update_o[:, :, mask_o].mean(dim=2, keepdim=True)
    delta = torch.zeros_like(update_o)
    if placement == "original":
        delta[:, :, mask_o] += strength * mean_e
    elif placement == "edited":
        delta[:, :, mask_e] += strength * (update_e[:, :, mask_e] if keep_spatial else mean_e)
    else:
        raise ValueError(f"unknown placement {placement!r}")
    if not only_add:
        delta[:, :, mask_o] -= strength * (update_o[:, :, mask_o] if keep_spatial else mean_o)
    return delta


def neuron_deltas(
    values_e: Mapping[Place, Tensor],
    values_o: Mapping[Place, Tensor],
    on: Mapping[Place, np.ndarray],
    off: Mapping[Place, np.ndarray],
    mask_e: Tensor,
    mask_o: Tensor,
    *,
    strength: float,
    stat: str = "mean",
    keep_spatial: bool = True,
    placement: str = "edited",
) -> dict[Place, Tensor]:
    """By layer what is added to its GEGLU's output, [T, h*w, F].

    values_e, values_o: by layer the GEGLU's raw outputs at the cells of the two regions, [T, cells, F].
    """
    if stat not in ("mean", "quantile"):
        raise ValueError(f"unknown statistic of neurons {stat!r}")
    deltas = {}
    for layer, own_e in values_e.items():
        on_values, place = on_part(
            own_e, on[layer], mask_e, mask_o, stat=stat, keep_spatial=keep_spatial, placement=placement
        )
        off_values = off_part(values_o[layer], off[layer], mask_o, stat=stat, keep_spatial=keep_spatial)
        steps, _, width = own_e.shape
        added = torch.zeros(steps, int(place.sum()), width)
        added[..., on[layer]] = strength * on_values
        removed = torch.zeros(steps, int(mask_o.sum()), width)
        removed[..., off[layer]] = strength * off_values
        deltas[layer] = torch.zeros(steps, mask_e.numel(), width)
        deltas[layer][:, place.flatten()] += added
        deltas[layer][:, mask_o.flatten()] -= removed
    return deltas


# ---- the whole procedure ---------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one case gives.

    on, off: by place the chosen features in order (empty for "steering").
    deltas: by place what was added at each step, [T, C, h, w] or [T, h*w, F]; with "sae_adaptive" as it was seen.
    on_latents: with "sae_adaptive" by block the on features' values where they were put, the strength in them,
        [T, cells, k]; empty otherwise.
    image: the intervened image, [3, H, W] in [0, 1].
    """

    on: dict[Place, np.ndarray]
    off: dict[Place, np.ndarray]
    deltas: dict[Place, Tensor]
    on_latents: dict[Place, Tensor]
    image: Tensor


@torch.no_grad()
def published(
    pipe: StableDiffusionXLPipeline,
    edited_prompt: str,
    original_prompt: str,
    mask_e: Tensor,
    mask_o: Tensor,
    *,
    category: str,
    mode: str,
    steps: int,
    strength: float,
    k: int = 0,
    stat: str = "mean",
    keep_spatial: bool = True,
    placement: str = "edited",
    only_add: bool = False,
    aggregate: str = "first",
    combine_blocks: bool = True,
    blocks: Iterable[str] = tuple(BLOCKS),
    saes: Mapping[str, PlainSAE] | None = None,
    traces: dict | None = None,
) -> Result:
    """One case from prompts and masks to the intervened image.

    mask_e, mask_o: the regions on the grid, bool [h, w]. "add object" has no use for `mask_o`, "delete object" none for
        `mask_e`: it takes the edited prompt's features inside the original image's region. Both have one region on both
        images and no use for `placement`: each value stays in its place.
    mode: sae, sae_adaptive, steering or neurons.
    only_add: nothing is taken away; "delete object" and "sae_adaptive" have no use for it.
    blocks: those in use; features are chosen among these alone.
    saes: by block, for the first two.
    traces: kept by a caller who has many settings for the same pipeline and prompts, so that each is traced once.
    """
    if mode not in ("sae", "sae_adaptive", "steering", "neurons"):
        raise ValueError(f"unknown mode {mode!r}")
    category = category.replace("_", " ")
    if category == "add object":
        mask_o, placement = mask_e, "edited"
    if category == "delete object":
        mask_e, placement, only_add = mask_o, "edited", False
    if mode == "sae_adaptive":
        only_add = False
    if not (mask_e.any() and mask_o.any()):
        raise ValueError("a region has no cells")
    where = {"keep_spatial": keep_spatial, "placement": placement}

    used = [block for block in BLOCKS if block in blocks]
    places = neuron_places(pipe) if mode == "neurons" else list(BLOCKS)
    traces = {} if traces is None else traces
    for prompt in (edited_prompt, original_prompt):
        key = (prompt, steps, mode == "neurons")
        if key not in traces:
            traces[key] = trace(pipe, prompt, steps, places)[1]
    updates_e = traces[edited_prompt, steps, mode == "neurons"]
    updates_o = traces[original_prompt, steps, mode == "neurons"]

    if mode == "steering":
        rules = {
            block: dense_delta(
                updates_e[block], updates_o[block], mask_e, mask_o, strength=strength, only_add=only_add, **where
            )
            for block in used
        }
        image, deltas = intervene(pipe, original_prompt, steps, rules)
        return Result({}, {}, deltas, {}, image)

    if mode == "neurons":
        places = [place for place in places if _block_of(place) in used]
        values_e = {layer: updates_e[layer][:, mask_e.flatten()] for layer in places}
        values_o = {layer: updates_o[layer][:, mask_o.flatten()] for layer in places}
    else:
        values_e = {block: saes[block].encode(region_rows(updates_e[block], mask_e)) for block in used}
        values_o = {block: saes[block].encode(region_rows(updates_o[block], mask_o)) for block in used}
    on, off = select(
        values_e,
        values_o,
        k,
        aggregate=aggregate,
        combine_blocks=combine_blocks,
        divide_by_norm=mode == "neurons",
    )
    if only_add:
        off = {place: numbers[:0] for place, numbers in off.items()}

    on_latents = {}
    rules = {}
    if mode == "neurons":
        rules = neuron_deltas(values_e, values_o, on, off, mask_e, mask_o, strength=strength, stat=stat, **where)
    elif mode == "sae":
        for block in used:
            rules[block] = static_delta(
                values_e[block],
                values_o[block],
                saes[block].W_dec,
                on[block],
                off[block],
                mask_e,
                mask_o,
                strength=strength,
                stat=stat,
                **where,
            )
    else:
        for block in used:
            z_on, place = on_part(values_e[block], on[block], mask_e, mask_o, stat=stat, **where)
            on_latents[block] = strength * z_on
            rules[block] = adaptive_rule(
                on_latents[block],
                place,
                saes[block],
                on[block],
                off[block],
                mask_o,
                strength=strength,
                keep_spatial=keep_spatial,
            )
    image, deltas = intervene(pipe, original_prompt, steps, rules)
    return Result(on, off, deltas, on_latents, image)
