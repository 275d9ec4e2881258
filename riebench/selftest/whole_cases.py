"""Step 7: some cases through all methods of the quickstart, and where the time goes."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from riebench.core.errors import UserError
from riebench.edits.edit import Edit, load_edits
from riebench.generation.sampler import Sampler
from riebench.methods.method import Method, uses_sae
from riebench.runs.engine import Engine
from riebench.runs.plan import TEXT, Shared, Task, Wanted, find_donor, kind_of_donor, plan_variants
from riebench.runs.store import Store, picture_path
from riebench.selftest.bench import SEED, Bench
from riebench.selftest.measure import Clock, Peak, finished, in_place
from riebench.selftest.step import Check, Found, NotPossible

NO_REGION = "no region found"  # in the reason of a row that is no fault of the machine
POLL_SECONDS = 0.1


def run_cases(bench: Bench) -> Found:
    """Returns seconds by part, rows by status and reason, and the most memory that was taken."""
    engine = bench.whole_engine()
    config = bench.config(1)
    methods, left_out = _methods(bench, engine, config.build_methods())
    clock = Clock(partial(finished, bench.device))
    timed = [TimedMethod(method, clock) for method in methods]
    edits, known = bench.edits(1)[: bench.amounts.cases], load_edits(config.edits)
    variants = plan_variants(timed, config.subsets_of, bench.backbone.blocks)
    tasks = [
        _task(edit, [Wanted(variant, *_key(edit, i)) for i, variant in enumerate(variants)], known, timed)
        for edit in edits
    ]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        peak = stack.enter_context(Peak(bench.device))
        used = stack.enter_context(_utilisation(bench.device))
        store = stack.enter_context(Store(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"))
        for context in (_timed(engine, clock), clock.part("other")):
            stack.enter_context(context)
        for batch in engine.work([tasks]):
            rows += [row for row in batch.rows if "method" in row]
            with clock.part("writing"):
                store.add(batch)
                store.flush()
    total = sum(clock.seconds.values())
    status = Counter(row["status"] for row in rows)
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    faults = [reason for reason in reasons if NO_REGION not in reason]
    missing = [f"{name} is left out: {why}" for name, why in left_out.items()]
    missing += ["no judges with random weights: no scores"] if not engine.scorer.names else []
    shares = ", ".join(
        f"{name} {taken / total:.0%}" for name, taken in sorted(clock.seconds.items(), key=lambda i: -i[1])
    )
    figure = f"{total / len(edits):.2f} s a case of {len(variants)} results: {shares}; {status['ok']} rows ok"
    figure += f", {status['failed']} failed" if status["failed"] else ""
    detail = {
        "cases": len(edits),
        "results": len(rows),
        "seconds": clock.seconds,
        "seconds a case": total / len(edits),
        "status": status,
        "reasons": reasons,
        "left out": left_out,
        "peak GB": peak.gigabytes,
        "resident GB": psutil.Process().memory_info().rss / 1e9,
        "utilisation": used,
        "not possible here": missing,
    }
    wrong = faults if status["ok"] else [*faults, "no row is ok"]
    return Found("; ".join([*wrong, figure]), not wrong, detail)


class TimedMethod:
    """A method whose planning counts for a part of a clock."""

    def __init__(self, method: Method, clock: Clock) -> None:
        self._method, self._clock = method, clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._method, name)
        return self._clock.timed("planning", value) if name in ("plan", "select") else value


def _methods(bench: Bench, engine: Engine, methods: Sequence[Method]) -> tuple[list[Method], dict[str, str]]:
    """Returns the methods that can be tried, and why the others cannot."""
    left_out: dict[str, str] = {}
    try:
        for block in bench.backbone.blocks:
            engine.generation.dictionary(block)
    except UserError as error:
        left_out |= {method.name: str(error) for method in methods if uses_sae(method)}
    for method in methods:
        if getattr(method, "select_on", "") == TEXT and method.name not in left_out:
            try:
                for block in bench.backbone.blocks:
                    engine.generation.text_index(block)
            except UserError as error:
                left_out[method.name] = str(error)
    kept = [method for method in methods if method.name not in left_out]
    if not any(method.sites for method in kept):
        raise NotPossible(next(iter(left_out.values()), "there is no method"))
    return kept, left_out


def _task(edit: Edit, wanted: Sequence[Wanted], known: Sequence[Edit], methods: Sequence[Any]) -> Task:
    """Returns a case with all that is wanted of it. Its keys need not tell it from what other runs hold."""
    shared = [Shared(*_key(edit, side)) for side in ("original", "edited", "regions")]
    kinds = sorted({kind_of_donor(method) for method in methods} - {""})
    return Task(edit, SEED, *shared, tuple(wanted), {kind: find_donor((edit, SEED), kind, known) for kind in kinds})


def _key(edit: Edit, what: object) -> tuple[str, str, str]:
    """Returns (recipe, version of the code, path of the picture) of something of a case."""
    return f"{edit.id}/{what}", "selftest", picture_path(edit.id, SEED, str(what), "0" * 12)


@contextmanager
def _timed(engine: Engine, clock: Clock) -> Iterator[None]:
    """Has the parts of an engine count for the parts of a clock in here. Nothing is planned ahead, so that the seconds
    of the parts add up."""
    sampler: Sampler = engine.sampler
    vae = sampler.pipeline.vae
    with ExitStack() as stack:
        for owner, name, part in (
            (engine.generation, "references", "references"),
            (engine.regions, "find", "grounding"),
            (sampler, "read", "reading again"),
            (vae, "decode", "VAE"),
            (engine.scorer, "score", "scores"),
        ):
            stack.enter_context(in_place(owner, name, clock.timed(part, getattr(owner, name))))
        replayed = clock.timed_steps("additions and denoiser", sampler.regenerate)
        stack.enter_context(in_place(sampler, "regenerate", replayed))
        stack.enter_context(in_place(engine, "ahead", 0))
        yield


@contextmanager
def _utilisation(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yields a dict that says afterwards how busy the GPU was while open, in percent, or why that cannot be said."""
    found: dict[str, Any] = {}
    try:
        if device.type != "cuda":
            raise NotPossible("there is no GPU")
        torch.cuda.utilization(device)
    except Exception as error:
        found["not possible here"] = str(error).splitlines()[0] or type(error).__name__
        yield found
        return
    seen: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(POLL_SECONDS):
            seen.append(torch.cuda.utilization(device))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
        found |= {"mean": sum(seen) / len(seen) if seen else None, "looks": len(seen)}


CHECK = Check(
    7,
    "whole cases",
    "rows are ok, and fail for want of a region alone; on a GPU additions and denoiser, VAE,"
    " grounding and scores take most of the time, and planning and writing little",
    run_cases,
)
