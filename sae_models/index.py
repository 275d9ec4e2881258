"""Known dictionaries are listed, found and registered here. No torch is imported before one is opened.

Shipped ones and those that `riebench train` made stand in an `index.json`, a list of entries, beside the folders it
names; those that others published in a table (`released`); and a user's own may be just a folder for each block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from riebench.core.errors import UserError, did_you_mean
from riebench.core.files import data_folder, read_json_value, write_text
from riebench.core.json_text import json_text
from riebench.core.memory import room_for
from riebench.core.values import check_value, field_kinds
from sae_models import released, released_flux
from sae_models.entry import Entry
from sae_models.layouts import holds_part, weights_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from sae_models.dictionary import Dictionary

INDEX_FILE = "index.json"
#: What `find` gives where no name is asked for: the dictionaries that runs of the benchmark use.
DEFAULT_NAME = "topk-k16-x8"
#: Backbone -> the same, for a backbone whose dictionaries are published ones.
DEFAULT_NAMES = {released.BACKBONE: released.DEFAULT_NAME, released_flux.BACKBONE: released_flux.DEFAULT_NAME}


def default_root() -> Path:
    """Returns where the shipped index and its checkpoints lie."""
    return data_folder() / "tinyworld" / "dictionaries"


def entries(root: Path | None = None) -> list[Entry]:
    """Returns all shipped entries in the order of their file, then the released ones; or those of the index in a
    folder, none where it has no index. Raises `UserError` for a broken one."""
    return [*_read(default_root()), *released.released_entries()] if root is None else _read(root)


def own_entries(folder: Path, backbone: str) -> list[Entry]:
    """Returns the entries of one's own folder: of its index where it has one, else of its sub-folders.

    Each sub-folder that holds a checkpoint, in any layout, is the dictionary of the block whose name it has
    ("down.2.1", ...) on `backbone`; it is called as the folder is, and has neither sha256 nor evaluation. Sub-folders
    that are named as the published SAEs' are (`unet.up_blocks.0.attentions.1_k160_.../final`) are of these blocks, and
    called by what follows in their names. Others are passed over. Raises `UserError` where there is no such folder or
    it is itself one of these, for an index or a configuration that is broken, and for a published one of text tokens.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", remedy="check the path")
    if (folder / INDEX_FILE).exists():
        return _read(folder)
    name = folder.resolve().name
    if holds_part(folder) or released.published_place(name)[0]:
        inner = released.published_place(folder.resolve().parent.name)[0]
        around = folder.parent.parent if inner else folder.parent
        raise UserError(f"{folder} is the checkpoint of one block", remedy=f"give the folder of all blocks, {around}")
    found = []
    for path in sorted(folder.iterdir()):
        block, rest = released.published_place(path.name)
        if block and (checkpoint := next(filter(holds_part, (path / released.FINAL, path)), None)):
            found.append(_of_folder(checkpoint, folder, backbone, block, rest))
        elif not block and holds_part(path):
            found.append(_of_folder(path, folder, backbone, path.name, name))
    return found


def find(
    backbone: str | Sequence[str],
    block: str,
    name: str | None = None,
    *,
    root: Path | None = None,
    site: str = "update",
) -> Entry:
    """Returns the entry of that name for a block of a backbone; without one the default, or else the only one there is.

    backbone: or several, of which the first counts that has any for the block. site: what it must code of the
    block; an entry that does not say is taken for any. root: look in that folder (`own_entries`) instead of among
    the shipped and the released ones. Raises `UserError` naming what there is instead.
    """
    backbones = (backbone,) if isinstance(backbone, str) else tuple(backbone)
    known = entries() if root is None else own_entries(root, backbones[0])
    sites = ("", site)
    there = {e.backbone for e in known if e.block == block and e.site in sites}
    backbone = next((one for one in backbones if one in there), backbones[-1])
    here = [e for e in known if e.backbone == backbone and e.block == block and e.site in sites]
    if not here:
        pairs = sorted({f"{entry.backbone} {entry.block}" for entry in known if entry.site in sites})
        where = f" in {root}" if root else ""
        of_site = "" if site == "update" else f" of the {site}"
        make = f"put a checkpoint into its folder {block}" if root else "train one and register it"
        near = did_you_mean(f"{backbone} {block}", pairs)
        raise UserError(
            f"no dictionary{of_site} is known for {backbone} {block}{where}{near}",
            remedy=f"there are some for {', '.join(pairs)}" if pairs else make,
        )
    if name is None and len(here) == 1:
        return here[0]
    default = default_name(backbone, site) if root is None else name_of_site(DEFAULT_NAME, site)
    wanted = default if name is None else name
    for entry in here:
        if entry.name == wanted:
            return entry
    names = [entry.name for entry in here]
    raise UserError(
        f"{backbone} {block} has no dictionary {wanted!r}{did_you_mean(wanted, names)}",
        remedy=f"take one of {', '.join(names)}",
    )


def default_name(backbone: str, site: str) -> str:
    """Returns what `find` gives of the shipped and the released ones where no name is asked for."""
    return name_of_site(DEFAULT_NAMES.get(backbone, DEFAULT_NAME), site)


def name_of_site(name: str, site: str) -> str:
    """Returns what a dictionary of a site is called, so that those of updates and streams stand beside each other."""
    return name if site == "update" else f"{name}-{site}"


