"""The index of known dictionaries: `index.json`, a list of entries, beside the folders it names. No torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.errors import UserError, did_you_mean
from riebench.files import data_folder, write_text

if TYPE_CHECKING:
    from sae_models.topk import TopKSAE

INDEX_FILE = "index.json"
#: What `find` gives where no name is asked for: the dictionary that runs of the benchmark use.
DEFAULT_NAME = "topk-k16-x8"


@dataclass(frozen=True)
class Entry:
    """One trained dictionary of one block. (backbone, block, name) is unique in an index."""

    name: str
    """What a user asks for, e.g. "topk-k16-x8"; the same name for each block of a set trained together."""
    backbone: str
    """The model whose updates it codes."""
    block: str
    """The block's short name, e.g. "up.0.1"."""
    kind: str
    """The architecture: "topk"."""
    k: int
    """The most latents active on a row."""
    num_features: int
    """Latents."""
    width: int
    """Values in an input row."""
    folder: str
    """The checkpoint, relative to the index's own folder."""
    sha256: str
    """Of the checkpoint's weight file."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The fields of an `Evaluation` on rows that were not trained on."""
    training: dict[str, Any] = field(default_factory=dict)
    """What is needed to train it again."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.backbone, self.block, self.name


def default_root() -> Path:
    """Where the shipped index and its checkpoints lie."""
    return data_folder() / "tinyworld" / "dictionaries"


def entries(root: Path | None = None) -> list[Entry]:
    """All entries, in the order of the file; none where there is no file. Raises `UserError` for a broken one."""
    path = (root or default_root()) / INDEX_FILE
    if not path.exists():
        return []
    try:
        items = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"the index {path} cannot be read: {error}", remedy="mend the file") from error
    if not isinstance(items, list):
        raise UserError(f"the index {path} is not a JSON list", remedy="mend the file")
    return [_entry(item, f"{path}, entry {number}") for number, item in enumerate(items, start=1)]


def find(backbone: str, block: str, name: str | None = None, *, root: Path | None = None) -> Entry:
    """The entry of that name for a block of a backbone; without a name `DEFAULT_NAME`, or else the only one there is.

    Raises `UserError` naming what there is instead.
    """
    known = entries(root)
    here = [entry for entry in known if entry.backbone == backbone and entry.block == block]
    if not here:
        pairs = sorted({f"{entry.backbone} {entry.block}" for entry in known})
        raise UserError(
            f"no dictionary is known for {backbone} {block}{did_you_mean(f'{backbone} {block}', pairs)}",
            remedy=f"there are some for {', '.join(pairs)}" if pairs else "train one and register it",
        )
    if name is None and len(here) == 1:
        return here[0]
    wanted = DEFAULT_NAME if name is None else name
    for entry in here:
        if entry.name == wanted:
            return entry
    names = [entry.name for entry in here]
    raise UserError(
        f"{backbone} {block} has no dictionary {wanted!r}{did_you_mean(wanted, names)}",
        remedy=f"take one of {', '.join(names)}",
    )


def open(entry: Entry, *, root: Path | None = None, device: str = "cpu") -> TopKSAE:
    """The entry's dictionary. Raises `UserError` where the checkpoint is not the one that was registered."""
    from sae_models import checkpoint

    folder = (root or default_root()) / entry.folder
    sha256 = checkpoint.weights_sha256(folder)
    if sha256 != entry.sha256:
        raise UserError(
            f"the weights in {folder} have sha256 {sha256[:12]}..., the index says {entry.sha256[:12]}...",
            remedy="fetch the checkpoint again, or register what lies there",
        )
    sae = checkpoint.load(folder, device=device)
    listed = (entry.width, entry.num_features, entry.k)
    found = (sae.width, sae.num_features, sae.config.k)
    if found != listed:
        raise UserError(
            f"{folder} has (width, num_features, k) = {found}, the index says {listed}",
            remedy="fetch the checkpoint again, or register what lies there",
        )
    return sae


def register(entry: Entry, *, root: Path | None = None) -> None:
    """Adds the entry, or replaces in its place the one with the same backbone, block and name. The file is replaced
    whole; two processes must not register at once."""
    root = root or default_root()
    listed = {known.key: known for known in entries(root)} | {entry.key: entry}
    write_text(root / INDEX_FILE, json.dumps([asdict(known) for known in listed.values()], indent=2) + "\n")


def _entry(item: object, where: str) -> Entry:
    if not isinstance(item, dict):
        raise UserError(f"{where} is not a JSON object", remedy="mend the file")
    known = {field.name for field in fields(Entry)}
    unknown = sorted(item.keys() - known)
    if unknown:
        raise UserError(
            f"{where} has an unknown key {unknown[0]!r}{did_you_mean(unknown[0], known)}", remedy="mend the file"
        )
    missing = sorted(known - item.keys())
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}", remedy="mend the file")
    return Entry(**item)
