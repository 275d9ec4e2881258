"""How much faster the engine is than a plain loop, how its time and memory grow, and whether both give equal scores.

    python benchmarks/engine.py [--json]        about four minutes on two cores

The same cases, settings and scores are done by `benchmarks/naive_loop.py` and by the engine, each in a process of its
own, with all cores that are free; clocks start when the networks are loaded and stop when every result is had (the
engine's on disk). Equal scores are the precondition, and the exit status is 1 where they are not: the oracle's exactly,
CLIP and LPIPS within 1e-3, directional CLIP within 0.02, because it divides by the length of what may be a very short
change, and edit efficiency within 0.1, withheld in both or at an LPIPS within 1e-4 of the least that it is divided by.
The engine is then timed on once, twice and four times the edits, and the settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from riebench.backbones.table import BACKBONES
from riebench.core.json_text import json_text
from riebench.core.scores import LEAST_COST
from riebench.core.threads import usable_cores
from riebench.edits.edit import Edit, load_edits
from riebench.metrics import default_metrics
from riebench.runs.config import MethodConfig, RunConfig, read_config
from riebench.runs.engine import GROUP
from riebench.runs.local import work_here
from riebench.runs.plan import plan, plan_variants
from riebench.runs.store import Store

ROW = ["edit", "seed", "method", "strength", "blocks"]
TOLERANCE = {
    "clip_directional": 0.02,
    "psnr_outside": 0.1,
    "edit_efficiency": 0.1,
    "oracle_success": 0.0,
    "oracle_preservation": 0.0,
}
EDGE = 1e-4  # of LPIPS: so near to `LEAST_COST` efficiency may be withheld in one of two
CASES, TIMES = 16, (1, 2, 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tinyworld-turbo@1", help="one without guidance")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--part", choices=("naive", "engine"), help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=int, default=CASES, help="edits, with one seed each")
    parser.add_argument("--strengths", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print(json_text(measure(asked.part, asked.backbone, asked.cases, asked.strengths, asked.out)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = compare(asked.backbone, asked.cases, Path(folder))
    print(json_text(found, indent=2) if asked.json else describe(found))
    return 0 if found["equal"] else 1


def measure(part: str, backbone: str, cases: int, strengths: int, out: Path) -> dict:
    """Does one part in this process: results, seconds, peak memory in MB. Its rows go to `out`."""
    config = read_config(str(Path(__file__).with_name("settings.yaml")), {"backbone": backbone, "seeds": [42]})
    if strengths > 1:
        config = with_strengths(config, strengths)
    every = load_edits(config.edits)
    edits = [every[i * len(every) // cases] for i in range(cases)]
    cores = usable_cores()
    torch.set_num_threads(cores)  # of the naive loop; the engine chooses for itself
    rows, seconds = (naive if part == "naive" else engine)(config, edits, out.parent)
    rows.to_parquet(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"results": len(rows), "seconds": seconds, "peak_mb": peak, "cores": cores}


def with_strengths(config: RunConfig, count: int) -> RunConfig:
    """The configuration with each method at so many strengths; those that add nothing have but one."""
    methods: list[MethodConfig] = []
    for method in config.methods:
        strengths = [{"strength": 1.0 + i / 4} for i in range(count)] if method.build().sites else [{}]
        methods += [MethodConfig(method.name, {**method.settings, **strength}) for strength in strengths]
    return dataclasses.replace(config, methods=tuple(methods))


def naive(config: RunConfig, edits: list[Edit], _folder: Path) -> tuple[pd.DataFrame, float]:
    from naive_loop import naive_rows

    results = naive_rows(config, edits, config.seeds)  # loads the networks
    start = time.perf_counter()
    rows = list(results)
    return pd.DataFrame(rows), time.perf_counter() - start


def engine(config: RunConfig, edits: list[Edit], folder: Path) -> tuple[pd.DataFrame, float]:
    started: list[float] = []

    def groups():
        for first in range(0, len(tasks), GROUP):
            started.append(time.perf_counter())  # the networks are loaded when the first group is asked for
            yield tasks[first : first + GROUP]

    methods = [method.build() for method in config.methods]
    cases = [(edit, seed) for edit in edits for seed in config.seeds]
    backbone = BACKBONES.get(config.backbone)
    variants = plan_variants(methods, config.subsets_of, backbone.blocks)
    tasks = plan(backbone, cases, variants, config.setup("float32"))
    with tempfile.TemporaryDirectory(dir=folder) as run, Store(Path(run)) as store:
        for batch in work_here(groups(), "", backbone, "cpu", {"setup": config.setup("float32")}):
            store.add(batch)
        store.flush()
        seconds = time.perf_counter() - started[0]
        return store.frame([wanted.recipe for task in tasks for wanted in task.wanted]), seconds


def compare(backbone: str, cases: int, folder: Path) -> dict:
    """Both parts on the same work, and the engine on more of it."""

    def run(part: str, cases: int, strengths: int = 1) -> dict:
        out = folder / f"{part}-{cases}-{strengths}.parquet"
        words = ["--part", part, "--backbone", backbone, "--cases", cases, "--strengths", strengths, "--out", out]
        print(f"{part}: {cases} edits, strengths: {strengths}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
        return found | {"results_per_second": found["results"] / found["seconds"], "rows": str(out)}

    peer = run("naive", cases)
    edits = [run("engine", cases * times) for times in TIMES]
    settings = [edits[0], *(run("engine", cases, times) for times in TIMES[1:])]
    differences = differ(Path(peer["rows"]), Path(edits[0]["rows"]))
    return {
        "machine": f"{platform.machine()}, {edits[0]['cores']} free cores, torch {torch.__version__}",
        "backbone": backbone,
        "equal": all(value <= TOLERANCE.get(name, 1e-3) for name, value in differences.items()),
        "largest_differences": differences,
        "efficiency_withheld": withheld(Path(edits[0]["rows"])),
        "naive": peer,
        "engine": edits[0],
        "ratio": edits[0]["results_per_second"] / peer["results_per_second"],
        "ratio_on_four_times_the_edits": edits[-1]["results_per_second"] / peer["results_per_second"],
        "growth_with_edits": edits,
        "growth_with_settings": settings,
    }


def differ(one: Path, other: Path) -> dict[str, float]:
    """Metric -> the largest difference of any result; infinite where one has a score that the other has not."""
    a, b = (pd.read_parquet(path).set_index(ROW).sort_index() for path in (one, other))
    if not a.index.equals(b.index) or not (a.status == b.status).all():
        return dict.fromkeys(default_metrics("tinyworld"), float("inf"))
    found = {}
    for name in default_metrics("tinyworld"):
        alone = a[name].isna() != b[name].isna()
        if name == "edit_efficiency":
            alone &= ((a["lpips_original"] - LEAST_COST).abs() > EDGE) | (
                (b["lpips_original"] - LEAST_COST).abs() > EDGE
            )
        found[name] = float("inf") if alone.any() else float((a[name] - b[name]).abs().fillna(0).max())
    return found


def withheld(rows: Path) -> int:
    """How many results have an LPIPS too small for an efficiency."""
    return int((pd.read_parquet(rows)["lpips_original"] < LEAST_COST).sum())


def describe(found: dict) -> str:
    lines = [
        f"{found['backbone']} on {found['machine']}",
        f"equal scores: {'yes' if found['equal'] else 'NO'} (largest difference "
        + ", ".join(f"{name} {value:.1e}" for name, value in found["largest_differences"].items())
        + f"; edit efficiency withheld in {found['efficiency_withheld']})",
        "",
        f"{'':24}{'results':>8}{'seconds':>9}{'a second':>10}{'peak MB':>9}",
    ]
    rows = [("naive loop", found["naive"]), ("engine", found["engine"])]
    rows += [(f"engine, {n} x edits", item) for n, item in zip(TIMES[1:], found["growth_with_edits"][1:], strict=True)]
    rows += [
        (f"engine, {n} x strengths", item) for n, item in zip(TIMES[1:], found["growth_with_settings"][1:], strict=True)
    ]
    lines += [
        f"{name:24}{r['results']:>8}{r['seconds']:>9.1f}{r['results_per_second']:>10.1f}{r['peak_mb']:>9.0f}"
        for name, r in rows
    ]
    ratio, four = found["ratio"], found["ratio_on_four_times_the_edits"]
    return "\n".join(
        [*lines, "", f"the engine is {ratio:.1f} times as fast on the same work; {four:.1f} times on more"]
    )


if __name__ == "__main__":
    sys.exit(main())
