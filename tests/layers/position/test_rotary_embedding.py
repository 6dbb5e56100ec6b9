"""RotaryEmbedding against RoFormer, position interpolation and YaRN, pair by pair."""

import math

import keras
import numpy as np
import pytest

from kattn.layers.position.head_position import HeadPosition
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from tests import checks
from tests import rotary_oracle as oracle
from tests.compute import assert_close, compiled, run

YARN = {"scaling": "yarn", "factor": 4.0, "original_length": 90}
TURNS = {"beta_fast": 8.0, "beta_slow": 0.5}
SCALED = {
    "none": {"base": 300.0},
    "linear": {"scaling": "linear", "factor": 3.0},
    "ntk": {"scaling": "ntk", "factor": 3.0},
    "yarn": YARN,
    "yarn with turns": {**YARN, **TURNS},
    "llama3": {**YARN, **TURNS, "scaling": "llama3"},
}
PLACES = np.array([[3, 0, 7, 100, 2, 9], [5, 5, -6, 1, 0, 40], [0, 1, 2, 3, 4, 5]])


def inputs(rng):
    """B=3, T=6, N=2, D=12."""
    return rng.normal(size=(3, 6, 2, 12)).astype("float32")


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("case", SCALED)
def test_matches_oracle(rng, case, interleaved):
    """Two thirds of the channels: pairs are those of 8."""
    x, options = inputs(rng), SCALED[case]
    layer = RotaryEmbedding(fraction=2 / 3, interleaved=interleaved, **options)
    frequencies = oracle.frequencies(8, **options)[None]
    scale = 0.1 * math.log(4.0) + 1.0 if "yarn" in case else 1.0
    for positions in (None, PLACES[0], PLACES, PLACES + 0.5):
        places = np.arange(6) if positions is None else positions
        found = run(layer, x, positions=positions)
        expected = oracle.rotate(x, places[..., None], frequencies, interleaved, scale)
        assert_close(found, expected)
        np.testing.assert_array_equal(found[..., 8:], x[..., 8:])


def test_the_default_turns_every_channel(rng):
    x = inputs(rng)
    expected = oracle.rotate(x, np.arange(6)[:, None], oracle.frequencies(12)[None])
    assert_close(run(RotaryEmbedding(), x), expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("axes", "fraction", "width"), [(2, 1.0, 6), (3, 1.0, 4), (2, 2 / 3, 4)])
def test_axes_are_rotations_of_their_parts(rng, axes, fraction, width, interleaved):
    x, positions = inputs(rng), rng.integers(0, 30, size=(3, 6, axes))
    layer = RotaryEmbedding(axes=axes, fraction=fraction, interleaved=interleaved)
    found = run(layer, x, positions=positions)
    one = RotaryEmbedding(interleaved=interleaved)
    for axis in range(axes):
        part = slice(axis * width, (axis + 1) * width)
        expected = run(one, x[..., part], positions=positions[..., axis])
        assert_close(found[..., part], expected)
    assert_close(found, oracle.rotate(x, positions, np.array([oracle.frequencies(width)] * axes),
                                      interleaved))  # fmt: skip


def test_cells_of_a_grid(rng):
    x = inputs(rng)
    cells = np.array([[i, j] for i in range(2) for j in range(3)])
    frequencies = np.array([oracle.frequencies(6)] * 2)
    for positions in (None, cells):
        found = run(RotaryEmbedding(axes=2, grid=(2, 3)), x, positions=positions)
        assert_close(found, oracle.rotate(x, cells, frequencies))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fraction": 0.5, "interleaved": True},
        {"scaling": "ntk", "factor": 4.0},
        {**YARN, **TURNS},
    ],
)
def test_products_depend_on_differences_only(rng, options):
    q, k = inputs(rng), inputs(rng)
    layer = RotaryEmbedding(base=100.0, **options)

    def scores(shift):
        turned = (run(layer, x, positions=np.arange(6) + shift) for x in (q, k))
        return np.einsum("btnd,bsnd->bnts", *turned)

    assert_close(scores(91), scores(0), 3e-5)


