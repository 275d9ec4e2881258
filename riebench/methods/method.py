"""Methods: from all that a method may see of a case to an intervention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from riebench.core.values import check_fields
from riebench.edits.edit import Edit
from riebench.methods.modes import MODES, Mode

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from riebench.backbones.family import Site
    from riebench.generation.interventions import Intervention
    from riebench.methods.text_index import TextIndex
    from sae_models.dictionary import Dictionary


@runtime_checkable
class Rows(Protocol):
    """A trace that is not held whole: some of its values are had without the others."""

    dtype: torch.dtype
    steps: int
    widths: Mapping[Site, int]
    """Site -> its channels C."""

    def rows(
        self, cells: Mapping[str, Tensor], steps: int | None, channels: Mapping[Site, Tensor] | None
    ) -> dict[Site, Tensor]:
        """Returns site -> `[steps, n, C]` at the cells of its block (bool), of the first steps (None: all), in some
        channels (None: all)."""
        ...


@dataclass(frozen=True)
class Case:
    """One edit with one seed: all that a method may see. It sees the edited image's trace, so it is an oracle too."""

    edit: Edit
    seed: int
    original: Mapping[Site, Tensor]
    """Trace of the original image: site -> `[steps, cells, C]`, cells in reading order. One that is too large to be
    held is a `Rows` too, and read when it is asked for."""
    edited: Mapping[Site, Tensor]
    """Trace of the edited image, from the same noise."""
    original_cells: Mapping[str, Tensor]
    """Block -> the original image's region, bool `[cells]`."""
    edited_cells: Mapping[str, Tensor]
    """Block -> the edited image's region."""
    sae: Callable[[str], Dictionary]
    """Block -> its sparse autoencoder."""
    mode: Mode = MODES["strict"]
    """The protocol's, or the published code's (`docs/reference-mode.md`)."""
    select_on: Case | None = None
    """The case that features are to be chosen on, for a method whose `select_on` is "seed" (the same edit with another
    seed) or "edit" (another edit)."""
    text: Callable[[str], Tensor] | None = None
    """Prompt -> its vector `[e]` (`Sampler.text_vector`)."""
    text_index: Callable[[str], TextIndex] | None = None
    """Block -> which features go with which words, for a method whose `select_on` is "text"."""
    means: Callable[[str], Tensor] | None = None
    """Block -> the mean of each feature of its dictionary where it is active, `[F]` (`riebench.methods.means`), for a
    method that names the block in its `means_of`."""
    grids: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Block -> its cells (high, wide)."""
    latents: dict = field(default_factory=dict, compare=False, repr=False)
    """What was encoded of it, so that no method does so again (`riebench.methods.latents`)."""

    @property
    def steps(self) -> int:
        """Returns how many steps its traces have; 0 where it has none."""
        if isinstance(self.original, Rows):
            return self.original.steps
        return next((len(trace) for trace in self.original.values()), 0)

    @property
    def widths(self) -> Mapping[Site, int]:
        """Returns site -> its channels C, of the sites that are traced."""
        if isinstance(self.original, Rows):
            return self.original.widths
        return {site: trace.shape[-1] for site, trace in self.original.items()}


def check_settings(method: Any) -> None:
    """Holds the settings of a method that is a dataclass against its annotations (`riebench.core.values.check_fields`);
    what its `__post_init__` calls. Raises `UserError` that names the method, the setting and what is allowed."""
    name = getattr(method, "name", "")
    check_fields(method, f"method {name!r}: " if name else "")


def uses_sae(method: Method) -> bool:
    """Returns whether a method may ask for the dictionaries of blocks."""
    return bool(method.sites) and getattr(method, "uses_sae", True)


def sees_edited_image(method: Method) -> bool:
    """Returns whether a method is told what the edited image is, and so is an oracle too."""
    return getattr(method, "sees_edited_image", True)


@runtime_checkable
class Method(Protocol):
    """One way of editing. `name` is its name in tables; `strength` its strength there; `sites` is what it reads and
    adds to: "block" (the kind of site that the run's dictionaries read), or one of `riebench.backbones.family.KINDS`
    whatever the run does, or "" where it adds nothing to any block. `sites` and `select_on` are no settings: a class
    has them.

    A method may also have `uses_sae`, False where it does not ask for `Case.sae`, so that none need be there;
    `sees_edited_image`, False where nothing that it takes of a case comes from the edited image;
    `select_on`, see `Case.select_on` and `Case.text_index`; and `needs`, names out of `riebench.runs.needs.NEEDS` of
    what a machine may lack: where it does, a run leaves the method out and says so; and `means_of`, the blocks of which
    it asks for `Case.means`. None of them is a setting. One
    that works on neurons may have `select(case)`, which returns site -> `Selected`, so that those of all cases are
    read together."""

    name: str
    strength: float
    sites: str

    def plan(self, case: Case) -> Intervention:
        """Returns the intervention on all blocks; the benchmark restricts it to subsets of blocks."""
        ...
