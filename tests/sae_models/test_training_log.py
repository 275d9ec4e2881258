"""What a training leaves besides its SAEs: the log, the picture of it, and what trackers were given."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from riebench.core.axes import ticks
from riebench.core.errors import UserError
from sae_models import trainer
from sae_models.architectures import L1, Architecture, BatchTopK, TopK
from sae_models.batches import shuffled_batches
from sae_models.curves import COLOURS, curves, log_ticks
from sae_models.trainer import TrainConfig, train
from sae_models.training_log import CURVES_FILE, LOG_FILE

CONFIG = TrainConfig(steps=60, lr=2e-3, report_every=10)
TWO = [Architecture(16, 48, TopK(3), seed=5), Architecture(16, 32, L1(1e-2), seed=5)]
SVG = "{http://www.w3.org/2000/svg}"
PANELS = {  # title -> name in the log, and from what is drawn to what is logged
    "explained variance (share of 1)": ("ev", lambda shown: shown),
    "L0 (active features a row)": ("l0", lambda shown: shown),
    "dead features (%)": ("dead", lambda shown: shown / 100),
    "loss (logarithmic)": ("loss", lambda shown: 10**shown),
}


def batches():
    rows_nd = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, 16) + 1
    return shuffled_batches(rows_nd, 64)


def log_of(folder):
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The folder of a training that was stopped at step 47, saved at 40."""
    monkeypatch.setattr(trainer, "CALIBRATION_ROWS", 200)

    def stop(*trackers):
        def until_47():
            yield from itertools.islice(batches(), 47)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(until_47(), TWO, CONFIG, folder=tmp_path, checkpoint_every=20, trackers=trackers)
        return tmp_path

    return stop


# the picture


def read_panels(svg):
    """Title -> (steps, values as drawn, one row a line), read off by the labels of the axes."""
    found = {}
    for panel in svg.iterfind(f"{SVG}g"):
        texts = [(each.text, float(each.get("x")), float(each.get("y"))) for each in panel.iterfind(f"{SVG}text")]
        titles = [text for text, *_ in texts if text in PANELS]
        places = {"x": [], "y": []}
        for text, x, y in texts:
            if text.replace(",", "").replace(".", "").replace("e-", "").isdigit():
                value = float(text.replace(",", ""))
                places["y" if x < 0 else "x"].append((x if x >= 0 else y - 4, value))
        if titles == ["loss (logarithmic)"]:
            places["y"] = [(y, math.log10(value)) for y, value in places["y"]]
        to_step, to_value = (np.polynomial.Polynomial.fit(*zip(*places[axis], strict=True), deg=1) for axis in "xy")
        points = [
            np.array([point.split(",") for point in line.get("points").split()], dtype=float)
            for line in panel.iter(f"{SVG}polyline")
        ]
        found[titles[0]] = to_step(points[0][:, 0]), [to_value(each[:, 1]) for each in points]
    return found


def test_the_picture_shows_what_the_log_says(tmp_path):
    train(batches(), TWO, CONFIG, folder=tmp_path)
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    svg = ElementTree.parse(tmp_path / CURVES_FILE).getroot()
    panels = read_panels(svg)
    assert panels.keys() == PANELS.keys()
    for title, (name, logged) in PANELS.items():
        steps, drawn = panels[title]
        np.testing.assert_allclose(steps, [10, 20, 30, 40, 50, 60], atol=0.1)
        for sae, values in enumerate(drawn):
            truth = [line["saes"][sae][name] for line in lines]
            np.testing.assert_allclose(logged(values), truth, rtol=2e-2, atol=2e-3)
        assert len(drawn) == 2
    texts = [each.text for each in svg.iter(f"{SVG}text")]
    assert {"Training of 2 SAEs", "at step 60", "step", "seed 5"} < set(texts)
    assert {"SAE 0: 16 → 48, TopK(k=3)", "SAE 1: 16 → 32, L1(weight=0.01)"} < set(texts), "what differs"
    assert {f"{sae['ev']:.3f}" for sae in lines[-1]["saes"]} < set(texts)


def one_sae(ev=0.5, l0=3.0, dead=0.0, loss=0.5):
    return {"ev": ev, "l0": l0, "dead": dead, "loss": loss}


