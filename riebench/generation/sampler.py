"""Sampler: batched generation with one noise stream a case."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from riebench.backbones.loading import choose_dtype, load_pipeline
from riebench.backbones.table import Backbone
from riebench.core.batches import fixed_batches, halving
from riebench.core.errors import UserError
from riebench.edits.edit import strip_marks
from riebench.generation.interventions import Intervention, window_steps
from riebench.generation.lens import Lens, Site
from riebench.generation.live import Rewrite
from riebench.generation.replay import Edited, FirstStep, Recorder, Replay, first_output

#: Images generated at once where nothing is asked for: on the CPU more gain nothing (`docs/performance.md`).
BATCH_SIZES = {"cpu": 16, "cuda": 32}
REMEMBERED_PROMPTS = 256  # whose embeddings are kept


@dataclass(frozen=True)
class Request:
    """One image to generate."""

    prompt: str
    """The `[ ]` that mark its edited words are not read."""
    seed: int
    intervention: Intervention | None = None


@dataclass(frozen=True)
class Sample:
    """One generated image `[3, height, width]` in [0, 1], and what was captured."""

    image: Tensor
    trace: dict[Site, Tensor]
    """Site -> `[steps, C, h, w]`, of the row that sees the prompt."""
    uncond_trace: dict[Site, Tensor] = field(default_factory=dict)
    """The same of the row without a prompt, under guidance; empty without guidance."""
    first_steps: tuple[FirstStep, ...] = ()
    """The recorded first step of each of its rows, where it was to be recorded: under guidance [uncond, cond]."""


class Sampler:
    """Generates with a `StableDiffusionXLPipeline`, exactly as its own `__call__` does.

    Every request has its own `torch.Generator("cpu")`, which draws the starting latents and then each step's
    ancestral noise; so a seed means the same noise in any batch. Batches are padded to `batch_size`, so a row does
    not depend on how many others there are: two requests with equal content give equal bits. Where memory runs out the
    batch size is halved, for good.
    """

    def __init__(self, backbone: Backbone, pipeline: StableDiffusionXLPipeline, batch_size: int = 0) -> None:
        if batch_size < 0:
            raise UserError(f"batch size {batch_size} is too small", remedy="use at least 1, or 0 for the usual one")
        self.backbone, self.pipeline = backbone, pipeline
        self.device = pipeline.unet.device
        self.batch_size = batch_size or BATCH_SIZES.get(self.device.type, BATCH_SIZES["cpu"])
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}
        self._replay = Replay(pipeline.unet)
        self._whole_forwards = 0

    @property
    def unet(self):
        return self.pipeline.unet

    @property
    def height(self) -> int:
        """Of its images, in pixels."""
        return self.backbone.height or self.unet.config.sample_size * self.pipeline.vae_scale_factor

    @property
    def width(self) -> int:
        return self.backbone.width or self.unet.config.sample_size * self.pipeline.vae_scale_factor

    def twin(self) -> Sampler:
        """Another sampler of the same weights, for another thread. What keeps a state while it runs is its own."""
        if not self._replay.shares:  # counting listens to every module of the process, so before there are threads
            self._replay.count(self.generate([Request("", 0)], record=True, decode=False)[0].first_steps[0])
        parts = self.pipeline.components
        own = {name: copy.deepcopy(parts[name]) for name in ("scheduler", "tokenizer", "tokenizer_2")}
        shared = {id(value): value for value in (*self.unet.parameters(), *self.unet.buffers())}
        own["unet"] = copy.deepcopy(self.unet, memo=shared)
        pipeline = type(self.pipeline)(**{**parts, **own}, add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        other = Sampler(self.backbone, pipeline, self.batch_size)
        other._replay.shares = self._replay.shares
        return other

    @property
    def forwards(self) -> float:
        """U-Net forwards of one row that were computed so far; a replayed row counts as the share that was computed."""
        return self._whole_forwards + self._replay.forwards

    def generate(
        self, requests: Sequence[Request], capture: Sequence[Site] = (), *, decode: bool = True, record: bool = False
    ) -> list[Sample]:
        """Images of the requests, in their order.

        capture: sites to trace. Without decode, images are the latents. record: keep the first step of each sample, so
        that `regenerate` may start from it.
        """

        def work(size: int) -> list[Sample]:
            samples: list[Sample] = []
            for rows, count in fixed_batches(requests, size):
                samples += self._batch(rows, capture, decode, record=record)[:count]
                self._whole_forwards += count * self.backbone.steps * self._rows_each
            return samples

        return self._shrinking(work)

    def regenerate(self, requests: Sequence[Request], originals: Sequence[Sample]) -> Iterator[Tensor]:
        """Images `[3, height, width]` of requests, each equal to what `generate` makes of it, faster: the first step is
        computed from the earliest edit on, but where an intervention rewrites. originals: for each request the recorded
        sample of the same prompt and seed without an intervention; requests of one original share what they have in
        common."""
        if not all(original.first_steps for original in originals):
            raise ValueError("the first step of an original was not recorded")
        live = [bool(request.intervention and request.intervention.rewrites) for request in requests]
        images = {
            is_live: work(
                [request for request, it in zip(requests, live, strict=True) if it == is_live],
                [original for original, it in zip(originals, live, strict=True) if it == is_live],
            )
            for is_live, work in ((True, self._whole), (False, self._replayed))
        }
        for is_live in live:
            yield next(images[is_live])

    def _whole(self, requests: Sequence[Request], _originals: Sequence[Sample]) -> Iterator[Tensor]:
        """Images of requests whose edits depend on what the U-Net makes at that moment: nothing is replayed."""
        done = 0
        while done < len(requests):
            samples = self.generate(requests[done : done + self.batch_size])
            yield from (sample.image for sample in samples)
            done += len(samples)

    def _replayed(self, requests: Sequence[Request], originals: Sequence[Sample]) -> Iterator[Tensor]:
        """Images of requests whose first step begins as that of their originals."""
        predictions = self._shrinking(lambda size: self._first_predictions(requests, originals, size))
        done = 0
        while done < len(requests):
            images = self._shrinking(lambda size, done=done: self._finish(requests[done:], predictions[done:], size))
            yield from images
            done += len(images)

    def trace(self, requests: Sequence[Request], capture: Sequence[Site]) -> list[dict[Site, Tensor]]:
        """What `generate` captures, without decoding the images."""
        return [sample.trace for sample in self.generate(requests, capture, decode=False)]

    @property
    def _rows_each(self) -> int:
        return 2 if self.backbone.guided else 1

    def _shrinking(self, work: Callable[[int], list]) -> list:
        done, self.batch_size = halving(work, self.batch_size, f"generating with {self.backbone.name}")
        return done

    def _first_predictions(
        self, requests: Sequence[Request], originals: Sequence[Sample], size: int
    ) -> list[tuple[Tensor, ...]]:
        """For each request the U-Net's output `[1, 4, h, w]` at the first step of each of its rows."""
        signed: dict[tuple[int, int], Tensor] = {}  # so that requests with one addition share one tensor

        def first(value: Tensor, sign: int) -> Tensor:
            key = (id(value), sign)
            if key not in signed:
                signed[key] = sign * value[0].to(self.device)
            return signed[key]

        rows = [
            Edited(step, {site: first(value, sign) for site, value in self._first_additions(request).items() if sign})
            for request, original in zip(requests, originals, strict=True)
            for step, sign in zip(original.first_steps, self._signs(request), strict=True)
        ]
        found = self._replay.predict(rows, size * self._rows_each)
        return list(zip(*(found[branch :: self._rows_each] for branch in range(self._rows_each)), strict=True))

    def _finish(
        self, requests: Sequence[Request], predictions: Sequence[tuple[Tensor, ...]], size: int
    ) -> list[Tensor]:
        """Images of the first `size` requests, whose first step is known: the other steps, and decoding."""
        batch, count = next(fixed_batches(list(zip(requests, predictions, strict=True)), size))
        rows, given = zip(*batch, strict=True)
        first = torch.cat([prediction for branch in zip(*given, strict=True) for prediction in branch])
        self._whole_forwards += count * (self.backbone.steps - 1) * self._rows_each
        return [sample.image for sample in self._batch(list(rows), (), True, first=first)[:count]]

    @torch.no_grad()
    def _batch(
        self,
        rows: list[Request],
        capture: Sequence[Site],
        decode: bool,
        *,
        record: bool = False,
        first: Tensor | None = None,
    ) -> list[Sample]:
        """One batch through the pipeline. first: the U-Net's output at the first step, where it is known."""
        states, pooled = (torch.cat(parts) for parts in zip(*(self._text(row.prompt) for row in rows), strict=True))
        additions, rewrites = self._merged(rows) if first is None or self.backbone.steps > 1 else ({}, {})
        recorder = Recorder(self.unet)
        with (
            Lens(self.unet, capture, additions, rewrites) as lens,  # under guidance the rows are [uncond, cond]
            recorder if record else nullcontext(),
            nullcontext() if first is None else first_output(self.unet, first),
        ):

            def on_step_end(_pipeline, step, _timestep, tensors):
                lens.step = step + 1
                return tensors

            images = self.pipeline(
                prompt_embeds=states,
                pooled_prompt_embeds=pooled,
                num_inference_steps=self.backbone.steps,
                guidance_scale=self.backbone.guidance,
                height=self.height,
                width=self.width,
                generator=[torch.Generator("cpu").manual_seed(row.seed) for row in rows],
                callback_on_step_end=on_step_end,
                output_type="pt" if decode else "latent",
            ).images.float()
        traces = {site: value.cpu() for site, value in lens.trace.stacked().items()}
        uncond = len(rows) if self.backbone.guided else 0  # rows before those that see a prompt
        return [
            Sample(
                image,
                {site: value[uncond + i] for site, value in traces.items()},
                {site: value[i] for site, value in traces.items()} if uncond else {},
                tuple(recorder.row(i + start) for start in dict.fromkeys((0, uncond))) if record else (),
            )
            for i, image in enumerate(images.cpu())
        ]

    def text_vector(self, prompt: str) -> Tensor:
        """What the U-Net reads of a prompt, the mean `[e]` over its tokens, float32 on the CPU."""
        with torch.no_grad():
            return self._text(prompt)[0][0].float().mean(dim=0).cpu()

    def _text(self, prompt: str) -> tuple[Tensor, Tensor]:
        prompt = strip_marks(prompt)
        if prompt not in self._texts:
            states, _, pooled, _ = self.pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
            self._texts[prompt] = (states, pooled)
            for oldest in list(self._texts)[:-REMEMBERED_PROMPTS]:
                del self._texts[oldest]
        return self._texts[prompt]

    def _checked(self, request: Request) -> Intervention:
        """A request's intervention, checked against the backbone; one that adds nothing where it has none."""
        intervention = request.intervention or Intervention()
        if not self.backbone.guided and intervention.branch == "uncond" and intervention.sites:
            raise UserError(
                f"{self.backbone.name} is sampled without guidance and has no unconditional row",
                remedy="use branch 'cond' or 'both'",
            )
        for site, value in intervention.additions.items():
            if len(value) != self.backbone.steps:
                raise UserError(
                    f"the addition at {site.name} has {len(value)} steps, the backbone {self.backbone.steps}",
                    remedy="plan it from a trace of this backbone",
                )
        return intervention

    def _first_additions(self, request: Request) -> Mapping[Site, Tensor]:
        """What a request adds at the first step, `[steps, C, h, w]` of every site."""
        intervention = self._checked(request)
        return intervention.additions if 0 in window_steps(intervention.window, self.backbone.steps) else {}

    def _signs(self, request: Request) -> tuple[int, ...]:
        """How a request's additions go to each of its rows: branch "both" adds to the row with the prompt, the second,
        and takes away from the other."""
        if not self.backbone.guided:
            return (1,)
        branch = request.intervention.branch if request.intervention else "cond"
        return {"cond": (0, 1), "uncond": (1, 0), "both": (-1, 1)}[branch]

    def _merged(self, rows: list[Request]) -> tuple[dict[Site, Tensor], dict[Site, list[Callable]]]:
        """(Site -> `[rows, steps, C, h, w]`, zero where a row adds nothing; site -> functions as `Lens` takes them);
        under guidance twice as many rows."""
        merged: dict[Site, Tensor] = {}
        rewrites: dict[Site, list[Callable]] = {}
        for index, row in enumerate(rows):
            intervention = self._checked(row)
            steps = list(window_steps(intervention.window, self.backbone.steps))
            places = [(branch * len(rows) + index, sign) for branch, sign in enumerate(self._signs(row)) if sign]
            for site, value in intervention.additions.items():
                if site not in merged:
                    merged[site] = torch.zeros(self._rows_each * len(rows), *value.shape, dtype=value.dtype)
                for place, sign in places:
                    merged[site][place, steps] = sign * value[steps]
            for site, items in intervention.rewrites.items():
                rewrites.setdefault(site, []).append(_rewriting(items, places, steps))
        return {site: value.to(self.device) for site, value in merged.items()}, rewrites


def _rewriting(rewrites: Sequence[Rewrite], places: Sequence[tuple[int, int]], steps: Sequence[int]) -> Callable:
    """The rewrites of one request as `Lens` takes them. places: its rows in the batch, each with a sign."""

    def added(value_bchw: Tensor, step: int) -> Tensor:
        found = torch.zeros_like(value_bchw)
        for place, sign in places if step in steps else ():
            found[place] = sign * sum(rewrite.delta(value_bchw[place], step) for rewrite in rewrites)
        return found

    return added


def load_sampler(
    backbone: Backbone, device: torch.device, batch_size: int = 0, dtype: torch.dtype | None = None
) -> Sampler:
    """The backbone's pipeline on a device. Raises `UserError` when its weights are missing or broken.

    batch_size: of images generated at once; 0 takes what suits the device (`BATCH_SIZES`). dtype: of the U-Net; None
    takes the backbone's own.
    """
    pipeline = load_pipeline(backbone, device, dtype or choose_dtype(backbone, device))
    return Sampler(backbone, pipeline, batch_size)
