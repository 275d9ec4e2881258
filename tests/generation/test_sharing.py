"""Twins share every weight and keep their own state."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from riebench.generation.sharing import twin_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.tied = nn.Linear(3, 4, bias=False)
        self.tied.weight = self.body[0].weight
        self.register_buffer("kept", torch.randn(2), persistent=False)
        self.calls: list[int] = []

    def forward(self, x):
        self.calls.append(len(x))
        return self.body(x) + self.tied(x)


@dataclass
class Holder:
    net: nn.Module
    others: dict[str, object] = field(default_factory=dict)
    words: list[str] = field(default_factory=lambda: ["a"])


class Owner:
    """Networks in attributes, in a dictionary of lists of tuples, in an object within, and one of them twice."""

    def __init__(self) -> None:
        self.direct = Net().eval()
        self.deep = {"list": [(Net().eval(), "word"), {"inner": Net().eval()}], "again": self.direct}
        self.holder = Holder(Net().eval(), {"one": Holder(Net().eval())})
        self.itself = self
        self.number = 3

    def nets(self) -> list[Net]:
        (first, _), inner = self.deep["list"]
        return [self.direct, first, inner["inner"], self.holder.net, self.holder.others["one"].net]


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers())}


def test_every_parameter_and_buffer_is_shared_however_deep_it_is():
    owner = Owner()
    twin = twin_of(owner)
    for ours, theirs in zip(owner.nets(), twin.nets(), strict=True):
        assert theirs is not ours and all(a is not b for a, b in zip(ours.modules(), theirs.modules(), strict=True))
        assert weights(ours).keys() == weights(theirs).keys() and len(weights(ours)) == 9
        for name, value in weights(ours).items():
            assert weights(theirs)[name] is value and weights(theirs)[name].data_ptr() == value.data_ptr(), name
    assert (
        twin.itself is twin
        and twin.deep["again"] is twin.direct
        and twin.direct.tied.weight is twin.nets()[0].body[0].weight
    )
    x = torch.randn(5, 3)
    assert all(torch.equal(a(x), b(x)) for a, b in zip(owner.nets(), twin.nets(), strict=True))
    with torch.no_grad():
        owner.holder.net.body[0].weight.add_(1.0)
    assert torch.equal(owner.holder.net(x), twin.holder.net(x))


def test_hooks_and_what_is_kept_while_running_are_each_their_own():
    owner, seen = Owner(), []
    before = owner.direct.register_forward_hook(lambda *_args: seen.append("before"))
    twin = twin_of(owner)
    before.remove()
    owner.direct.register_forward_hook(lambda *_args: seen.append("ours"))
    twin.direct.body[0].register_forward_hook(lambda *_args: seen.append("theirs"))
    owner.direct(torch.zeros(1, 3))
    assert seen == ["ours"]
    owner.direct.calls.clear()
    seen.clear()
    twin.direct(torch.zeros(2, 3))
    assert "ours" not in seen and "theirs" in seen and owner.direct.calls == [] and twin.direct.calls == [2]
    twin.direct.body[1].train()
    twin.holder.words.append("b")
    twin.direct.forward = lambda x: x
    assert not owner.direct.body[1].training and owner.holder.words == ["a"] and "forward" not in vars(owner.direct)


def test_a_sampler_and_its_twin_share_the_denoiser_and_not_its_hooks(sampler):
    from riebench.generation.sampler import Request

    twin = sampler.twin()
    ours, theirs = weights(sampler.denoiser), weights(twin.denoiser)
    assert ours.keys() == theirs.keys() and all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)
    assert twin.pipeline.vae is sampler.pipeline.vae and twin.pipeline.scheduler is not sampler.pipeline.scheduler
    hook = sampler.denoiser.register_forward_pre_hook(lambda *_args: 1 / 0)
    try:
        image = twin.generate([Request("a red heart", 1)])[0].image
        with pytest.raises(ZeroDivisionError):
            sampler.generate([Request("a red heart", 1)])
    finally:
        hook.remove()
    assert torch.equal(image, sampler.generate([Request("a red heart", 1)])[0].image)


def test_an_engine_and_its_twin_share_all_weights(engine):
    """Of the model, the dictionaries, the grounder and the judges."""
    twin = engine.load().twin()
    dictionary = engine.generation.dictionary("mid.0")
    pairs = [
        (engine.sampler.denoiser, twin.sampler.denoiser),
        (dictionary, twin.generation.dictionary("mid.0")),
        *zip(modules(engine.regions.grounder), modules(twin.regions.grounder), strict=True),
        *zip(modules(engine.scorer), modules(twin.scorer), strict=True),
    ]
    assert len(pairs) > 4 and twin.regions.grounder is not engine.regions.grounder and twin.scorer is not engine.scorer
    for ours, theirs in pairs:
        assert {n: v.data_ptr() for n, v in weights(ours).items()} == {
            n: v.data_ptr() for n, v in weights(theirs).items()
        }


def modules(thing: object) -> list[nn.Module]:
    """The outermost modules that can be reached from a thing, in an order that depends on names alone."""
    found, waiting, seen = [], [thing], set()
    while waiting:
        item = waiting.pop(0)
        if id(item) in seen or isinstance(item, type | str):
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            found.append(item)
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif hasattr(item, "__dict__"):
            waiting += vars(item).values()
    return found
