"""Which metrics there are, which a run has, and what may be asked for by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from riebench.core.errors import UserError
from riebench.core.registry import Registry
from riebench.core.scores import LEAST_COST
from riebench.metrics.base import Metric

if TYPE_CHECKING:
    from riebench.metrics.models import ScoringModels

#: Name -> a function that builds the metric from the networks shared by all.
METRICS: Registry[Callable[[ScoringModels], Metric]] = Registry("metric", "riebench.metrics")
for _name, _target, _summary in (
    ("clip_text_edited", "clip_text:edited", "CLIP cosine of the intervened image with the edited prompt"),
    ("clip_text_original", "clip_text:original", "CLIP cosine of the intervened image with the original prompt"),
    ("clip_image_edited", "clip_image:edited", "CLIP cosine of the intervened image with the edited image"),
    ("clip_image_original", "clip_image:original", "CLIP cosine of the intervened image with the original image"),
    (
        "clip_directional",
        "clip_directional:ClipDirectional",
        "CLIP cosine of the image's change with the change of the prompt",
    ),
    ("clip_region_edited", "clip_region:edited", "CLIP cosine of the edited region's crop with its phrase"),
    ("clip_region_original", "clip_region:original", "CLIP cosine of the original region's crop with its phrase"),
    ("lpips_original", "lpips:original", "LPIPS-Alex of the intervened image with the original image"),
    ("lpips_edited", "lpips:edited", "LPIPS-Alex of the intervened image with the edited image"),
    ("lpips_outside", "lpips:outside", "LPIPS-Alex with the original image, averaged outside the region"),
    ("psnr_outside", "psnr:outside", "PSNR with the original image outside the region, in dB, at most 100"),
    ("ssim_outside", "ssim:outside", "SSIM with the original image, averaged outside the region"),
    ("mse_outside", "mse:outside", "mean squared error to the original image outside the region"),
    (
        "edit_efficiency",
        "efficiency:EditEfficiency",
        "gain in the CLIP cosine with the edited prompt, divided by LPIPS to the original image; withheld where that is"
        f" below {LEAST_COST:g}",
    ),
    ("oracle_success", "oracle:OracleSuccess", "1 where the oracle reads every edited attribute as wanted, else 0"),
    ("oracle_preservation", "oracle:OraclePreservation", "share of the other attributes that read as in the original"),
    ("psnr", "psnr:whole", "PSNR with the original image, in dB, at most 100"),
    ("ssim", "ssim:whole", "SSIM with the original image"),
    ("mse", "mse:whole", "mean squared error to the original image"),
    ("lpips_vgg_original", "lpips:vgg_original", "LPIPS-VGG of the intervened image with the original image"),
    ("lpips_vgg_edited", "lpips:vgg_edited", "LPIPS-VGG of the intervened image with the edited image"),
    ("lpips_vgg_outside", "lpips:vgg_outside", "LPIPS-VGG with the original image, averaged outside the region"),
    (
        "lpips_squeeze_original",
        "lpips:squeeze_original",
        "LPIPS-Squeeze of the intervened image with the original image",
    ),
    ("lpips_squeeze_edited", "lpips:squeeze_edited", "LPIPS-Squeeze of the intervened image with the edited image"),
    (
        "lpips_squeeze_outside",
        "lpips:squeeze_outside",
        "LPIPS-Squeeze with the original image, averaged outside the region",
    ),
    ("siglip2_text_edited", "siglip:text_edited", "SigLIP 2 cosine of the intervened image with the edited prompt"),
    (
        "siglip2_text_original",
        "siglip:text_original",
        "SigLIP 2 cosine of the intervened image with the original prompt",
    ),
    ("siglip2_image_edited", "siglip:image_edited", "SigLIP 2 cosine of the intervened image with the edited image"),
    (
        "siglip2_image_original",
        "siglip:image_original",
        "SigLIP 2 cosine of the intervened image with the original image",
    ),
    (
        "structure_distance",
        "structure:StructureDistance",
        "distance of DINO's key self-similarity to that of the original image",
    ),
):
    METRICS.add(_name, f"riebench.metrics.{_target}", _summary)


#: What every run is scored by: what was published, and what strict mode adds (protocol §7). The others are by name.
DEFAULT = (
    "clip_text_edited",
    "clip_text_original",
    "clip_image_edited",
    "clip_image_original",
    "clip_directional",
    "clip_region_edited",
    "clip_region_original",
    "lpips_original",
    "lpips_edited",
    "lpips_outside",
    "psnr_outside",
    "ssim_outside",
    "mse_outside",
    "edit_efficiency",
)
#: Family of backbones -> the metrics that only its pictures can be scored with, and always are.
ONLY = {"tinyworld": ("oracle_success", "oracle_preservation")}
#: The metrics that take another CLIP of open_clip, as in `clip_text_edited@ViT-B-32/laion2b_s34b_b79k`.
ANY_CLIP = tuple(name for name in DEFAULT if name.startswith("clip_"))


def default_metrics(family: str) -> tuple[str, ...]:
    """Returns the names of the metrics that a run on a family's backbones computes unless it is told otherwise."""
    return DEFAULT + ONLY.get(family, ())


def split_name(name: str) -> tuple[str, str]:
    """Returns (name in the registry, "architecture/weights" of the open_clip model behind it; "" for its own)."""
    base, _, model = name.partition("@")
    return base, model


def check_names(names: Sequence[str], family: str) -> None:
    """Checks names of metrics on a family's pictures. Loads nothing.

    Raises `UserError` for an unknown or repeated name, a metric that the family does not have, and an open_clip model
    that is unknown or asked of a metric that takes none.
    """
    for name in names:
        base, model = split_name(name)
        METRICS.summary(base)
        if names.count(name) > 1:
            raise UserError(f"the metric {name!r} is named twice", remedy="name it once")
        if base in _of_others(family):
            raise UserError(
                f"{name}: the oracle reads tinyworld's pictures, not those of {family}", remedy="leave it out"
            )
        if "@" in name:
            if base not in ANY_CLIP:
                raise UserError(
                    f"the metric {base!r} takes no other CLIP than its own",
                    remedy=f"use one of {', '.join(ANY_CLIP)} before the @",
                )
            from riebench.metrics.networks.openclip import check_model

            check_model(model)


def _of_others(family: str) -> set[str]:
    return {name for other, names in ONLY.items() if other != family for name in names}
