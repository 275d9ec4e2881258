"""Training tinyworld: exact resume, broken state, and what base and turbo are trained on."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from riebench.core.errors import UserError
from riebench.tinyworld.scenes import ATTRIBUTES
from riebench.tinyworld_build.fit import fit
from riebench.tinyworld_build.train import train_world

PROMPT = "flat poster of a standing red plain heart in the sky"


class Interrupted(Exception):
    pass


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def loss(net, step):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return ((net(x)[:, 0] - x.sum(dim=1)) ** 2).mean()


def settings(folder):
    return {"steps": 40, "folder": folder, "lr": 1e-2, "warmup": 5, "ema": 0.9, "checkpoint_every": 10}


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path):
    straight = fit("net", model(), loss, **settings(tmp_path / "a"))

    def failing(net, step):
        if step == 27:
            raise Interrupted
        return loss(net, step)

    with pytest.raises(Interrupted):
        fit("net", model(), failing, **settings(tmp_path / "b"))
    seen = []
    resumed = fit("net", model(), lambda net, step: seen.append(step) or loss(net, step), **settings(tmp_path / "b"))
    assert seen[0] == 20  # the last checkpoint
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_learns_and_returns_the_average(tmp_path):
    before = loss(model(), 1000).item()
    after = loss(fit("net", model(), loss, **{**settings(tmp_path), "steps": 400}), 1000).item()
    assert after < 0.2 * before


def test_a_broken_checkpoint_is_named(tmp_path):
    fit("net", model(), loss, **settings(tmp_path))
    path = tmp_path / "net.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"net\.pt cannot be resumed from.*delete that file"):
        fit("net", model(), loss, **settings(tmp_path))


def test_a_diverging_loss_stops_and_says_so(tmp_path):
    with pytest.raises(UserError, match="the loss is nan"):
        fit("net", model(), lambda net, step: loss(net, step) * float("nan"), **settings(tmp_path))


@pytest.mark.parametrize(
    ("part", "world", "need"),
    [("base", "planted", "vae"), ("turbo", "planted", "base"), ("turbo", "permuted", "vae"), ("flux", "flux", "vae")],
)
def test_a_part_without_what_it_needs_is_refused(tmp_path, part, world, need):
    with pytest.raises(UserError, match=f"is missing -> train the part {need} first"):
        train_world(tmp_path, [part], world, device="cpu")


@pytest.mark.parametrize(
    ("parts", "world", "said"),
    [
        ([], "plantd", "no world 'plantd'; did you mean 'planted'"),
        (["base"], "permuted", "the permuted world has no part 'base'.*vae, turbo, dictionaries"),
        (["turbo"], "flux", "the flux world has no part 'turbo'.*use vae, flux"),
        (["bse"], "planted", "the planted world has no part 'bse'; did you mean 'base'"),
    ],
)
def test_unknown_worlds_and_parts_are_refused(tmp_path, parts, world, said):
    with pytest.raises(UserError, match=said):
        train_world(tmp_path, parts, world, device="cpu")


def test_the_rate_falls_over_the_last_share_only_and_gradients_can_be_held_down(tmp_path):
    given = settings(tmp_path) | {"ema": 0.0, "decay": 0.25, "warmup": 1, "lr": 1.0, "weight_decay": 0.0}
    net, seen, states = nn.Linear(1, 1, bias=False), [], []
    nn.init.zeros_(net.weight)

    def slope(net, step):
        states.append(float(net.weight.detach()))
        return -net.weight.sum()

    def halve(net):
        seen.append(float(net.weight.grad))
        net.weight.grad.mul_(0.5)

    fit("net", net, slope, before_step=halve, **given)
    moved = [after - before for before, after in zip(states, states[1:], strict=False)]
    assert moved[:29] == pytest.approx([1.0] * 29, abs=1e-5)  # Adam moves by the rate where the slope is constant
    assert moved[35] == pytest.approx(0.02 + 0.98 * 0.5, abs=1e-4) and all(
        x > y for x, y in zip(moved[30:], moved[31:], strict=False)
    )
    assert seen == [-1.0] * 40


@pytest.mark.slow
def test_trained_pipelines_are_written_whole_and_say_nothing_of_where_they_were_made(tmp_path, monkeypatch):
    from riebench.generation.sampler import Request, load_sampler
    from riebench.tinyworld_build import train, train_base, train_turbo, train_vae

    for module, few in ((train_vae, {"BATCH": 4}), (train_base, {"BATCH": 4}), (train_turbo, {"BATCH": 4, "LATER": 2})):
        for name, count in few.items():
            monkeypatch.setattr(module, name, count)
    for name, short in (
        ("train_vae", {"steps": 1, "decoder_steps": 1}),
        ("train_base", {"start_steps": 1, "steps": 2, "turn_steps": 1}),
        ("make_pairs", {"count": 3}),
        ("train_turbo", {"steps": 1}),
    ):
        monkeypatch.setattr(train, name, functools.partial(getattr(train, name), **short))
    monkeypatch.setattr(train, "PAIR_BATCH", 2)
    monkeypatch.setattr(train, "PAIR_STEPS", 2)
    monkeypatch.setattr(train, "CONTROL_STEPS", 2)
    train_world(tmp_path, ["vae", "base", "turbo"], device="cpu")
    train_world(tmp_path, ["turbo"], "permuted", device="cpu")
    base = dataclasses.replace(train._backbone(tmp_path, "tinyworld-base@25"), steps=2)
    turbo = train._backbone(tmp_path, "tinyworld-turbo@4")
    permuted = train._backbone(tmp_path, "tinyworld-turbo@1", "permuted")
    assert permuted.name == "tinyworld-permuted@1" and permuted.folder == str((tmp_path / "permuted").resolve())
    for backbone, posed in ((base, "mid.0"), (turbo, "mid.0"), (permuted, "up.0.0")):
        configs = Path(backbone.folder).rglob("*.json")
        assert not any(str(tmp_path) in path.read_text() for path in configs)
        sampler = load_sampler(backbone, torch.device("cpu"), 1)
        image = sampler.generate([Request(PROMPT, 1)])[0].image
        assert image.shape == (3, 64, 64) and torch.isfinite(image).all()
        for block in ("down.2.0", "down.2.1", "mid.0", "up.0.0", "up.0.1", "up.0.2"):
            attention = sampler.blocks.module(block).transformer_blocks[0].attn2
            for weight in (attention.to_k.weight, attention.to_v.weight):
                read = {ATTRIBUTES[channel // 16] for channel in weight.any(dim=0).nonzero().flatten().tolist()}
                assert ("pose" in read) == (block == posed) and bool(read) == (block not in ("down.2.0", "up.0.2"))
    assert _bytes(tmp_path / "permuted" / "unet") < 0.51 * _bytes(tmp_path / "turbo" / "unet")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_clean_latents_are_those_of_the_scheduler():
    """diffusers' Euler step says what it takes for the clean sample; ours must be that, at every noise level."""
    from riebench.tinyworld_build.models import build_base_scheduler, noise_levels
    from riebench.tinyworld_build.train_base import denoise

    scheduler = build_base_scheduler()
    scheduler.set_timesteps(25)
    torch.testing.assert_close(noise_levels()[scheduler.timesteps.long()], scheduler.sigmas[:-1], rtol=1e-4, atol=1e-5)
    for index in (0, 7, 24):
        sample, v = torch.randn(2, 1, 4, 32, 32)
        timestep, sigma = scheduler.timesteps[index], scheduler.sigmas[index].reshape(1)
        given = {}

        def unet(scaled, timesteps, given=given, v=v, **_):
            given["scaled"] = scaled
            return SimpleNamespace(sample=v)

        clean = denoise(unet, sample, timestep.reshape(1), sigma, torch.zeros(1, 1, 1), torch.zeros(1, 1))
        scheduler._step_index = None
        torch.testing.assert_close(given["scaled"], scheduler.scale_model_input(sample, timestep))
        torch.testing.assert_close(clean, scheduler.step(v, timestep, sample).pred_original_sample)


