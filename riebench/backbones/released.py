"""The released models on the Hub: which files of which repository, at which commit. Imports no torch."""

from __future__ import annotations

from riebench.core.hub import Weights

#: VAEs that may stand in the place of a repository's own, by the name that `riebench fetch` knows. They decode in half
#: precision; SDXL's own overflows there (protocol §3).
VAES = {
    "sdxl-vae-fp16-fix": Weights(
        "madebyollin/sdxl-vae-fp16-fix",
        "207b116dae70ace3637169f1ddd2434b91b3a8cd",
        ("config.json", "diffusion_pytorch_model.safetensors"),
        gigabytes=0.33,
    )
}

_ENCODERS = tuple(f"{part}/config.json" for part in ("text_encoder", "text_encoder_2"))
_TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
_SMALL_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *_ENCODERS,
    *(f"{part}/{file}" for part in ("tokenizer", "tokenizer_2") for file in _TOKENIZER),
    "unet/config.json",
    "vae/config.json",
)
_TENSOR_FILES = (
    "text_encoder/model",
    "text_encoder_2/model",
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
)


def sdxl_weights(repo: str, revision: str) -> dict[str, Weights]:
    """Returns the two fields of a pipeline that lies on the Hub as SDXL's do."""
    half = (*_SMALL_FILES, *(f"{file}.fp16.safetensors" for file in _TENSOR_FILES))
    full = (*_SMALL_FILES, *(f"{file}.safetensors" for file in _TENSOR_FILES))
    return {"weights": Weights(repo, revision, half, 6.94), "weights_full": Weights(repo, revision, full, 13.9)}


#: The two precisions of each released model, as fields of a `Backbone`.
SDXL_TURBO = sdxl_weights("stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304")
SDXL_BASE = sdxl_weights("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b")
