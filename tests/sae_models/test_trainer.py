"""The trainer: planted dictionaries, exact resume, what is exported, and input that cannot be trained on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from killed import exit_code_of_fork
from scipy.optimize import minimize

from riebench.core.errors import UserError
from sae_models import trainer
from sae_models.architectures import L1, Architecture, AuxK, BatchTopK, JumpReLU, Matryoshka, Restart, TopK
from sae_models.batches import shuffled_batches
from sae_models.evaluation import evaluate
from sae_models.normalisation import geometric_median
from sae_models.stack import Stack
from sae_models.trainer import STATE_FILE, TrainConfig, train
from sae_models.training_log import LOG_FILE


def planted_rows(num_rows: int, width: int = 16, num_atoms: int = 32, active: int = 3, seed: int = 0):
    """Rows that are sparse sums of random unit atoms, off centre and in units of about 30; and the atoms."""
    generator = torch.Generator().manual_seed(seed)
    atoms_fd = torch.nn.functional.normalize(torch.randn(num_atoms, width, generator=generator), dim=-1)
    chosen = torch.rand(num_rows, num_atoms, generator=generator).topk(active, dim=-1).indices
    values = torch.zeros(num_rows, num_atoms).scatter(
        -1, chosen, 20 + 20 * torch.rand(num_rows, active, generator=generator)
    )
    return values @ atoms_fd + 7.0, atoms_fd


SMALL = TrainConfig(steps=30, lr=2e-3, report_every=10)
AUXK = AuxK(8, dead_after=64)  # so few that there are some at each report
ONE = Architecture(16, 48, TopK(3), revival=AUXK)
MANY = [
    Architecture(16, 48, TopK(3), revival=AUXK, seed=1),
    Architecture(16, 48, BatchTopK(3, start_k=10, anneal=0.5), Matryoshka(prefixes=(0.25, 0.5)), seed=2),
    Architecture(16, 48, TopK(3), revival=AUXK, seed=2),
    Architecture(16, 32, JumpReLU(1e-3), revival=Restart(200)),
    Architecture(16, 32, L1(1e-2)),
]


def same(first: list, second: list) -> bool:
    return all(
        torch.equal(a.state_dict()[name], value)
        for a, b in zip(first, second, strict=True)
        for name, value in b.state_dict().items()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sparsity", "matryoshka"),
    [
        (TopK(3), None),
        (TopK(3, start_k=24, anneal=0.3), None),
        (BatchTopK(3), None),
        (BatchTopK(3), Matryoshka(prefixes=(0.6,))),
        (TopK(3), Matryoshka(ks=(2,))),
        (L1(0.2), None),
        (JumpReLU(0.02, bandwidth=0.1), None),
    ],
)
def test_training_recovers_a_planted_dictionary(sparsity, matryoshka):
    rows_nd, atoms_fd = planted_rows(22_000)
    architecture = Architecture(16, 64, sparsity, matryoshka, AuxK(8, dead_after=5_000))
    config = TrainConfig(steps=350, lr=5e-3)
    (sae,) = train(shuffled_batches(rows_nd[:20_000], 256), [architecture], config)
    scores = evaluate(sae, rows_nd[20_000:])
    assert scores.explained_variance_pooled > 0.85
    assert (atoms_fd @ sae.W_dec.T).max(-1).values.median() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("matryoshka", [None, Matryoshka(prefixes=(0.3, 0.6)), Matryoshka(ks=(1, 2))])
@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_the_exported_l0_is_the_trained_one(kind, matryoshka, tmp_path):
    rows_nd, _ = planted_rows(12_000)
    config = TrainConfig(steps=200, lr=5e-3)
    (sae,) = train(shuffled_batches(rows_nd, 256), [Architecture(16, 64, kind(4), matryoshka)], config, folder=tmp_path)
    (trained,) = json.loads((tmp_path / LOG_FILE).read_text().splitlines()[-1])["saes"]
    assert trained["l0"] == pytest.approx(4, abs=0.01)
    found = evaluate(sae, rows_nd)
    assert found.l0 == pytest.approx(trained["l0"], rel=0.02)
    assert found.explained_variance_pooled == pytest.approx(trained["ev"], abs=0.02)


def test_decoder_rows_have_unit_norm_after_training():
    rows_nd, _ = planted_rows(500)
    for steps in (1, 7):
        config = dataclasses.replace(SMALL, steps=steps, lr=0.1)
        for sae in train(shuffled_batches(rows_nd, 64), MANY, config):
            torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(sae.num_features), atol=1e-6, rtol=0)
            assert not torch.allclose(sae.W_enc, sae.W_dec.T, atol=1e-3)


def test_no_optimiser_step_sees_a_gradient_along_the_decoder_rows(monkeypatch):
    along, length = [], []
    plain_step = torch.optim.Adam.step

    def watched_step(optimiser, *arguments):
        w_dec = optimiser.param_groups[0]["params"][1]
        torch.testing.assert_close(w_dec.norm(dim=-1), torch.ones(w_dec.shape[:2]))
        along.append((w_dec.grad * w_dec).sum(-1).abs().max().item())
        length.append(w_dec.grad.norm(dim=-1).max().item())
        return plain_step(optimiser, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", watched_step)
    train(shuffled_batches(planted_rows(500)[0], 64), MANY, SMALL)
    assert len(along) == 4 * SMALL.steps, "the two that differ by the seed alone are one stack"
    assert max(along) < 1e-5 * max(length)


@pytest.mark.slow
def test_those_trained_together_are_those_trained_alone():
    batches = shuffled_batches(planted_rows(500)[0], 64)
    together = train(batches, MANY, SMALL)
    for architecture, sae in zip(MANY, together, strict=True):
        batches.seek(0)
        (alone,) = train(batches, [architecture], SMALL)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(sae.state_dict()[name], value, rtol=1e-4, atol=1e-4)


def test_blocks_are_trained_on_their_own_rows():
    first, second = planted_rows(500)[0], 3 * planted_rows(500, seed=1)[0]
    both = iter([torch.stack([a, b]) for a, b in zip(*(itertools.islice(shuffled_batches(rows_nd, 64), 30)
                                                       for rows_nd in (first, second)), strict=True)])  # fmt: skip
    found = train(both, [dataclasses.replace(ONE, block=1), ONE], SMALL)
    assert same(found, [train(shuffled_batches(rows_nd, 64), [ONE], SMALL)[0] for rows_nd in (second, first)])
    with pytest.raises(UserError, match="2 block"):
        train(shuffled_batches(first, 64), [dataclasses.replace(ONE, block=1)], SMALL)


def test_the_units_of_the_rows_do_not_matter():
    rows_nd, _ = planted_rows(500)
    small, large = (train(shuffled_batches(scale * rows_nd, 64), MANY, SMALL) for scale in (1, 1024))
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(b.encode(1024 * rows_nd), 1024 * a.encode(rows_nd), rtol=1e-3, atol=1.0)
        torch.testing.assert_close(b(1024 * rows_nd), 1024 * a(rows_nd), rtol=1e-3, atol=1.0)


def test_features_start_in_all_directions_with_codes_of_the_rows_magnitude():
    """Also where nearly all of the variance lies along one axis."""
    rows_nd = torch.randn(2_000, 16, generator=torch.Generator().manual_seed(1)) * torch.tensor([10.0] + [0.3] * 15) + 5
    architectures = [Architecture(16, 512, TopK(4), seed=seed) for seed in (0, 1)]
    sae, other = train(itertools.repeat(rows_nd), architectures, TrainConfig(steps=1, lr=1e-9))
    spread_dd = sae.W_dec.T @ sae.W_dec * 16 / 512  # the identity, of directions that are spread evenly
    torch.testing.assert_close(spread_dd, torch.eye(16), atol=0.25, rtol=0)
    assert (sae.W_dec - other.W_dec).norm(dim=1).min() > 0.1
    coded_nd, target_nd = sae(rows_nd) - sae.b_dec, rows_nd - sae.b_dec
    assert (coded_nd.norm(dim=1).mean() / target_nd.norm(dim=1).mean()).item() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(sae.b_dec, geometric_median(rows_nd), atol=1e-4)


def test_more_features_than_rows_can_be_trained():
    rows_nd = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    rows_nd[:15] = rows_nd[0]  # the geometric median is that row, which has no direction
    (sae,) = train(itertools.repeat(rows_nd), [ONE], TrainConfig(steps=3))
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(48), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_dead_features_are_revived(monkeypatch):
    """Half of the features start so far below the others that nothing else ever gives them a gradient."""
    plain_start = Stack.start

    def half_dead(stack, *arguments):
        plain_start(stack, *arguments)
        with torch.no_grad():
            stack.b_enc[:, : stack.architecture.num_features // 2] -= 4

    monkeypatch.setattr(Stack, "start", half_dead)
    rows_nd, _ = planted_rows(8_000, width=32, num_atoms=64, active=6)
    revivals = (None, AuxK(16, dead_after=1_000), Restart(1_000))
    architectures = [Architecture(32, 128, TopK(4), revival=revival) for revival in revivals]
    config = TrainConfig(steps=400, lr=5e-3, report_every=20)
    saes = train(shuffled_batches(rows_nd, 128), architectures, config)
    without, auxk, restart = (evaluate(sae, rows_nd) for sae in saes)
    assert without.dead_share > 0.4 and auxk.dead_share < 0.2 and restart.dead_share < 0.02
    assert restart.explained_variance_pooled > without.explained_variance_pooled + 0.005


def test_a_restart_follows_residuals_and_touches_nothing_but_the_dead():
    stack = Stack([Architecture(16, 48, TopK(3), revival=Restart(100), seed=seed) for seed in (0, 1)])
    rows_nd = planted_rows(64)[0]
    stack.start(rows_nd, rows_nd.mean(0), 3)
    optimiser = torch.optim.Adam(stack.parameters(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        stack.losses(rows_nd, 3).loss_s.sum().backward()
        optimiser.step()
    dead = torch.tensor([7, 20, 30, 41])
    stack.rows_since_active.zero_()
    stack.rows_since_active[1, dead] = 100
    stack.list_dead()
    residual_snd = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    residual_snd[1, 1:3] = 0  # coded exactly: nothing to point at
    before = {name: value.detach().clone() for name, value in stack.named_parameters()}
    typical = optimiser.state[stack.W_enc]["exp_avg_sq"][1].mean().clone()
    stack.restart(residual_snd, optimiser, step=20)
    restarted, others = dead[:3], torch.tensor([f for f in range(48) if f not in (7, 20, 30)])
    wanted = {tuple(row) for row in torch.nn.functional.normalize(residual_snd[1, [0, 3, 4]], dim=-1).tolist()}
    assert {tuple(row) for row in stack.W_dec[1, restarted].tolist()} == wanted, "each once, so the fourth waits"
    mean_norm = before["W_enc"][1].norm(dim=-1).mean()
    torch.testing.assert_close(stack.W_enc[1, restarted], stack.W_dec[1, restarted] * mean_norm)
    assert not stack.b_enc[1, restarted].any() and not stack.rows_since_active[1, restarted].any()
    for name in ("W_dec", "W_enc", "b_enc"):
        value = getattr(stack, name)
        assert torch.equal(value[0], before[name][0]) and torch.equal(value[1, others], before[name][1, others])
    moments = optimiser.state[stack.W_enc]
    assert not moments["exp_avg"][1, restarted].any() and moments["exp_avg"][0, restarted].any()
    assert torch.equal(moments["exp_avg_sq"][1, restarted], typical.expand(3, 16))


@pytest.mark.slow
def test_bfloat16_trains_as_well_and_keeps_float32_weights():
    rows_nd, _ = planted_rows(8_000)
    found = []
    for compute in ("float32", "bfloat16"):
        config = TrainConfig(steps=120, lr=5e-3, compute=compute)
        saes = train(shuffled_batches(rows_nd, 256), MANY, config)
        assert {value.dtype for sae in saes for value in sae.state_dict().values()} == {torch.float32}
        found.append([evaluate(sae, rows_nd).explained_variance_pooled for sae in saes])
    np.testing.assert_allclose(found[0], found[1], atol=0.02)
    assert found[0] != found[1]


# compiling

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)


@pytest.mark.slow
@needs_compiler
def test_compiled_training_is_the_plain_one_but_for_rounding(tmp_path, monkeypatch):
    rows_nd, compiled = planted_rows(500)[0], []
    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda part: compiled.append(part) or plain_compile(part))
    plain = train(shuffled_batches(rows_nd, 64), MANY, SMALL, folder=tmp_path / "plain")
    assert not compiled
    config = dataclasses.replace(SMALL, compile=True)
    found = train(shuffled_batches(rows_nd, 64), MANY, config, folder=tmp_path / "compiled")
    assert len(compiled) == 2 * 4 + 2, "a trial and the errors of each stack, and the latents of L1 and JumpReLU"
    for one, other in zip(plain, found, strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-4)
    states = [torch.load(tmp_path / name / STATE_FILE, weights_only=True) for name in ("plain", "compiled")]
    assert states[0]["description"] == states[1]["description"]
    for one, other in zip(*(state["stacks"] for state in states), strict=True):
        assert list(one) == list(other) and not any("_orig_mod" in name for name in one)


@pytest.mark.slow
@needs_compiler
def test_compiling_leaves_torchs_limit_of_recompilations_and_is_not_stopped_by_it():
    torch._dynamo.reset()
    batches, limits = shuffled_batches(planted_rows(500)[0], 64), []
    architectures = [Architecture(16, features, L1(1e-2)) for features in (24, 32, 40)]
    config = dataclasses.replace(SMALL, steps=2, report_every=1, compile=True)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        watch = [lambda step, numbers: limits.append(torch._dynamo.config.recompile_limit)]
        train(batches, architectures, config, trackers=watch)
    assert limits == [1, 1]


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CALIBRATION_ROWS", 200)
    rows_nd, config = planted_rows(500)[0], dataclasses.replace(SMALL, compile=True)
    whole = train(shuffled_batches(rows_nd, 64), MANY, config)
    with pytest.raises(KeyboardInterrupt):
        train(stopped(shuffled_batches(rows_nd, 64), 25), MANY, config, folder=tmp_path, checkpoint_every=20)
    assert same(whole, train(shuffled_batches(rows_nd, 64), MANY, config, folder=tmp_path))


@pytest.mark.process
@needs_compiler
def test_without_a_compiler_compile_is_refused(tmp_path):
    code = (
        "from test_trainer import ONE, SMALL, planted_rows, shuffled_batches, train\nimport dataclasses\n"
        "train(shuffled_batches(planted_rows(500)[0], 64), [ONE], dataclasses.replace(SMALL, compile=True))"
    )
    env = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()[-1]
    assert said.startswith("riebench.core.errors.UserError: torch.compile does not work on cpu: ")
    assert said.endswith("-> install a C++ compiler, on a GPU Triton too, or train without compile")


# resuming


def stopped(batches: Iterator[torch.Tensor], after: int) -> Iterator[torch.Tensor]:
    yield from itertools.islice(batches, after)
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("can_seek", [True, False])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, monkeypatch, can_seek):
    monkeypatch.setattr(trainer, "CALIBRATION_ROWS", 200)
    rows_nd = planted_rows(500)[0]
    whole = train(shuffled_batches(rows_nd, 64), MANY, SMALL, folder=tmp_path / "whole")
    folder = tmp_path / "stopped"
    for after in (13, 27):
        batches = shuffled_batches(rows_nd, 64)
        with pytest.raises(KeyboardInterrupt):
            done = 0 if after == 13 else 7
            train(stopped(batches, after), MANY, SMALL, folder=folder, checkpoint_every=7)
        assert torch.load(folder / STATE_FILE, weights_only=True)["step"] == after // 7 * 7 > done
    batches = shuffled_batches(rows_nd, 64)
    resumed = train(batches if can_seek else (batch for batch in batches), MANY, SMALL, folder=folder)
    assert same(whole, resumed)
    logs = [[json.loads(line) for line in (tmp_path / name / LOG_FILE).read_text().splitlines()]
            for name in ("whole", "stopped")]  # fmt: skip
    for line in itertools.chain(*logs):
        line.pop("seconds")
    assert logs[0] == logs[1]
    assert same(whole, train(shuffled_batches(rows_nd, 64), MANY, SMALL, folder=folder)), "nothing is left to do"


@pytest.mark.process
def test_a_killed_process_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CALIBRATION_ROWS", 200)
    config, rows_nd = dataclasses.replace(SMALL, steps=100), planted_rows(500)[0]

    def train_and_die() -> None:
        batches = shuffled_batches(rows_nd, 64)
        plain_next = type(batches).__next__

        def killing_next(self):
            if self.step >= 70 and (tmp_path / STATE_FILE).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return plain_next(self)

        type(batches).__next__ = killing_next
        train(batches, MANY, config, folder=tmp_path, checkpoint_every=7)

    assert exit_code_of_fork(train_and_die) == -signal.SIGKILL
    resumed = train(shuffled_batches(rows_nd, 64), MANY, config, folder=tmp_path)
    assert same(train(shuffled_batches(rows_nd, 64), MANY, config), resumed)


def test_a_state_of_another_run_or_a_broken_one_is_not_resumed(tmp_path):
    rows_nd = planted_rows(500)[0]
    train(shuffled_batches(rows_nd, 64), [ONE], SMALL, folder=tmp_path)
    with pytest.raises(UserError, match="seed=0"):
        train(shuffled_batches(rows_nd, 64), [dataclasses.replace(ONE, seed=1)], SMALL, folder=tmp_path)
    with pytest.raises(UserError, match="lr=0.002"):
        train(shuffled_batches(rows_nd, 64), [ONE], dataclasses.replace(SMALL, lr=0.1), folder=tmp_path)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be resumed"):
        train(shuffled_batches(rows_nd, 64), [ONE], SMALL, folder=tmp_path)


def test_training_is_decided_by_the_seed():
    rows_nd = planted_rows(500)[0]
    first, again, other = (
        train(shuffled_batches(rows_nd, 64), [dataclasses.replace(ONE, seed=seed)], SMALL) for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first, other)


# input


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused_and_what_was_saved_stays(value, tmp_path, monkeypatch):
    rows_nd, _ = planted_rows(64)
    spoilt_nd = rows_nd.clone()
    spoilt_nd[3, 5] = value
    with pytest.raises(UserError, match="step 2 "):
        train((spoilt_nd if step == 2 else rows_nd for step in itertools.count()), [ONE], SMALL)
    monkeypatch.setattr(trainer, "CALIBRATION_ROWS", 64)
    spoilt_later = (spoilt_nd if step == 17 else rows_nd for step in itertools.count())
    with pytest.raises(UserError, match="step 17 "):
        train(spoilt_later, [ONE], SMALL, folder=tmp_path, checkpoint_every=10)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert state["step"] == 10 and all(value.isfinite().all() for name, value in state["stacks"][0].items()
                                       if isinstance(value, torch.Tensor))  # fmt: skip


def finite(state: dict) -> bool:
    tensors = [value for stack in state["stacks"] for value in stack.values() if isinstance(value, torch.Tensor)]
    return all(bool(value.isfinite().all()) for value in tensors)


def test_a_training_that_met_nan_in_its_rows_goes_on_once_they_are_mended(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CALIBRATION_ROWS", 64)
    rows_nd, _ = planted_rows(64 * SMALL.steps)
    batches = list(rows_nd.split(64))
    spoilt = [*batches[:17], batches[17] * torch.nan, *batches[18:]]
    for _ in range(2):  # also when it goes on and meets them again
        with pytest.raises(
            UserError, match=r"step 17 holds NaN .*training\.pt holds step 10, from which the same call"
        ):
            train(iter(spoilt), [ONE], SMALL, folder=tmp_path, checkpoint_every=10)
    assert finite(torch.load(tmp_path / STATE_FILE, weights_only=True))
    mended = train(iter(batches), [ONE], SMALL, folder=tmp_path, checkpoint_every=10)
    assert same(mended, train(iter(batches), [ONE], SMALL))


@pytest.mark.parametrize("report_every", [5, 1_000])
def test_a_training_whose_loss_is_no_number_any_more_says_where_and_of_which_sae(tmp_path, monkeypatch, report_every):
    """The second stack gets a loss of NaN at step 13; the state of step 10 is what is left."""
    real, config, seen = trainer._advance, dataclasses.replace(SMALL, report_every=report_every), []

    def advance(training, batch, config):
        found = real(training, batch, config)
        if training.step == 14:
            spoilt = found[1].statistics_s4.clone()
            spoilt[0, 0] = torch.nan
            found[1] = dataclasses.replace(found[1], statistics_s4=spoilt)
            with torch.no_grad():
                training.stacks[1].W_enc[0].fill_(torch.inf)
        return found

    monkeypatch.setattr(trainer, "_advance", advance)
    rows_nd, _ = planted_rows(64)
    with pytest.raises(
        UserError, match="SAE 1 of 5 came to NaN or infinite values at step 13; .*holds step 10"
    ) as caught:
        track = [lambda step, numbers: seen.append((step, numbers))]
        train(itertools.repeat(rows_nd), MANY, config, folder=tmp_path, checkpoint_every=10, trackers=track)
    assert "lower lr, which is 0.002" in str(caught.value)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert state["step"] == 10 and finite(state)
    assert all(np.isfinite(list(numbers.values())).all() for _, numbers in seen)
    log = tmp_path / LOG_FILE
    lines = log.read_text().splitlines() if log.exists() else []
    assert [json.loads(line, parse_constant=pytest.fail)["step"] for line in lines] == [
        step for step in (5, 10) if step % report_every == 0
    ]


@pytest.mark.parametrize(
    ("rows", "config"),
    [
        (lambda rows_nd: rows_nd, dataclasses.replace(SMALL, lr=1e30)),
        (lambda rows_nd: rows_nd * 1e25, dataclasses.replace(SMALL, normalisation="none")),
        (lambda rows_nd: rows_nd * 1e25, dataclasses.replace(SMALL, normalisation="mean", report_every=3)),
    ],
    ids=["a learning rate", "long rows", "long rows, centred"],
)
def test_a_training_that_overflows_stops_by_itself(tmp_path, rows, config):
    rows_nd = rows(planted_rows(64)[0])
    with pytest.raises(UserError, match="the training of the SAE came to NaN or infinite values at step "):
        train(itertools.repeat(rows_nd), [Architecture(16, 48, TopK(3))], config, folder=tmp_path, checkpoint_every=4)
    assert not (tmp_path / STATE_FILE).exists() or finite(torch.load(tmp_path / STATE_FILE, weights_only=True))
    assert not (tmp_path / LOG_FILE).exists() or "NaN" not in (tmp_path / LOG_FILE).read_text()


def test_weights_that_break_in_the_very_last_step_are_not_returned(tmp_path, monkeypatch):
    real = trainer._advance

    def advance(training, batch, config):
        found = real(training, batch, config)
        if training.step == config.steps:
            with torch.no_grad():
                training.stacks[0].b_dec.fill_(torch.nan)
        return found

    monkeypatch.setattr(trainer, "_advance", advance)
    with pytest.raises(UserError, match="came to NaN or infinite values at step 29; .*holds step 20"):
        train(itertools.repeat(planted_rows(64)[0]), [ONE], SMALL, folder=tmp_path, checkpoint_every=10)
    assert torch.load(tmp_path / STATE_FILE, weights_only=True)["step"] == 20


def test_batches_that_end_early_are_refused_and_what_was_saved_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CALIBRATION_ROWS", 64)
    rows_nd, _ = planted_rows(64)
    with pytest.raises(UserError, match="end before step 12"):
        train(itertools.repeat(rows_nd, 12), [ONE], SMALL, folder=tmp_path, checkpoint_every=10)
    assert torch.load(tmp_path / STATE_FILE, weights_only=True)["step"] == 10
    with pytest.raises(UserError, match="end before step 10, from which"):
        train(itertools.repeat(rows_nd, 9), [ONE], SMALL, folder=tmp_path)


def test_rows_of_a_wrong_shape_or_without_variance_are_refused():
    for shape in ((64, 15), (0, 16), (16,)):
        with pytest.raises(UserError, match="shape"):
            train(itertools.repeat(torch.randn(shape)), [ONE], SMALL)
    with pytest.raises(UserError, match="all the same"):
        train(itertools.repeat(torch.ones(64, 16)), [ONE], SMALL)
    with pytest.raises(UserError, match="no architecture"):
        train(itertools.repeat(torch.ones(64, 16)), [], SMALL)


def test_shuffled_batches_go_through_every_row_once_an_epoch():
    rows_nd = torch.arange(20.0)[:, None]
    batches = shuffled_batches(rows_nd, 5, seed=1)
    first, second = ([int(row) for _ in range(4) for row in next(batches)[:, 0]] for _ in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    batches.seek(2)
    assert next(batches)[:, 0].tolist() == first[10:15]
    with pytest.raises(UserError):
        shuffled_batches(rows_nd, 21)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"warmup": 1.5},
        {"report_every": 0},
        {"normalisation": "z"},
        {"compute": "float16"},
    ],
)
def test_impossible_training_is_refused(bad):
    with pytest.raises(UserError):
        TrainConfig(**bad)


def test_the_learning_rate_rises_stays_and_falls():
    config = TrainConfig(steps=100, lr=1.0, warmup=0.1, decay=0.2)
    found = [config.lr_at(step) for step in (0, 4, 9, 50, 80, 90, 99)]
    np.testing.assert_allclose(found, [0.1, 0.5, 1, 1, 1, 0.5, 0.05])


def test_geometric_median_is_the_minimum_of_the_summed_distances():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(60, 4)), rng.normal(30, 1, size=(12, 4))])
    found = geometric_median(torch.from_numpy(rows)).numpy()
    best = minimize(lambda x: np.linalg.norm(rows - x, axis=1).sum(), rows.mean(0), method="BFGS", tol=1e-10).x
    np.testing.assert_allclose(found, best, atol=1e-4)
    assert np.linalg.norm(found - rows.mean(0)) > 3  # the mean is drawn to the outliers, the median is not


def test_geometric_median_of_equal_rows_is_that_row():
    np.testing.assert_allclose(geometric_median(torch.full((5, 3), 2.5)), 2.5)
