"""Sampling: batches that do not change results, one noise stream a case, and exactness where nothing is changed."""

from __future__ import annotations

import pytest
import torch

from riebench.backbones import BACKBONES, BLOCK_NAMES, Backbone
from riebench.errors import UserError
from riebench.interventions import Intervention
from riebench.lens import find_sites
from riebench.sampling import Request, Sampler, choose_device, load_sampler

PROMPTS = [
    "flat poster of a standing red plain heart in the sky",
    "sketch of a leaning blue striped circle with a sad face at night",
    "pixel mosaic of a stretched pink dotted square wearing a crown by the sea",
]
ALONE_AND_IN_A_BATCH = 2e-4  # of a pixel's range [0, 1]: batches of other sizes add up in another order


def zero_intervention(sampler, steps=1):
    sites = find_sites(sampler.unet, BLOCK_NAMES, "update")
    trace = sampler.generate([Request(PROMPTS[0], 1)], sites)[0].trace
    return Intervention({site: torch.zeros_like(value) for site, value in trace.items()})


def test_alone_and_in_a_batch_of_eight_agree(sampler):
    alone = Sampler(sampler.backbone, sampler.pipeline, batch_size=1)
    requests = [Request(PROMPTS[i % 3], i) for i in range(8)]
    together = sampler.generate(requests)
    for request, sample in zip(requests, together, strict=True):
        assert (alone.generate([request])[0].image - sample.image).abs().max() < ALONE_AND_IN_A_BATCH


def test_equal_requests_give_equal_bits_in_any_company(sampler):
    target = Request(PROMPTS[1], 5)
    first = sampler.generate([target])[0].image
    among = sampler.generate([Request(PROMPTS[0], 9), Request(PROMPTS[2], 3), target])[2].image
    assert torch.equal(first, among)


def test_zero_additions_give_the_original_exactly(sampler):
    zero = zero_intervention(sampler)
    plain, zeroed, empty = sampler.generate(
        [Request(PROMPTS[0], 3), Request(PROMPTS[0], 3, zero), Request(PROMPTS[0], 3, Intervention())]
    )
    assert torch.equal(plain.image, zeroed.image)
    assert torch.equal(plain.image, empty.image)


def test_additions_change_only_their_own_row(sampler):
    zero = zero_intervention(sampler)
    pushed = Intervention({site: value + 1.0 for site, value in zero.additions.items()})
    plain = sampler.generate([Request(PROMPTS[0], 3), Request(PROMPTS[1], 4)])
    mixed = sampler.generate([Request(PROMPTS[0], 3, pushed), Request(PROMPTS[1], 4)])
    assert not torch.allclose(plain[0].image, mixed[0].image, atol=1e-2)
    assert torch.equal(plain[1].image, mixed[1].image)


def test_the_sampler_does_what_the_pipeline_does(sampler):
    generator = torch.Generator("cpu").manual_seed(11)
    reference = sampler.pipeline(
        PROMPTS[2], num_inference_steps=1, guidance_scale=0.0, generator=generator, output_type="pt"
    ).images[0]
    ours = Sampler(sampler.backbone, sampler.pipeline, batch_size=1).generate([Request(PROMPTS[2], 11)])[0].image
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


def test_seeds_give_different_layouts(sampler):
    from riebench.tinyworld.oracle import load_oracle

    samples = sampler.generate([Request(PROMPTS[0], seed) for seed in range(24)])
    layouts = load_oracle().layouts(torch.stack([sample.image for sample in samples]))
    assert len({tuple(row) for row in layouts.tolist()}) >= 4


def test_several_steps_are_traced_and_edited_each_by_its_own_index(sampler):
    backbone = Backbone("tinyworld-turbo@3", "tinyworld/turbo", 3, 0.0, "tinyworld", "tinyworld")
    three = Sampler(backbone, sampler.pipeline, batch_size=2)
    sites = find_sites(sampler.unet, ("up.0.1",), "update")
    plain = three.generate([Request(PROMPTS[0], 3)], sites)[0]
    assert plain.trace[sites[0]].shape[0] == 3
    late = torch.zeros_like(plain.trace[sites[0]])
    late[2] = 1.0
    edited = three.generate([Request(PROMPTS[0], 3, Intervention({sites[0]: late}))], sites)[0]
    assert not torch.allclose(edited.image, plain.image, atol=1e-3)
    # the capture holds what the U-Net made, and nothing upstream of the last step's edit has changed
    torch.testing.assert_close(edited.trace[sites[0]], plain.trace[sites[0]])
    with pytest.raises(UserError, match="has 3 steps, the backbone 1"):
        sampler.generate([Request(PROMPTS[0], 3, Intervention({sites[0]: late}))])


def test_devices_and_missing_weights_are_clear_errors(tmp_path):
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="unknown device"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            choose_device("cuda")
    missing = Backbone("mine", str(tmp_path), 1, 0.0, "tinyworld", "tinyworld")
    with pytest.raises(UserError, match="are not at"):
        load_sampler(missing, torch.device("cpu"))


def test_truncated_weights_are_a_clear_error(tmp_path):
    import shutil

    from riebench.files import data_folder

    folder = tmp_path / "turbo"
    shutil.copytree(data_folder() / BACKBONES.get("tinyworld-turbo@1").folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_sampler(Backbone("mine", str(folder), 1, 0.0, "tinyworld", "tinyworld"), torch.device("cpu"))


def test_interventions_survive_the_disk_and_refuse_nan(tmp_path, sampler):
    zero = zero_intervention(sampler)
    made = Intervention(
        {site: value + i for i, (site, value) in enumerate(zero.additions.items())}, {"mid.0": 4}, "original"
    )
    made.save(tmp_path / "one.safetensors")
    back = Intervention.load(tmp_path / "one.safetensors")
    assert back.features == made.features and back.prompt == made.prompt
    assert all(torch.equal(back.additions[site], value) for site, value in made.additions.items())
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="is not an intervention"):
        Intervention.load(tmp_path / "broken.safetensors")
    site = next(iter(zero.additions))
    with pytest.raises(UserError, match="NaN"):
        Intervention({site: torch.full((1, 2, 2, 2), float("nan"))})
