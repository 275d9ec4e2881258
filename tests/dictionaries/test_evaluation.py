"""What evaluation says of features and of decoder directions, against hand-worked numbers and slow formulas."""

from __future__ import annotations

import dataclasses
from math import cos, radians, sin

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from riebench.core.errors import UserError
from sae_models import evaluation
from sae_models.comparison import active_overlap, stability
from sae_models.dictionary import Identity
from sae_models.evaluation import Tally, decoder_rows, evaluate, geometry
from sae_models.pca import PCA
from sae_models.topk import TopKConfig, TopKSAE


def sae_with_rows(rows_fd: torch.Tensor) -> TopKSAE:
    sae = TopKSAE(TopKConfig(width=rows_fd.shape[1], num_features=len(rows_fd), k=1)).requires_grad_(False)
    sae.W_dec.copy_(rows_fd)
    return sae


def random_sae(num_features: int = 40, width: int = 6, seed: int = 0) -> TopKSAE:
    generator = torch.Generator().manual_seed(seed)
    scale_f1 = torch.rand(num_features, 1, generator=generator) + 0.5
    return sae_with_rows(torch.randn(num_features, width, generator=generator) * scale_f1)


# of features


def rows_with_counts(counts: list[int], num_rows: int) -> torch.Tensor:
    """Rows whose value f is 2 (f + 1) on so many of them, and 0 elsewhere; a sign in turn."""
    rows_nd = torch.zeros(num_rows, len(counts))
    for f, count in enumerate(counts):
        rows_nd[num_rows - count :, f] = 2.0 * (f + 1)
    return rows_nd * torch.tensor([1.0, -1.0]).repeat(num_rows // 2)[:, None]


def test_dead_rare_and_dense_features_are_told_apart_at_their_bounds():
    """Of 20,000 rows: 1 is rare, 2 are one in 10,000 and not rare; 2,000 are a tenth and not dense, 2,001 are."""
    found = evaluate(Identity(6), rows_with_counts([0, 1, 2, 2_000, 2_001, 20_000], 20_000), batch_size=3_000)
    assert (found.dead_share, found.rare_share, found.dense_share) == pytest.approx((1 / 6, 1 / 6, 2 / 6))


def test_few_rows_cannot_tell_a_rare_feature():
    assert evaluate(Identity(2), rows_with_counts([1, 50], 10_000)).rare_share is None
    assert evaluate(Identity(2), rows_with_counts([1, 50], 10_002)).rare_share == 0.5


def test_utilisation_is_the_effective_number_of_features_by_their_sums():
    """Sums of |z| of 4, 4, 8 and 0: shares of 1/4, 1/4 and 1/2 have an entropy of 1.5 ln 2."""
    rows_nd = torch.tensor([[4.0, 0, 0, 0], [0, -4, 0, 0], [0, 0, 5, 0], [0, 0, -3, 0]])
    assert evaluate(Identity(4), rows_nd, batch_size=3).utilisation == pytest.approx(2**1.5 / 4)
    assert evaluate(Identity(4), torch.eye(4)).utilisation == pytest.approx(1)
    assert evaluate(Identity(2), torch.tensor([[1.0, 0], [2, 0]])).utilisation == pytest.approx(1 / 2)


def test_nothing_is_used_where_nothing_is_active():
    sae = TopKSAE(TopKConfig(3, 5, 2)).requires_grad_(False)
    sae.b_enc.fill_(-1e6)
    found = evaluate(sae, torch.randn(9, 3, generator=torch.Generator().manual_seed(0)))
    assert (found.utilisation, found.rare_share, found.dense_share, found.dead_share) == (0, None, 0, 1)


def test_variance_unexplained_is_what_the_slow_formula_leaves():
    sae = random_sae()
    rows_nd = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(5)) + 1
    x, x_hat = (value.double().numpy() for value in (rows_nd, sae(rows_nd)))
    found = evaluate(sae, rows_nd, batch_size=16)
    assert found.fvu_pooled == pytest.approx(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-6)
    assert found.fvu_pooled != pytest.approx(found.explained_variance_pooled, abs=0.01)


def test_batches_do_not_matter_and_the_memory_of_a_tally_is_that_of_one_row():
    sae = TopKSAE(TopKConfig(6, 40, 5), seed=3).requires_grad_(False)
    rows_nd = torch.randn(3_000, 6, generator=torch.Generator().manual_seed(1))
    tally = Tally(sae)
    for batch_nd in rows_nd.split([7, 2_000, 993]):
        tally.add(batch_nd)
    wanted = dataclasses.asdict(evaluate(sae, rows_nd))
    assert dataclasses.asdict(tally.evaluation()) == pytest.approx(wanted, abs=1e-6)
    held = [value.numel() for value in vars(tally).values() if isinstance(value, torch.Tensor)]
    assert len(held) >= 7 and max(held) == 40