def test_norms_are_kept_but_for_the_temperature(rng):
    x = inputs(rng)
    for options, scale in (({}, 1.0), (YARN, 0.1 * math.log(4.0) + 1.0)):
        norms = np.linalg.norm(run(RotaryEmbedding(**options), x), axis=-1)
        assert_close(norms, scale * np.linalg.norm(x, axis=-1))


def test_linear_scaling_divides_positions(rng):
    x = inputs(rng)
    found = run(RotaryEmbedding(scaling="linear", factor=4.0), x, positions=PLACES)
    assert_close(found, run(RotaryEmbedding(), x, positions=PLACES / 4.0))


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones(rng):
    """Pairs of D = 8 turn 1000, 100, 10 and 1 times; the third is between."""
    x = rng.normal(size=(3, 6, 2, 8)).astype("float32")
    options = {"scaling": "yarn", "factor": 4.0, "original_length": 2000 * math.pi}
    scale = 0.1 * math.log(4.0) + 1.0
    found = run(RotaryEmbedding(**options), x, positions=PLACES) / scale
    plain = run(RotaryEmbedding(), x, positions=PLACES)
    slow = run(RotaryEmbedding(), x, positions=PLACES / 4.0)
    assert_close(found[..., [0, 1, 4, 5]], plain[..., [0, 1, 4, 5]])
    assert_close(found[..., [3, 7]], slow[..., [3, 7]])
    middle = [2, 6]
    assert np.abs(found[..., middle] - plain[..., middle]).max() > 0.1
    assert np.abs(found[..., middle] - slow[..., middle]).max() > 0.1


@pytest.mark.parametrize(
    ("policy", "rounding"), [("mixed_float16", 2**-11), ("mixed_bfloat16", 2**-9)]
)
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_half_precision_far_away(rng, policy, rounding, dtype):
    """A position above 2048 is none in float16, and above 65504 infinite."""
    half = policy.removeprefix("mixed_")
    x, positions = keras.ops.cast(inputs(rng), half), (100001 + np.arange(6)).astype(dtype)
    y = RotaryEmbedding(dtype=policy)(x, positions=keras.ops.convert_to_tensor(positions))
    assert keras.backend.standardize_dtype(y.dtype) == half
    rounded = run(keras.ops.cast, x, "float32")
    expected = oracle.rotate(rounded, positions[:, None], oracle.frequencies(12)[None])
    assert_close(run(keras.ops.cast, y, "float32"), expected, 1.2 * rounding)


def test_the_mask_is_kept(rng):
    x = inputs(rng)
    x[2] = x[1, 3:] = 0.0
    node = keras.Input((6, 2, 12))
    output = RotaryEmbedding()(keras.layers.Masking()(node))
    mask = keras.Model(node, output._keras_mask).predict(x, verbose=0)
    np.testing.assert_array_equal(mask, x.any(axis=-1))


def test_positions_of_a_functional_model(rng):
    node, places = keras.Input((None, 2, 12)), keras.Input((None,), dtype="int32")
    model = keras.Model([node, places], RotaryEmbedding()(node, positions=places))
    x = inputs(rng)
    expected = oracle.rotate(x, PLACES[..., None], oracle.frequencies(12)[None])
    assert_close(model.predict([x, PLACES], verbose=0), expected)


def test_positions_of_a_compiled_call(rng):
    layer, x = RotaryEmbedding(axes=2, **YARN), inputs(rng)
    positions = rng.integers(0, 30, size=(3, 6, 2)).astype("int32")
    tensors = [keras.ops.convert_to_tensor(array) for array in (x, positions)]
    found = run(compiled(lambda x, p: layer(x, positions=p)), *tensors)
    frequencies = np.array([oracle.frequencies(6, **YARN)] * 2)
    scale = 0.1 * math.log(4.0) + 1.0
    assert_close(found, oracle.rotate(x, positions, frequencies, scale=scale))


def make(**options):
    off = {"base": 50.0, "fraction": 2 / 3, "interleaved": True, **YARN, **TURNS}
    return RotaryEmbedding(**{**off, **options})


def make_2d(**options):
    return make(**{"axes": 2, "grid": (2, 3), **options})


