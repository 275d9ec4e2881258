"""Latents of regions: what is held sparse is what a dictionary says, and each site is encoded once a case."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_transport import BLOCKS, STEPS, make_case

from baselines.neurons import Neurons
from baselines.pca import PrincipalComponents
from baselines.random_features import RandomFeatures
from baselines.sae import SAE
from baselines.select_on import Mismatched
from baselines.text_selected import TextSelected
from riebench.backbones.family import Site
from riebench.methods import latents
from riebench.methods.latents import Latents, Region
from sae_models import dictionary
from sae_models.dictionary import Identity, decode_some
from sae_models.itda import ITDA
from sae_models.jumprelu import JumpReLUConfig, JumpReLUSAE
from sae_models.pca import PCA
from sae_models.topk import TopKConfig, TopKSAE

WIDTH = 6
SITES = [Site(block) for block in BLOCKS]


def dictionaries() -> list:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, WIDTH, generator=generator)
    jump = JumpReLUSAE(JumpReLUConfig(width=WIDTH, num_features=20)).requires_grad_(False)
    return [
        TopKSAE(TopKConfig(width=WIDTH, num_features=40, k=3)).requires_grad_(False),
        jump,
        PCA.fit(rows),
        ITDA(torch.nn.functional.normalize(rows, dim=1), k=2),
        Identity(WIDTH),
    ]


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_latents_are_what_the_dictionary_says(kind, at_once, monkeypatch):
    monkeypatch.setattr(latents, "AT_ONCE", at_once)  # one step at a time, and all at once
    coder = dictionaries()[kind]
    rows = torch.randn(4, 7, WIDTH, generator=torch.Generator().manual_seed(1))
    found, expected = Latents(coder, rows), coder.encode(rows.flatten(0, 1)).unflatten(0, (4, 7))
    assert found.shape == expected.shape and (found._dense is None) == (kind in (0, 3))
    for steps in (1, 3, 4, 9):
        torch.testing.assert_close(found.first(steps), expected[:steps])
    numbers = torch.tensor([3, 0, 5])
    torch.testing.assert_close(found.of(numbers), expected[..., numbers])
    assert torch.equal(found.present(), (expected > 0).flatten(0, 1).any(dim=0))
    nowhere = Latents(coder, rows[:, :0])
    assert nowhere.first(1).shape == (1, 0, coder.num_features) and nowhere.of(numbers).shape == (4, 0, 3)


@pytest.mark.parametrize("kind", range(5))
def test_some_features_are_decoded_as_all_with_zeros(kind, monkeypatch):
    coder = dictionaries()[kind]
    numbers, z = torch.tensor([4, 1]), torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(2))
    written = torch.zeros(3, 5, coder.num_features)
    written[..., numbers] = z
    expected = coder.decode_linear(written)
    assert torch.equal(decode_some(coder, numbers, z), expected)
    monkeypatch.setattr(dictionary, "WRITTEN_OUT", 0)
    torch.testing.assert_close(decode_some(coder, numbers, z), expected)
    one_hot = torch.eye(coder.num_features)[numbers]
    torch.testing.assert_close(coder.directions(numbers), coder.decode_linear(one_hot))


class Counting:
    """A dictionary that counts the rows it encodes."""

    def __init__(self, inner) -> None:
        self.inner, self.num_features, self.width, self.rows = inner, inner.num_features, inner.width, []

    def encode(self, x_nd):
        self.rows.append(len(x_nd))
        return self.inner.encode(x_nd)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_a_case_is_encoded_once_whatever_methods_ask_and_donors_at_their_first_step():
    case, donor = make_case(SITES), make_case(SITES, seed=7)
    saes = {block: Counting(case.sae(block)) for block in BLOCKS}
    case, donor = (replace(one, sae=saes.__getitem__) for one in (case, donor))
    methods = [SAE(k=2), SAE(k=2, strength=2.0), SAE(k=3, budget="norm"), RandomFeatures(k=2), TextSelected(k=2)]
    for method in methods:
        method.plan(case)
    cells = {block: (case.edited_cells[block].sum(), case.original_cells[block].sum()) for block in BLOCKS}
    for block, sae in saes.items():
        assert sae.rows == [STEPS * int(count) for count in cells[block]]
        sae.rows.clear()
    Mismatched(k=2).plan(replace(case, select_on=donor))
    Mismatched(k=2, strength=0.5).plan(replace(case, select_on=donor))
    for block, sae in saes.items():
        assert sae.rows == [int(donor.edited_cells[block].sum()), int(donor.original_cells[block].sum())]


def test_what_was_encoded_is_forgotten_with_its_dictionary():
    case = make_case(SITES)
    PrincipalComponents(k=2).plan(case)
    assert case.latents == {}
    saes = {site: case.sae(site.block) for site in SITES}
    Region(case, "edited", saes).first(1)
    assert len(case.latents) == len(SITES)


def test_neurons_are_moved_in_the_channels_that_were_chosen_alone():
    sites = [Site(block, "neurons", layer) for block in BLOCKS for layer in (0, 1)]
    case = make_case(sites, width=9)
    plan = Neurons(k=3).plan(case)
    for site, added in plan.additions.items():
        chosen = plan.chosen[site.name]
        assert added.channels.tolist() == sorted({*chosen["on"], *chosen["off"]}) and added.width == 9
        assert added.values.shape[2] < 9
