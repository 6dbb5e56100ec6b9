"""AttentionGate1D, AttentionGate2D and AttentionGate3D against eq. 1 and 2 of their paper."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import AttentionGate1D, AttentionGate2D, AttentionGate3D
from tests import checks
from tests.checks import shake, with_mask
from tests.compute import assert_close, result, run
from tests.layers.spatial.gate_checks import (
    CHANNELS,
    FIRST,
    LAST,
    laid_out,
    maps,
    sigmoid,
    weights_of,
)

GATES = {1: AttentionGate1D, 2: AttentionGate2D, 3: AttentionGate3D}
# Sides that divide those of the maps of `gate_checks`, that do not, and that are finer.
COARSE = {1: (3,), 2: (2, 4), 3: (3, 1, 5)}
GATE_CHANNELS = 4
OPTIONS = {
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}


def make(hidden_dim=5, *, rank=2, **options):
    return GATES[rank](hidden_dim, **{**OPTIONS, **options})


def two_maps(rank):
    """Maps, their gating signals, and which cells of each are real."""
    x, keep = maps(rank)
    rng = np.random.default_rng(rank + 10)
    gate = rng.normal(size=(3, *COARSE[rank], GATE_CHANNELS)).astype("float32")
    real = rng.uniform(size=gate.shape[:-1]) < 0.6
    real[1] = False
    real[1].flat[0] = True  # too far from most cells
    return x, gate, keep, real


def built(x, gate, **options):
    layer = make(**options)
    shake(layer, [x, gate])
    return layer


def near(gate, real, place):
    """What a gating signal is at a place: a mean of the real cells that are near, or 0."""
    total, mean = 0.0, np.zeros(gate.shape[-1])
    for cell in np.argwhere(real):
        weight = np.prod([max(0.0, 1 - abs(p - c)) for p, c in zip(place, cell, strict=True)])
        total, mean = total + weight, mean + weight * gate[tuple(cell)]
    return mean / total if total > 0 else mean


def oracle(x, gate, real, weights):
    """Oktay et al. 2018, eq. 1 and 2, for each cell of one item."""
    alpha, coarse = np.zeros(x.shape[:-1]), gate.shape[:-1]
    for cell in itertools.product(*map(range, alpha.shape)):
        place = [(c + 0.5) * n / m - 0.5 for c, n, m in zip(cell, coarse, alpha.shape, strict=True)]
        place = [min(max(p, 0.0), n - 1.0) for p, n in zip(place, coarse, strict=True)]
        hidden = x[cell] @ weights["features/kernel"] + weights.get("features/bias", 0.0)
        hidden = hidden + near(gate, real, place) @ weights["gate/kernel"]
        score = np.maximum(hidden, 0) @ weights["energy/kernel"][:, 0]
        alpha[cell] = sigmoid(score + weights.get("energy/bias", [0.0])[0])
    return alpha


def with_holes(x, keep, data_format):
    return laid_out(np.where(keep[..., None], x, np.float32(np.nan)), data_format)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_matches_oracle(rank, data_format):
    x, gate, keep, real = two_maps(rank)
    given = [laid_out(each, data_format) for each in (x, gate)]
    layer = built(*given, rank=rank, data_format=data_format)
    weights = weights_of(layer)
    for of_x, of_gate in ((np.ones_like(keep), np.ones_like(real)), (keep, real)):
        items = zip(np.float64(x), np.float64(gate), of_gate, strict=True)
        alpha = np.stack([oracle(*item, weights) for item in items]) * of_x
        expected = laid_out(np.where(of_x, alpha, 0)[..., None] * x, data_format)
        holes = with_holes(x, of_x, data_format), with_holes(gate, of_gate, data_format)
        if of_x.all():
            assert_close(result(layer, *holes), expected)
            assert_close(result(layer.attention_weights, *holes), alpha)
        mask, gate_mask = map(ops.convert_to_tensor, (of_x, of_gate))
        options = {"mask": mask, "gate_mask": gate_mask}
        assert_close(result(layer, *holes, **options), expected)
        found = result(layer.attention_weights, *holes, **options)
        assert_close(found, alpha)
        assert (found[~of_x] == 0).all()
        implicit = with_mask(layer, mask)
        assert_close(result(implicit, *holes, gate_mask=gate_mask), expected)
        implicit = with_mask(layer, gate_mask, 1)
        assert_close(result(implicit, *holes, mask=mask), expected)


def test_default_widths_and_no_bias():
    layer = AttentionGate2D(use_bias=False)
    layer.build((None, 5, 4, 6), (None, 2, 2, 8))
    shapes = {name: weight.shape for name, weight in weights_of(layer).items()}
    assert shapes == {"features/kernel": (6, 3), "gate/kernel": (8, 3), "energy/kernel": (3, 1)}
    narrow = AttentionGate1D()
    narrow.build((None, 5, 1), (None, 2, 8))
    assert weights_of(narrow)["energy/kernel"].shape == (1, 1)


def sequences(**options):
    return make(rank=1, **options)


BATTERY = (
    checks.check_config,
    checks.check_sublayers,
    checks.check_precision,
    checks.check_training,
    checks.check_compiled,
    checks.check_saving,
    checks.check_masks,
    checks.check_ways_in,
)


@pytest.mark.parametrize("check", BATTERY)
def test_battery(check):
    """All but what more padding changes: where the cells of the two maps lie beside each other."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape).astype("float32") for shape in ((3, 5, 8), (3, 4, 6))]
    check(sequences, inputs)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("check", [checks.check_config, checks.check_saving])
