"""tinyworld-flux, trained for two steps: a whole FLUX pipeline that computes what it was trained to compute."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from transformers import T5TokenizerFast

from riebench.core.errors import UserError
from riebench.tinyworld.captions import ACCESSORY_WORDS, CONTEXT_LENGTH, FACE_WORDS, WORDS, caption
from riebench.tinyworld.noise import FLUX_NOISE, UNET_NOISE, layout_from_noise, layout_signal, starting_noise
from riebench.tinyworld.scenes import Scene
from riebench.tinyworld_build import train, train_flux, train_vae
from riebench.tinyworld_build.batches import images_to_tensor, random_scenes
from riebench.tinyworld_build.evaluate_flux import evaluate_flux, generate
from riebench.tinyworld_build.models import build_vae

PROMPTS = [caption(Scene()), caption(Scene(content="sad", accessory="boots", background="wall", style="pixel"))]
SEEDS = [3, 4]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The folder of a world trained for two steps."""
    out = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_vae, "BATCH", 4)
        patch.setattr(train_flux, "BATCH", 4)
        patch.setattr(train, "train_vae", functools.partial(train_vae.train_vae, steps=2, decoder_steps=1))
        short = functools.partial(train_flux.train_flux, steps=2, start_steps=1, turn_steps=1)
        patch.setattr(train, "train_flux", short)
        train.train_world(out, world="flux", device="cpu")
    return out


@pytest.fixture(scope="module")
def pipeline(world) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(world / "flux")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(pipeline) -> train_flux.FluxDenoiser:
    """The model as it is trained, with the pipeline's weights."""
    model = train_flux.FluxDenoiser()
    model.transformer.load_state_dict(pipeline.transformer.state_dict())
    model.text_encoder_2.load_state_dict(pipeline.text_encoder_2.state_dict())
    return model.train().requires_grad_(False)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.cat([starting_noise(seed, FLUX_NOISE) for seed in SEEDS])


def latents_of(pipeline, steps: int) -> torch.Tensor:
    tokens = pipeline(
        PROMPTS,
        height=64,
        width=64,
        num_inference_steps=steps,
        guidance_scale=0.0,
        max_sequence_length=CONTEXT_LENGTH,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
    ).images
    assert tokens.shape == (2, 64, 64)
    return train_flux.unpack(tokens, 16, 16)


def velocity(pipeline, model, latents, time: float) -> torch.Tensor:
    return model(latents, torch.full((2,), time), train_flux.token_ids(pipeline.tokenizer_2, PROMPTS))


