"""Sampler: batched generation with one noise stream a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.loading import choose_dtype, load_pipeline
from riebench.backbones.table import Backbone
from riebench.core.batches import fixed_batches, halving
from riebench.core.errors import UserError
from riebench.edits.edit import strip_marks
from riebench.generation.decoding import decode_in_chunks
from riebench.generation.interventions import Addition, Intervention, window_steps
from riebench.generation.lens import Lens, Live, Part, RowAdditions
from riebench.generation.live import Rewrite
from riebench.generation.replay import Edited, FirstAddition, FirstStep, Recorder, Replay, first_output
from riebench.generation.sharing import twin_of

#: Images generated at once where nothing is asked for: on the CPU more gain nothing (`docs/performance.md`).
BATCH_SIZES = {"cpu": 16, "cuda": 32}
LARGEST_BATCH = 4096  # of images; batches are filled up, so a larger one would take memory for nothing
REMEMBERED_PROMPTS = 256  # whose embeddings are kept
#: Branch of an intervention -> branch of a row -> the sign that additions go to it with.
SIGNS = {"cond": {"cond": 1}, "uncond": {"uncond": 1}, "both": {"cond": 1, "uncond": -1}}


#: Site -> (cells, bool `[cells]`; numbers of channels, None for all) that are read there.
Picks = Mapping[Site, tuple[Tensor, Tensor | None]]
#: Site -> `[steps, n, m]` at n cells and m channels.
Values = dict[Site, Tensor]


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
    """Site -> `[steps, cells, C]`, of the row that sees the prompt; cells in reading order."""
    uncond_trace: dict[Site, Tensor] = field(default_factory=dict)
    """The same of the row without a prompt, under guidance; empty without guidance."""
    first_steps: tuple[FirstStep, ...] = ()
    """The recorded first step of each of its rows, in the order of `Backbone.branches`, where it was to be recorded."""

    def on_cpu(self) -> Sample:
        """Returns the same with image and traces on the CPU."""
        traces = ({site: value.cpu() for site, value in side.items()} for side in (self.trace, self.uncond_trace))
        return Sample(self.image.cpu(), *traces, self.first_steps)


class Sampler:
    """Generates with a pipeline of diffusers, exactly as its own `__call__` does.

    Every request has its own `torch.Generator("cpu")`, which draws the starting latents and then each step's
    ancestral noise; so a seed means the same noise in any batch. Batches are padded to `batch_size`, so a row does
    not depend on how many others there are: two requests with equal content give equal bits. Where memory runs out the
    batch size is halved, for good. Images are decoded in chunks (`riebench.generation.decoding`), and where memory runs
    out in there, only these are halved. Raises `UserError` for a batch size below 0 or above `LARGEST_BATCH`.
    """

    def __init__(self, backbone: Backbone, pipeline: DiffusionPipeline, batch_size: int = 0) -> None:
        _check_batch_size(batch_size)
        self.backbone, self.pipeline = backbone, pipeline
        self.denoiser: nn.Module = getattr(pipeline, backbone.family.denoiser)
        self.blocks = Blocks(backbone.family, self.denoiser)
        self.device = self.denoiser.device
        self.batch_size = batch_size or BATCH_SIZES.get(self.device.type, BATCH_SIZES["cpu"])
        decode_in_chunks(pipeline, backbone)
        self._texts: dict[str, dict[str, Tensor]] = {}
        self._replay = Replay(self.blocks, backbone.blocks)
        self._whole_forwards = 0

    @property
    def height(self) -> int:
        """The height of its images, in pixels."""
        return self.backbone.height or self.denoiser.config.sample_size * self.pipeline.vae_scale_factor

    @property
    def width(self) -> int:
        """The width of its images, in pixels."""
        return self.backbone.width or self.denoiser.config.sample_size * self.pipeline.vae_scale_factor

    def grids(self, blocks: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Returns block -> cells (high, wide) of its sites."""
        return self.blocks.grids(blocks, self.height, self.width, self.pipeline.vae_scale_factor)

    def twin(self) -> Sampler:
        """Returns another sampler of the same weights, for another thread. What keeps a state while it runs is its
        own."""
        if not self._replay.shares:  # counting listens to every module of the process, so before there are threads
            self._replay.count(self.generate([Request("", 0)], record=True, decode=False)[0].first_steps[0])
        family, parts = self.backbone.family, self.pipeline.components
        own = {name: twin_of(parts[name]) for name in ("scheduler", *family.tokenizers, family.denoiser)}
        pipeline = type(self.pipeline)(**{**parts, **own}, **family.options)
        pipeline.set_progress_bar_config(disable=True)
        other = Sampler(self.backbone, pipeline, self.batch_size)
        other._replay.shares = self._replay.shares
        return other

    @property
    def forwards(self) -> float:
        """The forwards of one row that were computed so far; a replayed row counts as the share that was computed."""
        return self._whole_forwards + self._replay.forwards

    def generate(
        self,
        requests: Sequence[Request],
        capture: Sequence[Site] = (),
        *,
        decode: bool = True,
        record: bool = False,
        branches: Sequence[str] = ("cond", "uncond"),
        keep_here: bool = False,
    ) -> list[Sample]:
        """Returns images of the requests, in their order.

        capture: sites to trace. Without decode, images are the latents. record: keep the first step of each sample, so
        that `regenerate` may start from it. branches: whose rows are traced. keep_here: leave images and traces on the
        device, in place of the CPU.
        """

        def work(size: int) -> list[Sample]:
            samples: list[Sample] = []
            for rows, count in fixed_batches(requests, size):
                made = self._batch(rows, capture, decode, count=count, record=record, branches=branches)
                samples += made if keep_here else [sample.on_cpu() for sample in made]
                self._whole_forwards += count * self.backbone.steps * self._rows_each
            return samples

        return self._shrinking(work)

    @torch.no_grad()
    def read(self, requests: Sequence[Request], picks: Sequence[Picks], steps: int | None = None) -> list[Values]:
        """Returns what the rows that see the prompts have at some cells and channels of sites, and nothing else, on the
        device; equal to the same values of a whole trace.

        picks: for each request, site -> (its cells, bool `[cells]`; numbers of its channels, None for all). steps: how
        many of the first steps are computed and read; None for all.
        """

        def work(size: int) -> list[Values]:
            found: list[Values] = []
            for batch, count in fixed_batches(list(zip(requests, picks, strict=True)), size):
                found += self._read(*zip(*batch, strict=True), count, steps or self.backbone.steps)
            return found

        return self._shrinking(work)

    def regenerate(self, requests: Sequence[Request], originals: Sequence[Sample]) -> Iterator[Tensor]:
        """Yields images `[3, height, width]` of requests, on the device, each equal to what `generate` makes of it,
        faster: the first step is computed from the earliest edit on, but where an intervention rewrites. originals:
        for each request the recorded sample of the same prompt and seed without an intervention; requests of one
        original share what they have in common."""
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
        """Yields images of requests whose edits depend on what is computed at that moment: nothing is replayed."""
        done = 0
        while done < len(requests):
            samples = self.generate(requests[done : done + self.batch_size], keep_here=True)
            yield from (sample.image for sample in samples)
            done += len(samples)

    def _replayed(self, requests: Sequence[Request], originals: Sequence[Sample]) -> Iterator[Tensor]:
        """Yields images of requests whose first step begins as that of their originals."""
        predictions = self._shrinking(lambda size: self._first_predictions(requests, originals, size))
        done = 0
        while done < len(requests):
            images = self._shrinking(lambda size, done=done: self._finish(requests[done:], predictions[done:], size))
            yield from images
            done += len(images)

    def trace(self, requests: Sequence[Request], capture: Sequence[Site]) -> list[dict[Site, Tensor]]:
        """Returns what `generate` captures, without decoding the images."""
        return [sample.trace for sample in self.generate(requests, capture, decode=False)]

    @property
    def _rows_each(self) -> int:
        return len(self.backbone.branches)

    def _shrinking(self, work: Callable[[int], list]) -> list:
        done, self.batch_size = halving(work, self.batch_size, f"generating with {self.backbone.name}")
        return done

    def _first_predictions(
        self, requests: Sequence[Request], originals: Sequence[Sample], size: int
    ) -> list[tuple[Tensor, ...]]:
        """Returns for each request the denoiser's output at the first step of each of its rows."""
        signed: dict[tuple[int, int], FirstAddition] = {}  # so that requests with one addition share one object

        def first(added: Addition, sign: int) -> FirstAddition:
            key = (id(added), sign)
            if key not in signed:
                channels = None if added.channels is None else added.channels.to(self.device)
                values = sign * added.values[0].to(self.device)
                signed[key] = FirstAddition(added.cells.to(self.device), values, channels, added.replaces)
            return signed[key]

        rows = [
            Edited(step, {site: first(added, sign) for site, added in self._first_additions(request).items() if sign})
            for request, original in zip(requests, originals, strict=True)
            for step, sign in zip(original.first_steps, self._signs(request), strict=True)
        ]
        found = self._replay.predict(rows, size * self._rows_each)
        return list(zip(*(found[branch :: self._rows_each] for branch in range(self._rows_each)), strict=True))

    def _finish(
        self, requests: Sequence[Request], predictions: Sequence[tuple[Tensor, ...]], size: int
    ) -> list[Tensor]:
        """Returns images of the first `size` requests, whose first step is known: the other steps, and decoding."""
        batch, count = next(fixed_batches(list(zip(requests, predictions, strict=True)), size))
        rows, given = zip(*batch, strict=True)
        first = torch.cat([prediction for branch in zip(*given, strict=True) for prediction in branch])
        self._whole_forwards += count * (self.backbone.steps - 1) * self._rows_each
        return [sample.image for sample in self._batch(list(rows), (), True, count=count, first=first)]

    @torch.no_grad()
    def _batch(
        self,
        rows: list[Request],
        capture: Sequence[Site],
        decode: bool,
        *,
        count: int,
        record: bool = False,
        branches: Sequence[str] = (),
        first: Tensor | None = None,
    ) -> list[Sample]:
        """Returns the first `count` of a batch that went through the pipeline. branches: whose rows are traced. first:
        the denoiser's output at the first step, where it is known."""
        additions, live = self._merged(rows) if first is None or self.backbone.steps > 1 else ({}, {})
        recorder = Recorder(self.blocks, self.backbone.blocks)
        starts = {branch: i * len(rows) for i, branch in enumerate(self.backbone.branches)}
        traced = [branch for branch in starts if branch in branches]
        kept = torch.cat(
            [torch.arange(starts[branch], starts[branch] + count) for branch in traced] or [torch.arange(0)]
        )
        with (
            Lens(self.blocks, dict.fromkeys(capture, lambda value: value.detach()[kept]), additions, live) as lens,
            recorder if record else nullcontext(),
            nullcontext() if first is None else first_output(self.denoiser, first),
        ):
            images = self._piped(rows, lens, output_type="pt" if decode else "latent")
        seen = lens.take()
        traces = {site: torch.stack(seen.pop(site), dim=1) for site in list(seen)}
        of = {
            branch: [{site: value[i * count + row] for site, value in traces.items()} for row in range(count)]
            for i, branch in enumerate(traced)
        }
        nothing: list[dict[Site, Tensor]] = [{}] * count
        return [
            Sample(
                image,
                of.get("cond", nothing)[i],
                of.get("uncond", nothing)[i],
                tuple(recorder.row(i + start) for start in starts.values()) if record else (),
            )
            for i, image in enumerate(images[:count].float())
        ]

    def _read(self, rows: Sequence[Request], picks: Sequence[Picks], count: int, steps: int) -> list[Values]:
        """Returns what `read` does, of the first `count` of one batch."""
        start = self.backbone.branches.index("cond") * len(rows)

        def reader(site: Site) -> Callable[[Tensor], list[Tensor | None]]:
            def read(value_bnc: Tensor) -> list[Tensor | None]:
                found: list[Tensor | None] = []
                for row, wanted in enumerate(picks[:count], start):
                    cells, channels = wanted.get(site, (None, None))
                    value = None if cells is None else value_bnc[row][cells.to(value_bnc.device)]
                    found.append(value if value is None or channels is None else value[:, channels.to(value.device)])
                return found

            return read

        sites = dict.fromkeys(site for wanted in picks[:count] for site in wanted)
        with Lens(self.blocks, {site: reader(site) for site in sites}) as lens, suppress(_Enough):
            self._piped(rows, lens, output_type="latent", stop_after=steps)
        self._whole_forwards += count * steps * self._rows_each
        seen = lens.take()
        return [
            {site: torch.stack([step[i] for step in seen[site]]) for site in wanted}
            for i, wanted in enumerate(picks[:count])
        ]

    def _piped(self, rows: Sequence[Request], lens: Lens, *, output_type: str, stop_after: int = 0) -> Tensor:
        """Returns what the pipeline makes of requests. Raises `_Enough` behind so many steps, 0 for never."""
        texts = [self._text(row.prompt) for row in rows]

        def after_step() -> None:
            if lens.step + 1 == stop_after:
                raise _Enough

        return self.run_pipeline(
            {name: torch.cat([text[name] for text in texts]) for name in texts[0]},
            [row.seed for row in rows],
            lens,
            output_type=output_type,
            after_step=after_step,
        )

    def run_pipeline(
        self,
        texts: Mapping[str, Tensor],
        seeds: Sequence[int],
        lens: Lens,
        *,
        output_type: str,
        after_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Returns what one call of the pipeline makes, with the lens told of every step.

        texts: as `Family.encode` gives them, a row for each seed. output_type: as the pipeline takes it. after_step:
        called at the end of each step, before the lens is told of the next.
        """

        def on_step_end(_pipeline, step, _timestep, tensors):
            after_step()
            lens.step = step + 1
            return tensors

        return self.pipeline(
            **texts,
            num_inference_steps=self.backbone.steps,
            guidance_scale=self.backbone.guidance,
            height=self.height,
            width=self.width,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=on_step_end,
            output_type=output_type,
        ).images

    def text_vector(self, prompt: str) -> Tensor:
        """Returns what the denoiser reads of a prompt, the mean `[e]` over its tokens, float32 on the CPU."""
        with torch.no_grad():
            return self._text(prompt)[self.backbone.family.text][0].float().mean(dim=0).cpu()

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Returns what the pipeline takes of prompts (`Family.encode`); the `[ ]` in them are not read."""
        return self.backbone.family.encode(self.pipeline, [strip_marks(prompt) for prompt in prompts])

    def _text(self, prompt: str) -> dict[str, Tensor]:
        if prompt not in self._texts:
            self._texts[prompt] = self.encode([prompt])
            for oldest in list(self._texts)[:-REMEMBERED_PROMPTS]:
                del self._texts[oldest]
        return self._texts[prompt]

    def _checked(self, request: Request) -> Intervention:
        """Returns a request's intervention, checked against the backbone; one that adds nothing where it has none."""
        intervention = request.intervention or Intervention()
        if not self.backbone.guided and intervention.branch == "uncond" and intervention.sites:
            raise UserError(
                f"{self.backbone.name} is sampled without guidance and has no unconditional row",
                remedy="use branch 'cond' or 'both'",
            )
        for site, added in intervention.additions.items():
            if len(added.values) != self.backbone.steps:
                raise UserError(
                    f"the addition at {site.name} has {len(added.values)} steps, the backbone {self.backbone.steps}",
                    remedy="plan it from a trace of this backbone",
                )
        return intervention

    def _first_additions(self, request: Request) -> Mapping[Site, Addition]:
        """Returns what a request adds at the first step."""
        intervention = self._checked(request)
        return intervention.additions if 0 in window_steps(intervention.window, self.backbone.steps) else {}

    def _signs(self, request: Request) -> tuple[int, ...]:
        """Returns how a request's additions go to each of its rows, in the order of the branches."""
        branch = request.intervention.branch if request.intervention else "cond"
        if not self.backbone.guided:
            return (1,)
        return tuple(SIGNS[branch].get(row, 0) for row in self.backbone.branches)

    def _merged(self, rows: Sequence[Request]) -> tuple[dict[Site, RowAdditions], dict[Site, list[Live]]]:
        """Returns what is added in a batch: site -> additions, on the device, and site -> functions as `Lens` takes
        them. Under guidance each branch has all rows."""
        found: dict[Site, list[Part]] = {}
        live: dict[Site, list[Live]] = {}
        for index, row in enumerate(rows):
            intervention = self._checked(row)
            steps = window_steps(intervention.window, self.backbone.steps)
            places = [(branch * len(rows) + index, sign) for branch, sign in enumerate(self._signs(row)) if sign]
            for site, added in intervention.additions.items():
                for place, sign in places:
                    rows_there = torch.full_like(added.cells, place)
                    part = Part(rows_there, added.cells, added.values, added.channels, sign, steps, added.replaces)
                    found.setdefault(site, []).append(part)
            for site, items in intervention.rewrites.items():
                live.setdefault(site, []).append(_rewriting(items, places, steps))
        batch = self._rows_each * len(rows)
        return {site: RowAdditions(batch, parts) for site, parts in found.items()}, live


class _Enough(Exception):
    """The steps that were to be read are computed."""


def _rewriting(rewrites: Sequence[Rewrite], places: Sequence[tuple[int, int]], steps: Sequence[int]) -> Live:
    """Returns the rewrites of one request as `Lens` takes them. places: its rows in the batch, each with a sign."""

    def added(value_bnc: Tensor, step: int) -> Tensor:
        found = torch.zeros_like(value_bnc)
        for place, sign in places if step in steps else ():
            found[place] = sign * sum(rewrite.delta(value_bnc[place], step) for rewrite in rewrites)
        return found

    return added


def _check_batch_size(size: int) -> None:
    if not 0 <= size <= LARGEST_BATCH:
        raise UserError(
            f"batch size {size} is too {'small' if size < 0 else 'large'}",
            remedy=f"use 1 to {LARGEST_BATCH}, or 0 for the usual one",
        )


def load_sampler(
    backbone: Backbone, device: torch.device, batch_size: int = 0, dtype: torch.dtype | None = None
) -> Sampler:
    """Returns a sampler of the backbone's pipeline on a device. Raises `UserError` for a batch size that cannot be, and
    when weights are missing or broken or there is no room for them.

    batch_size: of images generated at once; 0 takes what suits the device (`BATCH_SIZES`). dtype: of the denoiser; None
    takes the backbone's own.
    """
    _check_batch_size(batch_size)
    pipeline = load_pipeline(backbone, device, dtype or choose_dtype(backbone, device))
    return Sampler(backbone, pipeline, batch_size)
