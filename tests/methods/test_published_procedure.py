"""The plain peer of the reference mode: its parts beside numbers worked out by hand, and a few whole cases."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import published_procedure
import pytest
import torch
from published_procedure import (
    BLOCKS,
    PlainSAE,
    adaptive_rule,
    dense_delta,
    generate,
    intervene,
    module_at,
    neuron_deltas,
    neuron_places,
    published,
    random_sae,
    region_rows,
    sdxl_shaped_pipeline,
    select,
    static_delta,
    statistic,
    trace,
)

EDITED = "a [blue] circle in a meadow"
ORIGINAL = "a [red] circle in a meadow"

LEFT = torch.tensor([[True, False], [True, False]])
TOP = torch.tensor([[True, True], [False, False]])
CORNER = torch.tensor([[False, False], [False, True]])

CHANNELS = 64
MASK_E = torch.zeros(16, 16, dtype=torch.bool)
MASK_E[3:9, 4:12] = True
MASK_O = torch.zeros(16, 16, dtype=torch.bool)
MASK_O[5:13, 2:9] = True


@pytest.fixture(scope="module")
def pipe():
    return sdxl_shaped_pipeline(CHANNELS)


@pytest.fixture(scope="module")
def saes():
    return {block: random_sae(number, CHANNELS, 128, 8) for number, block in enumerate(BLOCKS)}


@pytest.fixture(scope="module")
def case(pipe, saes):
    """`published` with the settings that most tests share; what was asked for before is not made again."""
    traces, done = {}, {}

    def call(mode, edited=EDITED, mask_e=MASK_E, mask_o=MASK_O, **settings):
        settings = {"category": "change colour", "placement": "edited", "steps": 2, "strength": 1.0, "k": 24} | settings
        key = (mode, edited, *(tuple(mask.flatten().tolist()) for mask in (mask_e, mask_o)), *sorted(settings.items()))
        if key not in done:
            done[key] = published(
                pipe, edited, ORIGINAL, mask_e, mask_o, mode=mode, traces=traces, saes=saes, **settings
            )
        return done[key]

    return call


@pytest.fixture(scope="module")
def original(pipe):
    return generate(pipe, ORIGINAL, 2)


def rows(*cells):
    """One step's values by cell, [1, cells, F]."""
    return torch.tensor([cells], dtype=torch.float32)


def in_lists(chosen):
    return {place: numbers.tolist() for place, numbers in chosen.items()}


def hook_count(pipe):
    return sum(len(module._forward_hooks) for module in pipe.unet.modules())


