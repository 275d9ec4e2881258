"""Sampler: batched generation with one noise stream a case."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import logging as transformers_logging

from riebench.backbones import Backbone
from riebench.errors import UserError
from riebench.files import data_folder
from riebench.interventions import Intervention
from riebench.lens import Lens, Site

BATCH_SIZE = 32


@dataclass(frozen=True)
class Request:
    """One image to generate."""

    prompt: str
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


class Sampler:
    """Generates with a `StableDiffusionXLPipeline`, exactly as its own `__call__` does.

    Every request has its own `torch.Generator("cpu")`, which draws the starting latents and then each step's
    ancestral noise; so a seed means the same noise in any batch. Batches are padded to `batch_size`, so a row does
    not depend on how many others there are: two requests with equal content give equal bits.
    """

    def __init__(self, backbone: Backbone, pipeline: StableDiffusionXLPipeline, batch_size: int = BATCH_SIZE) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} is too small", remedy="use at least 1")
        self.backbone, self.pipeline, self.batch_size = backbone, pipeline, batch_size
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def unet(self):
        return self.pipeline.unet

    @property
    def device(self) -> torch.device:
        return self.pipeline.unet.device

    def generate(
        self, requests: Sequence[Request], capture: Sequence[Site] = (), *, decode: bool = True
    ) -> list[Sample]:
        """Images of the requests, in their order. capture: sites to trace. Without decode, images are the latents."""
        samples: list[Sample] = []
        for start in range(0, len(requests), self.batch_size):
            rows = list(requests[start : start + self.batch_size])
            padded = rows + [rows[-1]] * (self.batch_size - len(rows))
            samples += self._batch(padded, capture, decode)[: len(rows)]
        return samples

    def trace(self, requests: Sequence[Request], capture: Sequence[Site]) -> list[dict[Site, Tensor]]:
        """What `generate` captures, without decoding the images."""
        return [sample.trace for sample in self.generate(requests, capture, decode=False)]

    @torch.no_grad()
    def _batch(self, rows: list[Request], capture: Sequence[Site], decode: bool) -> list[Sample]:
        states, pooled = (torch.cat(parts) for parts in zip(*(self._text(row.prompt) for row in rows), strict=True))
        with Lens(self.unet, capture, self._additions(rows)) as lens:  # under guidance the rows are [uncond, cond]

            def on_step_end(_pipeline, step, _timestep, tensors):
                lens.step = step + 1
                return tensors

            images = self.pipeline(
                prompt_embeds=states,
                pooled_prompt_embeds=pooled,
                num_inference_steps=self.backbone.steps,
                guidance_scale=self.backbone.guidance,
                generator=[torch.Generator("cpu").manual_seed(row.seed) for row in rows],
                callback_on_step_end=on_step_end,
                output_type="pt" if decode else "latent",
            ).images.float()
        traces = [
            {site: value[start : start + len(rows)].cpu() for site, value in lens.trace.stacked().items()}
            for start in ((len(rows), 0) if self.backbone.guided else (0,))
        ]
        return [
            Sample(image, *({site: value[i] for site, value in trace.items()} for trace in traces))
            for i, image in enumerate(images.cpu())
        ]

    def _text(self, prompt: str) -> tuple[Tensor, Tensor]:
        if prompt not in self._texts:
            states, _, pooled, _ = self.pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
            self._texts[prompt] = (states, pooled)
        return self._texts[prompt]

    def _additions(self, rows: list[Request]) -> dict[Site, Tensor]:
        """Site -> `[rows, steps, C, h, w]`, zero where a row adds nothing; under guidance twice as many rows, first
        those without a prompt. Branch "both" adds to the row with the prompt and takes away from the other."""
        signs = {"cond": (0, 1), "uncond": (1, 0), "both": (-1, 1)} if self.backbone.guided else {}
        merged: dict[Site, Tensor] = {}
        for index, row in enumerate(rows):
            for site, value in (row.intervention.additions if row.intervention else {}).items():
                if len(value) != self.backbone.steps:
                    raise UserError(
                        f"the addition at {site.name} has {len(value)} steps, the backbone {self.backbone.steps}",
                        remedy="plan it from a trace of this backbone",
                    )
                if not self.backbone.guided and row.intervention.branch == "uncond":
                    raise UserError(
                        f"{self.backbone.name} is sampled without guidance and has no unconditional row",
                        remedy="use branch 'cond' or 'both'",
                    )
                branches = signs.get(row.intervention.branch, (1,))
                if site not in merged:
                    merged[site] = torch.zeros(len(branches) * len(rows), *value.shape, dtype=value.dtype)
                for branch, sign in enumerate(branches):
                    merged[site][branch * len(rows) + index] = sign * value
        return {site: value.to(self.device) for site, value in merged.items()}


def choose_device(name: str) -> torch.device:
    """The torch device of "auto", "cpu" or "cuda". Raises `UserError` for cuda where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {name!r}", remedy="use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use", remedy="use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def load_sampler(backbone: Backbone, device: torch.device, batch_size: int = BATCH_SIZE) -> Sampler:
    """The backbone's pipeline on a device. Raises `UserError` when its weights are missing or broken."""
    folder = data_folder() / backbone.folder if not Path(backbone.folder).is_absolute() else Path(backbone.folder)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"the weights of {backbone.name} are not at {folder}",
            remedy="install riebench again, or make them with `riebench tinyworld train`",
        )
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            folder, add_watermarker=False, local_files_only=True, low_cpu_mem_usage=False
        )
    except Exception as error:
        raise UserError(
            f"the weights of {backbone.name} cannot be loaded: {_broken_file(folder) or error}",
            remedy="install riebench again, or fetch that file again",
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return Sampler(backbone, pipeline.to(device), batch_size)


def _broken_file(folder: Path) -> str:
    """What is missing or truncated in a pipeline's folder; empty where that is not what is wrong."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except ValueError:
        return f"{folder / 'model_index.json'} is not JSON"
    for part in (name for name, value in index.items() if isinstance(value, list) and value[0]):
        files = [path for path in (folder / part).glob("*") if path.is_file()]
        if part not in ("scheduler", "tokenizer", "tokenizer_2"):
            if not (folder / part / "config.json").is_file():
                return f"{folder / part / 'config.json'} is missing"
            if not any(path.suffix == ".safetensors" for path in files):
                return f"{folder / part} holds no safetensors file"
        for path in files:
            try:
                if path.suffix == ".json":
                    json.loads(path.read_text())
                elif path.suffix == ".safetensors":
                    safe_open(path, framework="pt").keys()
            except (ValueError, SafetensorError) as error:
                return f"{path} is truncated or broken ({error})"
    return ""
