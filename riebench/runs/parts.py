"""Every part that a run needs of this machine, by name: `riebench doctor --run`. Nothing is loaded or downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from riebench.backbones.folders import backbone_folder, vae_folder
from riebench.backbones.loading import choose_device, choose_dtype
from riebench.backbones.table import Backbone
from riebench.core.errors import UserError
from riebench.core.files import data_folder
from riebench.core.hub import weights_folder
from riebench.core.text_tables import aligned
from riebench.edits.checks import checked_edits
from riebench.methods.method import uses_sae
from riebench.metrics import networks
from riebench.metrics.networks.base import Description
from riebench.metrics.networks.table import METRIC_WEIGHTS
from riebench.regions.grounders import GROUNDER_WEIGHTS, SHIPPED_WEIGHTS
from riebench.runs.config import RunConfig
from riebench.runs.edits import choose_edits, suits
from riebench.runs.needs import index_remedy, missing_need
from riebench.runs.setup import Setup
from sae_models import index
from sae_models.tensors import dtype_name


@dataclass(frozen=True)
class Part:
    """Something that a run needs."""

    kind: str
    """backbone, VAE, SAE, what else methods need (text index), grounder, judge, or edits."""
    name: str
    missing: str = ""
    """Why it is not there; "" where it is."""
    remedy: str = ""
    """What to do then."""

    @property
    def command(self) -> str:
        """Returns the command that gets it, as the remedy has it; "" where nothing is missing or none would help."""
        found = re.search(r"`(riebench [^`]+)`", self.remedy)
        return found[1] if found else ""


def parts_of(config: RunConfig, device: str = "auto") -> list[Part]:
    """Returns every part that a run needs on a device, in the dtype that it computes in there. Raises `UserError` for a
    configuration that no machine could run."""
    backbone, where = config.open_backbone(), choose_device(device)
    setup = config.setup(dtype_name(choose_dtype(backbone, where, config.dtype)))
    methods = config.build_methods()
    found = [_part("backbone", f"{backbone.name} in {setup.dtype}", lambda: backbone_folder(backbone, setup.dtype))]
    if backbone.vae:
        found.append(_part("VAE", backbone.vae, lambda: vae_folder(backbone)))
    if any(uses_sae(method) for method in methods):
        found += [_part("SAE", block, lambda block=block: _open(backbone, setup, block)) for block in backbone.blocks]
    lacks_saes = any(part.kind == "SAE" and part.missing for part in found)
    for method in methods:
        error = missing_need(method, backbone, setup)
        for need in getattr(method, "needs", ()):
            if lacks_saes:
                error = UserError("it is made with the SAEs, which are missing", remedy=index_remedy(backbone, setup))
            found.append(_with(Part(need, f"for {method.name}"), error))
    found.append(_part("grounder", backbone.grounder, lambda: _grounder(backbone.grounder)))
    for network in networks(setup.metric_names(backbone.judges), backbone.judges):
        found.append(_part("judge", network.name, lambda network=network: _judge(network)))
    fits = suits(backbone, setup.dtype, setup.rules.read_phrase)
    found.append(_part("edits", config.edits, lambda: choose_edits(checked_edits(config.edits, fits), config)))
    return found


def describe_parts(parts: Sequence[Part]) -> dict[str, Any]:
    """Returns `missing`, how many are, and `parts`, each with its fields and `command`, as plain values."""
    rows = [asdict(part) | {"command": part.command} for part in parts]
    return {"missing": sum(bool(part.missing) for part in parts), "parts": rows}


def format_parts(parts: Sequence[Part]) -> str:
    """Returns the parts for people: a line each, with the command that gets it where it is missing; below them the
    reasons."""
    rows = [("part", "name", "here", "to get it")]
    rows += [(part.kind, part.name, "missing" if part.missing else "yes", part.command) for part in parts]
    reasons = dict.fromkeys(
        f"{part.kind} {part.name}: {part.missing} -> {part.remedy}" for part in parts if part.missing
    )
    return "\n".join([*aligned(rows), *([""] if reasons else []), *reasons])


def _part(kind: str, name: str, check: Callable[[], object]) -> Part:
    """Returns a part, which is missing where `check` raises a `UserError`."""
    try:
        check()
    except UserError as error:
        return _with(Part(kind, name), error)
    return Part(kind, name)


def _with(part: Part, error: UserError | None) -> Part:
    return replace(part, missing=error.message, remedy=error.remedy) if error else part


def _open(backbone: Backbone, setup: Setup, block: str) -> None:
    """Raises `UserError` where the dictionary of a block is missing."""
    entry, root = setup.dictionary_of(backbone, block)
    index.fingerprint(entry, root=root)


def _grounder(name: str) -> None:
    """Raises `UserError` where weights of a grounder are missing; one that is not ours brings its own."""
    if name in SHIPPED_WEIGHTS and not (data_folder() / SHIPPED_WEIGHTS[name]).is_file():
        raise UserError(f"the weights of {name} are not in the shipped data", remedy="install riebench again")
    for weights in GROUNDER_WEIGHTS.get(name, ()):
        weights_folder(name, weights)


def _judge(network: Description) -> None:
    """Raises `UserError` where weights of a network are missing."""
    for weights in METRIC_WEIGHTS.get(network.fetch, ()):
        weights_folder(network.fetch, weights)
    if network.fetch not in METRIC_WEIGHTS and not (network.files and all(file.is_file() for file in network.files)):
        said = f"its weights ({network.fetch}) are not on this machine" if network.fetch else "its weights are missing"
        remedy = "score with it once where there is a network" if network.fetch else "install riebench again"
        raise UserError(said, remedy=remedy)