@pytest.mark.slow
def test_one_step_of_the_pipeline_is_the_prediction_that_is_trained(pipeline, model, noise):
    expected = noise - velocity(pipeline, model, noise, 1.0)
    torch.testing.assert_close(latents_of(pipeline, 1), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.05


@pytest.mark.slow
def test_four_steps_of_the_pipeline_are_at_the_times_that_are_trained(pipeline, model, noise):
    latents = noise
    for time in (1.0, *train_flux.LATER_TIMES):
        latents = latents - 0.25 * velocity(pipeline, model, latents, time)
    torch.testing.assert_close(latents_of(pipeline, 4), latents, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_pipeline_decodes_what_training_encodes(pipeline):
    pixels = images_to_tensor(random_scenes(1, 0, 64)[2].image_bhwc)
    config = pipeline.vae.config
    with torch.no_grad():
        latents = (pipeline.vae.encode(pixels).latent_dist.mean - config.shift_factor) * config.scaling_factor
        assert abs(latents.mean()) < 0.1 and latents.std() == pytest.approx(1, abs=0.1)
        expected = pipeline.vae.decode(latents_of(pipeline, 1) / config.scaling_factor + config.shift_factor).sample
    images = generate(pipeline, PROMPTS, SEEDS, steps=1)
    assert latents.shape[1:] == (16, 16, 16) and images.shape == (2, 3, 64, 64)
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)
    assert build_vae().config.shift_factor is None  # the U-Nets' pipeline shifts nothing


@pytest.mark.slow
def test_the_pipeline_is_flux_whole_small_and_says_nothing_of_where_it_was_made(world, pipeline):
    assert type(pipeline) is FluxPipeline
    config = pipeline.transformer.config
    assert (config.in_channels, config.num_layers, config.num_single_layers) == (
        64,
        4,
        4,
    ) and not config.guidance_embeds
    models = (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {model.dtype for model in models} == {torch.float32} and not any(model.training for model in models)
    files = [path for path in (world / "flux").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 9e6
    assert not any(str(world) in path.read_text() for path in files if path.suffix == ".json")


@pytest.mark.slow
def test_the_pooled_vector_is_zero_and_no_prompt_is_cut_off(pipeline):
    states, pooled, _ = pipeline.encode_prompt(PROMPTS, max_sequence_length=CONTEXT_LENGTH)
    assert states.shape == (2, 24, 64) and pooled.shape == (2, train_flux.POOLED_WIDTH) and not pooled.any()
    assert (states[0] - states[1]).abs().max() > 0.1
    tokenizer = pipeline.tokenizer_2
    assert isinstance(tokenizer, T5TokenizerFast) and len(tokenizer) == len(WORDS) + 3
    assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in WORDS)
    for scene in (Scene(content=c, accessory=a, background="wall") for c in FACE_WORDS for a in ACCESSORY_WORDS):
        ids = train_flux.token_ids(tokenizer, [caption(scene)])[0]
        assert ids[-1] == tokenizer.pad_token_id and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == caption(scene)


@pytest.mark.slow
def test_with_no_more_steps_training_returns_what_is_there(world, pipeline, tmp_path):
    state = world / "state" / "flux"
    found = train_flux.train_flux(state, pipeline.vae, pipeline.tokenizer_2, torch.device("cpu"), steps=0)
    for a, b in zip(found.transformer.parameters(), pipeline.transformer.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)
    untrained = train_flux.train_flux(tmp_path, pipeline.vae, pipeline.tokenizer_2, torch.device("cpu"), steps=0)
    assert not torch.equal(found.transformer.proj_out.weight, untrained.transformer.proj_out.weight)


def test_an_untrained_model_s_velocity_is_most_of_all_the_noise(noise):
    torch.manual_seed(0)
    model = train_flux.FluxDenoiser().requires_grad_(False)
    found = model(noise, torch.ones(2), torch.zeros(2, 24, dtype=torch.int64))
    assert torch.nn.functional.cosine_similarity(found.flatten(), noise.flatten(), dim=0) > 0.9


def test_packing_is_the_pipeline_s_and_undone(noise):
    packed = train_flux.pack(noise)
    assert torch.equal(packed, FluxPipeline._pack_latents(noise, 2, 16, 16, 16))
    assert torch.equal(train_flux.unpack(packed, 16, 16), noise)


def test_times_are_shared_out():
    times = train_flux.draw_times(np.random.default_rng(0), 3200, 800)
    assert (times == 1).sum() == 800 and (times[:800] == 1).all()
    for time in train_flux.LATER_TIMES:
        assert (times == time).sum() == pytest.approx(1600 / 3, rel=0.1)
    assert times[2400:].mean() == pytest.approx(0.5, abs=0.05)


def test_each_layout_is_as_often_said_by_flux_s_noise():
    noise = torch.zeros(2, 16, 16, 16)
    noise[0, 2], noise[0, 3] = 0.1, 0.1
    noise[1, 0], noise[1, 3] = 0.1, -0.1
    assert layout_from_noise(noise, FLUX_NOISE).tolist() == [[2, 1], [0, 0]]
    layouts = torch.tensor([[place, size] for place in range(3) for size in range(2)])
    for law in (FLUX_NOISE, UNET_NOISE):
        assert torch.equal(layout_from_noise(layout_signal(layouts, law), law), layouts)
    drawn = layout_from_noise(torch.randn(3000, 16, 16, 16, generator=torch.Generator().manual_seed(0)), FLUX_NOISE)
    for column, count in ((0, 3), (1, 2)):
        assert (torch.bincount(drawn[:, column], minlength=count) / 3000 - 1 / count).abs().max() < 0.04


@pytest.mark.slow
def test_the_oracle_judges_one_step_and_four(world):
    found = evaluate_flux(world / "flux", count=2)
    assert list(found) == [
        f"tinyworld-flux@{steps}, {title}" for steps in (1, 4) for title in ("held-out prompts", "unseen pairs")
    ]
    assert all(0 <= figures["mean"] <= 1 and "layout as the noise says" in figures for figures in found.values())
    with pytest.raises(UserError, match="has no pipeline -> name the folder flux"):
        evaluate_flux(world)