def test_other_ranks_have_configs_of_their_own(check, rank):
    check(lambda **options: make(rank=rank, **options), two_maps(rank)[:2])


def test_saved_elsewhere():
    checks.check_fixture(make, "attention_gate")


def test_half_precision_of_volumes_under_a_mask():
    """Where one real cell of the gating signal is far away, its share is a thousandth."""
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 16, 4)).astype("float32")
    gate = np.ones((1, 2, 2, 2, 3), "float32")
    real = np.zeros(gate.shape[:-1], bool)
    real[0, 0, 0, 0] = True
    layer, half = built(x, gate, rank=3), built(x, gate, rank=3, dtype="mixed_float16")
    half.set_weights(layer.get_weights())
    options = {"gate_mask": ops.convert_to_tensor(real)}
    found = result(half.attention_weights, x, gate, **options)
    assert_close(found, result(layer.attention_weights, x, gate, **options), 1e-2)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_unknown_sides(data_format):
    """One model serves maps of any sides, each with a gating signal of any sides."""
    shapes = [(None, None, CHANNELS), (None, None, GATE_CHANNELS)]
    shapes = [shape if data_format == LAST else (shape[-1], *shape[:-1]) for shape in shapes]
    layer, nodes = make(data_format=data_format), [keras.Input(shape) for shape in shapes]
    model = keras.Model(nodes, layer(*nodes))
    shake(layer)
    assert model.output_shape == (None, *shapes[0])
    rng = np.random.default_rng(0)
    for sides, coarse in (((5, 4), (2, 2)), ((3, 7), (3, 7)), ((6, 2), (1, 3))):
        x, gate = rng.normal(size=(2, *sides, 6)), rng.normal(size=(2, *coarse, 4))
        given = [laid_out(each.astype("float32"), data_format) for each in (x, gate)]
        assert_close(model.predict(given, verbose=0), result(layer, *given))


def test_the_gate_learns_from_both_maps(rng):
    """A gate that the signal opens and closes: no cell passes where it says no."""
    layer = AttentionGate1D(1)
    layer.build((None, 8, 2), (None, 4, 1))
    kernels = [np.zeros((2, 1)), np.zeros(1), [[1.0]], [[100.0]], [-50.0]]
    layer.set_weights([np.asarray(kernel, "float32") for kernel in kernels])
    x = rng.normal(size=(1, 8, 2)).astype("float32")
    found = result(layer, x, np.array([[[1.0], [1.0], [0.0], [0.0]]], "float32"))
    expected = np.where(np.arange(8)[:, None] < 4, x, 0)
    assert np.abs(found - expected).max() < 1e-4


def test_an_explicit_mask_is_joined_with_that_of_keras():
    x, gate, keep, real = two_maps(2)
    layer = built(x, gate)
    other = np.ones_like(keep)
    other[0, :2] = False
    masked = with_mask(layer, ops.convert_to_tensor(keep))
    checks.assert_output_mask(masked, [x, gate], keep, gate_mask=ops.convert_to_tensor(real))
    found = result(masked, x, gate, mask=ops.convert_to_tensor(other))
    assert_close(found, result(layer, x, gate, mask=ops.convert_to_tensor(keep & other)))


X, GATE = np.zeros((3, 5, 4, 6), "float32"), np.zeros((3, 2, 2, 4), "float32")
BAD = [
    (X[0], GATE, {}, r"`x` must be a batch of maps with 2 sides, of rank 4; .*x\[None\].*4, 6\)"),
    (X, GATE[0], {}, r"`gate` must be a batch of maps with 2 sides.*gate.shape=\(2, 2, 4\)"),
    (X, GATE[:, :0], {}, r"`gate` must have cells where `x` has.*gate.shape=\(3, 0, 2, 4\)"),
    (X, GATE, {"mask": GATE[..., 0] > 0}, r"`mask` must have the sides .*mask.shape=\(3, 2, 2\)"),
    (X, GATE, {"gate_mask": X[..., 0] > 0}, r"`gate_mask` must have the sides .*\(3, 5, 4\)"),
    (X, GATE, {"gate_mask": GATE[..., 0]}, "`gate_mask` must be boolean.*float32"),
]


@pytest.mark.parametrize(("x", "gate", "options", "message"), BAD)
def test_bad_input(x, gate, options, message):
    with pytest.raises(ValueError, match=message):
        make()(x, gate, **options)


def test_other_maps_than_it_was_built_for():
    layer = built(X, GATE)
    with pytest.raises(ValueError, match=r"`gate` must be a map with the 2 sides and 4 channels"):
        run(layer, X, GATE[..., :3])
    with pytest.raises(ValueError, match=r"`x` must be a map with the 2 sides and 6 channels"):
        run(layer, X[..., :3], GATE)
    with pytest.raises(ValueError, match=r"with 1 side, of rank 3; .*x.shape=\(3, 5, 4, 6\)"):
        AttentionGate1D()(X, GATE)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`hidden_dim` must be an integer >= 1.*hidden_dim=0"):
        make(0)
    with pytest.raises(ValueError, match="`data_format` must be one of channels_last, "):
        make(data_format="NCHW")
    with pytest.raises(ValueError, match="`gate` must have a known number of channels"):
        make()(keras.Input((5, 4, 6)), keras.Input((5, 4, None)))
