"""Sampling: batches that do not change results, one noise stream a case, and exactness where nothing is changed."""

from __future__ import annotations

import pytest
import torch
from sdxl_blocks import BLOCK_NAMES, BLOCKS

from riebench.backbones.loading import choose_device
from riebench.backbones.table import BACKBONES, Backbone
from riebench.core.errors import UserError
from riebench.generation.interventions import Intervention
from riebench.generation.sampler import Request, Sampler, load_sampler

PROMPTS = [
    "flat poster of a standing red plain heart in the sky",
    "sketch of a leaning blue striped circle with a sad face at night",
    "pixel mosaic of a stretched pink dotted square wearing a crown by the sea",
]
ALONE_AND_IN_A_BATCH = 2e-4  # of a pixel's range [0, 1]: batches of other sizes add up in another order


def zero_intervention(sampler, steps=1):
    sites = sampler.blocks.sites(BLOCK_NAMES, "update")
    trace = sampler.generate([Request(PROMPTS[0], 1)], sites)[0].trace
    return Intervention({site: torch.zeros_like(value) for site, value in trace.items()})


@pytest.mark.slow
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


def test_the_marks_of_edited_words_are_not_read(sampler):
    marked = PROMPTS[0].replace("red", "[red]").replace("in the sky", " [in the sky]")
    plain, same = sampler.generate([Request(PROMPTS[0], 3), Request(marked, 3)])
    assert torch.equal(plain.image, same.image)
    assert torch.equal(sampler.text_vector(marked), sampler.text_vector(PROMPTS[0]))


def test_zero_additions_give_the_original_exactly(sampler):
    zero = zero_intervention(sampler)
    plain, zeroed, empty = sampler.generate(
        [Request(PROMPTS[0], 3), Request(PROMPTS[0], 3, zero), Request(PROMPTS[0], 3, Intervention())]
    )
    assert torch.equal(plain.image, zeroed.image)
    assert torch.equal(plain.image, empty.image)


def test_additions_change_only_their_own_row(sampler):
    zero = zero_intervention(sampler)
    cells = sampler.grids(BLOCK_NAMES)
    pushed = Intervention(
        {site: added.dense(cells[site.block][0] * cells[site.block][1]) + 1.0 for site, added in zero.additions.items()}
    )
    assert all(len(added.cells) == 64 for added in pushed.additions.values())
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
    sites = sampler.blocks.sites(("up.0.1",), "update")
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


@pytest.fixture(scope="module")
def guided(sampler):
    backbone = Backbone("guided@3", "tinyworld/turbo", 3, 4.0, "tinyworld", "tinyworld")
    return Sampler(backbone, sampler.pipeline, batch_size=2)


def test_guided_sampling_is_the_pipeline_s_own(guided):
    generator = torch.Generator("cpu").manual_seed(11)
    reference = guided.pipeline(
        PROMPTS[2], num_inference_steps=3, guidance_scale=4.0, generator=generator, output_type="pt"
    ).images[0]
    torch.testing.assert_close(guided.generate([Request(PROMPTS[2], 11)])[0].image, reference, atol=2e-4, rtol=0)


def test_the_stream_is_what_a_block_puts_out_and_the_update_what_it_adds(guided):
    """Of both rows and at every step, held against plain hooks on the modules."""
    updates, streams = (guided.blocks.sites(BLOCK_NAMES, kind) for kind in ("update", "stream"))
    seen = {block: [] for block in BLOCK_NAMES}
    hooks = [
        guided.denoiser.get_submodule(BLOCKS[block]).register_forward_hook(
            lambda _m, args, out, block=block: seen[block].append((args[0].clone(), out[0].clone()))
        )
        for block in BLOCK_NAMES
    ]
    requests = [Request(PROMPTS[0], 3), Request(PROMPTS[1], 4)]
    samples = guided.generate(requests, [*updates, *streams])
    for hook in hooks:
        hook.remove()
    for i, sample in enumerate(samples):
        for update, stream in zip(updates, streams, strict=True):
            for trace, row in ((sample.uncond_trace, i), (sample.trace, 2 + i)):
                entered, left = (
                    torch.stack([pair[side][row].flatten(1).T for pair in seen[update.block]]) for side in (0, 1)
                )
                assert trace[stream].shape == trace[update].shape == (3, 64, left.shape[2])
                assert torch.equal(trace[stream], left) and torch.equal(trace[update], left - entered)
                torch.testing.assert_close(trace[stream], trace[update] + entered)
    assert all(torch.equal(a.image, b.image) for a, b in zip(samples, guided.generate(requests), strict=True))


