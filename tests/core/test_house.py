"""The house: who imports whom. A room imports only rooms of lower floors, and nothing goes round."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import riebench

ROOT = Path(riebench.__file__).parents[1]
#: Rooms from the ground up (docs/architecture.md). Rooms of one floor do not know each other.
FLOORS = (
    ("core",),
    ("edits", "sae_models", "analysis"),
    ("backbones", "regions", "report"),
    ("generation", "tinyworld"),
    ("metrics", "methods"),
    ("baselines", "dictionaries", "doctor"),
    ("runs", "leaderboard", "tinyworld_build"),
    ("api", "selftest"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PACKAGES = ("riebench", "sae_models", "baselines")


def modules() -> dict[str, Path]:
    """Name -> file of every module of ours."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


MODULES = modules()


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it, but for what only type checkers read."""
    tree = ast.parse(path.read_text())
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written whole"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & set(MODULES)


def room_of(module: str) -> str:
    """The room of a module; "" for `riebench` itself, which names what it has and imports it when it is used."""
    first, _, rest = module.partition(".")
    return first if first != "riebench" else rest.partition(".")[0]


ARROWS = {name: imports(path) for name, path in MODULES.items()}


def test_every_room_has_a_floor_and_there_are_at_most_nine():
    assert {room_of(name) for name in MODULES} - {""} == set(FLOOR) and len(FLOORS) <= 9


def test_arrows_go_down():
    wrong = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others
        if room_of(name) and room_of(name) != room_of(other) and FLOOR[room_of(other)] >= FLOOR[room_of(name)]
    ]
    assert wrong == []


def test_nothing_goes_round():
    state: dict[str, bool] = {}  # module -> whether it is done

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module in state:
            return
        for other in ARROWS[module]:
            visit(other, (*way, module))
        state[module] = True

    for module in MODULES:
        visit(module, ())


def test_a_package_imports_none_of_its_own_modules_behind_its_back():
    """So that `import riebench.edits.phrases` costs what that file costs. (`leaderboard` and `report` name their
    verbs.)"""
    heavy = {name: arrows for name, arrows in ARROWS.items() if MODULES[name].name == "__init__.py" and arrows}
    assert set(heavy) <= {"riebench", "baselines", "sae_models", "riebench.leaderboard", "riebench.report"} | {
        name for name in heavy if name in ("riebench.cli", "riebench.metrics", "riebench.edits.importers")
    }


def test_the_dictionary_library_knows_nothing_of_diffusion():
    known = {other for name in MODULES if room_of(name) == "sae_models" for other in ARROWS[name]}
    assert {room_of(other) for other in known} == {"sae_models", "core"}


def test_the_top_of_the_package_is_four_files():
    assert sorted(path.name for path in (ROOT / "riebench").glob("*.py")) == ["__init__.py", "api.py", "doctor.py"]


WITHOUT_TORCH = {
    "riebench": "import riebench",
    "help": "from riebench.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    "ls": "from riebench.cli import main\n"
    "for kind in ('backbones', 'blocks', 'categories', 'edits', 'grounders', 'methods', 'metrics', 'runs'):\n"
    "    assert main(['ls', kind]) == 0",
    "checks of edits": "from riebench.cli import main\nassert main(['validate', 'riebench']) == 0",
    "validate": "from riebench.cli import main\nfrom riebench.core.files import data_folder\n"
    "assert main(['validate', str(data_folder() / 'leaderboard' / 'tinyworld-turbo@1' / 'noop')]) == 0",
    "leaderboard": "from riebench.cli import main\nassert main(['leaderboard', '--out', 'site']) == 0",
    "phrases": "from riebench.edits.phrases import parse_phrase\nparse_phrase('not a heart')",
}


@pytest.mark.process
@pytest.mark.parametrize("what", WITHOUT_TORCH)
def test_torch_is_not_imported_by(what, tmp_path):
    code = f"import sys\n{WITHOUT_TORCH[what]}\nassert not {{'torch', 'diffusers'}} & set(sys.modules), 'imports torch'"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
