"""A user's own file of methods and metrics."""

import sys

import pytest

from riebench.core.errors import UserError
from riebench.core.plugins import load_plugins, loaded_plugins
from riebench.core.registry import Registry

FILE = """
from riebench.core.registry import _registries
for one in _registries:
    if one.group == "tests.things":
        one.add("mine", object())
"""


@pytest.fixture
def things(monkeypatch):
    """A registry of its own, and all that loading leaves undone afterwards."""
    from riebench.core import plugins, registry

    monkeypatch.setattr(registry, "_registries", [])
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return Registry("thing", "tests.things")


def test_a_file_registers_what_is_its_own_once(things, tmp_path):
    path = tmp_path / "my_things-2.py"
    path.write_text(FILE)
    load_plugins([path, path])
    assert things.names() == ("mine",) and loaded_plugins() == ("my_things-2",)
    assert sys.path[-1] == str(tmp_path)  # behind all that is installed
    load_plugins([path])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.py", None, "there is no Python file"),
        ("mine.txt", FILE, "there is no Python file"),
        ("empty.py", "", "registers nothing"),
        ("json.py", FILE, "another module is called 'json'"),
        ("torch.py", FILE, "another module is called 'torch'"),
        ("a.b.py", FILE, "another module is called 'a.b'"),
        ("wrong.py", "x = (\n", "wrong.py, line 1: SyntaxError"),
        ("fails.py", "\n\nx = 1 / 0\n", "fails.py, line 3: ZeroDivisionError"),
        ("wants.py", "import nowhere_to_be_found\n", "line 1: ModuleNotFoundError"),
        ("latin.py", b"x = '\xe9'\n", "latin.py"),
        ("nul.py", b"x = 1\0\n", "nul.py"),
        ("leaves.py", "raise SystemExit(3)\n", "leaves.py, line 1: SystemExit"),
    ],
)
def test_a_file_that_is_none_is_one_line(things, tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        load_plugins([path])
    assert "\n" not in str(error.value) and "->" in str(error.value)
    assert loaded_plugins() == ()


def test_a_folder_is_no_file(things, tmp_path):
    with pytest.raises(UserError, match="no Python file"):
        load_plugins([tmp_path])
