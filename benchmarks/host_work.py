"""What riebench itself does for one case of the quickstart on SDXL, without the networks: seconds and bytes.

    python benchmarks/host_work.py [--json]              about a minute on one thread
    python benchmarks/host_work.py --write FILE          keeps the figures, to be held against later ones

Everything is at SDXL's true sizes with random values: blocks of 1,280 channels on 16 x 16 cells, ten layers of 5,120
neurons, SAEs of 5,120 features of which 160 are active, pictures of 512 px, float16 traces, four steps. The denoiser,
the autoencoder, the grounder and the networks that judge are stand-ins that take no time. Seconds are CPU seconds of
one thread. Beside each figure stands the one of before the engine was made to work sparsely, measured by this script
on the same kind of machine (`benchmarks/host_work_before.json`).
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # SDXL's configuration stands there
from sdxl_configs import UNET

from baselines import METHODS
from riebench.backbones.blocks import Blocks
from riebench.backbones.family import Site
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.json_text import json_text
from riebench.edits.edit import Edit
from riebench.generation.sampler import Request, Sample, Sampler
from riebench.methods.text_index import TextIndex
from riebench.metrics.networks.remembered import Remembered
from riebench.regions.find import Regions
from riebench.runs.engine import Engine
from riebench.runs.plan import Shared, Task, Wanted, plan_variants
from riebench.runs.reference import Generation
from riebench.runs.scoring import Scorer
from riebench.runs.setup import Setup
from riebench.runs.store import Store
from riebench.selftest.measure import Clock
from sae_models.topk import TopKConfig, TopKSAE

BEFORE = Path(__file__).with_name("host_work_before.json")
CHANNELS, FEATURES, ACTIVE, LAYERS = 1280, 5120, 160, 10
REGION = slice(128, 384)  # rows and columns of the picture that the region takes up at 512 px
BATCH = 32  # as on a GPU
SUBSETS_OF = ("sae", "sae-equal-norm")
NOT_COUNTED, MEMORY = "not counted", "host memory of a case of sdxl-base@25, GB"
BARS = {"planning, s": 1.5, "in all, s": 3.0, "additions of a batch with neurons, MB": 400.0, MEMORY: 4.0}
EDIT = Edit("e", "change_colour", "a red heart in the sky", "a blue heart in the sky", "heart", "heart")
DONOR = Edit("d", "change_pose", "a dog that sits", "a dog that runs", "dog", "dog")


def quickstart() -> list:
    """The methods of the quickstart on SDXL, as they are built: 43 results with the subsets, 41 of them generated."""
    strengths = (0.5, 1.0, 2.0)
    sae, dense = METHODS.get("sae"), METHODS.get("dense")
    k = {"k": ACTIVE}
    return [
        METHODS.get("noop")(),
        METHODS.get("oracle-prompt")(),
        *(sae(strength=strength, **k) for strength in strengths),
        sae(name="sae-equal-norm", budget="norm", **k),
        *(dense(strength=strength) for strength in strengths),
        METHODS.get("neurons")(k=5000),
        METHODS.get("random")(**k),
        METHODS.get("region-means")(),
        METHODS.get("pca")(**k),
        METHODS.get("mismatched")(**k),
        METHODS.get("text-selected")(),
    ]


class Allocated(TorchDispatchMode):
    """Counts the bytes of every tensor that is made while it is on."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in _tensors((args, kwargs or {}))}
        new = (value.untyped_storage() for value in _tensors(found))
        self.bytes += sum(storage.nbytes() for storage in new if storage.data_ptr() not in given)
        return found


def _tensors(values) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