@pytest.mark.parametrize("sizes", [[0, 3_000], [1, 2_999], [700, 0, 2_300]])
def test_tallies_are_merged_into_that_of_all_rows(sizes):
    sae = TopKSAE(TopKConfig(6, 40, 5), seed=3).requires_grad_(False)
    rows_nd = torch.randn(3_000, 6, generator=torch.Generator().manual_seed(1)) + 5
    rows_nd[:, 0] = 1.1  # never varies
    whole = Tally(sae)
    for part_nd in rows_nd.split(sizes):
        tally = Tally(sae)
        if len(part_nd):
            tally.add(part_nd)
        whole.merge(tally)
    wanted = dataclasses.asdict(evaluate(sae, rows_nd))
    assert dataclasses.asdict(whole.evaluation()) == pytest.approx(wanted, abs=1e-6)


# of decoder directions


def slow_cosines(a_fd: torch.Tensor, b_fd: torch.Tensor) -> np.ndarray:
    a, b = (value.double().numpy() for value in (a_fd, b_fd))
    return np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])


def test_geometry_of_three_directions_worked_by_hand():
    """At 0, 60 and 180 degrees: the first and the last are one line, the second has a cosine of 1/2 with both."""
    rows_fd = torch.tensor([[2.0, 0], [0.5, 0.75**0.5], [-3, 0]])
    found = geometry(sae_with_rows(rows_fd))
    assert dataclasses.astuple(found) == pytest.approx((1, (1 + 0.5 + 1) / 3, 1, 3))


@pytest.mark.parametrize("chunk", [1, 7, 40, 1_024])
def test_geometry_in_chunks_is_that_of_all_pairs(chunk, monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK_ROWS", chunk)
    sae = random_sae()
    torch.testing.assert_close(decoder_rows(sae), sae.W_dec.data)
    cosine = np.abs(slow_cosines(sae.W_dec, sae.W_dec))
    np.fill_diagonal(cosine, -1)
    norms = np.linalg.norm(sae.W_dec.double().numpy(), axis=1)
    wanted = cosine.max(), cosine.max(axis=1).mean(), norms.min(), norms.max()
    assert dataclasses.astuple(geometry(sae)) == pytest.approx(wanted, abs=1e-6)


def test_one_direction_is_near_to_no_other_and_none_has_no_geometry():
    assert dataclasses.astuple(geometry(sae_with_rows(torch.tensor([[0.0, 2]])))) == (0, 0, 2, 2)
    with pytest.raises(UserError, match="without features"):
        geometry(PCA(torch.zeros(0, 3), torch.zeros(3)))


# of two dictionaries


def test_the_same_directions_in_another_order_and_length_are_fully_stable():
    a = random_sae()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    b = sae_with_rows(3 * a.W_dec[order])
    assert dataclasses.astuple(stability(a, b)) == pytest.approx((1, 1))
    opposite = sae_with_rows(-a.W_dec)
    assert stability(a, opposite).cosine < 0.95


def test_stability_worked_by_hand():
    """Directions at 0 and 70 degrees with others at 20 and -30: the nearest pair, 0 and 20, would leave 100 degrees to
    the other, so the best matching goes without it, at 30 and 50 degrees."""
    a, b = (
        sae_with_rows(torch.tensor([[cos(radians(at)), sin(radians(at))] for at in angles]))
        for angles in ((0, 70), (20, -30))
    )
    found = stability(a, b)
    assert found.cosine == pytest.approx((cos(radians(30)) + cos(radians(50))) / 2)
    assert found.shared_share == 0.5


@pytest.mark.parametrize("sizes", [(30, 30), (20, 35), (35, 20)])
def test_stability_is_the_best_assignment_and_symmetric(sizes):
    a, b = (random_sae(size, seed=seed) for seed, size in enumerate(sizes))
    cosine = slow_cosines(a.W_dec, b.W_dec)
    matched = cosine[linear_sum_assignment(-cosine)]
    assert len(matched) == min(sizes)
    for found in (stability(a, b), stability(b, a)):
        assert found.cosine == pytest.approx(matched.mean(), abs=1e-6)
        assert found.shared_share == pytest.approx((matched > 0.7).mean())
    nearest = cosine.max(axis=int(sizes[0] <= sizes[1]))
    assert matched.mean() < nearest.mean(), "here the nearest directions are no matching"


def test_dictionaries_of_different_widths_are_not_compared():
    with pytest.raises(UserError, match="6 and of 5 values"):
        stability(random_sae(), random_sae(width=5))


# of two steps


def test_overlap_worked_by_hand():
    """Of four cells: {0, 1}, then {1, 2}, one of three; {0}, then {0}; none, then none; {2}, then {0}."""
    first = torch.tensor([[1.0, 2, 0], [3, 0, 0], [0, 0, 0], [0, 0, -1]])
    second = torch.tensor([[0.0, 5, -1], [9, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert active_overlap(first, second).tolist() == pytest.approx([1 / 3, 1, 0, 0])


def test_overlap_is_the_jaccard_index_of_sets():
    before, after = torch.relu(torch.randn(2, 30, 12, generator=torch.Generator().manual_seed(0)))
    sets = [[set(np.flatnonzero(row)) for row in latents.numpy()] for latents in (before, after)]
    wanted = [len(a & b) / len(a | b) for a, b in zip(*sets, strict=True)]
    assert active_overlap(before, after).tolist() == pytest.approx(wanted, abs=1e-6)