@pytest.mark.parametrize("check", ["config", "sublayers", "precision", "compiled", "saving"])
@pytest.mark.parametrize("maker", [make, make_2d, RotaryEmbedding])
def test_battery(rng, check, maker):
    """But for training: there are no weights."""
    getattr(checks, f"check_{check}")(maker, [inputs(rng)])


def test_models_of_other_backends():
    checks.check_fixture(make, "rotary_embedding")


@pytest.mark.parametrize("maker", [make, RotaryEmbedding])
def test_unknown_sizes(rng, maker):
    checks.check_unknown_sizes(maker, [inputs(rng)])


def test_it_is_relative():
    assert issubclass(RotaryEmbedding, HeadPosition)
    assert not issubclass(RotaryEmbedding, InputPosition)
    assert not make().weights


BAD = {
    "base": ({"base": 1}, "`base` must be a finite number above 1.*base=1"),
    "fraction": ({"fraction": 0.0}, r"`fraction` must be a fraction in \(0, 1\].*fraction=0\.0"),
    "fraction above 1": (
        {"fraction": 1.5},
        r"`fraction` must be a fraction in \(0, 1\].*fraction=1\.5",
    ),
    "axes": ({"axes": 0}, "`axes` must be an integer >= 1.*axes=0"),
    "grid": ({"grid": (2, 3)}, r"`grid` must be None or hold.*grid=\(2, 3\), axes=1"),
    "scaling": ({"scaling": "dynamic"}, "`scaling` must be one of.*scaling='dynamic'"),
    "factor": ({"scaling": "linear", "factor": 0.5}, "`factor` must be a finite number >= 1.*=0.5"),
    "factor alone": ({"factor": 2.0}, r"needs a `scaling`.*factor=2\.0, scaling=None"),
    "length": (
        {"scaling": "yarn", "factor": 2.0},
        "needs an `original_length`.*original_length=None",
    ),
    "length of llama3": (
        {"scaling": "llama3", "factor": 2.0},
        "'llama3' needs an `original_length`.*original_length=None",
    ),
    "betas": (
        {**YARN, "beta_slow": 40.0},
        r"`beta_fast` must be above.*beta_fast=32\.0, beta_slow=40\.0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        RotaryEmbedding(**options)


@pytest.mark.parametrize(
    ("options", "width", "rotated"),
    [({}, 7, 7), ({"fraction": 0.5}, 6, 3), ({"axes": 2}, 6, 6), ({"fraction": 0.01}, 8, 0)],
)
def test_widths_that_make_no_pairs(options, width, rotated):
    layer = RotaryEmbedding(**options)
    message = rf"multiple of 2 \* `axes`.*rotated width={rotated}, .*width={width}"
    with pytest.raises(ValueError, match=message):
        layer.attach(width=2 * width, num_heads=2, key_dim=width)
    with pytest.raises(ValueError, match=message):
        layer(keras.Input((None, 2, width)))


def test_bad_input():
    x = np.ones((2, 6, 2, 8), "float32")
    for function in (RotaryEmbedding(), RotaryEmbedding().rotate):
        with pytest.raises(ValueError, match=r"`x` must have rank 4.*\(2, 6, 2\)"):
            function(x[..., 0])
    with pytest.raises(ValueError, match=r"`positions` must have shape \(T,\).*\(6, 2\)"):
        RotaryEmbedding()(x, positions=np.ones((6, 2)))
    with pytest.raises(ValueError, match=r"`positions` must have shape \(T, 2\).*\(6, 3\)"):
        RotaryEmbedding(axes=2)(x, positions=np.ones((6, 3)))
    with pytest.raises(ValueError, match=r"no default positions without `grid`.*axes=2"):
        RotaryEmbedding(axes=2)(x)
    with pytest.raises(ValueError, match=r"as many steps as `grid` has cells.*grid=\(2, 2\)"):
        RotaryEmbedding(axes=2, grid=(2, 2))(x)
    with pytest.raises(ValueError, match=r"'ntk' needs a `width` of at least 4.*width=2"):
        RotaryEmbedding(scaling="ntk", factor=2.0)(x[..., :2])
