"""ITDA and PCA against slow formulas in float64, planted dictionaries and broken files; both in transport."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from riebench.backbones.family import Site
from riebench.core.errors import UserError
from riebench.edits.edit import Edit
from riebench.methods.method import Case
from riebench.methods.transport import Transport, select_features, transport
from sae_models.dictionary import Dictionary
from sae_models.evaluation import evaluate
from sae_models.itda import ITDA, fit_itda, gradient_pursuit
from sae_models.layouts import weights_sha256
from sae_models.pca import PCA, fit_pca


def unit_rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)


def planted_rows(num_rows: int, atoms_fd: torch.Tensor, active: int, seed: int) -> torch.Tensor:
    """Sums of `active` atoms each, with weights of 1 to 2 and either sign."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(num_rows, len(atoms_fd), generator=generator).topk(active, dim=-1).indices
    values = 1 + torch.rand(num_rows, active, generator=generator)
    values *= torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
    return torch.zeros(num_rows, len(atoms_fd)).scatter(-1, chosen, values) @ atoms_fd


def row_fvu(dictionary: Dictionary, x_nd: torch.Tensor) -> np.ndarray:
    x, x_hat = (value.double().numpy() for value in (x_nd, dictionary.decode(dictionary.encode(x_nd))))
    return ((x - x_hat) ** 2).sum(1) / (x**2).sum(1)


# gradient pursuit


def slow_pursuit(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """One row, with the set of atoms as a list and the residual made anew from the code at each step."""
    code, taken = np.zeros(len(atoms)), []
    for _ in range(k):
        residual = x - code @ atoms
        if np.linalg.norm(residual) <= 1e-6 * np.linalg.norm(x):
            break
        best = int(np.argmax([abs(atom @ residual) for atom in atoms]))
        taken = taken if best in taken else [*taken, best]
        gradient = atoms[taken] @ residual
        along = gradient @ atoms[taken]
        code[taken] += (residual @ along) / (along @ along) * gradient
    return code


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_pursuit_is_that_of_the_slow_formula(k):
    atoms_fd, x_nd = unit_rows(30, 8), 5 * torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    found = gradient_pursuit(x_nd, atoms_fd, k)
    wanted = [slow_pursuit(x, atoms_fd.double().numpy(), k) for x in x_nd.double().numpy()]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (found != 0).sum(-1).max() <= k
    assert (found < 0).any()


def test_an_atom_that_comes_up_again_is_counted_once():
    """Two atoms at 60 degrees: the third step takes one of them up again, where a third atom has no part."""
    atoms_fd = torch.tensor([[1.0, 0, 0], [0.5, 0.75**0.5, 0], [0, 0, 1]])
    found = gradient_pursuit(torch.tensor([[2.0, 1, 0]]), atoms_fd, 3)
    assert (found != 0).tolist() == [[True, True, False]]
    np.testing.assert_allclose(found[0], slow_pursuit(np.array([2.0, 1, 0]), atoms_fd.double().numpy(), 3), atol=1e-6)


def test_orthonormal_atoms_are_found_exactly_and_no_others():
    rotation = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(2))).Q
    z_nf = torch.zeros(4, 10)
    z_nf[0, 3], z_nf[1, [0, 9]], z_nf[2, [1, 2, 5]] = 7.0, torch.tensor([-2.0, 1]), torch.tensor([1.0, 2, -3])
    found = gradient_pursuit(z_nf @ rotation, rotation, 6)
    torch.testing.assert_close(found, z_nf, atol=1e-5, rtol=0)
    assert (found != 0).sum(-1).tolist() == [1, 2, 3, 0], "what is coded is left as it is, zeros too"


def test_a_row_does_not_depend_on_the_others_nor_on_its_units_and_dimensions_pass_through():
    itda = ITDA(unit_rows(20, 6), 4)
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(3))
    z = itda.encode(x)
    assert z.shape == (2, 3, 5, 20)
    torch.testing.assert_close(z.reshape(-1, 20), itda.encode(x.reshape(-1, 6)))
    torch.testing.assert_close(itda.encode(x[1, 2, 3]), z[1, 2, 3])
    torch.testing.assert_close(itda.encode(4096 * x), 4096 * z)
    assert itda.encode(x.bfloat16()).dtype == torch.float32


# growing