def fingerprint(entry: Entry, *, root: Path | None = None) -> str:
    """Returns the sha256 of the entry's weight file, in hex: the registered one, or else that of the file that lies
    here.

    root: as it was found with. Raises `UserError` where the file is missing, for a released one with the command that
    fetches it.
    """
    return entry.sha256 or weights_sha256(_folder(entry, root))


def open(entry: Entry, *, root: Path | None = None, device: str = "cpu") -> Dictionary:
    """Returns the entry's dictionary. Raises `UserError` where the checkpoint is missing, broken or not the registered
    one, where it says that it was trained on another block or site, and where there is no room for it."""
    from sae_models import checkpoint

    folder = _folder(entry, root)
    if entry.sha256 and (sha256 := weights_sha256(folder)) != entry.sha256:
        raise UserError(
            f"the weights in {folder} have sha256 {sha256[:12]}..., the index says {entry.sha256[:12]}...",
            remedy="fetch the checkpoint again, or register what lies there",
        )
    shape = checkpoint.shape_of(folder)
    listed, found = ((item.width, item.num_features, item.k) for item in (entry, shape))
    if found != listed:
        raise UserError(
            f"{folder} has (width, num_features, k) = {found}, the index says {listed}",
            remedy="fetch the checkpoint again, or register what lies there",
        )
    trained = checkpoint.read_metadata(folder)
    for what, said in (("block", entry.block), ("site", entry.site)):
        if said and trained.get(what, said) != said:
            raise UserError(
                f"{folder} was trained on the {what} {trained[what]!r}, and is listed for {said!r}",
                remedy=f"put the dictionary of {said} there, or name the right folder in {INDEX_FILE}",
            )
    with room_for(f"the dictionary {entry.name} of {entry.block}", device):
        return checkpoint.load(folder, device=device)


def refuse_width(block: str, width: int, channels: int, backbone: str) -> None:
    """Raises `UserError` where the dictionary of a block codes rows of another width than that block of a backbone
    has channels."""
    if width != channels:
        raise UserError(
            f"the dictionary of {block} codes rows of {width} values, and {backbone} has there {channels} channels",
            remedy="take dictionaries that were trained on this model",
        )


def means(entry: Entry, *, root: Path | None = None) -> Tensor | None:
    """Returns the mean of each feature where it is active, `[f]`, where that lies beside the entry's checkpoint
    (`sdxl_unbox.load_means`)."""
    from sae_models.sdxl_unbox import load_means

    return load_means(_folder(entry, root), entry.num_features)


def describe(entry: Entry) -> str:
    """Returns a line on an entry without its name, for a listing."""
    k = f"k={entry.k}  " if entry.k else ""
    block = entry.block if entry.site in ("", "update") else f"{entry.block} {entry.site}"
    shape = f"{entry.backbone}  {block}  {entry.kind}  {k}{entry.num_features} features"
    if entry.evaluation:
        explained, dead = (entry.evaluation[name] for name in ("explained_variance_pooled", "dead_share"))
        return f"{shape}  EV {'-' if explained is None else f'{explained:.3f}'}  dead {dead:.1%}"
    return f"{shape}  not evaluated here"


def register(*added: Entry, root: Path | None = None) -> None:
    """Adds entries, or replaces in their place those with the same backbone, block and name. The file is replaced
    whole, with all of them or none; two processes must not register at once."""
    root = root or default_root()
    listed = {entry.key: entry for entry in (*_read(root), *added)}
    write_text(root / INDEX_FILE, json_text([asdict(entry) for entry in listed.values()], indent=2) + "\n")


def _folder(entry: Entry, root: Path | None) -> Path:
    """Returns where an entry's checkpoint lies. Raises `UserError` for a released one that was not fetched."""
    if root is None and entry.name in released.RELEASED_WEIGHTS:
        return released.released_folder(entry)
    return (root or default_root()) / entry.folder


def _of_folder(folder: Path, root: Path, backbone: str, block: str, name: str) -> Entry:
    """Returns the entry of a checkpoint somewhere in one's own folder."""
    from sae_models import checkpoint

    shape, place = checkpoint.shape_of(folder), folder.relative_to(root).as_posix()
    return Entry(name, backbone, block, **asdict(shape), folder=place, sha256="", site="")


def _read(root: Path) -> list[Entry]:
    path = root / INDEX_FILE
    if not path.exists():
        return []
    items = read_json_value(path, "the index", remedy="mend the file")
    if not isinstance(items, list):
        raise UserError(f"the index {path} is not a JSON list", remedy="mend the file")
    found = [_entry(item, f"{path}, entry {number}") for number, item in enumerate(items, start=1)]
    twice = next((key for key, count in Counter(entry.key for entry in found).items() if count > 1), None)
    if twice:
        raise UserError(f"the index {path} lists {' '.join(twice)} twice", remedy="remove one of the entries")
    return found


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
    kinds = field_kinds(Entry)
    values = {name: check_value(name, value, kinds[name], f"{where}: ") for name, value in item.items()}
    folder = values["folder"]
    if not folder or "\0" in folder or ".." in Path(folder).parts or Path(folder).is_absolute():
        raise UserError(
            f"{where} lists {folder or 'no folder'}, outside of its own folder",
            remedy="move the checkpoint into the folder of the index, and name it from there",
        )
    return Entry(**values)