def test_euler_steps_walk_the_path_that_base_is_trained_on():
    """With a denoiser that is right, every step lands on x(sigma) = (1 - sigma / sigma_max) x0 + sigma noise."""
    from riebench.tinyworld_build.models import build_base_scheduler

    scheduler = build_base_scheduler()
    scheduler.set_timesteps(25)
    clean, noise = torch.randn(2, 1, 4, 8, 8)
    sigmas = scheduler.sigmas
    assert float(scheduler.init_noise_sigma) == pytest.approx(float(sigmas[0]))
    sample = sigmas[0] * noise
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = sigmas[index]
        v = (sample / (sigma**2 + 1) - clean) * (sigma**2 + 1) ** 0.5 / sigma
        sample = scheduler.step(v, timestep, sample).prev_sample
        expected = (1 - sigmas[index + 1] / sigmas[0]) * clean + sigmas[index + 1] * noise
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_pairs_are_base_s_own_generations_and_are_kept(tmp_path, sampler, monkeypatch):
    from riebench.generation.sampler import Request
    from riebench.tinyworld.captions import caption
    from riebench.tinyworld.scenes import Scene
    from riebench.tinyworld_build import train_turbo

    monkeypatch.setattr(train_turbo, "CHUNK", 2)
    attributes, latents = train_turbo.make_pairs(sampler, tmp_path, count=5)
    request = Request(caption(Scene.from_indices(attributes[4].tolist())), train_turbo.FIRST_SEED + 4)
    torch.testing.assert_close(latents[4], sampler.generate([request], decode=False)[0].image)
    assert len(list((tmp_path / "pairs").iterdir())) == 3
    monkeypatch.setattr(sampler, "generate", None)  # what is there is not made again
    again = train_turbo.make_pairs(sampler, tmp_path, count=5)
    assert torch.equal(again[1], latents)
    broken = tmp_path / "pairs" / "000002.safetensors"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(UserError, match="000002.safetensors cannot be read"):
        train_turbo.make_pairs(sampler, tmp_path, count=5)


@pytest.mark.parametrize("every", [10, 7])
def test_a_loss_that_is_no_number_any_more_leaves_the_state_before(tmp_path, every):
    def breaking(net, step):
        return loss(net, step) * (torch.nan if step == 26 else 1)

    with pytest.raises(UserError, match="training net: .* -> lower lr"):
        fit("net", model(), breaking, **{**settings(tmp_path), "checkpoint_every": every})
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    assert state["step"] == 20 + (every == 7) and all(value.isfinite().all() for value in state["model"].values())
    straight = fit("net", model(), loss, **{**settings(tmp_path / "a"), "checkpoint_every": every})
    mended = fit("net", model(), loss, **{**settings(tmp_path), "checkpoint_every": every})
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), mended.parameters(), strict=True))
