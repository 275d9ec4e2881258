"""Keys: equal content has an equal key, and whatever decides a result changes it."""

from __future__ import annotations

import dataclasses
import importlib
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest
import torch

import riebench
from baselines.dense import Dense
from baselines.sae import SAE
from baselines.select_on import OtherSeed
from riebench.backbones.sdxl import SDXL
from riebench.core.errors import UserError
from riebench.core.files import file_sha256
from riebench.core.keys import describe, digest
from riebench.core.versions import code_behind, folder_digest
from riebench.core.versions import sources_digest as digest_of_sources
from riebench.metrics.versions import judge_version
from riebench.runs.versions import GENERATING, code_of, code_of_family, code_version


@dataclass(frozen=True)
class Mine:
    strength: float = 1.0
    words: tuple[str, ...] = ("a", "b")
    settings: dict = field(default_factory=dict)
    folder: Path = Path("weights")
    directions: object = None


@dataclass(frozen=True)
class Yours:
    strength: float = 1.0
    words: tuple[str, ...] = ("a", "b")
    settings: dict = field(default_factory=dict)
    folder: Path = Path("weights")
    directions: object = None


class Plain:
    name = "plain"

    def __init__(self, **held):
        vars(self).update(held)


class Slotted:
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k


def test_equal_content_has_an_equal_key():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert digest({"x", "y", "z"}) == digest(frozenset(["z", "y", "x"]))
    assert digest(Mine(settings={"k": 1, "j": 2})) == digest(Mine(settings={"j": 2, "k": 1}))
    assert digest(Plain(k=1, j=2)) == digest(Plain(j=2, k=1))
    assert digest([np.float32(0.5), np.int64(3), np.bool_(True)]) == digest([0.5, 3, True])
    assert digest(Path("a/b")) == digest("a/b")
    assert len(digest(None)) == 32 and set(digest(None)) <= set("0123456789abcdef")


@pytest.mark.process
def test_keys_are_the_same_in_another_process():
    code = "from riebench.core.keys import digest; print(digest([{'a': {'x', 'y', 'z'}}, 0.1, None, 'ü']))"
    keys = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env(seed)).stdout
        for seed in ("1", "2")
    }
    assert keys == {digest([{"a": {"x", "y", "z"}}, 0.1, None, "ü"]) + "\n"}


@pytest.mark.parametrize(
    "change",
    [
        {"strength": 1.0000000001},
        {"words": ("b", "a")},
        {"settings": {"k": 1}},
        {"folder": Path("others")},
        {"directions": np.zeros(2)},
    ],
)
def test_each_field_counts(change):
    assert digest(dataclasses.replace(Mine(), **change)) != digest(Mine())


def test_unlike_things_with_equal_contents_differ():
    values = [Mine(), Yours(), Plain(**vars(Mine())), vars(Mine())]
    values += [1, 1.0, True, "1", None, "None", [], {}, [[]], [1], ["1"], Slotted(1), Slotted(2)]
    assert len({digest(value) for value in values}) == len(values)


def test_a_class_that_inherits_from_a_dataclass_keeps_what_it_adds():
    class Loaded(Mine):
        def __init__(self, matrix):
            super().__init__()
            object.__setattr__(self, "matrix", matrix)

    assert digest(Loaded([1.0])) != digest(Loaded([2.0]))


def test_what_a_cached_property_keeps_does_not_count():
    class Lazy(Plain):
        @cached_property
        def matrix(self):
            return lambda: None  # could not be part of a key

    lazy = Lazy(k=1)
    before = digest(lazy)
    assert lazy.matrix and digest(lazy) == before


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_arrays_and_tensors_count_by_content(make):
    values = [make([[1.0, 2.0]]), make([[1.0], [2.0]]), make([[1.0, 2.5]]), make([[1, 2]]), make(1.0)]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(Mine(directions=make([1.0, 2.0]))) == digest(Mine(directions=make([1.0, 2.0])))
    strided = make([[1.0, 9.0], [2.0, 9.0]])[:, 0]
    assert digest(strided) == digest(make([1.0, 2.0]))
    assert digest(make([float("nan")])) == digest(make([float("nan")]))


