"""Step 4: what the autoencoder takes for more and more rows, and whether a row depends on the others."""

from __future__ import annotations

import torch
from torch import Tensor

from riebench.selftest.bench import Bench
from riebench.selftest.measure import Peak, seconds_of, sizes_that_fit
from riebench.selftest.step import Check, Found

LEVEL = 1 / 255  # of a picture of 8 bits


@torch.no_grad()
def decode(bench: Bench) -> Found:
    """Returns seconds and peak memory of each size, and how far the last row is from what it is alone."""
    sampler, sizes = bench.sampler, bench.amounts.decoded
    vae = sampler.pipeline.vae
    samples = sampler.generate(bench.requests(max(sizes)), decode=False, keep_here=True)
    latents = torch.stack([sample.image for sample in samples]).to(sampler.denoiser.dtype) / vae.config.scaling_factor

    def images(rows: Tensor) -> Tensor:
        return vae.decode(rows, return_dict=False)[0].float() / 2

    def try_rows(size: int) -> dict:
        rows = latents[:size]
        with Peak(bench.device) as peak:
            seconds = seconds_of(lambda: images(rows), bench.device, bench.amounts.repeats)
        last, filled, alone = images(rows)[-1], images(rows[-1:].expand_as(rows).contiguous())[-1], images(rows[-1:])[0]
        far, equal = float((last - alone).abs().max()), torch.equal(last, filled)
        return {"rows": size, "seconds": seconds, "peak GB": peak.gigabytes, "equal": equal, "from alone": far}

    found, too_large = sizes_that_fit(sizes, try_rows)
    wrong = [
        f"row {row['rows'] - 1} of {row['rows']} depends on the others (by {row['from alone']:.3g})"
        for row in found.values()
        if not row["equal"] or not row["from alone"] < LEVEL
    ]
    shown = [f"{size} rows {row['seconds'] * 1e3:.0f} ms{_gigabytes(row)}" for size, row in found.items()]
    shown += [too_large] if too_large else []
    detail = {"sizes": list(found.values()), "dtype": str(vae.dtype), "too large": too_large}
    return Found("; ".join([*wrong, ", ".join(shown)]), not wrong, detail)


def _gigabytes(row: dict) -> str:
    return "" if row["peak GB"] is None else f" {row['peak GB']:.1f} GB"


CHECK = Check(
    4,
    "decoding",
    "the last row is the same to the bit among copies of itself, and within a level of 8 bits of itself alone; seconds"
    " grow no faster than rows",
    decode,
)
