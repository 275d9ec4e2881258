"""A run: from a configuration to a folder with manifest, scores, images, summary and report."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from riebench import files
from riebench.analysis import summarise, write_scores
from riebench.backbones import BACKBONES, BLOCK_NAMES
from riebench.config import RunConfig
from riebench.edits import CATEGORY_NAMES, Edit, load_edits
from riebench.engine import CASES_PER_CHUNK, Result, open_engine, plan_variants
from riebench.errors import UserError
from riebench.methods import Method
from riebench.progress import Progress
from riebench.report import write_report
from riebench.sampling import choose_device


@dataclass(frozen=True)
class Run:
    """A finished run, and where its files are."""

    folder: Path
    manifest: dict
    scores: pd.DataFrame
    summary: dict

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def run(
    config: RunConfig,
    out: Path,
    *,
    device: str = "auto",
    methods: Sequence[Method] = (),
    edits: Sequence[Edit] | None = None,
) -> Run:
    """Does what the configuration asks and writes the run directory.

    methods: further methods of one's own, beside the configured ones. edits: edits of one's own in place of the
    configured set. Raises `UserError` before anything is generated where a name, a file or the folder is wrong.
    """
    out = Path(out)
    BACKBONES.get(config.backbone)
    choose_device(device)
    chosen = choose_edits(load_edits(config.edits) if edits is None else list(edits), config)
    all_methods = [*(method.build() for method in config.methods), *methods]
    settings = [(method.name, method.strength) for method in all_methods]
    if len(set(settings)) != len(settings):
        shown = ", ".join(f"{name} at {strength}" for name, strength in settings)
        raise UserError(f"two methods share name and strength: {shown}", remedy="give each its own name")
    started = datetime.now(UTC)
    manifest = {"status": "running", **_describe(config, chosen, all_methods, device, started)}
    files.write_json(out / "manifest.json", manifest)

    clock = time.monotonic()
    engine = open_engine(config.backbone, device, batch_size=config.batch_size, mask_rule=config.mask_rule)
    variants = plan_variants(all_methods, config.subsets_of)
    cases = [(edit, seed) for edit in chosen for seed in config.seeds]
    rows: list[dict] = []
    with Progress("generating and scoring", total=len(cases) * (2 + len(variants)), unit="image") as progress:
        for start in range(0, len(cases), CASES_PER_CHUNK):
            chunk = cases[start : start + CASES_PER_CHUNK]
            references = engine.references(chunk, all_methods)
            progress.update(progress.done + 2 * len(chunk))
            for result in engine.results(references, variants):
                rows.append(_keep(result, out))
                progress.update(progress.done + 1)
            scores = pd.DataFrame(rows)
            write_scores(scores, out / "scores.parquet")  # after every chunk: a run that dies keeps what it had done
    summary = summarise(scores, BLOCK_NAMES, method=config.subsets_of, resamples=config.resamples)
    files.write_json(out / "summary.json", summary)
    manifest |= {"status": "finished", "seconds": round(time.monotonic() - clock, 1), "results": len(rows)}
    files.write_json(out / "manifest.json", manifest)
    prompts = {edit.id: (edit.original_prompt, edit.edited_prompt) for edit in chosen}
    write_report(out, summary, scores, manifest, prompts=prompts)
    return Run(out, manifest, scores, summary)


def choose_edits(edits: list[Edit], config: RunConfig) -> list[Edit]:
    """The first `edits_per_category` edits of each asked category. Raises `UserError` where none is left."""
    chosen = []
    for category in CATEGORY_NAMES:
        if category in config.categories:
            of_category = [edit for edit in edits if edit.category == category]
            chosen += of_category[: config.edits_per_category or None]
    if not chosen:
        raise UserError("no edit of the asked categories is in the edit set", remedy="ask for other categories")
    return chosen


def _keep(result: Result, out: Path) -> dict:
    """Writes the image of a result and returns its row, with the image's path."""
    row = dict(result.row)
    row["image"] = ""
    if result.image is not None:
        blocks = f"-{row['blocks']}" if row["blocks"] else ""
        name = Path("images", str(row["edit"]), str(row["seed"]), f"{row['method']}@{row['strength']:g}{blocks}.png")
        with files.replacing(out / name) as temporary:
            to_picture(result.image).save(temporary)
        row["image"] = name.as_posix()
    return row


def to_picture(image_chw: torch.Tensor) -> Image.Image:
    """A PIL image of a float tensor `[3, h, w]` in [0, 1]."""
    return Image.fromarray((image_chw.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _describe(config: RunConfig, edits: list[Edit], methods: list[Method], device: str, started: datetime) -> dict:
    text = "\n".join(repr(edit) for edit in edits)
    return {
        "config": dataclasses.asdict(config),
        "mode": "strict",
        "edits": {"count": len(edits), "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "methods": [_settings(method) for method in methods],
        "blocks": list(BLOCK_NAMES),
        "device": device,
        "started": started.isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in ("riebench", "torch", "diffusers", "transformers")},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # riebench itself, run from a clone
        return "not installed"


def _settings(method: Method) -> dict:
    settings = dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {}
    return settings | {"name": method.name, "strength": method.strength}
