import sys

import pytest

from riebench.core.errors import UserError
from riebench.core.registry import Registry

GROUP = "riebench.test_things"


@pytest.fixture
def things():
    return Registry("thing", GROUP)


def install(folder, monkeypatch, *points, package="their-package"):
    """A distribution with entry points, as pip would leave it, in a folder on the path."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(f"{point}\n" for point in points))
    monkeypatch.syspath_prepend(folder)


def test_a_target_is_imported_at_get_and_not_before(things, tmp_path, monkeypatch):
    (tmp_path / "lazy_thing.py").write_text("class Box:\n    value = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    things.add("lazy", "lazy_thing:Box.value", summary="a seven")
    assert things.names() == ("lazy",)
    assert things.summary("lazy") == "a seven"
    assert "lazy_thing" not in sys.modules
    assert things.get("lazy") == 7
    assert "lazy_thing" in sys.modules


def test_objects_and_the_decorator(things):
    @things.register("function", summary="doubles")
    def double(x):
        return 2 * x

    marker = object()
    things.add("marker", marker)
    assert double(2) == 4
    assert things.get("function") is double
    assert things.get("marker") is marker
    assert things.names() == ("function", "marker")
    assert things.summary("function") == "doubles"


def test_a_taken_name_is_an_error_and_the_first_stays(things):
    things.add("sae", "first:thing")
    with pytest.raises(UserError, match=r"two things are named 'sae': first:thing and second:thing"):
        things.add("sae", "second:thing")
    assert things.names() == ("sae",)


@pytest.mark.parametrize("target", ["module", "module:", ":attribute", ""])
def test_a_string_that_is_no_target_is_refused(things, target):
    with pytest.raises(ValueError, match="module:attribute"):
        things.add("wrong", target)
    assert things.names() == ()


def test_an_unknown_name_says_what_was_meant(things):
    things.add("lpips_original", "module:attribute")
    for ask in (things.get, things.summary):
        with pytest.raises(UserError, match=r"no thing 'lpips_orignal'; did you mean 'lpips_original'\? -> use one of"):
            ask("lpips_orignal")


def test_an_installed_package_adds_a_name(things, tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text("answer = 42\n")
    install(tmp_path, monkeypatch, "theirs = their_module:answer")
    things.add("ours", object())
    assert things.names() == ("ours", "theirs")
    assert "their_module" not in sys.modules
    assert things.summary("theirs") == "from the package their-package"
    assert things.get("theirs") == 42


def test_an_installed_package_cannot_take_our_name(things, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "ours = their_module:answer")
    things.add("ours", "our_module:thing")
    for _ in range(2):  # the second question is answered as the first
        with pytest.raises(UserError, match="two things are named 'ours'.*package their-package"):
            things.names()


def test_an_import_that_fails_names_the_missing_package(things, tmp_path, monkeypatch):
    (tmp_path / "needs_something.py").write_text("import a_package_nobody_has.part\n")
    install(tmp_path, monkeypatch, "theirs = needs_something:thing")
    with pytest.raises(UserError, match="package their-package.*-> install a_package_nobody_has"):
        things.get("theirs")


@pytest.mark.parametrize("target", ["no_such_module_of_theirs:thing", "json:no_such_thing"])
def test_a_target_that_is_not_there_names_who_brought_it(things, tmp_path, monkeypatch, target):
    install(tmp_path, monkeypatch, f"theirs = {target}")
    with pytest.raises(UserError, match="'theirs' cannot be loaded.*-> reinstall or remove their-package"):
        things.get("theirs")


def test_a_broken_package_leaves_the_others_usable(things, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "broken = no_such_module_of_theirs:thing")
    things.add("ours", "json:loads")
    assert things.get("ours")("3") == 3