@pytest.mark.parametrize("threshold", [0.3, 0.05])
def test_every_row_is_coded_within_the_threshold_by_atoms_that_are_rows(threshold):
    rows_nd = 3 * torch.randn(300, 12, generator=torch.Generator().manual_seed(4))
    rows_nd[17] = 0
    found = fit_itda(rows_nd.split(70), fvu_threshold=threshold, max_atoms=300, k=4)
    assert 4 < found.num_features < 300
    coded_nd = rows_nd[rows_nd.any(dim=1)]
    assert row_fvu(found, coded_nd).max() <= threshold
    cosine = torch.nn.functional.normalize(coded_nd, dim=-1) @ found.atoms_fd.T
    torch.testing.assert_close(cosine.amax(dim=0), torch.ones(found.num_features))
    torch.testing.assert_close(found.atoms_fd.norm(dim=-1), torch.ones(found.num_features))


def test_a_row_becomes_an_atom_only_where_the_atoms_before_leave_too_much():
    """By hand: the second row is on the first atom's line, the third at 45 degrees leaves 0.5 of itself unexplained."""
    rows_nd = torch.tensor([[3.0, 0, 0], [-5, 0, 0], [1, 1, 0], [0, 0, 2]])
    half = 0.5**0.5
    for threshold, wanted in ((0.49, [[1, 0, 0], [half, half, 0], [0, 0, 1]]), (0.51, [[1, 0, 0], [0, 0, 1]])):
        found = fit_itda([rows_nd], fvu_threshold=threshold, max_atoms=9, k=2)
        torch.testing.assert_close(found.atoms_fd, torch.tensor(wanted, dtype=torch.float32))
    alike = fit_itda(iter(rows_nd.split(1)), fvu_threshold=0.49, max_atoms=9, k=2)
    assert torch.equal(alike.atoms_fd, fit_itda([rows_nd], fvu_threshold=0.49, max_atoms=9, k=2).atoms_fd)


def test_batches_are_gone_through_until_nothing_is_added_and_an_iterator_once():
    """With one step of the pursuit nothing is led astray; with three, one pass leaves rows that a later atom spoilt."""
    rows_nd = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
    batches = rows_nd.split(20)
    once, again = (fit_itda(each, fvu_threshold=0.02, max_atoms=600, k=3) for each in (iter(batches), batches))
    assert row_fvu(once, rows_nd).max() > 0.02 >= row_fvu(again, rows_nd).max()
    assert torch.equal(again.atoms_fd[: once.num_features], once.atoms_fd)


def test_the_number_of_atoms_is_bounded():
    rows_nd = torch.randn(100, 12, generator=torch.Generator().manual_seed(5))
    few, many = (fit_itda([rows_nd], fvu_threshold=0.01, max_atoms=limit, k=3) for limit in (7, 40))
    assert (few.num_features, many.num_features) == (7, 40)
    assert torch.equal(few.atoms_fd, many.atoms_fd[:7])


def test_planted_sparse_sums_are_coded_better_than_by_as_many_active_components():
    """Some rows are planted atoms alone, and of all rows these become the atoms; the rest needs no others."""
    planted_fd = unit_rows(40, 64, seed=6)
    train_nd = torch.cat([planted_rows(400, planted_fd, active, seed=active) for active in (1, 2, 3)])
    test_nd = planted_rows(500, planted_fd, 3, seed=9)
    itda = fit_itda(train_nd.split(100), fvu_threshold=0.2, max_atoms=60, k=6)
    assert itda.num_features == 40
    assert (itda.atoms_fd @ planted_fd.T).abs().amax(dim=0).min() > 0.999
    coded, by_components = evaluate(itda, test_nd), evaluate(PCA.fit(train_nd, 6), test_nd)
    assert coded.l0 <= by_components.l0 == 6
    assert coded.explained_variance_pooled > 0.98
    assert by_components.explained_variance_pooled < 0.5


BAD_ROWS = [torch.full((3, 4), torch.nan), torch.tensor([[1.0, torch.inf]]), torch.randn(2, 3, 4)]


@pytest.mark.parametrize("rows", BAD_ROWS)
def test_rows_that_cannot_be_fitted_are_refused(rows):
    for fit in (lambda b: fit_itda(b, fvu_threshold=0.1, max_atoms=3, k=1), fit_pca):
        with pytest.raises(UserError):
            fit([rows])
        with pytest.raises(UserError, match="shape"):
            fit([torch.eye(4), torch.eye(5)])