def test_tensors_that_numpy_does_not_know_count_by_their_bits():
    one = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert digest(one) == digest(one.clone()) != digest(one + 1)
    assert digest(one) != digest(one.half())
    assert digest(torch.tensor([1 + 2j]).conj()) == digest(torch.tensor([1 - 2j]))
    with torch.no_grad():
        layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        assert digest(layer) != digest(other)
        other.load_state_dict(layer.state_dict())
        assert digest(layer) == digest(other)


@pytest.mark.parametrize(
    "value, where",
    [
        (lambda case: case, r"is a .*function"),
        (Mine(settings={"rules": [1, Plain(pick=max)]}), r"\.settings\W+rules\W*\[1\]\.pick is a .*builtin"),
        (Mine(strength=float("nan")), r"\.strength is nan"),
        ([float("inf")], r"\[0\] is inf"),
        (Mine(directions=np.array([object()])), r"\.directions is a numpy"),
        (Plain(kind=Mine), r"\.kind is a .*type"),
        (Plain(module=os), r"\.module is a .*module"),
        (Plain(rule=partial(max, 1)), r"\.rule is a .*partial"),
        (Plain(rng=random.Random(3)), r"\.rng is a .*Random"),
        (Plain(rng=torch.Generator()), r"\.rng is a .*Generator"),
        (Plain(rng=np.random.default_rng(3)), r"\.rng is a .*Generator"),
        (Plain(far=torch.zeros(2, device="meta")), r"\.far is a .*Tensor"),
        (Plain(number=1j), r"\.number is a .*complex"),
    ],
)
def test_what_has_no_content_is_refused_with_its_place(value, where):
    with pytest.raises(UserError, match=where):
        describe(value)


def test_open_files_and_circles_are_refused(tmp_path):
    with open(tmp_path / "a", "w") as file, pytest.raises(UserError, match=r"\.file is a .*TextIOWrapper.* -> "):
        describe(Plain(file=file))
    circle: list = []
    circle.append({"in": circle})
    with pytest.raises(UserError, match="holds itself"):
        describe(circle)
    twice = [1]
    assert describe([twice, twice]) == [[1], [1]]


def test_keys_of_a_mapping_that_read_alike_are_refused():
    with pytest.raises(UserError, match="two keys that read '1'"):
        describe({1: "a", "1": "b"})


def test_folders_count_by_names_and_bytes(tmp_path):
    folder = tmp_path / "weights"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.bin").write_bytes(b"abc" * 500_000)
    (folder / "index.json").write_text("{}")
    first = folder_digest(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert folder_digest(copy) == folder_digest(str(copy)) == first

    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock").write_text("")
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "a.pyc").write_text("")
    assert folder_digest(copy) == first

    data = bytearray((copy / "unet" / "model.bin").read_bytes())
    data[-1] ^= 1
    (copy / "unet" / "model.bin").write_bytes(data)
    assert folder_digest(copy) != first, "one bit, same size"
    (folder / "index.json").rename(folder / "other.json")
    assert folder_digest(folder) != first
    with pytest.raises(UserError, match="absent does not exist"):
        folder_digest(tmp_path / "absent")


def test_python_files_of_a_folder_of_weights_count(tmp_path):
    (tmp_path / "__init__.py").write_text("k = 1")
    first = folder_digest(tmp_path)
    (tmp_path / "__init__.py").write_text("k = 222")
    assert folder_digest(tmp_path) != first


@pytest.fixture
def sources(tmp_path):
    """A copy of all our sources."""
    for name in ("riebench", "sae_models", "baselines"):
        shutil.copytree(Path(importlib.import_module(name).__file__).parent, tmp_path / name)
    return tmp_path