def test_under_guidance_the_two_rows_are_traced_apart(guided):
    """The first step's rows, worked out by calling the U-Net on the starting latents, with and without a prompt."""
    site = guided.blocks.sites(("mid.0",), "update")[0]
    first, second = guided.generate([Request(PROMPTS[0], 3), Request(PROMPTS[1], 3)], [site])
    torch.testing.assert_close(first.uncond_trace[site][0], second.uncond_trace[site][0])  # neither has seen a prompt
    assert not torch.allclose(first.trace[site][0], second.trace[site][0], atol=1e-2)

    pipeline, seen = guided.pipeline, []
    pipeline.scheduler.set_timesteps(3)
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    latents = noise * pipeline.scheduler.init_noise_sigma
    scaled = pipeline.scheduler.scale_model_input(latents, pipeline.scheduler.timesteps[0])
    states, _, pooled, _ = pipeline.encode_prompt(PROMPTS[0], do_classifier_free_guidance=False)
    block = guided.denoiser.mid_block.attentions[0]
    handle = block.register_forward_hook(lambda _m, a, out: seen.append((out[0] - a[0])[0].flatten(1).T))
    with torch.no_grad():
        for factor in (1.0, 0.0):
            conditions = {"text_embeds": factor * pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
            guided.denoiser(scaled, pipeline.scheduler.timesteps[0], factor * states, added_cond_kwargs=conditions)
    handle.remove()
    for trace, expected in zip((first.trace, first.uncond_trace), seen, strict=True):
        torch.testing.assert_close(trace[site][0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_branch_says_which_row_is_edited(guided):
    site = guided.blocks.sites(("up.0.0",), "update")[0]
    later = guided.blocks.sites(("up.0.1",), "update")[0]
    plain = guided.generate([Request(PROMPTS[0], 3)], [later])[0]
    added = torch.zeros(3, *plain.trace[later].shape[1:])
    added[0] = 0.5
    moved = {}
    for branch, sign in (("cond", 1), ("uncond", 1), ("both", 1), ("both", -1)):
        request = Request(PROMPTS[0], 3, Intervention({site: sign * added}, branch=branch))
        sample = guided.generate([request], [later])[0]
        moved[branch, sign] = [
            (after[later] - before[later])[0]
            for after, before in ((sample.trace, plain.trace), (sample.uncond_trace, plain.uncond_trace))
        ]
    still = torch.zeros_like(added[0])
    torch.testing.assert_close(moved["cond", 1][1], still)
    torch.testing.assert_close(moved["uncond", 1][0], still)
    assert moved["cond", 1][0].abs().max() > 1e-2 and moved["uncond", 1][1].abs().max() > 1e-2
    torch.testing.assert_close(moved["both", 1][0], moved["cond", 1][0])  # added with the prompt,
    torch.testing.assert_close(moved["both", -1][1], moved["uncond", 1][1])  # taken away without it


def test_branches_that_do_not_exist_are_refused(sampler):
    with pytest.raises(UserError, match="branch 'left' -> use one of cond, uncond, both"):
        Intervention(branch="left")
    uncond = Intervention(zero_intervention(sampler).additions, branch="uncond")
    with pytest.raises(UserError, match="without guidance and has no unconditional row"):
        sampler.generate([Request(PROMPTS[0], 3, uncond)])


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


def _cut(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [_cut, lambda path: path.unlink()], ids=["truncated", "missing"])
@pytest.mark.parametrize(
    "name",
    ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "text_encoder/model.safetensors"],
)
def test_a_missing_or_truncated_file_is_named(tmp_path, name, harm):
    import shutil

    from riebench.core.files import data_folder

    folder = tmp_path / "turbo"
    shutil.copytree(data_folder() / BACKBONES.get("tinyworld-turbo@1").folder, folder)
    harm(folder / name)
    named = name if harm is _cut or name.endswith("json") else name.split("/")[0]
    with pytest.raises(UserError, match=f"cannot be loaded: .*{named}.* -> "):
        load_sampler(Backbone("mine", str(folder), 1, 0.0, "tinyworld", "tinyworld"), torch.device("cpu"))