def test_zeros_alone_and_settings_that_cannot_be_meant_are_refused():
    fine = {"fvu_threshold": 0.1, "max_atoms": 3, "k": 1}
    for batches in ([torch.zeros(5, 4)], []):
        with pytest.raises(UserError, match="no row other than zero"):
            fit_itda(batches, **fine)
    for wrong in ({"fvu_threshold": 0.0}, {"fvu_threshold": 1.0}, {"max_atoms": 0}, {"k": 0}, {"k": 1.5}):
        with pytest.raises(UserError):
            fit_itda([torch.eye(4)], **fine | wrong)


# principal components


def test_components_are_those_of_numpy_whatever_the_batches():
    generator = torch.Generator().manual_seed(7)
    rows_nd = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 1_000
    x = rows_nd.double().numpy()
    _, singular, directions = np.linalg.svd(x - x.mean(0), full_matrices=False)
    for pca in (PCA.fit(rows_nd), fit_pca(iter(rows_nd.split([1, 300, 199])))):
        assert pca.components_fd.dtype == torch.float32 and pca.num_features == pca.width == 6
        np.testing.assert_allclose(np.abs(pca.components_fd.double().numpy() @ directions.T), np.eye(6), atol=1e-4)
        np.testing.assert_allclose(pca.mean_d, x.mean(0), rtol=1e-6)
        np.testing.assert_allclose(pca.encode(rows_nd).double().square().sum(0), singular**2, rtol=1e-3)
    three = evaluate(PCA.fit(rows_nd, 3), rows_nd)
    assert three.explained_variance_pooled == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum(), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_components_of_half_precision_rows_are_those_of_numpy_in_double_precision(dtype):
    """Far from the origin, with standard deviations of 1 to 1/32, more directions than rows in the second set."""
    generator = torch.Generator().manual_seed(9)
    scale_d = torch.logspace(0, -5, 24, base=2)
    for count, found in ((400, 24), (12, 11)):
        rows_nd = (torch.randn(count, 24, generator=generator) * scale_d + 3).to(dtype)
        x = rows_nd.double().numpy()
        _, singular, directions = np.linalg.svd(x - x.mean(0), full_matrices=False)
        pca = fit_pca(rows_nd.split(150))
        assert pca.num_features == found and pca.components_fd.dtype == torch.float32
        z_nf = pca.encode(rows_nd).double()
        np.testing.assert_allclose(z_nf.square().sum(0), singular[:found] ** 2, rtol=1e-3)
        parted = np.abs(pca.components_fd.double().numpy() @ directions[:found].T)
        np.testing.assert_allclose(parted[:4, :4], np.eye(4), atol=1e-3)
        np.testing.assert_allclose(pca.decode(pca.encode(rows_nd)), x, atol=1e-4)


def test_rows_of_few_directions_have_as_many_components():
    rows_nd = torch.randn(50, 2, generator=torch.Generator().manual_seed(8)) @ unit_rows(2, 7) + 3
    assert PCA.fit(rows_nd).num_features == 2
    torch.testing.assert_close(PCA.fit(rows_nd).decode(PCA.fit(rows_nd).encode(rows_nd)), rows_nd, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="2 directions, and 3"):
        PCA.fit(rows_nd, 3)
    for nothing in (torch.ones(4, 3), torch.ones(1, 3), torch.ones(0, 3)):
        with pytest.raises(UserError):
            PCA.fit(nothing)
    with pytest.raises(UserError, match="at least 1"):
        PCA.fit(rows_nd, 0)


def test_without_components_every_row_is_the_mean():
    mean_d = torch.tensor([1.0, -2, 3])
    pca = PCA(torch.zeros(0, 3), mean_d)
    x = torch.randn(2, 4, 3)
    assert pca.encode(x).shape == (2, 4, 0)
    assert torch.equal(pca.decode(pca.encode(x)), mean_d.expand(2, 4, 3))


# both as dictionaries


@pytest.fixture(params=["itda", "pca"])
def fitted(request) -> ITDA | PCA:
    rows_nd = torch.randn(80, 6, generator=torch.Generator().manual_seed(10)) + 0.5
    return PCA.fit(rows_nd) if request.param == "pca" else ITDA(torch.nn.functional.normalize(rows_nd[:9], dim=-1), 3)