def test_of_many_the_picture_has_the_mean_and_the_range():
    lines = [
        {"step": 100 * i, "saes": [one_sae(ev=0.1 * i + 0.01 * n, loss=2.0 ** (n - i)) for n in range(9)]}
        for i in (1, 2, 3)
    ]
    svg = ElementTree.fromstring(curves(lines, "nine", "", [str(n) for n in range(9)]))
    for title, (name, logged) in PANELS.items():
        _, drawn = read_panels(svg)[title]
        assert len(drawn) == 1
        means = [np.mean([sae[name] for sae in line["saes"]]) for line in lines]
        np.testing.assert_allclose(logged(drawn[0]), means, rtol=2e-2, atol=2e-3)
    bands = [each.get("points") for each in svg.iter(f"{SVG}polygon")]
    assert len(bands) == 4 + 1, "and one in the legend"
    texts = [each.text for each in svg.iter(f"{SVG}text")]
    assert {"mean of 9 SAEs", "0.300–0.380", "0.340"} < set(texts)


@pytest.mark.parametrize("value", [math.nan, math.inf, -5.0, 0.0])
def test_values_that_cannot_be_drawn_leave_a_picture(value):
    lines = [{"step": 10, "saes": [dict.fromkeys(("ev", "l0", "dead", "loss"), value)] * 2}]
    svg = ElementTree.fromstring(curves(lines, "a < b & c", "", ["one", "two"]))
    assert all("nan" not in (each.get("points") or "") for each in svg.iter())
    assert svg.find(f"{SVG}title").text == "a < b & c"


@pytest.mark.slow
def test_a_long_log_makes_a_small_picture():
    lines = [{"step": s, "saes": [one_sae(loss=1 / s)] * 6} for s in range(1, 50_000)]
    svg = curves(lines, "long", "", ["an SAE"] * 6)
    assert len(svg) < 400_000
    steps, _ = read_panels(ElementTree.fromstring(svg))["loss (logarithmic)"]
    assert steps[-1] == pytest.approx(49_999, abs=20)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1), (0.3, 0.31), (0, 123_456), (0.2, 0.97), (0, 1e-9)])
def test_ticks_enclose_the_values_evenly_with_few(low, high):
    found = ticks(low, high, 5)
    assert found[0] <= low and found[-1] >= high * (1 - 1e-9) and 2 <= len(found) <= 8
    np.testing.assert_allclose(np.diff(found), found[1] - found[0])


@pytest.mark.parametrize(("low", "high"), [(1, 1), (0.03, 0.9), (1e-6, 1), (0.001, 0.001), (5, 200)])
def test_logarithmic_ticks_enclose_the_values(low, high):
    found = log_ticks(low, high)
    assert found == sorted(found) and len(set(found)) >= 2
    assert found[0] <= low * (1 + 1e-9) and found[-1] >= high * (1 - 1e-9)


def test_as_many_colours_as_lines_and_none_twice():
    assert len(set(COLOURS)) == 6


def test_after_resuming_no_step_comes_twice_in_log_and_picture(stopped, tmp_path):
    folder = stopped()
    assert [line["step"] for line in log_of(folder)] == [10, 20, 30, 40]
    with open(folder / LOG_FILE, "a") as file:
        file.write(json.dumps(log_of(folder)[-1] | {"step": 45}) + "\n" + '{"step": 46, "sa')  # killed as it wrote
    train(batches(), TWO, CONFIG, folder=folder)
    assert [line["step"] for line in log_of(folder)] == [10, 20, 30, 40, 50, 60]
    for steps, _ in read_panels(ElementTree.parse(folder / CURVES_FILE).getroot()).values():
        np.testing.assert_allclose(steps, [10, 20, 30, 40, 50, 60], atol=0.1)


# trackers


def numbers_of(folder):
    """(Step, name) -> number, as trackers should have been given them."""
    found = {}
    for line in log_of(folder):
        found |= {(line["step"], name): line[name] for name in ("rows", "lr")}
        for number, sae in enumerate(line["saes"]):
            found |= {(line["step"], f"{name}/{number}"): value for name, value in sae.items()}
    return found


def test_a_function_is_given_what_the_log_says(tmp_path):
    given = {}

    def track(step, numbers):
        given.update({(step, name): number for name, number in numbers.items()})

    train(batches(), TWO, CONFIG, folder=tmp_path, trackers=[track])
    assert given == numbers_of(tmp_path) and len(given) == 6 * (2 + 2 * 4)
    alone = []
    train(batches(), TWO, CONFIG, trackers=[lambda step, numbers: alone.append(step)])
    assert alone == [10, 20, 30, 40, 50, 60], "without a folder too"


def test_a_tracker_that_fails_is_said_once_and_stops_neither_training_nor_others(tmp_path, capsys):
    calls, others = [], []

    def broken(step, numbers):
        calls.append(step)
        if step == 20:
            raise ConnectionError("no route\nto host")

    expected = train(batches(), TWO, CONFIG)
    found = train(batches(), TWO, CONFIG, folder=tmp_path, trackers=[broken, lambda step, numbers: others.append(step)])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("riebench:")]
    assert said == ["riebench: tracker broken fails, and is left out: ConnectionError: no route to host"]
    assert calls == [10, 20] and others == [10, 20, 30, 40, 50, 60] == [line["step"] for line in log_of(tmp_path)]
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a.W_dec, b.W_dec)