def test_the_peer_has_only_the_data_folder_from_the_package():
    modules = set()
    for node in ast.walk(ast.parse(Path(published_procedure.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    assert {name for name in modules if name.split(".")[0] in ("riebench", "baselines", "sae_models")} == {
        "riebench.core.files"
    }


# ---- selection -------------------------------------------------------------------------------------------------------

# mu_e is 4 0 2 | 3 1, of 10 in all; mu_o is 1 1 2 | 0 4, of 8
FIVE_E = {"down.2.1": rows([8, 0, 1], [0, 0, 3]), "up.0.1": rows([3, 2], [3, 0])}
FIVE_O = {"down.2.1": rows([1, 2, 2], [1, 0, 2]), "up.0.1": rows([0, 4], [0, 4])}


def test_selection_over_all_blocks():
    """The scores are .4-.125, 0-.125, .2-.25 | .3-0, .1-.5: .275, -.125, -.05 | .3, -.4."""
    on, off = select(FIVE_E, FIVE_O, 2)
    assert in_lists(on) == {"down.2.1": [0], "up.0.1": [0]}
    assert in_lists(off) == {"down.2.1": [1], "up.0.1": [1]}
    on, off = select(FIVE_E, FIVE_O, 1)
    assert in_lists(on) == {"down.2.1": [], "up.0.1": [0]}
    assert in_lists(off) == {"down.2.1": [], "up.0.1": [1]}
    on, off = select(FIVE_E, FIVE_O, 5)
    assert in_lists(on) == {"down.2.1": [0, 2, 1], "up.0.1": [0, 1]}
    assert in_lists(off) == {"down.2.1": [1, 2, 0], "up.0.1": [1, 0]}


def test_selection_block_by_block():
    """4/6-1/4, 0-1/4, 2/6-2/4 in the first block; 3/4-0, 1/4-1 in the second."""
    on, off = select(FIVE_E, FIVE_O, 2, combine_blocks=False)
    assert in_lists(on) == {"down.2.1": [0, 2], "up.0.1": [0, 1]}
    assert in_lists(off) == {"down.2.1": [1, 2], "up.0.1": [1, 0]}


def test_selection_over_the_steps():
    """First step: 1/4-1/2, 3/4-1/2. Mean of both: 4/6-1/2, 2/6-1/2."""
    e = {"mid.0": torch.tensor([[[1.0, 3.0]], [[7.0, 1.0]]])}
    o = {"mid.0": torch.tensor([[[2.0, 2.0]], [[2.0, 2.0]]])}
    assert in_lists(select(e, o, 1)[0]) == {"mid.0": [1]}
    assert in_lists(select(e, o, 1, aggregate="mean")[0]) == {"mid.0": [0]}
    with pytest.raises(ValueError, match="aggregation"):
        select(e, o, 1, aggregate="last")


def test_neurons_are_divided_by_their_norm_over_the_cells():
    """(3 4), (0 10), (-1 0) have means .7, .5, -.5 after it, of .7 in all; raw ones 3.5, 5, -.5, of 8."""
    e = {("mid.0", 0): rows([3, 0, -1], [4, 10, 0])}
    o = {("mid.0", 0): rows([1, 1, 1], [0, 0, 0])}
    assert in_lists(select(e, o, 3, divide_by_norm=True)[0]) == {("mid.0", 0): [0, 1, 2]}
    assert in_lists(select(e, o, 3)[0]) == {("mid.0", 0): [1, 0, 2]}


def test_layers_of_a_block_are_one_pool():
    e = {("mid.0", 0): rows([4, 1]), ("mid.0", 1): rows([3, 2]), ("up.0.0", 0): rows([1, 9])}
    o = {("mid.0", 0): rows([1, 1]), ("mid.0", 1): rows([1, 1]), ("up.0.0", 0): rows([1, 1])}
    on, off = select(e, o, 2, combine_blocks=False)
    assert in_lists(on) == {("mid.0", 0): [0], ("mid.0", 1): [0], ("up.0.0", 0): [1, 0]}
    assert in_lists(off) == {("mid.0", 0): [1], ("mid.0", 1): [1], ("up.0.0", 0): [0, 1]}


def test_a_silent_neuron_makes_every_score_nan():
    e = {("mid.0", 0): rows([3, 0, 1, 2], [4, 0, 1, 0])}
    o = {("mid.0", 0): rows([1, 1, 1, 1], [0, 1, 2, 3])}
    on, off = select(e, o, 2, divide_by_norm=True)
    order = np.argsort(np.full(4, np.nan, dtype=np.float32))
    assert on[("mid.0", 0)].tolist() == order[-2:][::-1].tolist()
    assert off[("mid.0", 0)].tolist() == order[:2].tolist()


# ---- what is added ---------------------------------------------------------------------------------------------------


def test_statistics():
    values = torch.stack([torch.arange(21.0), -torch.arange(21.0)], dim=1)[None]  # 0..20 and 0..-20
    assert statistic(values, "mean").tolist() == [[10.0, -10.0]]
    assert statistic(values, "quantile").tolist() == [pytest.approx([19.0, -1.0])]
    assert statistic(values, "max").tolist() == [[20.0, 0.0]]
    with pytest.raises(ValueError, match="statistic"):
        statistic(values, "median")


# three features with decoder rows (1 0), (0 1), (2 2); the first is on, the last is off
W_DEC = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
Z_E = rows([1, 9, 9], [3, 9, 9])  # at the two cells of LEFT: upper, lower
Z_O = rows([9, 9, 0], [9, 9, 1])  # at the two cells of TOP: left, right
ON, OFF = np.array([0]), np.array([2])


@pytest.mark.parametrize(
    ("settings", "first_channel", "second_channel"),
    [
        ({}, [[2, -4], [6, 0]], [[0, -4], [0, 0]]),
        ({"keep_spatial": False}, [[4 - 2, -2], [4, 0]], [[-2, -2], [0, 0]]),
        ({"keep_spatial": False, "stat": "max"}, [[6 - 4, -4], [6, 0]], [[-4, -4], [0, 0]]),
        ({"placement": "original"}, [[4, 4 - 4], [0, 0]], [[0, -4], [0, 0]]),
        ({"placement": "original", "keep_spatial": False}, [[4 - 2, 4 - 2], [0, 0]], [[-2, -2], [0, 0]]),
    ],
)
def test_static_delta(settings, first_channel, second_channel):
    delta = static_delta(Z_E, Z_O, W_DEC, ON, OFF, LEFT, TOP, strength=2.0, **settings)
    assert delta[0].tolist() == [first_channel, second_channel]


def test_a_block_without_features_gets_nothing():
    none = np.array([], dtype=np.int64)
    assert not static_delta(Z_E, Z_O, W_DEC, none, none, LEFT, TOP, strength=1.0).any()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[2 - 2, -4], [6, 0]]),
        ({"keep_spatial": False}, [[4 - 3, -3], [4, 0]]),
        ({"placement": "original"}, [[4 - 2, 4 - 4], [0, 0]]),
        ({"placement": "original", "keep_spatial": False}, [[4 - 3, 4 - 3], [0, 0]]),
        ({"only_add": True}, [[2, 0], [6, 0]]),
        ({"only_add": True, "placement": "original"}, [[4, 4], [0, 0]]),
    ],
)
def test_dense_delta(settings, expected):
    update_e = torch.tensor([[[[1.0, 50.0], [3.0, 50.0]]]])
    update_o = torch.tensor([[[[1.0, 2.0], [50.0, 50.0]]]])
    assert dense_delta(update_e, update_o, LEFT, TOP, strength=2.0, **settings)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[2, 0, 0], [0, 0, -2], [6, 0, 0], [0, 0, 0]]),
        ({"keep_spatial": False}, [[4, 0, -1], [0, 0, -1], [4, 0, 0], [0, 0, 0]]),
        ({"placement": "original"}, [[4, 0, 0], [4, 0, -2], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_neuron_deltas(settings, expected):
    layer = ("mid.0", 0)
    deltas = neuron_deltas({layer: Z_E}, {layer: Z_O}, {layer: ON}, {layer: OFF}, LEFT, TOP, strength=2.0, **settings)
    assert deltas[layer][0].tolist() == expected
    with pytest.raises(ValueError, match="neurons"):
        neuron_deltas({}, {}, {}, {}, LEFT, TOP, strength=1.0, stat="max")


def test_the_adaptive_rule():
    """The on row is (3 4), of norm 5, and the off row (0 2), of norm 2: the ratio is 2.5."""
    sae = PlainSAE(torch.eye(2), torch.zeros(2), torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.zeros(2), k=2)
    update = torch.tensor([[[7.0, 7.0], [7.0, 7.0]], [[1.0, 3.0], [7.0, 7.0]]])  # the off latent at TOP: 1, 3
    z_on = torch.tensor([[[1.0]], [[2.0]]])  # in two steps, at one cell
    own = adaptive_rule(z_on, CORNER, sae, np.array([0]), np.array([1]), TOP, strength=0.5)
    assert own(1, update).tolist() == [[[0, 0], [0, 6]], [[-2.5 * 0.5 * 2, -2.5 * 0.5 * 6], [0, 8]]]
    mean = adaptive_rule(z_on, CORNER, sae, np.array([0]), np.array([1]), TOP, strength=0.5, keep_spatial=False)
    assert mean(0, update).tolist() == [[[0, 0], [0, 3]], [[-2.5 * 0.5 * 4, -2.5 * 0.5 * 4], [0, 4]]]
    none = np.array([], dtype=np.int64)
    assert adaptive_rule(z_on, CORNER, sae, np.array([0]), none, TOP, strength=0.5)(0, update)[1, 0].tolist() == [0, 0]
    assert not adaptive_rule(z_on[..., :0], CORNER, sae, none, np.array([1]), TOP, strength=0.5)(0, update).any()


def test_the_autoencoder_keeps_the_largest_that_are_positive():
    sae = PlainSAE(torch.eye(3), torch.tensor([0.0, 0.0, 5.0]), torch.eye(3), torch.tensor([1.0, 0.0, 0.0]), k=2)
    assert sae.encode(torch.tensor([[2.0, 0.5, -3.0], [-2.0, -4.0, -9.0]])).tolist() == [[1, 0, 2], [0, 0, 0]]


# ---- whole cases -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trace(pipe):
    image, updates = trace(pipe, ORIGINAL, 2, BLOCKS)
    assert image.shape == (3, 512, 512) and 0 <= image.min() < image.max() <= 1
    assert list(updates) == ["down.2.1", "up.0.1", "up.0.0", "mid.0"]
    assert {tuple(update.shape) for update in updates.values()} == {(2, CHANNELS, 16, 16)}
    layers = neuron_places(pipe)
    assert layers[:3] == [("down.2.1", 0), ("down.2.1", 1), ("up.0.1", 0)]
    again, values = trace(pipe, ORIGINAL.replace("[", "").replace("]", ""), 2, layers)
    assert torch.equal(again, image)
    assert {tuple(value.shape) for value in values.values()} == {(2, 256, 4 * CHANNELS)}
    assert not torch.equal(trace(pipe, EDITED, 2, [])[0], image)
    assert hook_count(pipe) == 0


@pytest.mark.slow
def test_neurons_are_in_the_order_of_the_grid_s_cells(pipe):
    """What is added to one token of the last layer stays in that cell of the block's update."""
    place = ("up.0.1", 1)
    _, before = trace(pipe, ORIGINAL, 1, ["up.0.1"])
    delta = torch.zeros(1, 256, 4 * CHANNELS)
    delta[:, 16 * 3 + 5] = 1.0
    after = {}

    def keep(module, inputs, output):
        after["up.0.1"] = output[0] - inputs[0]

    hook = module_at(pipe, "up.0.1").register_forward_hook(keep)
    try:
        intervene(pipe, ORIGINAL, 1, {place: delta})
    finally:
        hook.remove()
    changed = (after["up.0.1"] - before["up.0.1"]).abs().amax(dim=(0, 1)) > 1e-4
    assert changed.nonzero().tolist() == [[3, 5]]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sae", "sae_adaptive", "steering", "neurons"])
@pytest.mark.parametrize("placement", ["edited", "original"])
def test_zero_strength_gives_the_original_image(pipe, case, original, mode, placement):
    assert torch.equal(case(mode, strength=0.0, placement=placement).image, original)
    found = case(mode, placement=placement)
    assert (found.image - original).abs().max() > 1e-3
    assert hook_count(pipe) == 0
    for delta in found.deltas.values():
        if mode != "neurons":
            delta = delta.flatten(2).transpose(1, 2)
        touched = MASK_O if placement == "original" else MASK_E | MASK_O
        assert not delta[:, ~touched.flatten()].any()


@pytest.mark.slow
def test_each_cell_gets_its_own_value(pipe, case, saes):
    """One cell of one step worked out by itself: (7, 3) is in the original's region alone, (4, 10) the edited's."""
    found = case("sae", strength=2.0)
    updates = {prompt: trace(pipe, prompt, 2, saes)[1] for prompt in (ORIGINAL, EDITED)}
    for block, sae in saes.items():
        for prompt, cell, chosen, sign in (
            (ORIGINAL, (7, 3), found.off[block], -1),
            (EDITED, (4, 10), found.on[block], 1),
        ):
            update = updates[prompt][block]
            z = sae.encode(update[1, :, cell[0], cell[1]])
            wanted = sum((2.0 * sign * z[feature] * sae.W_dec[feature] for feature in chosen), torch.zeros(CHANNELS))
            torch.testing.assert_close(found.deltas[block][1, :, cell[0], cell[1]], wanted)


@pytest.mark.slow
def test_adaptive_and_static_differ_in_what_was_changed_before(case, saes):
    """The first block of the first step runs before anything is changed: there the off parts differ by the ratio."""
    static, adaptive = case("sae"), case("sae_adaptive")
    assert in_lists(static.on) == in_lists(adaptive.on)
    only_off = MASK_O & ~MASK_E
    for block, alike in (("down.2.1", True), ("up.0.1", False)):
        norms = saes[block].W_dec.norm(dim=1)
        ratio = norms[adaptive.on[block]].sum() / norms[adaptive.off[block]].sum()
        wanted, found = ratio * static.deltas[block][0][:, only_off], adaptive.deltas[block][0][:, only_off]
        assert wanted.any() and torch.allclose(found, wanted, atol=1e-5) == alike
    only_on = MASK_E & ~MASK_O
    for block, z_on in adaptive.on_latents.items():
        assert z_on.shape == (2, int(MASK_E.sum()), len(adaptive.on[block]))
        torch.testing.assert_close(adaptive.deltas[block][..., only_on], static.deltas[block][..., only_on])


@pytest.mark.slow
def test_add_object_has_one_region(case):
    found = case("sae", category="add object")
    same = case("sae", mask_o=MASK_E)
    assert torch.equal(found.image, same.image) and in_lists(found.off) == in_lists(same.off)
    assert in_lists(found.off) != in_lists(case("sae").off)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sae", "sae_adaptive", "steering", "neurons"])
@pytest.mark.parametrize("category", ["add object", "delete_object"])
def test_objects_that_come_or_go_are_moved_in_place(case, mode, category):
    """Whatever the placement; and from one that goes, or in mode adaptive, always something is taken away."""
    found, moved = (case(mode, category=category, placement=placement) for placement in ("edited", "original"))
    assert torch.equal(found.image, moved.image)
    added = case(mode, category=category, only_add=True)
    takes = category == "delete_object" or mode == "sae_adaptive"
    assert torch.equal(found.image, added.image) == takes
    assert (mode == "steering") or all(len(off) == 0 for off in added.off.values()) != takes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sae", "steering"])
def test_delete_object_takes_the_edited_image_inside_the_original_s_region(pipe, case, saes, mode):
    found = case(mode, category="delete_object")
    assert not any(delta[:, :, ~MASK_O].any() for delta in found.deltas.values())
    update_e, update_o = (trace(pipe, prompt, 2, ["mid.0"])[1]["mid.0"] for prompt in (EDITED, ORIGINAL))
    if mode == "steering":
        row = update_e[:, :, MASK_O] - update_o[:, :, MASK_O]
    else:
        z_on = saes["mid.0"].encode(region_rows(update_e, MASK_O))[..., found.on["mid.0"]]
        z_off = saes["mid.0"].encode(region_rows(update_o, MASK_O))[..., found.off["mid.0"]]
        row = z_on @ saes["mid.0"].W_dec[found.on["mid.0"]] - z_off @ saes["mid.0"].W_dec[found.off["mid.0"]]
        row = row.transpose(1, 2)
    assert row.any()
    torch.testing.assert_close(found.deltas["mid.0"][:, :, MASK_O], row)
    same = case(mode, mask_e=MASK_O)
    assert torch.equal(found.image, same.image) and in_lists(found.on) == in_lists(same.on)
    assert torch.equal(case(mode, mask_e=~MASK_O, category="delete_object").image, found.image)
    assert not torch.equal(case(mode, edited="a sad face", category="delete_object").image, found.image)


def test_hooks_are_gone_after_a_failure(pipe):
    def fail(step, update):
        raise RuntimeError("as asked")

    with pytest.raises(RuntimeError, match="as asked"):
        intervene(pipe, ORIGINAL, 1, {"mid.0": fail, "up.0.0": torch.zeros(1, CHANNELS, 16, 16)})
    with pytest.raises(KeyError):
        trace(pipe, ORIGINAL, 1, ["mid.0", "up.9.9"])
    assert hook_count(pipe) == 0


def test_what_is_not_known_is_refused(pipe, case):
    for mode, settings in (
        ("dense", {}),
        ("sae", {"stat": "median", "keep_spatial": False}),
        ("sae", {"placement": "source"}),
        ("steering", {"placement": "source"}),
        ("sae", {"k": 0}),
        ("sae", {"mask_e": torch.zeros(16, 16, dtype=torch.bool)}),
    ):
        with pytest.raises(ValueError):
            case(mode, **settings)


def test_the_pipeline_s_weights_are_the_same_every_time(pipe):
    again = sdxl_shaped_pipeline.__wrapped__(CHANNELS)
    assert again is not pipe
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        weights = getattr(again, name).state_dict()
        assert all(torch.equal(weights[key], value) for key, value in getattr(pipe, name).state_dict().items())


@pytest.mark.slow
def test_the_pipeline_of_full_width():
    """Updates of order one, that differ by prompt."""
    pipe = sdxl_shaped_pipeline()
    image, updates = trace(pipe, ORIGINAL, 1, BLOCKS)
    edited_image, edited_updates = trace(pipe, EDITED, 1, BLOCKS)
    assert (edited_image - image).abs().mean() > 1e-3
    for block, update in updates.items():
        assert update.shape == (1, 1280, 16, 16)
        assert 0.3 < update.std() < 3
        assert (edited_updates[block] - update).norm() > 0.1 * update.norm()
    assert sum(weights.numel() for weights in pipe.unet.parameters()) * 4 < 2.5e9
