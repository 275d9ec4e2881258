"""Lends the torch of the environment that runs this to another one: links to torch, torchvision and what they stand on.

    python .ci/borrow_torch.py OTHER-ENVIRONMENT NAME==VERSION ...

Whatever is named stays out: that the other environment installs for itself. pip there finds the links as if they were
installed.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def plain(name: str) -> str:
    return re.sub("[-_.]+", "-", re.split(r"[^\w.-]", name.strip())[0]).lower()


environment, *pinned = sys.argv[1:]
own = {plain(name) for name in pinned}
(packages,) = Path(environment).glob("lib/python3*/site-packages")
links = packages / "borrowed"
links.mkdir()
waiting, seen = ["torch", "torchvision"], set()
while waiting:
    name = waiting.pop()
    if name in seen or name in own:
        continue
    seen.add(name)
    try:
        found = distribution(name)
    except PackageNotFoundError:  # of another platform, or an extra
        continue
    waiting += [plain(line) for line in found.requires or [] if "extra ==" not in line]
    for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
        place = links / top
        if not place.exists():
            place.symlink_to(Path(found.locate_file(top)))
(packages / "borrowed.pth").write_text("borrowed\n")
print(f"lent {len(seen)} packages")
