"""Stacked autoencoders against slow formulas: gradients by autograd on whole matrices, estimators, folding, export."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from riebench.core.errors import UserError
from sae_models import sparse
from sae_models.architectures import L1, Architecture, AuxK, BatchTopK, JumpReLU, Matryoshka, Restart, TopK
from sae_models.jumprelu import JumpReLUSAE
from sae_models.normalisation import Normalisation
from sae_models.stack import Stack
from sae_models.thresholds import Jump
from sae_models.topk import GROUP, TopKSAE, top

WIDTH, FEATURES, ROWS = 6, 40, 50


def rows(count: int = ROWS, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    """Off centre, and of another variance in each direction."""
    rows_nd = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return rows_nd @ torch.diag(torch.linspace(0.5, 3, width)) + 2


def stack_of(sparsity, stack: int = 2, seed: int = 1, **settings) -> Stack:
    """All parameters random, so that every term of the formulas counts."""
    made = Stack([Architecture(WIDTH, FEATURES, sparsity, seed=s, **settings) for s in range(stack)])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        made.renormalise()
        made.b_enc -= 1
    return made


def slow_loss(parameters: dict, x_nd: torch.Tensor, architecture: Architecture, s: int) -> torch.Tensor:
    """On whole matrices, in float64, of one autoencoder."""
    w_enc, w_dec, b_enc, b_dec = (parameters[name][s] for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    h_nf = (x_nd - b_dec) @ w_enc.T + b_enc
    k = architecture.sparsity.k

    def kept(number: int) -> torch.Tensor:
        if isinstance(architecture.sparsity, BatchTopK):
            least = h_nf.flatten().sort(descending=True).values[number * len(x_nd) - 1]
        else:
            least = h_nf.sort(dim=-1, descending=True).values[:, number - 1 : number]
        return torch.where((h_nf >= least) & (h_nf > 0), h_nf, 0)

    nested = architecture.matryoshka or SimpleNamespace(ks=(), prefixes=())
    codes = [kept(number) for number in nested.ks]
    codes += [kept(k) * (torch.arange(FEATURES) < math.floor(share * FEATURES)) for share in nested.prefixes]
    square = (x_nd - x_nd.mean(0)).pow(2).sum()
    return sum((x_nd - z_nf @ w_dec - b_dec).pow(2).sum() / square for z_nf in [*codes, kept(k)]) / (len(codes) + 1)


@pytest.mark.parametrize("dense", ["neither", "inner", "sums and inner"])
@pytest.mark.parametrize("kind", [TopK, BatchTopK])
@pytest.mark.parametrize("nested", [None, Matryoshka(prefixes=(0.2, 0.5)), Matryoshka(ks=(1, 2))])
def test_the_loss_and_its_gradients_are_those_of_the_formula(kind, nested, dense, monkeypatch):
    share = {"neither": (1, 1), "inner": (1, 0), "sums and inner": (0, 0)}[dense]
    for what, value in zip(("sums", "inner"), share, strict=True):
        monkeypatch.setitem(sparse.DENSE_SHARE, (what, "cpu", False), value)
    stack = stack_of(kind(4), matryoshka=nested)
    losses = stack.losses(rows(), 4)
    losses.loss_s.sum().backward()
    parameters = {name: value.detach().double().requires_grad_() for name, value in stack.named_parameters()}
    slow = [slow_loss(parameters, rows().double(), stack.architecture, s) for s in range(2)]
    sum(slow).backward()
    torch.testing.assert_close(losses.loss_s.double(), torch.stack(slow), rtol=1e-5, atol=1e-6)
    for name, value in stack.named_parameters():
        torch.testing.assert_close(value.grad.double(), parameters[name].grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("block", [1, 3 * FEATURES, 10**9])
def test_preactivations_of_any_block_size_choose_the_same(block, monkeypatch):
    whole = stack_of(TopK(4)).losses(rows(), 4).loss_s
    monkeypatch.setattr(sparse, "CPU_BLOCK", block)
    torch.testing.assert_close(stack_of(TopK(4)).losses(rows(), 4).loss_s, whole)


def test_the_largest_are_found_exactly_by_groups():
    h_nf = torch.randn(300, 80 * GROUP, generator=torch.Generator().manual_seed(0))
    h_nf[0] = torch.arange(80.0 * GROUP)  # the largest are neighbours
    h_nf[1] = -h_nf[1].abs()
    h_nf[2, ::80] = 10 + torch.arange(float(GROUP))  # the largest are all in one group
    for k in (1, 7, 40, 41):
        values_nk, features_nk = top(h_nf, k)
        wanted = h_nf.sort(dim=-1, descending=True).values[:, :k]
        assert torch.equal(values_nk.sort(dim=-1, descending=True).values, wanted.relu())
        assert torch.equal(h_nf.gather(-1, features_nk).relu(), values_nk)
        assert all(len(set(row)) == k for row in features_nk.tolist())


def test_a_threshold_moves_as_the_expected_number_of_latents_does():
    """h is normal, so the derivative of the expected share above a threshold is minus its density."""
    h_snf = torch.randn(1, 400_000, 3, generator=torch.Generator().manual_seed(0))
    threshold = torch.tensor([[[0.2, 0.7, 1.5]]], requires_grad=True)
    z_snf, gate_snf = Jump.apply(h_snf, threshold, torch.tensor(0.1))
    assert torch.equal(gate_snf, (h_snf > threshold).float()) and torch.equal(z_snf, h_snf * gate_snf)
    (moved,) = torch.autograd.grad(gate_snf.mean(1).sum(), threshold, retain_graph=True)
    density = torch.exp(-(threshold.detach() ** 2) / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(moved, -density, rtol=0.03, atol=0)
    (moved,) = torch.autograd.grad(z_snf.mean(1).sum(), threshold)  # d/dt of the integral of h p(h) above t
    torch.testing.assert_close(moved, -threshold.detach() * density, rtol=0.03, atol=0)


def test_penalties_and_their_gradients_are_those_of_the_formula():
    x_nd = rows()
    stack = stack_of(L1(0.3), matryoshka=Matryoshka(prefixes=(0.5,)))
    stack.unit.fill_(2.0)
    losses = stack.losses(x_nd, 0)
    losses.loss_s.sum().backward()
    parameters = {name: value.detach().double().requires_grad_() for name, value in stack.named_parameters()}
    x_nd, slow = x_nd.double(), []
    for s in range(2):
        w_enc, w_dec, b_enc, b_dec = (parameters[name][s] for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
        z_nf = ((x_nd - b_dec) @ w_enc.T + b_enc).relu()
        errors = [(x_nd - z_nf[:, :p] @ w_dec[:p] - b_dec).pow(2).sum() for p in (20, 40)]
        slow.append(sum(errors) / 2 / (x_nd - x_nd.mean(0)).pow(2).sum() + 0.3 * z_nf.sum(1).mean() / 2)
    sum(slow).backward()
    torch.testing.assert_close(losses.loss_s.double(), torch.stack(slow), rtol=1e-5, atol=1e-6)
    for name, value in stack.named_parameters():
        torch.testing.assert_close(value.grad.double(), parameters[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_auxk_codes_the_residual_by_dead_features_alone():
    stack = stack_of(TopK(4), revival=AuxK(3, weight=0.5, dead_after=10 * ROWS))
    alive = stack.losses(rows(), 4).loss_s
    dead = torch.tensor([3, 8, 21, 30])
    with torch.no_grad():
        stack.b_enc[0, dead] = -30
        stack.rows_since_active.zero_()
        stack.rows_since_active[0, dead] = 9 * ROWS
    before = stack.losses(rows(), 4).loss_s
    stack.list_dead()
    assert [each.tolist() for each in stack.dead] == [dead.tolist(), []]
    stack.zero_grad()
    with torch.no_grad():
        stack.b_enc[0, dead] = -1
        stack.W_enc[0, dead] *= 1e-3  # never among the largest, and all at -1 but for a little
        stack.b_enc[0, dead[:2]] = 1e-2
    found = stack.losses(rows(), 4)
    found.loss_s.sum().backward()
    assert found.loss_s[1] == alive[1], "without dead features there is nothing to add"
    assert found.loss_s[0] > before[0]
    assert stack.W_dec.grad[0, dead[:2]].abs().sum() > 0
    x_nd, s = rows(), {name: value.detach() for name, value in stack.named_parameters()}
    h_nf = (x_nd - s["b_dec"][0]) @ s["W_enc"][0].T + s["b_enc"][0]
    z_nf = torch.where(h_nf >= h_nf.sort(-1, descending=True).values[:, 3:4], h_nf.relu(), 0)
    residual_nd = x_nd - z_nf @ s["W_dec"][0] - s["b_dec"][0]
    a_nf = h_nf[:, dead]
    a_nf = torch.where(a_nf >= a_nf.sort(-1, descending=True).values[:, 2:3], a_nf.relu(), 0)
    share = (residual_nd - a_nf @ s["W_dec"][0, dead]).pow(2).sum() / residual_nd.pow(2).sum()
    torch.testing.assert_close(
        found.loss_s[0] - residual_nd.pow(2).sum() / (x_nd - x_nd.mean(0)).pow(2).sum(), 0.5 * share
    )


@pytest.mark.parametrize("kind", ["none", "mean", "scale", "whiten"])
@pytest.mark.parametrize("sparsity", [TopK(4), BatchTopK(4), L1(0.1), JumpReLU(0.01)])
def test_folding_changes_neither_latents_nor_reconstructions(kind, sparsity):
    """Latents may change by one factor for each feature, and where they do, decoder rows have unit norm."""
    rows_nd = 30 * rows(500) + 100
    normalisation = Normalisation.of(rows_nd, kind)
    stack = stack_of(sparsity)
    stack.threshold += 0.4 * isinstance(sparsity, BatchTopK)
    for s, sae in enumerate(stack.exported(normalisation)):
        y_nd = normalisation.apply(rows_nd)
        h_nf = (y_nd - stack.b_dec[s]) @ stack.W_enc[s].T + stack.b_enc[s]
        if isinstance(sparsity, BatchTopK):
            z_nf = torch.where(h_nf > 0.4, h_nf, 0)
        elif isinstance(sparsity, JumpReLU):
            z_nf = torch.where(h_nf > stack.log_threshold[s].exp(), h_nf, 0)
        elif isinstance(sparsity, TopK):
            z_nf = torch.where(h_nf >= h_nf.sort(-1, descending=True).values[:, 3:4], h_nf, 0).relu()
        else:
            z_nf = h_nf.relu()
        y_hat_nd = z_nf @ stack.W_dec[s] + stack.b_dec[s]
        inverse = torch.eye(WIDTH) / normalisation.scale
        if normalisation.whitening_dd is not None:
            inverse = torch.linalg.inv(normalisation.whitening_dd)
        x_hat_nd = y_hat_nd @ inverse + normalisation.mean_d
        torch.testing.assert_close(sae(rows_nd), x_hat_nd.detach(), rtol=1e-3, atol=0.05)
        found_nf = sae.encode(rows_nd)
        assert ((found_nf > 0) == (z_nf > 0)).float().mean() > 0.999
        if kind == "whiten" and type(sparsity) is TopK:
            torch.testing.assert_close(found_nf, z_nf.detach(), rtol=1e-3, atol=0.01)
        else:
            torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(FEATURES))
            rows_norm_f = (stack.W_dec[s] @ inverse).norm(dim=-1)
            torch.testing.assert_close(found_nf, (z_nf * rows_norm_f).detach(), rtol=1e-3, atol=0.3)


def test_normalised_rows_are_what_they_say():
    rows_nd = 30 * rows(500) + 100
    for kind in ("mean", "scale", "whiten"):
        torch.testing.assert_close(
            Normalisation.of(rows_nd, kind).apply(rows_nd).mean(0), torch.zeros(WIDTH), atol=1e-3, rtol=0
        )
    assert torch.equal(Normalisation.of(rows_nd, "none").apply(rows_nd), rows_nd)
    scaled_nd = Normalisation.of(rows_nd, "scale").apply(rows_nd)
    assert scaled_nd.norm(dim=1).pow(2).mean().sqrt().item() == pytest.approx(math.sqrt(WIDTH), rel=1e-4)
    white_nd = Normalisation.of(rows_nd, "whiten").apply(rows_nd)
    torch.testing.assert_close(white_nd.T @ white_nd / 500, torch.eye(WIDTH), atol=1e-3, rtol=0)
    flat_nd = rows_nd.clone()
    flat_nd[:, 0] = 5.0  # no variance: the floor holds
    assert Normalisation.of(flat_nd, "whiten").apply(flat_nd).abs().max() < 100
    with pytest.raises(UserError, match="whitening"):
        Normalisation.of(rows_nd, "whitening")
    with pytest.raises(UserError, match="all the same"):
        Normalisation.of(torch.full((50, 3), 0.1), "scale")


def test_what_is_exported_is_plain():
    normalisation = Normalisation.of(rows(), "scale")
    for sparsity, wanted in ((TopK(4), TopKSAE), (BatchTopK(4), JumpReLUSAE), (L1(0.1), JumpReLUSAE)):
        for sae in stack_of(sparsity, matryoshka=Matryoshka(prefixes=(0.5,))).exported(normalisation):
            assert type(sae) is wanted
            assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_k_is_annealed_linearly():
    sparsity = TopK(10, start_k=50, anneal=0.4)
    assert [sparsity.k_at(step, 100) for step in (0, 10, 20, 39, 40, 99)] == [50, 40, 30, 11, 10, 10]
    assert TopK(10).k_at(0, 100) == 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopK(0),
        lambda: TopK(2.0),
        lambda: TopK(2, start_k=4),
        lambda: TopK(2, anneal=0.5),
        lambda: TopK(2, start_k=4, anneal=1.5),
        lambda: L1(0.0),
        lambda: L1(float("nan")),
        lambda: JumpReLU(0.1, bandwidth=-1.0),
        lambda: Matryoshka(),
        lambda: Matryoshka(prefixes=(0.5,), ks=(1,)),
        lambda: Matryoshka(prefixes=(0.5, 0.2)),
        lambda: Matryoshka(prefixes=(0.5, 1.0)),
        lambda: Matryoshka(ks=(0, 1)),
        lambda: AuxK(0),
        lambda: AuxK(4, weight=0.0),
        lambda: Restart(0),
        lambda: Architecture(8, 16, TopK(17)),
        lambda: Architecture(8, 16, TopK(2, start_k=17, anneal=0.5)),
        lambda: Architecture(0, 16, TopK(2)),
        lambda: Architecture(8, 16, TopK(2), Matryoshka(ks=(1, 2))),
        lambda: Architecture(8, 16, L1(0.1), Matryoshka(ks=(1,))),
        lambda: Architecture(8, 16, TopK(2), Matryoshka(prefixes=(0.01,))),
    ],
)
def test_impossible_architectures_are_refused(make):
    with pytest.raises(UserError):
        make()
