"""ITDA as the paper on FLUX has it: against a slow pursuit in float64, scipy's least squares without negative weights,
and growth by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from riebench.core.errors import UserError
from sae_models import checkpoint
from sae_models.dictionary import Dictionary
from sae_models.itda import fit_itda
from sae_models.layouts import weights_sha256
from sae_models.nonnegative_itda import NonNegativeITDA, fit_nonnegative_itda, nonnegative_pursuit
from sae_models.saved import describe_dictionary, rebuild_dictionary


def values(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ATOMS = torch.nn.functional.normalize(values(30, 8, seed=0), dim=-1)
ROWS = 3 * values(60, 8, seed=1)


def slow_pursuit(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    """One row; the code is a dictionary of the atoms that are in use, and the residual is made anew from it."""
    code: dict[int, float] = {}
    for _ in range(k):
        residual = x - sum((value * atoms[atom] for atom, value in code.items()), np.zeros_like(x))
        if np.linalg.norm(residual) <= 1e-6 * np.linalg.norm(x):
            break
        code.setdefault(max(range(len(atoms)), key=lambda atom: atoms[atom] @ residual), 0.0)
        gradient = {atom: atoms[atom] @ residual for atom in code}
        along = sum(value * atoms[atom] for atom, value in gradient.items())
        step = (residual @ along) / (along @ along)
        moved = {atom: value + step * gradient[atom] for atom, value in code.items()}
        code = {atom: value for atom, value in moved.items() if value > 0}
    return np.array([code.get(atom, 0.0) for atom in range(len(atoms))])


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_pursuit_is_that_of_the_slow_formula(k):
    found = nonnegative_pursuit(ROWS, ATOMS, k)
    wanted = [slow_pursuit(x, ATOMS.double().numpy(), k) for x in ROWS.double().numpy()]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (found >= 0).all() and 0 < (found > 0).sum(-1).max() <= k


def test_an_atom_whose_latent_would_be_negative_is_dropped():
    """The first atom lies between two others that together are nearest to the row: it goes once both are there."""
    atoms_fd = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 0.2], [1, 0, 0], [0, 1, 0]]), dim=-1)
    x_nd = torch.tensor([[2.0, 1.5, -0.5]])
    first, between, last = (nonnegative_pursuit(x_nd, atoms_fd, k)[0] for k in (1, 10, 400))
    assert [(z_f > 0).tolist() for z_f in (first, between, last)] == [
        [True, False, False], [True, True, True], [False, True, True],
    ]  # fmt: skip
    np.testing.assert_allclose(last, nnls(atoms_fd.double().T.numpy(), x_nd[0].double().numpy())[0], atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, 12, 200])
def test_least_squares_without_negative_weights_bound_what_is_left_and_many_steps_come_near(k):
    atoms_fd = ATOMS[:10]
    left_n = (ROWS - nonnegative_pursuit(ROWS, atoms_fd, k) @ atoms_fd).norm(dim=-1).double().numpy()
    least_n = np.array([nnls(atoms_fd.double().T.numpy(), x)[1] for x in ROWS.double().numpy()])
    assert (left_n >= least_n - 1e-5).all()
    assert (left_n <= ROWS.norm(dim=-1).numpy()).all()
    if k == 200:
        np.testing.assert_allclose(left_n, least_n, atol=1e-5)
        assert least_n.max() > 0.5


def test_orthonormal_atoms_are_found_exactly_and_what_points_away_is_left():
    rotation = torch.linalg.qr(values(10, 10, seed=2)).Q
    z_nf = torch.zeros(4, 10)
    z_nf[0, 3], z_nf[1, [0, 9]], z_nf[2, [1, 2, 5]] = 7.0, torch.tensor([2.0, 1]), torch.tensor([-1.0, 2, 3])
    found = nonnegative_pursuit(z_nf @ rotation, rotation, 6)
    torch.testing.assert_close(found, z_nf.relu(), atol=1e-4, rtol=0)
    assert not found[3].any()


def made(k: int = 4) -> NonNegativeITDA:
    return NonNegativeITDA(
        ATOMS[:, :6] / ATOMS[:, :6].norm(dim=-1, keepdim=True), values(6, seed=3), 1 + torch.rand(6), k
    )


def test_a_row_does_not_depend_on_its_place_nor_on_the_others_and_dimensions_pass_through():
    itda, x = made(), values(2, 3, 5, 6, seed=4)
    z = itda.encode(x)
    assert z.shape == (2, 3, 5, 30) and itda.encode(x.bfloat16()).dtype == torch.float32
    flat, order = x.reshape(-1, 6), torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(itda.encode(flat[order]), z.reshape(-1, 30)[order])
    torch.testing.assert_close(itda.encode(x[1, 2, 3]), z[1, 2, 3])


def test_it_reads_normalised_rows_and_decodes_to_raw_ones():
    itda, x_nd = made(), values(9, 6, seed=5)
    assert isinstance(itda, Dictionary) and (itda.width, itda.num_features) == (6, 30)
    mean, std, atoms = (value.double().numpy() for value in (itda.mean_d, itda.std_d, itda.atoms_fd))
    wanted = np.array([slow_pursuit((x - mean) / std, atoms, 4) for x in x_nd.double().numpy()])
    np.testing.assert_allclose(itda.encode(x_nd), wanted, atol=1e-4)
    np.testing.assert_allclose(itda.decode(itda.encode(x_nd)), wanted @ atoms * std + mean, atol=1e-4)
    assert not itda.decode_linear(torch.zeros(2, 30)).any()
    numbers = torch.tensor([4, 0, 29])
    torch.testing.assert_close(itda.directions(numbers), itda.decode_linear(torch.eye(30))[numbers])


# growing


def unexplained(itda: NonNegativeITDA, x_nd: torch.Tensor) -> np.ndarray:
    """Of each row, as a share of the mean variance of normalised rows: worked out in float64 from raw ones."""
    x, x_hat = (value.double().numpy() for value in (x_nd, itda.decode(itda.encode(x_nd))))
    std = x.std(0)
    return (((x - x_hat) / std) ** 2).sum(1) / (((x - x.mean(0)) / std) ** 2).sum(1).mean()


@pytest.mark.parametrize("threshold", [0.3, 0.1])
def test_growth_stops_when_every_row_is_within_the_threshold(threshold):
    rows_nd = values(300, 12, seed=6) * torch.logspace(-1, 1, 12) + 5
    found = fit_nonnegative_itda(rows_nd.split(70), fvu_threshold=threshold, max_atoms=300, k=4)
    assert 4 < found.num_features < 300
    assert unexplained(found, rows_nd).max() <= threshold + 1e-4
    np.testing.assert_allclose(found.mean_d, rows_nd.double().numpy().mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.std_d, rows_nd.double().numpy().std(0), rtol=1e-5)
    normalised_nd = torch.nn.functional.normalize((rows_nd - found.mean_d) / found.std_d, dim=-1)
    torch.testing.assert_close((normalised_nd @ found.atoms_fd.T).amax(0), torch.ones(found.num_features))
    assert (found.encode(rows_nd) >= 0).all() and (found.encode(rows_nd) > 0).sum(-1).max() <= 4


def test_opposite_rows_are_two_atoms_where_latents_cannot_be_negative():
    """By hand: mean 0 and std 1 or so; the third row is within the threshold of the mean and needs none."""
    rows_nd = torch.tensor([[2.0, 0], [-2, 0], [0.5, 0], [-0.5, 0], [0, 1], [0, -1]])
    found = fit_nonnegative_itda([rows_nd], fvu_threshold=0.2, max_atoms=9, k=1)
    torch.testing.assert_close(found.atoms_fd, torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
    assert fit_itda([rows_nd], fvu_threshold=0.2, max_atoms=9, k=1).num_features == 2
    assert torch.equal(
        fit_nonnegative_itda(rows_nd.split(1), fvu_threshold=0.2, max_atoms=9, k=1).atoms_fd, found.atoms_fd
    )
    assert fit_nonnegative_itda([rows_nd], fvu_threshold=0.2, max_atoms=3, k=1).num_features == 3


def test_a_channel_at_rest_is_left_as_it_is():
    rows_nd = torch.cat([values(50, 3, seed=7), torch.full((50, 1), 7.0)], dim=1)
    found = fit_nonnegative_itda([rows_nd], fvu_threshold=0.1, max_atoms=40, k=3)
    assert found.std_d[3] == 1 and not found.atoms_fd[:, 3].any()
    assert torch.equal(found.decode(found.encode(rows_nd))[:, 3], rows_nd[:, 3])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.full((3, 4), torch.nan)], "NaN or infinite"),
        ([torch.eye(4), torch.tensor([[1.0, 2, torch.inf, 0]])], "NaN or infinite"),
        ([torch.eye(4), torch.eye(5)], "shape"),
        (iter([torch.eye(4)]), "more than once -> give a list"),
        ([], "no rows"),
        ([torch.ones(5, 4)], "within 0.5 of the mean"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(batches, message):
    with pytest.raises(UserError, match=message):
        fit_nonnegative_itda(batches, fvu_threshold=0.5, max_atoms=3, k=1)


@pytest.mark.parametrize("wrong", [{"fvu_threshold": 0.0}, {"fvu_threshold": 1.0}, {"max_atoms": 0}, {"k": 0}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UserError):
        fit_nonnegative_itda([torch.eye(4)], **{"fvu_threshold": 0.1, "max_atoms": 3, "k": 1} | wrong)


# files


def test_a_saved_dictionary_is_read_as_it_was(tmp_path):
    itda, x_nd = made(), values(5, 6, seed=8)
    sha256 = itda.save(tmp_path, {"block": "double.18"})
    assert sha256 == weights_sha256(tmp_path)
    for read in (checkpoint.load(tmp_path), rebuild_dictionary(*describe_dictionary(itda))):
        assert type(read) is NonNegativeITDA
        assert torch.equal(read.encode(x_nd), itda.encode(x_nd))
        assert torch.equal(read.decode(read.encode(x_nd)), itda.decode(itda.encode(x_nd)))
    assert checkpoint.shape_of(tmp_path) == checkpoint.Shape("nonnegative-itda", 4, 30, 6)


def test_broken_checkpoints_are_refused(tmp_path):
    made().save(tmp_path, {})
    config, weights = tmp_path / "cfg.json", tmp_path / "sae_weights.safetensors"
    whole = json.loads(config.read_text())
    for changed in ({"d_in": 7}, {"d_sae": None}, {"k": 0}, {"k": None}):
        config.write_text(json.dumps(whole | changed))
        with pytest.raises(UserError):
            checkpoint.load(tmp_path)
    config.write_text(json.dumps({name: value for name, value in whole.items() if name != "k"}))
    with pytest.raises(UserError, match="lacks k -> save the dictionary again"):
        checkpoint.load(tmp_path)
    config.write_text(json.dumps(whole))
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="safetensors"):
        checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="deviation to divide by is not above zero"):
        NonNegativeITDA(torch.eye(2), torch.zeros(2), torch.tensor([1.0, 0]), 1)
    with pytest.raises(UserError, match="steps"):
        made(0)
