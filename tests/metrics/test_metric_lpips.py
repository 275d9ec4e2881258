"""LPIPS beside the paper's formula and the lpips package, and the conversion of AlexNet's weights."""

import hashlib
import io
import pickle
import tarfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import lpips
import numpy as np
import pytest
import torch
import torchvision
from metric_batches import images, make_batch
from safetensors import safe_open
from torch.nn import functional as F

from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.metrics import METRICS, score_batch
from riebench.metrics.lpips import LpipsOutside
from riebench.metrics.models import ScoringModels
from riebench.metrics.networks import convert_alexnet, lpips_distance
from riebench.metrics.networks import lpips as lpips_networks
from riebench.metrics.networks.lpips import ALEX, SQUEEZE, VGG
from riebench.metrics.networks.lpips_distance import Lpips

TRUNK = data_folder() / "lpips" / "alex.safetensors"


@pytest.fixture(scope="module")
def alex():
    return Lpips(ALEX)


def layer_distances(a, b):
    """LPIPS's five maps written out from the paper: unit features, squared difference, weighted by the head."""
    with safe_open(TRUNK, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    heads = lpips_distance.head_state(ALEX)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = ((2 * images_bchw - 1 - shift) / scale for images_bchw in (a, b))
    convolution = {0: {"stride": 4, "padding": 2}, 3: {"padding": 2}}
    maps = []
    for index, layer in enumerate((0, 3, 6, 8, 10)):
        if layer in (3, 6):
            a, b = F.max_pool2d(a, 3, 2), F.max_pool2d(b, 3, 2)
        kernel, bias = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
        a, b = (F.relu(F.conv2d(x, kernel, bias, **convolution.get(layer, {"padding": 1}))) for x in (a, b))
        unit_a, unit_b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        maps.append(((unit_a - unit_b).square() * heads[f"lin{index}.model.1.weight"]).sum(1))
    return maps


@pytest.mark.parametrize("size", [64, 96])
def test_lpips_is_the_papers_formula(alex, size):
    a, b = images(1, size=size), images(2, size=size)
    maps = layer_distances(a, b)
    torch.testing.assert_close(alex.distance(a, b), sum(m.mean(dim=(1, 2)) for m in maps), rtol=1e-4, atol=1e-6)
    raised = [F.interpolate(m[:, None], size=(size, size), mode="bilinear")[:, 0] for m in maps]
    torch.testing.assert_close(alex.distance_map(a, b), sum(raised), rtol=1e-4, atol=1e-6)


def test_lpips_properties(alex):
    a, noise = images(1), images(2) - 0.5
    assert alex.distance(a, a).tolist() == [0.0, 0.0, 0.0]
    near, far = ((a + strength * noise).clamp(0, 1) for strength in (0.1, 0.5))
    assert (alex.distance(a, near) < alex.distance(a, far)).all()
    torch.testing.assert_close(alex.distance(a, far), alex.distance(far, a))
    alone = torch.cat([alex.distance(a[i : i + 1], far[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alex.distance(a, far), alone, rtol=1e-5, atol=1e-7)


def test_building_lpips_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Lpips(ALEX)
    assert torch.equal(before, torch.get_rng_state())


def test_lpips_scores_name_their_reference(alex):
    a, b = images(1), images(2)
    models = ScoringModels(loaded={"lpips": alex})
    batch = make_batch(a, original=a, edited=b)
    metrics = [METRICS.get(name)(models) for name in ("lpips_original", "lpips_edited", "lpips_outside")]
    scores = score_batch(metrics, batch)
    np.testing.assert_array_equal(scores["lpips_original"], np.zeros(3))
    np.testing.assert_allclose(scores["lpips_edited"], alex.distance(a, b).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(scores["lpips_outside"], np.zeros(3))


def test_lpips_outside_by_hand():
    distance_map = torch.arange(3 * 4 * 4, dtype=torch.float32).reshape(3, 4, 4)
    models = ScoringModels(loaded={"lpips": SimpleNamespace(distance_map=lambda a, b: distance_map)})
    outside = torch.zeros(3, 4, 4, dtype=torch.bool)
    outside[0, 1, 1:3] = True  # cells 5 and 6
    outside[1] = True  # cells 16..31; nothing is outside in the third
    scores = LpipsOutside(models, ALEX).score(make_batch(images(0, size=4), outside=outside))
    np.testing.assert_array_equal(scores, [5.5, 23.5, np.nan])


def test_lpips_outside_compares_with_the_original(alex):
    a, b = images(1), images(2)
    metric = LpipsOutside(ScoringModels(loaded={"lpips": alex}), ALEX)
    outside = torch.zeros(3, 64, 64, dtype=torch.bool)
    outside[:, :, :32] = True
    found = metric.score(make_batch(a, original=b, edited=a, outside=outside))
    np.testing.assert_allclose(found, alex.distance_map(a, b)[:, :, :32].mean(dim=(1, 2)).numpy(), rtol=1e-5)


def test_a_missing_or_broken_trunk_is_an_error_to_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(lpips_networks, "data_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="install riebench again"):
        lpips_distance.trunk_state(ALEX)
    (tmp_path / "lpips").mkdir()
    (tmp_path / "lpips" / "alex.safetensors").write_bytes(TRUNK.read_bytes()[:1000])
    with pytest.raises(UserError, match="install riebench again"):
        lpips_distance.trunk_state(ALEX)


def test_lpips_computes_each_distinct_image_once_and_in_any_company_the_same():
    alex = Lpips(ALEX, batch_size=4)
    function, seen = alex._features._function, []
    alex._features._function = lambda images: seen.append(len(images)) or function(images)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 3, 64, 64, generator=generator) for _ in "ab")
    first = alex.distance(a, b[[0, 0, 0]])
    assert seen == [4, 4]  # three images and one, filled up
    again = torch.cat([alex.distance(a[i : i + 1].clone(), b[:1]) for i in range(3)])
    alex.distance_map(a, b[[0, 0, 1]])
    assert seen == [4, 4, 4] and torch.equal(first, again)
    alex.forget()
    assert torch.equal(torch.cat([alex.distance(a[i : i + 1], b[:1]) for i in (2, 1, 0)]), first.flip(0))


# ---------------------------------------------------------------- other nets


@pytest.fixture(params=[VGG, SQUEEZE], ids=["vgg", "squeeze"])
def foreign(request, tmp_path, monkeypatch):
    """A network of ours, and lpips's own of it with random weights, which lie as torchvision's in torch's cache."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        peer = lpips.LPIPS(net=request.param.net, pnet_rand=True, verbose=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = request.param.trunk_path
    path.parent.mkdir()
    trunk = {f"features.{name.partition('.')[2]}": tensor for name, tensor in peer.net.state_dict().items()}
    torch.save(trunk | {"classifier.1.weight": torch.zeros(3)}, path)
    return request.param, peer


@pytest.mark.slow
def test_other_nets_are_lpips_own_with_torchvision_s_weights(foreign):
    network, peer = foreign
    ours = Lpips(network, batch_size=2)
    a, b = images(1), images(2)
    with torch.no_grad():
        expected = peer(a, b, normalize=True).flatten()
        peer.spatial = True
        expected_map = peer(a, b, normalize=True)[:, 0]
    torch.testing.assert_close(ours.distance(a, b), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.distance_map(a, b), expected_map, rtol=1e-5, atol=1e-6)
    models = ScoringModels(loaded={f"lpips_{network.net}": ours})
    names = [f"lpips_{network.net}_{kind}" for kind in ("original", "edited", "outside")]
    scores = score_batch([METRICS.get(name)(models) for name in names], make_batch(a, original=b, edited=a))
    assert list(scores) == names
    np.testing.assert_allclose(scores[names[0]], expected, rtol=1e-5)
    np.testing.assert_allclose(scores[names[1]], 0, atol=1e-7)
    np.testing.assert_allclose(scores[names[2]], expected_map.mean(dim=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("network", [VGG, SQUEEZE], ids=["vgg", "squeeze"])
@pytest.mark.parametrize("broken", [False, True])
def test_weights_of_other_nets_that_are_not_there_come_with_a_command_that_gets_them(
    network, broken, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    if broken:
        network.trunk_path.parent.mkdir()
        network.trunk_path.write_bytes(b"half a file")
    with pytest.raises(UserError, match=f"{network.net}.* cannot be read.* run `python -c ") as error:
        Lpips(network)
    asked = []
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, **_: asked.append(url))
    exec(str(error.value).partition('-c "')[2].partition('"`')[0])
    assert [Path(url).name for url in asked] == [network.trunk_path.name]


def test_a_distance_is_measured_once_however_many_metrics_ask(monkeypatch):
    alex = Lpips(ALEX)
    measure, measured = alex._measure, []
    monkeypatch.setattr(alex, "_measure", lambda *given: measured.append(1) or measure(*given))
    a, b = images(1), images(2)
    first = alex.distance(a, b)
    first[0] = 7.0  # a copy: what is remembered is not the caller's
    assert torch.equal(alex.distance(a.clone(), b), alex.distance(a, b.clone())) and len(measured) == 1
    assert alex.distance(a, b)[0] != 7.0
    assert not torch.equal(alex.distance(b, a[[1, 0, 2]]), alex.distance(a, b)) and len(measured) == 2
    for other in range(3, 9):
        alex.distance(a, images(other))
    assert len(alex._distances) == lpips_distance.REMEMBERED_BATCHES


# ---------------------------------------------------------------- the conversion of AlexNet


def test_the_trunks_archive_holds_lpips_own_heads():
    with safe_open(TRUNK, "np") as file:
        recorded = file.metadata()
    heads = lpips_distance.head_state(ALEX)
    for index in range(5):
        found = hashlib.sha256(heads[f"lin{index}.model.1.weight"].numpy().astype("<f4").tobytes()).hexdigest()
        assert found == recorded[f"sha256_lin{index}"]
    assert recorded["source_sha256"] in (TRUNK.parent / "NOTICE.md").read_text()


def foreign_parameters():
    rng = np.random.default_rng(0)
    widths = (3, *convert_alexnet.CHANNELS)
    convolutions = {
        f"Conv_{i}": {
            "kernel": rng.normal(size=(2, 5, widths[i], widths[i + 1])).astype(np.float32),
            "bias": rng.normal(size=widths[i + 1]).astype(np.float32),
        }
        for i in range(5)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.normal(size=(1, 1, width, 1)).astype(np.float32)}}
        for i, width in enumerate(convert_alexnet.CHANNELS)
    }
    return {"AlexNet_0": convolutions, **heads}


def old_numpy_pickle(value):
    """A pickle as NumPy 1 wrote it, when its core module had no underscore."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.mark.slow
def test_a_pickle_of_arrays_is_converted_to_torchvisions_layout(tmp_path):
    parameters = foreign_parameters()
    data = old_numpy_pickle(parameters)
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as files:
        member = tarfile.TarInfo(convert_alexnet.MEMBER)
        member.size = len(data)
        files.addfile(member, io.BytesIO(data))
    convert_alexnet.main(archive, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        for i, layer in enumerate((0, 3, 6, 8, 10)):
            weight = file.get_tensor(f"features.{layer}.weight")
            kernel = parameters["AlexNet_0"][f"Conv_{i}"]["kernel"]
            for h, w in np.ndindex(2, 5):
                np.testing.assert_array_equal(weight[:, :, h, w], kernel[h, w].T)
            np.testing.assert_array_equal(
                file.get_tensor(f"features.{layer}.bias"), parameters["AlexNet_0"][f"Conv_{i}"]["bias"]
            )
            head = parameters[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
            assert file.metadata()[f"sha256_lin{i}"] == hashlib.sha256(head.tobytes()).hexdigest()
        assert file.metadata()["source_sha256"] == hashlib.sha256(data).hexdigest()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"AlexNet_0": [np.zeros(2, np.float32), bomb]}])
def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(tmp_path, wrap):
    touched = tmp_path / "touched"
    data = old_numpy_pickle(wrap(Bomb(touched)))
    with pytest.raises(UserError, match="the pickle asks for .*: it holds more than arrays"):
        convert_alexnet.read_arrays(data)
    assert not touched.exists()
    pickle.loads(data)
    assert touched.exists()  # the bomb was live


def test_a_pickle_cut_short_is_an_error_to_mend():
    with pytest.raises(UserError, match="cannot be read"):
        convert_alexnet.read_arrays(old_numpy_pickle(foreign_parameters())[:500])