class HostSampler(Sampler):
    """A sampler whose networks are not there: traces and pictures are random, and take no time. What it does for
    interventions is done."""

    def __init__(self, backbone: Backbone, clock: Clock, adds: bool) -> None:
        """adds: whether additions are done; where not, streams of a whole batch, which are the denoiser's, need no
        room."""
        self.adds = adds
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNET).half()
        self.backbone, self.denoiser, self.clock = backbone, unet, clock
        self.pipeline = SimpleNamespace(vae_scale_factor=8)
        self.blocks, self.device, self.batch_size = Blocks(backbone.family, unet), torch.device("cpu"), BATCH
        self.allocated: list[tuple[int, bool]] = []
        """Of each batch: the bytes of its additions, and whether neurons were among them."""
        self._drawn = torch.Generator().manual_seed(0)
        self._noise: dict[int, Tensor] = {}

    @property
    def forwards(self) -> float:
        return 0.0

    def text_vector(self, prompt: str) -> Tensor:
        return torch.randn(2048, generator=torch.Generator().manual_seed(len(prompt)))

    def generate(self, requests: Sequence[Request], capture: Sequence[Site] = (), **_how) -> list[Sample]:
        with self.clock.part(NOT_COUNTED):
            return [Sample(self._picture(), {site: self._trace(site) for site in capture}) for _ in requests]

    def read(self, requests, picks, steps: int | None = None) -> list[dict[Site, Tensor]]:
        with self.clock.part(NOT_COUNTED):
            return [{site: self._read(site, *wanted, steps) for site, wanted in of.items()} for of in picks]

    def _read(self, site: Site, cells: Tensor, channels: Tensor | None, steps: int | None) -> Tensor:
        width = self.blocks.width(site) if channels is None else len(channels)
        return torch.randn(steps or self.backbone.steps, int(cells.sum()), width, generator=self._drawn).half()

    def regenerate(self, requests: Sequence[Request], originals: Sequence[Sample]) -> Iterator[Tensor]:
        for start in range(0, len(requests), self.batch_size):
            rows = list(requests[start : start + self.batch_size])
            if self.adds:
                with self.clock.part("additions"):
                    self._add(rows)
            with self.clock.part(NOT_COUNTED):
                pictures = [self._picture() for _ in rows]
            yield from pictures

    def _add(self, rows: list[Request]) -> None:
        """Does what a lens does with the batch's additions at every step."""
        changed = [site for row in rows for site in (row.intervention.additions if row.intervention else ())]
        with self.clock.part(NOT_COUNTED):
            cells = {block: h * w for block, (h, w) in self.grids(self.backbone.blocks).items()}
            streams = {s: torch.zeros(len(rows), cells[s.block], self.blocks.width(s)).half() for s in changed}
        counting = Allocated()
        with counting:
            additions, _ = self._merged(rows)
            for step in range(self.backbone.steps):
                for site, added in additions.items():
                    added.add_to(streams[site], step)
        self.allocated.append((counting.bytes, any(site.kind == "neurons" for site in changed)))

    def _picture(self) -> Tensor:
        """Returns a picture as smooth as photographs are, so that it is as well compressed."""
        small = torch.rand(1, 3, self.height // 16, self.width // 16, generator=self._drawn)
        smooth = torch.nn.functional.interpolate(small, (self.height, self.width), mode="bicubic")[0]
        return (smooth + 0.02 * torch.rand(smooth.shape, generator=self._drawn)).clamp(0, 1)

    def _trace(self, site: Site) -> Tensor:
        """Returns `[steps, cells, C]` in float16; values are drawn once and shifted, which is faster."""
        h, w = self.grids([site.block])[site.block]
        shape = (self.backbone.steps, h * w, self.blocks.width(site))
        size = math.prod(shape)
        if size not in self._noise:
            self._noise[size] = torch.randn(size + 4096, generator=self._drawn).half()
        start = int(torch.randint(4096, (1,), generator=self._drawn))
        return self._noise[size][start : start + size].view(shape).clone()


class BoxGrounder:
    """Finds one box in the middle of every picture."""

    def detections(self, images_bchw: Tensor, phrases) -> list[Tensor]:
        mask = torch.zeros(1, *images_bchw.shape[-2:], dtype=torch.bool)
        mask[:, box(images_bchw.shape[-2]), box(images_bchw.shape[-1])] = True
        return [mask] * len(images_bchw)


def box(pixels: int) -> slice:
    """Returns rows or columns of the region, in a picture of so many pixels."""
    return slice(REGION.start * pixels // 512, REGION.stop * pixels // 512)


class Judge:
    """A metric whose network takes no time: it reads all three pictures, as CLIP and LPIPS do."""

    name, higher_is_better, bounds, summary = "judge", True, (0.0, 1.0), ""

    def __init__(self, clock: Clock) -> None:
        self._network = Remembered(clock.timed(NOT_COUNTED, lambda images: (images.new_zeros(len(images)),)))

    def score(self, batch) -> np.ndarray:
        for images in (batch.intervened, batch.original, batch.edited):
            (values,) = self._network(images)
        return values.double().numpy()


def host_engine(backbone: Backbone, clock: Clock, adds: bool = True) -> tuple[Engine, HostSampler]:
    """Returns an engine of stand-ins; its dictionaries and all that it does with them are as on SDXL."""
    sampler = HostSampler(backbone, clock, adds)
    generation = Generation(sampler, Setup(dtype="float16"))
    shape = TopKConfig(width=CHANNELS, num_features=FEATURES, k=ACTIVE)
    saes = {block: TopKSAE(shape, seed=i).requires_grad_(False) for i, block in enumerate(backbone.blocks)}
    index = TextIndex(torch.randn(FEATURES, 2048) / 45, torch.ones(FEATURES), torch.ones(FEATURES))
    generation.dictionary, generation.text_index = saes.__getitem__, lambda _block: index
    scorer = Scorer.__new__(Scorer)
    scorer.names, scorer.device, scorer._metrics = ("judge",), "cpu", [Judge(clock)]
    regions = Regions(BoxGrounder(), generation.setup.rules.look, generation.setup.mask_rule)
    return Engine(generation, regions, scorer), sampler


def task(methods: Sequence, blocks: Sequence[str]) -> Task:
    """Returns one case with every result of the quickstart."""
    variants = plan_variants(methods, SUBSETS_OF, blocks)
    wanted = tuple(Wanted(v, f"r{i}", "code", f"images/e/42/{i}-{i:012x}.png") for i, v in enumerate(variants))
    shared = (Shared(name, "code", f"images/e/42/{name}-{0:012x}.png") for name in ("original", "edited", "regions"))
    return Task(EDIT, 42, *shared, wanted, {"edit": (DONOR, 42)})


def measure(backbone: Backbone) -> dict[str, float]:
    """Returns the figures of one case: seconds of each part, bytes, results."""
    clock = Clock(time.process_time)
    engine, sampler = host_engine(backbone, clock)
    engine._ask, engine._announce = (clock.timed("planning", part) for part in (engine._ask, engine._announce))
    with clock.part("pictures and the rest"):
        batches = list(engine.work([[task(quickstart(), backbone.blocks)]]))
    with tempfile.TemporaryDirectory() as folder, clock.part("writing"), Store(Path(folder) / "run") as store:
        for batch in batches:
            store.add(batch)
    failed = [row["reason"] for batch in batches for row in batch.rows if row["status"] != "ok"]
    assert not failed, failed
    seconds = {name: value for name, value in clock.seconds.items() if name != NOT_COUNTED}
    return {
        **{f"{name}, s": value for name, value in seconds.items()},
        "in all, s": sum(seconds.values()),
        "additions of a batch with neurons, MB": max(size for size, neurons in sampler.allocated if neurons) / 1e6,
        "results generated": float(sum(len(batch.pictures) for batch in batches[1:])),
    }


def measure_base() -> dict[str, float]:
    """Returns the host memory of one case of SDXL base, in 10^9 bytes, beyond what this process has before it."""
    backbone = BACKBONES.get("sdxl-base@25")
    engine, _ = host_engine(backbone, Clock(time.process_time), adds=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in engine.work([[task(quickstart(), backbone.blocks)]]):
        pass
    return {MEMORY: (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", type=Path, help="keep the figures in a file")
    parser.add_argument("--part", choices=("turbo", "base"), help="one part, in this process, as JSON")
    parser.add_argument("--skip-base", action="store_true", help="leave SDXL base out, which takes some minutes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.part:
        found = measure(BACKBONES.get("sdxl-turbo@4")) if asked.part == "turbo" else measure_base()
        print(json_text(found))
        return 0
    found = in_a_process("turbo") | ({} if asked.skip_base else in_a_process("base"))
    if asked.write:
        asked.write.write_text(json_text(found, indent=2) + "\n")
    print(json_text(found, indent=2) if asked.json else table(found, json.loads(BEFORE.read_text())))
    return 0


def in_a_process(part: str) -> dict[str, float]:
    """Returns a part's figures, measured in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--part", part], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def table(found: dict[str, float], before: dict[str, float]) -> str:
    """Returns the figures beside those of before and the bars, in markdown."""
    lines = ["| one case of the quickstart | before | now | at most |", "|---|---|---|---|"]
    for name in dict.fromkeys((*before, *found)):
        values = [f"{side[name]:.2f}" if name in side else "" for side in (before, found, BARS)]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