def test_they_are_dictionaries_whose_linear_part_has_no_bias(fitted):
    assert isinstance(fitted, Dictionary) and fitted.width == 6
    z_nf = torch.randn(4, fitted.num_features, generator=torch.Generator().manual_seed(0))
    assert not fitted.decode_linear(torch.zeros(2, fitted.num_features)).any()
    bias_nd = fitted.decode(torch.zeros(4, fitted.num_features))
    torch.testing.assert_close(fitted.decode_linear(z_nf) + bias_nd, fitted.decode(z_nf))
    assert bias_nd.any() == isinstance(fitted, PCA)


@pytest.mark.parametrize("mode", ["static", "replace"])
def test_transport_moves_the_chosen_features_of_each_cell(fitted, mode):
    """All cells of a grid of one step, with every feature chosen: D = (z_e - z_o) A. A replacement at the original
    itself is the same."""
    generator = torch.Generator().manual_seed(11)
    site, cells = Site("mid.0"), torch.ones(12, dtype=torch.bool)
    original, edited = ({site: torch.randn(1, 12, 6, generator=generator)} for _ in range(2))
    case = Case(
        Edit("e", "change_colour", "a red star", "a blue star", "star", "star"), 0, original, edited,
        {"mid.0": cells}, {"mid.0": cells}, {"mid.0": fitted}.__getitem__,
    )  # fmt: skip
    dictionaries = {site: fitted}
    selected = select_features(case, dictionaries, k=2, pool="block", aggregation="first")
    plan = transport(case, dictionaries, selected, Transport(mode=mode))
    rows_o, rows_e = original[site][0], edited[site][0]
    z_o, z_e = fitted.encode(rows_o), fitted.encode(rows_e)
    on, off = selected[site].on, selected[site].off
    assert len(on) == len(off) == 2
    directions_fd = fitted.decode(torch.eye(fitted.num_features)) - fitted.decode(torch.zeros(1, fitted.num_features))
    taken_away = z_o[:, off] @ directions_fd[off]
    if mode == "static":
        added = plan.additions[site].dense(12)[0]
        wanted = z_e[:, on] @ directions_fd[on] - taken_away
    else:
        added = sum(rewrite.delta(original[site][0], 0) for rewrite in plan.rewrites[site])
        wanted = (z_e[:, on] - z_o[:, on]) @ directions_fd[on] - taken_away
    torch.testing.assert_close(added, wanted, atol=1e-5, rtol=1e-5)


def test_a_saved_dictionary_is_read_as_it_was(fitted, tmp_path):
    sha256 = fitted.save(tmp_path / "d", {"block": "mid.0"})
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    assert (config["architecture"], config["metadata"]) == (type(fitted).__name__.lower(), {"block": "mid.0"})
    assert (config["d_in"], config["d_sae"]) == (6, fitted.num_features)
    assert sha256 == weights_sha256(tmp_path / "d") == fitted.save(tmp_path / "other", {})
    read, x_nd = type(fitted).load(tmp_path / "d"), torch.randn(5, 6)
    assert torch.equal(read.encode(x_nd), fitted.encode(x_nd))
    assert torch.equal(read.decode(read.encode(x_nd)), fitted.decode(fitted.encode(x_nd)))


def test_broken_checkpoints_are_refused(fitted, tmp_path):
    folder, kind = tmp_path / "d", type(fitted)
    with pytest.raises(UserError, match="does not exist"):
        kind.load(folder)
    fitted.save(folder, {})
    with pytest.raises(UserError, match="architecture is"):
        ({ITDA, PCA} - {kind}).pop().load(folder)
    config, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    whole = json.loads(config.read_text())
    for changed in ({"d_in": 7}, {"d_sae": None}, {"k": 0}, {"k": None}):
        if "k" in changed and kind is PCA:
            continue
        config.write_text(json.dumps(whole | changed))
        with pytest.raises(UserError):
            kind.load(folder)
    config.write_text(json.dumps({name: value for name, value in whole.items() if name != "d_in"}))
    with pytest.raises(UserError, match="does not fit"):
        kind.load(folder)
    config.write_text(json.dumps(whole))
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="safetensors"):
        kind.load(folder)


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    for broken in (ITDA(torch.full((2, 3), torch.nan), 1), PCA(torch.eye(3), torch.full((3,), torch.inf))):
        with pytest.raises(UserError, match="NaN or infinite"):
            broken.save(tmp_path / "d", {})
    assert not (tmp_path / "d").exists()