def test_tensorboard_has_what_the_log_says_also_after_resuming(stopped):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = stopped("tensorboard")
    train(batches(), TWO, CONFIG, folder=folder, trackers=["tensorboard"])
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = [(e.step, tag, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    expected = numbers_of(folder)
    assert len(found) == len({(step, tag) for step, tag, _ in found}) == len(expected), "no step comes twice"
    for step, tag, value in found:
        assert value == pytest.approx(expected[step, tag], rel=1e-6, abs=1e-12)


class StandInRun:
    """Of wandb, as far as it is used: numbers of steps that come again are dropped."""

    def __init__(self, init, exits):
        self.init, self.exits, self.logged = init, exits, []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.exits.append(kind)

    def log(self, numbers, step):
        self.logged.append((step, numbers))


@pytest.fixture
def wandb(monkeypatch):
    """The runs that were opened, and how each was left."""
    runs, exits = [], []

    def init(**words):
        runs.append(StandInRun(words, exits))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return SimpleNamespace(runs=runs, exits=exits)


def test_wandb_is_given_what_the_log_says_and_the_run_goes_on_after_resuming(stopped, wandb):
    folder = stopped("wandb")
    train(batches(), TWO, CONFIG, folder=folder, trackers=["wandb"])
    first, second = wandb.runs
    assert [step for step, _ in first.logged] == [10, 20, 30, 40] and [step for step, _ in second.logged] == [50, 60]
    given = {(step, name): number for run in wandb.runs for step, some in run.logged for name, number in some.items()}
    assert given == numbers_of(folder)
    assert first.init["id"] == second.init["id"] and first.init["resume"] == "allow"
    assert first.init["dir"] == str(folder) and first.init["name"].endswith(f"/{folder.name}")
    assert first.init["config"]["lr"] == "0.002" and "TopK(k=3" in first.init["config"]["architecture 0"]
    assert wandb.exits == [KeyboardInterrupt, None], "the first has failed, the second is done"
    (folder / "training.pt").unlink()
    train(batches(), TWO, CONFIG, folder=folder, trackers=["wandb"])
    assert wandb.runs[2].init["id"] != first.init["id"], "what starts from nothing is another run"


@pytest.mark.parametrize("when", ["init", "log", "__exit__"])
def test_wandb_without_a_network_stops_nothing(wandb, monkeypatch, tmp_path, capsys, when):
    def fail(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(sys.modules["wandb"] if when == "init" else StandInRun, when, fail)
    (sae, _) = train(batches(), TWO, CONFIG, folder=tmp_path, trackers=["wandb"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("riebench:")]
    assert said == ["riebench: tracker wandb fails, and is left out: OSError: network is unreachable"]
    assert len(log_of(tmp_path)) == 6 and torch.equal(sae.W_dec, train(batches(), TWO, CONFIG)[0].W_dec)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_said_before_any_batch(name, monkeypatch, tmp_path):
    for module in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf'{name} is not installed -> pip install "riebench\[tracking\]"'):
        train(iter(()), TWO, CONFIG, folder=tmp_path, trackers=[name])
    assert not list(tmp_path.iterdir())


def test_trackers_that_cannot_be_meant_are_refused(tmp_path, wandb):
    with pytest.raises(UserError, match="no tracker 'tensorbord'; did you mean 'tensorboard'"):
        train(batches(), TWO, CONFIG, folder=tmp_path, trackers=["tensorbord"])
    with pytest.raises(UserError, match="has no folder -> train in a folder"):
        train(batches(), TWO, CONFIG, trackers=["wandb"])


@pytest.mark.process
def test_trackers_are_imported_only_when_asked_for():
    code = "import sys, sae_models.trainer; print({'wandb', 'tensorboard'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "set()"


def test_labels_leave_out_what_is_at_its_default(tmp_path):
    annealed = [Architecture(16, 48, BatchTopK(3, start_k=9, anneal=0.5), block=block) for block in (0, 1)]
    both = (torch.stack([batch, batch + 1]) for batch in batches())
    train(both, annealed, TrainConfig(steps=2, report_every=1), folder=tmp_path)
    texts = [each.text for each in ElementTree.parse(tmp_path / CURVES_FILE).getroot().iter(f"{SVG}text")]
    assert {"16 → 48, BatchTopK(k=3, start_k=9, anneal=0.5), seed 0", "SAE 0: block 0", "SAE 1: block 1"} < set(texts)