#: What a result does not depend on, or what counts by itself: a file of each kind.
STALES_NOTHING = (
    "baselines/__init__.py",
    "baselines/dense.py",
    "baselines/brand_new.py",
    "riebench/analysis/dominance.py",
    "riebench/backbones/table.py",
    "riebench/backbones/flux_of_tomorrow.py",
    "riebench/core/axes.py",
    "riebench/core/progress.py",
    "riebench/core/versions.py",
    "riebench/dictionaries/harvest.py",
    "riebench/edits/checks.py",
    "riebench/leaderboard/submit.py",
    "riebench/metrics/clip.py",
    "riebench/regions/grounders.py",
    "riebench/report/page.py",
    "riebench/runs/config.py",
    "riebench/runs/plan.py",
    "riebench/runs/store.py",
    "riebench/runs/versions.py",
    "riebench/tinyworld/render.py",
    "sae_models/publish.py",
    "sae_models/trainer.py",
)
STALES_ALL = (
    "riebench/backbones/blocks.py",
    "riebench/core/batches.py",
    "riebench/core/pictures.py",
    "riebench/edits/phrases.py",
    "riebench/generation/lens.py",
    "riebench/generation/brand_new.py",
    "riebench/methods/transport.py",
    "riebench/regions/masks.py",
    "riebench/runs/reference.py",
    "sae_models/topk.py",
)


@pytest.mark.parametrize("name", STALES_NOTHING)
def test_a_change_of_what_does_not_generate_makes_no_result_stale(sources, name):
    before = digest_of_sources(GENERATING, sources)
    changed = sources / name
    changed.write_text((changed.read_text() if changed.exists() else "") + '\n"""Another docstring."""\n')
    assert digest_of_sources(GENERATING, sources) == before


@pytest.mark.parametrize("name", STALES_ALL)
def test_a_change_of_what_generates_makes_results_stale(sources, name):
    before = digest_of_sources(GENERATING, sources)
    changed = sources / name
    changed.write_text((changed.read_text() if changed.exists() else "") + "\n# changed\n")
    assert digest_of_sources(GENERATING, sources) != before


def test_sources_are_known_by_names_and_bytes_and_not_by_caches(sources):
    before = digest_of_sources(GENERATING, sources)
    (sources / "riebench" / "generation" / "__pycache__").mkdir(exist_ok=True)
    (sources / "riebench" / "generation" / "__pycache__" / "x.py").write_text("")
    (sources / "riebench" / "generation" / ".hidden.py").write_text("")
    assert digest_of_sources(GENERATING, sources) == before == digest_of_sources(GENERATING)
    lens = sources / "riebench" / "generation" / "lens.py"
    lens.rename(lens.with_name("moved.py"))
    assert digest_of_sources(GENERATING, sources) != before
    (sources / "sae_models" / "topk.py").unlink()
    with pytest.raises(UserError, match="there are no sources sae_models/topk.py"):
        digest_of_sources(GENERATING, sources)


def test_every_name_of_the_list_is_there_and_the_list_is_short():
    root = Path(riebench.__file__).parents[1]
    assert all((root / name).exists() for name in GENERATING) and len(GENERATING) <= 22


def test_ours_is_versioned_by_what_generates_and_its_own_files():
    assert code_of(SAE()) == code_of(SAE) != code_version()
    assert code_of(SAE) not in (code_of(Dense), code_of(OtherSeed))
    files = [code for (code,) in ([item] for item in code_behind(OtherSeed))]
    assert files[:2] == [file_sha256(Path(sys.modules[kind.__module__].__file__)) for kind in (OtherSeed, SAE)]
    assert code_of_family(SDXL) == digest_of_sources(["riebench/backbones/sdxl.py"])


def test_judges_differ_by_family_and_names():
    names = ["clip_text_edited", "lpips_original"]
    versions = [
        judge_version(names, "tinyworld"),
        judge_version(names, "sdxl"),
        judge_version(names[:1], "tinyworld"),
        code_version(),
    ]
    assert len(set(versions)) == 4 and judge_version(names[::-1], "tinyworld") == versions[0]
    with pytest.raises(UserError, match="no metric"):
        judge_version(["beauty"], "tinyworld")


SOURCE = """
from base_of_mine import Base

THRESHOLD = 3

class Method(Base):
    name, strength, sites = "mine", 1.0, ""

    def plan(self, case):
        return THRESHOLD
"""


