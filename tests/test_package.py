"""What an installation must hold: lazy imports, the data, and the same names in code and metadata."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from riebench.core.files import data_folder


@pytest.mark.process
@pytest.mark.parametrize(
    "module", ["riebench", "riebench.cli", "riebench.core.registry", "riebench.metrics", "riebench.edits.edit"]
)
def test_importing_does_not_import_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'diffusers', 'transformers'}} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.process
def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom riebench.cli import main\nsys.argv = ['riebench', '--help']\n"
        "try:\n    code = main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "assert not code, code\nassert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert result.returncode == 0, result.stderr
    assert "riebench" in result.stdout


@pytest.mark.parametrize("path", ["lpips/alex.safetensors", "lpips/NOTICE.md", "edits/tinyworld", "tinyworld/turbo"])
def test_the_data_is_there(path):
    assert (data_folder() / path).exists()


def test_the_command_is_declared():
    try:
        points = distribution("riebench").entry_points
    except ModuleNotFoundError:
        pytest.skip("riebench is run from a clone that is not installed")
    assert [(point.name, point.value) for point in points if point.group == "console_scripts"] == [
        ("riebench", "riebench.cli:main")
    ]


def _environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


CHECKOUT = Path(__file__).parents[1]


@pytest.mark.skipif(not (CHECKOUT / ".ci").is_dir(), reason="only a checkout has it")
def test_what_is_run_at_the_lower_bounds_is_what_is_declared():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    declared = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["test"]]
    bounds = {
        each.name: next(Version(part.version) for part in each.specifier if part.operator == ">=") for each in declared
    }
    lines = (CHECKOUT / ".ci" / "lowest.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    assert {each.name: Version(next(iter(each.specifier)).version) for each in pinned} == bounds
    assert all(part.operator == "==" for each in pinned for part in each.specifier)
