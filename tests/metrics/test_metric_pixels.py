"""MSE, PSNR and SSIM beside scikit-image and torchmetrics."""

import numpy as np
import pytest
import torch
from metric_batches import images, make_batch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure

from riebench.metrics import score_batch, scorers
from riebench.metrics.ssim import REACH, blurred, similarity_map

NAMES = [f"{name}{part}" for name in ("mse", "psnr", "ssim") for part in ("", "_outside")]


@pytest.fixture(scope="module", params=[(64, 64), (40, 56)])
def pairs(request):
    """Nine pairs of 8 bits: of noise, of smooth pictures that hardly differ, of flat ones."""
    h, w = request.param
    a, b = (images(seed, b=9, size=64)[:, :, :h, :w] for seed in (1, 2))
    smooth = F.interpolate(a[3:6, :, :6, :6], size=(h, w), mode="bicubic").clamp(0, 1)
    a[3:6], b[3:6] = smooth, (smooth + 0.02 * (b[3:6] - 0.5)).clamp(0, 1)
    a[6:], b[6:] = 0.9, 0.9 + 0.01 * (b[6:] - 0.5)
    return [(x * 255).round() / 255 for x in (a, b)]


@pytest.fixture(scope="module")
def outside(pairs):
    """Bool `[9, h, w]`, all of it away from the edge, where the libraries' maps agree with each other."""
    b, _, h, w = pairs[0].shape
    mask = torch.zeros(b, h, w, dtype=torch.bool)
    mask[:, REACH:-REACH, REACH:-REACH] = images(3, b=b)[:, 0, REACH : h - REACH, REACH : w - REACH] > 0.4
    return mask


@pytest.fixture(scope="module")
def scores(pairs, outside):
    return score_batch(scorers(NAMES), make_batch(pairs[0], original=pairs[1], outside=outside))


def skimage_map(a_chw, b_chw):
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return structural_similarity(a_chw.double().numpy(), b_chw.double().numpy(), channel_axis=0, full=True, **settings)


def test_whole_images_are_those_of_scikit_image(pairs, scores):
    for i, (a, b) in enumerate(zip(*(side.double().numpy() for side in pairs), strict=True)):
        assert scores["mse"][i] == pytest.approx(mean_squared_error(a, b), rel=1e-5)
        assert scores["psnr"][i] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-5)


def test_whole_images_are_those_of_torchmetrics(pairs, scores):
    a, b = (side.double() for side in pairs)
    ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    np.testing.assert_allclose(scores["ssim"], ssim, rtol=0, atol=1e-5)
    psnr = torchmetrics_psnr(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(scores["psnr"], psnr, rtol=0, atol=1e-5)


def test_outside_counts_the_pixels_outside_and_no_others(pairs, outside, scores):
    a, b = (side.double().numpy() for side in pairs)
    for i, there in enumerate(outside.numpy()):
        error = np.mean((a[i][:, there] - b[i][:, there]) ** 2)
        assert scores["mse_outside"][i] == pytest.approx(error, rel=1e-5)
        assert scores["psnr_outside"][i] == pytest.approx(-10 * np.log10(error), abs=1e-5)
        similarity = skimage_map(*(side[i] for side in pairs))[1]
        assert scores["ssim_outside"][i] == pytest.approx(similarity[:, there].mean(), abs=1e-5)


def test_the_map_is_scikit_image_s_within_and_torchmetrics_to_the_edge(pairs):
    found = similarity_map(*pairs)
    for i in range(len(found)):
        expected = skimage_map(*(side[i] for side in pairs))[1]
        inner = (slice(None), slice(REACH, -REACH), slice(REACH, -REACH))
        np.testing.assert_allclose(found[i].numpy()[inner], expected[inner], rtol=0, atol=1e-9)
    a, b = (side.double() for side in pairs)
    _, expected = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", return_full_image=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_window_has_weight_one_and_keeps_flat_images():
    torch.testing.assert_close(blurred(torch.full((1, 3, 12, 7), 0.3)), torch.full((1, 3, 12, 7), 0.3))
    with pytest.raises(ValueError, match="smaller than the window"):
        blurred(torch.zeros(1, 3, 5, 20))


def test_images_that_do_not_differ_get_100_db_and_so_do_those_that_hardly_do():
    image = images(0, b=2)
    hardly = image + 1e-6
    near = score_batch(scorers(NAMES), make_batch(hardly, original=image))
    same = score_batch(scorers(NAMES), make_batch(image, original=image))
    for name, best in (("psnr", 100.0), ("ssim", 1.0), ("mse", 0.0)):
        for part in ("", "_outside"):
            np.testing.assert_allclose(same[f"{name}{part}"], best, rtol=0, atol=1e-12)
    assert near["psnr"].tolist() == [100.0, 100.0]


def test_nothing_outside_is_undefined_and_does_not_touch_the_other_rows():
    a, b = images(0), images(1)
    outside = torch.zeros(3, 64, 64, dtype=torch.bool)
    outside[1, :20] = True
    found = score_batch(scorers(NAMES), make_batch(a, original=b, outside=outside))
    for name in ("mse_outside", "psnr_outside", "ssim_outside"):
        assert np.isnan(found[name]).tolist() == [True, False, True]
    nowhere = score_batch(scorers(NAMES), make_batch(a, original=b, outside=torch.zeros_like(outside)))
    assert np.isnan(nowhere["ssim_outside"]).all() and np.isfinite(nowhere["ssim"]).all()