def test_a_method_in_a_file_is_versioned_by_that_file_and_those_it_inherits_from(tmp_path, monkeypatch):
    def version(source, base="class Base:\n    def helper(self):\n        return 1\n"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "mine_in_a_file.py").write_text(source)
        (folder / "base_of_mine.py").write_text(base)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            for name in ("mine_in_a_file", "base_of_mine"):
                sys.modules.pop(name, None)
            return code_of(importlib.import_module("mine_in_a_file").Method())

    versions = [
        version(SOURCE),
        version(SOURCE.replace("THRESHOLD = 3", "THRESHOLD = 4")),
        version(SOURCE, base="class Base:\n    def helper(self):\n        return 2\n"),
    ]
    assert len({*versions, code_version()}) == 4
    assert version(SOURCE) == versions[0]


TYPED = """
from functools import cache

THRESHOLD = 3

def pick(values):
    return [value for value in values if value > THRESHOLD]

@cache
def remembered():
    return "r"

class Base:
    def helper(self):
        return "h"

class Method(Base):
    name, strength = "typed", 1.0

    @staticmethod
    def choose(case):
        return case in {"one", "two", "three"}

    @property
    def size(self):
        return 5

    def plan(self, case, k=7):
        inner = lambda: [6, remembered()]
        return pick(case), inner
"""


def typed(text: str, ahead: str = "") -> object:
    """An object of the class in `text`, as if it had been typed into a notebook after some other lines."""
    space = {"__name__": "typed_in_a_notebook"}
    exec(compile(ahead + text, "<cell>", "exec", dont_inherit=True), space)  # without this file's __future__
    return space["Method"]()


def test_a_method_that_was_typed_is_versioned_by_what_it_does():
    assert code_of(typed(TYPED)) == code_of(typed(TYPED, ahead="\n\nunrelated = 1\n")) != code_version()
    for before, after in (
        ("k=7", "k=8"),
        ("return 5", "return 50"),
        ("[6, ", "[60, "),
        ('"one"', '"four"'),
        ('"typed"', '"named"'),
        ("value > ", "value < "),
        ("THRESHOLD = 3", "THRESHOLD = 4"),
        ('"h"', '"hh"'),
        ('"r"', '"rr"'),
        ("pick(case)", "sum(case)"),
    ):
        assert TYPED.count(before) == 1, before
        assert code_of(typed(TYPED.replace(before, after))) != code_of(typed(TYPED)), before


def test_a_typed_class_without_a_module_counts_too():
    def made(number):
        space: dict = {}
        exec(f"class Method:\n    def plan(self, case):\n        return {number}\n", space)
        return space["Method"]()

    assert code_of(made(1)) == code_of(made(1)) != code_of(made(2))


@pytest.mark.process
def test_typed_code_has_the_same_version_in_another_process(tmp_path):
    (tmp_path / "text.py").write_text(TYPED)
    code = (
        "import sys; from riebench.runs.versions import code_of\n"
        "space = {'__name__': 'typed_in_a_notebook'}; exec(open(sys.argv[1]).read(), space)\n"
        "print(code_of(space['Method']()))"
    )
    for seed in ("1", "2"):
        words = [sys.executable, "-c", code, str(tmp_path / "text.py")]
        found = subprocess.run(words, capture_output=True, text=True, check=True, env=_env(seed))
        assert found.stdout.strip() == code_of(typed(TYPED))


def test_what_encloses_a_typed_class_and_what_calls_itself_are_looked_at():
    made = "def make(k):\n    class Method:\n        def plan(self, case):\n            return k\n    return Method\n"
    three, again, four = (code_of(typed(made + f"Method = make({k})\n")) for k in (3, 3, 4))
    assert three == again != four
    circle = (
        "def down(n):\n    return n and down(n - 1)\nclass Method:\n    def plan(self, case):\n        return down(2)\n"
    )
    assert code_of(typed(circle)) != code_of(typed(circle.replace("n - 1", "n - 2")))


def test_a_typed_dataclass_has_one_version():
    text = (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Method:\n    k: int = 3\n"
        "    def plan(self, case):\n        return self.k\n"
    )
    sys.modules["typed_in_a_notebook"] = sys.modules[__name__]  # dataclasses look for the module
    try:
        assert code_of(typed(text)) == code_of(typed(text)) != code_of(typed(text.replace("3", "4")))
    finally:
        del sys.modules["typed_in_a_notebook"]


@pytest.mark.process
def test_importing_keys_does_not_import_torch():
    code = "import riebench.core.keys, sys; assert not {'torch', 'diffusers', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=_env("0"))


def _env(seed: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
