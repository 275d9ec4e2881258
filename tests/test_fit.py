"""The training loop of tinyworld: exact resume, and clear errors for broken state and diverging losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from riebench.errors import UserError
from riebench.tinyworld.fit import fit
from riebench.tinyworld.train import train_world


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


def test_turbo_without_an_autoencoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="train the part vae first"):
        train_world(tmp_path, ["turbo"], device="cpu")


def test_a_trained_pipeline_is_written_whole_and_says_nothing_of_where_it_was_made(tmp_path):
    from riebench.backbones import Backbone
    from riebench.sampling import Request, load_sampler
    from riebench.tinyworld import train

    cpu = torch.device("cpu")
    train.train_vae(tmp_path / "state", cpu, steps=1).save_pretrained(tmp_path / "state" / "vae")
    with pytest.MonkeyPatch.context() as patch:
        one_step = train.train_turbo
        patch.setattr(train, "train_turbo", lambda *args, **kwargs: one_step(*args, **kwargs, steps=1))
        train_world(tmp_path, ["turbo"], device="cpu")
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "turbo").rglob("*.json"))
    sampler = load_sampler(Backbone("made", str(tmp_path / "turbo"), 1, 0.0, "tinyworld", "tinyworld"), cpu, 1)
    image = sampler.generate([Request("flat poster of a standing red plain heart in the sky", 1)])[0].image
    assert image.shape == (3, 64, 64) and torch.isfinite(image).all()
