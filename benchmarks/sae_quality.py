"""How good SAEs are that our trainer makes, beside a plain loop: same rows, same batches, same steps, several seeds.

    python benchmarks/sae_quality.py [--json]        about ten minutes on one core

Rows: updates of the four blocks of tinyworld-turbo@1. The plain loop is `sae_training.py`'s re-writing of the one that
the published SAEs of SDXL Turbo were trained with (arXiv 2410.22366). Ours trains with its defaults for tinyworld. For
each learning rate both are evaluated on the prompts that are kept back. The bar: at every block, explained variance
no lower and dead features no more, on the mean over the seeds, each with the learning rate that suits it best.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys

import pandas as pd
import torch
from sae_peers import Plain, plain_optimiser, plain_step
from torch import Tensor

from riebench.backbones.sdxl import SDXL
from riebench.core.json_text import json_text
from riebench.dictionaries.settings import DEFAULTS, generated_data
from sae_models import Architecture, TopK, TrainConfig, train
from sae_models.evaluation import Tally
from sae_models.normalisation import geometric_median

BLOCK_NAMES = SDXL.default_blocks

BACKBONE, K, EXPANSION = "tinyworld-turbo@1", 16, 8
FIGURES = ["explained_variance_pooled", "dead_share"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=DEFAULTS["tinyworld"].steps)
    parser.add_argument("--prompts", type=int, default=DEFAULTS["tinyworld"].prompts)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = pd.DataFrame(compare(asked.prompts, asked.steps, asked.seeds, asked.lr))
    found = summarise(rows)
    machine = f"{platform.machine()}, {asked.threads} threads, torch {torch.__version__}"
    if asked.json:
        print(json_text({"machine": machine, "rows": rows.to_dict("records"), **found}, indent=2))
    else:
        print(f"{machine}; {asked.steps} steps, seeds {asked.seeds}, k={K}, {EXPANSION}x\n")
        print(rows.groupby(["block", "lr", "trainer"])[FIGURES].mean().unstack().round(4).to_string())
        print(f"\neach at its best: {json_text(found, indent=2)}")
    return 0 if found["bar_met"] else 1


def compare(prompts: int, steps: int, seeds: list[int], lrs: list[float]) -> list[dict]:
    defaults = DEFAULTS["tinyworld"]
    data = generated_data(BACKBONE, count=prompts, device="cpu")
    batches = data.batches(data.blocks, defaults.batch_size)
    held_back = list(data.held_back(data.blocks))
    rows = []
    for number, block in enumerate(BLOCK_NAMES):
        for lr in lrs:
            for seed in seeds:
                for trainer, run in (("ours", run_ours), ("plain", run_plain)):
                    batches.seek(0)
                    dictionary = run((batch[number].float() for batch in batches), steps, lr, seed)
                    tally = Tally(dictionary)
                    for part in held_back:
                        tally.add(part[block].float())
                    found = tally.evaluation()
                    rows.append({"block": block, "lr": lr, "seed": seed, "trainer": trainer})
                    rows[-1] |= {name: getattr(found, name) for name in (*FIGURES, "l0")}
                    print(rows[-1], file=sys.stderr, flush=True)
    return rows


def run_ours(batches, steps: int, lr: float, seed: int):
    defaults = DEFAULTS["tinyworld"]
    architecture = Architecture(96, 96 * EXPANSION, TopK(K), revival=defaults.revival, seed=seed)
    config = TrainConfig(steps=steps, lr=lr, report_every=defaults.report_every)
    return train(batches, [architecture], config)[0]


def run_plain(batches, steps: int, lr: float, seed: int):
    torch.manual_seed(seed)
    model = Plain(96, 96 * EXPANSION, K)
    first = next(batches)
    model.pre_bias.data = geometric_median(first).float()
    optimiser = plain_optimiser(model, lr)
    for batch in itertools.chain([first], itertools.islice(batches, steps - 1)):
        plain_step(model, optimiser, batch)
    return PlainDictionary(model)


class PlainDictionary:
    """The plain loop's model as a dictionary."""

    def __init__(self, model) -> None:
        self.model, self.width, self.num_features = model, model.encoder.in_features, model.encoder.out_features

    @torch.no_grad()
    def encode(self, x_nd: Tensor) -> Tensor:
        return self.model(x_nd)[1]

    @torch.no_grad()
    def decode(self, z_nf: Tensor) -> Tensor:
        return self.model.decoder(z_nf) + self.model.pre_bias

    @torch.no_grad()
    def decode_linear(self, z_nf: Tensor) -> Tensor:
        return self.model.decoder(z_nf)


def summarise(rows: pd.DataFrame) -> dict:
    """Block -> trainer -> figures at the learning rate with the greatest explained variance; and whether the bar is
    met at all blocks."""
    blocks, met = {}, True
    for block, of_block in rows.groupby("block", sort=False):
        best = {}
        for trainer, of_trainer in of_block.groupby("trainer"):
            means = of_trainer.groupby("lr")[FIGURES].mean()
            lr = means["explained_variance_pooled"].idxmax()
            best[trainer] = {"lr": lr, **means.loc[lr].round(4).to_dict()}
        met &= all(
            sign * (best["ours"][name] - best["plain"][name]) >= 0 for name, sign in zip(FIGURES, (1, -1), strict=True)
        )
        blocks[block] = best
    return {"blocks": blocks, "bar_met": bool(met)}


if __name__ == "__main__":
    sys.exit(main())
