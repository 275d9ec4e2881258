"""Holds a run against one that was made before a change: the same rows, and the same pictures to the bit.

    riebench run quickstart --out runs/golden
    python benchmarks/golden.py runs/golden                 what differs from tests/golden/quickstart.parquet
    python benchmarks/golden.py runs/golden --write         after a change that is meant to change results

Bits depend on the processor and on torch, so the file says on which they were made; elsewhere scores are compared to
within 0.01 and pictures are not.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import struct
import sys
from pathlib import Path

import pandas as pd
import torch

from riebench.core.json_text import json_text

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "quickstart.parquet"
KEY = ["edit", "seed", "method", "strength", "blocks"]
SHOWN = ("clip_text_edited", "clip_text_original", "lpips_original", "oracle_success")
#: What is no part of a result: keys, places, and what the parts of a run are called.
LEFT_OUT = ("recipe", "code", "judges", "scoring", "image", "image_sha256", "original", "edited", "regions")
LEFT_OUT += ("edit_sha256",)
TOLERANCE = 0.01
NORM, NORM_TOLERANCE = "injected_norm", 1e-12  # a sum of squares in float64: its order of summation may change


def machine() -> str:
    """The processor and the torch that bits depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    words = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "model\t"))][:2]
    return f"{platform.machine()} {' '.join(words)}, torch {torch.__version__}, {torch.get_num_threads()} cores"


def golden_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """A row a result: its key, a digest of its other columns, its picture's sha256 and the scores that are shown."""
    columns = sorted(set(scores.columns) - {*KEY, *LEFT_OUT, NORM})
    rows = scores[KEY].copy()
    others = scores[columns].itertuples(index=False)
    rows["row"] = [_digest(dict(zip(columns, values, strict=True))) for values in others]
    rows[NORM] = scores[NORM]
    rows["picture"] = scores["image_sha256"].str[:16]
    for name in SHOWN:
        rows[name] = scores[name].astype("float32")
    return rows.sort_values(KEY, ignore_index=True)


def differences(found: pd.DataFrame, golden: pd.DataFrame, *, exact: bool) -> list[str]:
    """What differs, a line each; nothing where all of the golden's keys that `found` has are as they were."""
    both = golden.merge(found, on=KEY, suffixes=("_before", "_now"))
    new = len(found) - len(both)
    lines = [f"{new} of {len(found)} rows are not in the golden file"] if new else []
    for column in ("row", "picture") if exact else ():
        other = both[both[f"{column}_before"] != both[f"{column}_now"]]
        if len(other):
            first = ", ".join(f"{name} {other.iloc[0][name]}" for name in KEY)
            lines.append(f"{column}: {len(other)} of {len(both)} differ, the first is {first}")
    before, now = both[f"{NORM}_before"], both[f"{NORM}_now"]
    other = ~((before - now).abs() <= NORM_TOLERANCE * before) & ~(before.isna() & now.isna())
    if exact and other.any():
        lines.append(f"{NORM}: {other.sum()} of {len(both)} differ by more than rounding")
    for name in SHOWN:
        far = (both[f"{name}_before"] - both[f"{name}_now"]).abs() > TOLERANCE
        if far.mean() > (0 if exact else 0.02):
            lines.append(f"{name}: {far.sum()} of {len(both)} are further apart than {TOLERANCE}")
    return lines


def read_golden(path: Path = GOLDEN) -> tuple[pd.DataFrame, str]:
    """(Rows, the machine they were made on)."""
    frame = pd.read_parquet(path)
    return frame, frame.attrs["machine"]


def _digest(row: dict[str, object]) -> str:
    found = hashlib.sha256()
    for name, value in row.items():
        found.update(name.encode())
        found.update(struct.pack("<d", value) if isinstance(value, int | float) else json_text(value).encode())
    return found.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of the quickstart")
    parser.add_argument("--write", action="store_true", help="make it the golden one")
    arguments = parser.parse_args()
    found = golden_rows(pd.read_parquet(arguments.run / "scores.parquet"))
    if arguments.write:
        found.attrs = {"machine": machine()}
        GOLDEN.parent.mkdir(exist_ok=True)
        found.to_parquet(GOLDEN, index=False, compression="zstd")
        print(f"{len(found)} rows: {GOLDEN}")
        return 0
    golden, made_on = read_golden()
    exact = made_on == machine()
    lines = differences(found, golden, exact=exact)
    print("\n".join(lines) or f"{len(found)} rows are as they were{'' if exact else ', to within 0.01'}")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
