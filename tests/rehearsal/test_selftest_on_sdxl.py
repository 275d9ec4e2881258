"""The self-test on SDXL in half precision, from the faked cache."""

from __future__ import annotations

import pytest
from rehearsal import fake_hub

from riebench.selftest.checks import CHECKS
from riebench.selftest.run import selftest
from riebench.selftest.step import NOT_OK, OK

LEFT_OUT = ("exactness", "whole cases", "elsewhere")  # as on tinyworld, and slow


@pytest.mark.slow
def test_all_is_well_but_for_random_dictionaries(hub_home, tmp_path, monkeypatch):
    fake_hub.use(hub_home, monkeypatch, dtype="float16", steps={"sdxl-base@25": 2})
    checks = [check for check in CHECKS if check.name not in LEFT_OUT]
    report = selftest("sdxl-turbo@4", "cpu", tmp_path / "out", checks=checks, say=lambda _line: None)
    steps = {step.name: step for step in report.steps}
    assert {name for name, step in steps.items() if step.status != OK} == {"dictionaries"}
    loaded = steps["loading"].detail
    assert {"pipeline", "grounder grounding-dino+sam2", "judge CLIP", "judge SigLIP 2", "judge DINO"} <= {
        name for name, words in loaded["parts"].items() if words == "loaded"
    }
    assert (loaded["dtypes"]["unet"], loaded["dtypes"]["vae"]) == ("float16", "float32")
    assert steps["dictionaries"].status == NOT_OK and steps["dictionaries"].detail["on"] == "sdxl-turbo@1"
    blocks = steps["dictionaries"].detail["blocks"].values()
    for block in blocks:
        assert block["active"] == {"float16": block["k"], "float32": block["k"]}
        half, whole = block["explained variance"].values()
        assert half == pytest.approx(whole, rel=1e-2)
    assert any(len(set(block["explained variance"].values())) == 2 for block in blocks)  # not the same twice
    assert steps["plain call"].detail["largest of dtype"] == pytest.approx(65504, rel=1e-4)
    assert steps["guidance"].detail["on"] == "sdxl-base@25"
    assert len(list((tmp_path / "out" / "regions").glob("*.png"))) == 9
