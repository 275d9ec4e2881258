"""A file of named tensors becomes an autoencoder here: it is read without running code and checked, and what other
packages compute beside the plain formula is folded into the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import read_json
from riebench.core.memory import is_out_of_memory
from sae_models.jumprelu import JumpReLUConfig, JumpReLUSAE
from sae_models.topk import TopKConfig, TopKSAE

AGAIN = "fetch or save the checkpoint again"
Config = TopKConfig | JumpReLUConfig
SAE = TopKSAE | JumpReLUSAE
C = TypeVar("C", bound=Config)
S = TypeVar("S", bound=SAE, covariant=True)


class ShapeOf(Protocol[S]):
    """This is the shape of a kind of autoencoder, which makes one."""

    def sae(self) -> S:
        """Returns an autoencoder of this shape, with random weights."""
        ...


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a type, as "float32"."""
    return str(dtype).removeprefix("torch.")


def shape_from(settings: Mapping[str, Any], names: Mapping[str, str], kind: type[C], path: Path) -> C:
    """Returns the shape that a configuration states. names: field of `kind` -> what the file at `path` calls it.

    Raises `UserError` where one is missing, or no such autoencoder exists.
    """
    missing = sorted(theirs for theirs in names.values() if theirs not in settings)
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}", remedy=AGAIN)
    try:
        return kind(**{ours: settings[theirs] for ours, theirs in names.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def shape_of_known(path: Path, names: Mapping[str, str], others: Collection[str] = ()) -> TopKConfig:
    """Returns the shape that a JSON configuration states, as `shape_from` does. others: the keys that it may have
    besides `names`. Raises `UserError` as `shape_from` does, where it is broken, and where it has an unknown key."""
    config, known = read_json(path, "SAE configuration"), (*names.values(), *others)
    unknown = sorted(config.keys() - set(known))
    if unknown:
        raise UserError(
            f"{path} has an unknown key {unknown[0]!r}{did_you_mean(unknown[0], known)}",
            remedy=f"only TopK SAEs with {', '.join(known)} can be read",
        )
    return shape_from(config, names, TopKConfig, path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file. Raises `UserError` where it is truncated or something else."""
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error})",
            remedy=f"{AGAIN}; pickles are not read",
        ) from error
    refuse_strange(tensors, str(path), AGAIN)
    return tensors


def read_pickle(path: Path, remedy: str) -> object:
    """Returns what a pickle by torch holds, read by its loader of weights alone.

    Raises `UserError` where it is truncated, or has code in it, of which nothing runs.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a broken file raises whatever the unpickler meets first
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{path} is not a whole file of tensors and nothing else ({type(error).__name__})",
            remedy=f"{remedy}; code in a checkpoint is never run",
        ) from error


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Returns whether a value is a dense tensor of floating point numbers that are there."""
    return (
        isinstance(value, Tensor)
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )


def refuse_strange(tensors: Mapping[Any, object], where: str, remedy: str) -> None:
    """Raises `UserError` naming what is no plain tensor under a name."""
    strange = sorted(str(name) for name, value in tensors.items() if not (isinstance(name, str) and is_plain(value)))
    if strange:
        raise UserError(f"{where} holds what is no tensor of numbers: {', '.join(strange)}", remedy=remedy)


def refuse_misfit(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str, config_file: str, remedy: str
) -> None:
    """Raises `UserError` where names and shapes are not exactly those, which follow from the configuration."""
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
    if wrong:
        told = "; ".join(
            f"{name} is {found.get(name, 'missing')}, should be {shapes.get(name, 'absent')}" for name in wrong
        )
        raise UserError(f"{where} does not fit its {config_file}: {told}", remedy=remedy)


def refuse_not_finite(tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Raises `UserError` naming the tensors with NaN or infinite values."""
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise UserError(f"{where} holds NaN or infinite values in {', '.join(bad)}", remedy=remedy)


def whole_input(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors for an encoder that reads x where ours reads x - b_dec: the difference goes into `b_enc`."""
    return {**tensors, "b_enc": tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]}


def unit_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors for latents that are multiplied by the norm of their decoder row: the norm goes from the row
    into the encoder. The reconstruction stays. A feature whose row is zero gets latents of zero."""
    norm_f = tensors["W_dec"].norm(dim=-1)
    divisor_f = torch.where(norm_f > 0, norm_f, 1)
    return {
        **tensors,
        "W_enc": tensors["W_enc"] * norm_f,
        "b_enc": tensors["b_enc"] * norm_f,
        "W_dec": tensors["W_dec"] / divisor_f[:, None],
    }


def ungated(tensors: Mapping[str, Tensor], r_mag: Tensor, b_mag: Tensor, b_gate: Tensor) -> dict[str, Tensor]:
    """Returns the tensors of the JumpReLU autoencoder that a gated one with tied encoders is (Rajamanoharan et al.
    2024, arXiv 2404.16014, appendix): `W_enc` [d, f], `W_dec`, `b_dec` as ours; the three others [f].

    With u = x W_enc it computes z = relu(exp(r_mag) u + b_mag) where u + b_gate > 0, that is where
    h = exp(r_mag) u + b_mag is above b_mag - exp(r_mag) b_gate.
    """
    scale_f = r_mag.double().exp()
    return {
        **tensors,
        "W_enc": (tensors["W_enc"].double() * scale_f).float(),
        "b_enc": b_mag,
        "threshold": (b_mag.double() - scale_f * b_gate.double()).float(),
    }


def renamed_topk(
    config: TopKConfig,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    turned: Collection[str],
    path: Path,
    config_file: str,
    remedy: str,
    device: str | torch.device,
) -> TopKSAE:
    """Returns the `TopKSAE` of tensors that have other names in the file at `path`, as `for_inference` does.

    names: each of ours -> theirs. turned: those of ours that lie there the other way round. Raises `UserError` for
    other names and shapes than these, and values that are not finite.
    """
    d, f = config.width, config.num_features
    ours: dict[str, tuple[int, ...]] = {"W_enc": (d, f), "b_enc": (f,), "W_dec": (f, d), "b_dec": (d,)}
    shapes = {theirs: ours[name][::-1] if name in turned else ours[name] for name, theirs in names.items()}
    refuse_misfit(tensors, shapes, str(path), config_file, remedy)
    whole = {name: value.float() for name, value in tensors.items()}
    refuse_not_finite(whole, str(path), remedy)
    named = {name: whole[theirs].T if name in turned else whole[theirs] for name, theirs in names.items()}
    return for_inference(config, named, device)


def for_inference(config: ShapeOf[S], tensors: Mapping[str, Tensor], device: str | torch.device) -> S:
    """Returns the SAE with these parameters, named and laid out as in `TopKSAE` or `JumpReLUSAE`, in float32 and
    without gradients. A threshold below zero is raised to zero, since those who write one apply a ReLU first."""
    named = {name: value.float().contiguous() for name, value in tensors.items()}
    with torch.device("meta"):
        sae = config.sae()
    if "threshold" in named:
        named["threshold"] = named["threshold"].clamp(min=0)
    sae.load_state_dict(named, assign=True)
    sae.to(device).eval().requires_grad_(False)
    return sae
