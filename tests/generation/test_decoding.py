"""Decoding in chunks: as many rows as fit, the same pictures, and memory that runs out there alone."""

from __future__ import annotations

import pytest
import torch
from memory import OUT_OF_MEMORY

from riebench.core.errors import UserError
from riebench.generation import decoding
from riebench.generation.decoding import ChunkedDecoding
from riebench.generation.sampler import LARGEST_BATCH, Request, Sampler, load_sampler

ROW = 10**9  # bytes that a row of the stand-in takes


class Decoder:
    """Stands for an autoencoder of which some rows are too many; a picture is three times its latents, and a row tells
    of no other."""

    def __init__(self, room: int = 99, error: Exception | None = None) -> None:
        self.room, self.error, self.sizes = room, error or torch.OutOfMemoryError("CUDA out of memory"), []

    def __call__(self, latents, return_dict=True):
        self.sizes.append(len(latents))
        if len(latents) > self.room:
            raise self.error
        assert not return_dict
        return (latents[:, :3] * 3,)


def chunked(decoder, free, monkeypatch, gpu=False):
    monkeypatch.setattr(decoding, "free_memory", lambda device: free)
    monkeypatch.setattr(decoding, "SHARE", 1.0)
    made = ChunkedDecoding(decoder, lambda latents: ROW, "decoding with it")
    if gpu:
        monkeypatch.setattr(decoding, "on_gpu", lambda latents: True)
    return made


@pytest.fixture
def latents():
    return torch.randn(11, 4, 2, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("free", "gpu", "sizes"),
    [
        (99, True, [8, 8]),  # however much is free
        (7.9, True, [4, 4, 4]),
        (3.9, True, [2] * 6),
        (0.5, True, [1] * 11),
        (99, False, [11]),
        (4, False, [4, 4, 4]),
    ],
)
def test_chunks_are_of_one_size_by_what_is_free(latents, monkeypatch, free, gpu, sizes):
    decoder = Decoder()
    decode = chunked(decoder, int(free * ROW), monkeypatch, gpu)
    assert torch.equal(decode(latents, return_dict=False)[0], latents[:, :3] * 3)
    assert decoder.sizes == sizes  # the last chunk is filled up
    assert torch.equal(decode(latents).sample, latents[:, :3] * 3)


def test_what_is_free_is_asked_once_for_pictures_of_one_size(latents, monkeypatch):
    decoder = Decoder()
    decode = chunked(decoder, 4 * ROW, monkeypatch, gpu=True)
    decode(latents)
    monkeypatch.setattr(decoding, "free_memory", lambda device: 1 * ROW)
    decode(latents)
    assert set(decoder.sizes) == {4}
    decode(latents.repeat(1, 1, 2, 2))
    assert decoder.sizes[-1] == 1


@pytest.mark.parametrize("error", [e for e in OUT_OF_MEMORY if not isinstance(e, OSError)], ids=lambda e: str(e)[:30])
def test_where_memory_runs_out_chunks_are_halved_for_good(latents, monkeypatch, capsys, error):
    decoder = Decoder(room=3, error=error)
    decode = chunked(decoder, 99 * ROW, monkeypatch, gpu=True)
    assert torch.equal(decode(latents).sample, latents[:, :3] * 3)
    assert decoder.sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    assert capsys.readouterr().err.count("decoding with it: out of memory, going on with batches of") == 2
    decoder.sizes.clear()
    decode(latents)
    assert decoder.sizes == [2] * 6


def test_where_not_one_row_fits_it_is_said(latents, monkeypatch):
    decode = chunked(Decoder(room=0), 99 * ROW, monkeypatch)
    with pytest.raises(UserError, match="decoding with it: not even one row fits .* use a smaller batch size or model"):
        decode(latents)


def test_other_errors_come_through(latents, monkeypatch):
    with pytest.raises(RuntimeError, match="shape mismatch"):
        chunked(Decoder(room=0, error=RuntimeError("shape mismatch")), 99 * ROW, monkeypatch)(latents)


def test_the_autoencoder_decodes_whole_batches_where_they_fit(sampler):
    """So the pictures of a CPU are those of the autoencoder's own `decode`, to the bit."""
    vae, rows = sampler.pipeline.vae, torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert isinstance(vae.decode, ChunkedDecoding)
    with torch.no_grad():
        assert torch.equal(vae.decode(rows).sample, type(vae).decode(vae, rows).sample)
    again = vae.decode
    Sampler(sampler.backbone, sampler.pipeline, 2)
    assert vae.decode is again  # not in chunks of chunks


def test_a_chunk_takes_what_the_family_says(sampler):
    """SDXL at 512 px, 768 numbers of 4 bytes a pixel; half of it in half precision."""
    backbone, pipeline = sampler.backbone, sampler.pipeline

    class Vae:
        dtype, decode = torch.float32, Decoder()

    class Pipeline:
        vae, vae_scale_factor = Vae(), 8

    decoding.decode_in_chunks(Pipeline, backbone)
    latents = torch.empty(2, 4, 64, 64)
    assert Pipeline.vae.decode._row_bytes(latents) == 512 * 512 * 768 * 4
    Pipeline.vae.dtype = torch.float16
    assert Pipeline.vae.decode._row_bytes(latents) == 512 * 512 * 768 * 2
    assert pipeline.vae.decode._row_bytes(latents) > 0


@pytest.mark.slow
def test_memory_that_runs_out_in_decoding_leaves_the_denoiser_s_batches(sampler, monkeypatch, capsys):
    vae = sampler.pipeline.vae
    whole, sizes = type(vae).decode.__get__(vae), []

    def decode(latents, **options):
        sizes.append(len(latents))
        if len(latents) > 2:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return whole(latents, **options)

    monkeypatch.setattr(vae, "decode", ChunkedDecoding(decode, lambda latents: 1, "decoding with tinyworld"))
    ours = Sampler(sampler.backbone, sampler.pipeline, batch_size=4)
    before = ours.forwards
    images = [sample.image for sample in ours.generate([Request("a red circle", seed) for seed in range(4)])]
    assert ours.batch_size == 4 and ours.forwards - before == 4  # nothing was denoised again
    assert sizes == [4, 2, 2] and "decoding with tinyworld: out of memory" in capsys.readouterr().err
    expected = Sampler(sampler.backbone, sampler.pipeline, batch_size=4).generate([Request("a red circle", 3)])
    assert (images[3] - expected[0].image).abs().max() < 2e-4


@pytest.mark.parametrize("size", [2**33, LARGEST_BATCH + 1, -1])
def test_a_batch_of_billions_is_refused_before_anything_is_loaded(sampler, size):
    with pytest.raises(UserError, match=f"batch size {size} is too (large|small) -> use 1 to 4096"):
        load_sampler(None, torch.device("cpu"), size)
    with pytest.raises(UserError, match=f"batch size {size} is too"):
        Sampler(sampler.backbone, sampler.pipeline, size)
