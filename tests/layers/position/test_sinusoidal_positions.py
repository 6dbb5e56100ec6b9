"""SinusoidalPositions against Vaswani et al. 2017, sec. 3.5, channel by channel."""

import math

import keras
import numpy as np
import pytest

from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.sinusoidal_positions import SinusoidalPositions
from tests import checks
from tests.compute import assert_close, compiled, run

POSITIONS = {
    "(T,)": np.array([3, 0, 7, 100, 2]),
    "(B, T)": np.array([[3, 0, 7, 100, 2], [5, 5, -6, 1, 0], [0, 1, 2, 3, 4]]),
    "floats": np.array([0.5, -1.25, 3.0, 60.75, 2.0]),
}
# Of an odd width on two axes, and of one that three do not divide.
PARTS = {(8, 2): [4, 4], (11, 2): [6, 5], (10, 3): [4, 4, 2], (7, 3): [2, 2, 3], (6, 3): [2, 2, 2]}


def wave(position, width, base):
    """PE of one position."""
    found = []
    for channel in range(width):
        angle = position / base ** (2.0 * (channel // 2) / width)
        found.append(math.cos(angle) if channel % 2 else math.sin(angle))
    return found


def oracle(x, positions, base=10000.0, scale=1.0, sizes=None):
    """`positions` is `(T, A)` or `(B, T, A)`; `sizes` are the channels of each axis."""
    y = np.array(x, np.float64)
    sizes = sizes or [x.shape[-1]]
    positions = np.broadcast_to(np.float64(positions), (*y.shape[:2], len(sizes)))
    for b, t in np.ndindex(*y.shape[:2]):
        waves = [wave(p, size, base) for p, size in zip(positions[b, t], sizes, strict=True)]
        y[b, t] += scale * np.concatenate(waves)
    return y


@pytest.mark.parametrize("width", [2, 7, 8])
def test_matches_oracle(rng, width):
    x = rng.normal(size=(3, 5, width)).astype("float32")
    layer = SinusoidalPositions()
    assert_close(run(layer, x), oracle(x, np.arange(5)[:, None]))
    assert_close(run(layer.embed, keras.ops.convert_to_tensor(x)), run(layer, x))


@pytest.mark.parametrize("name", POSITIONS)
def test_explicit_positions(rng, name):
    x, positions = rng.normal(size=(3, 5, 7)).astype("float32"), POSITIONS[name]
    expected = oracle(x, positions[..., None], 50.0, 0.5)
    assert_close(run(SinusoidalPositions(50.0, scale=0.5), x, positions=positions), expected)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("width", "axes"), PARTS)
def test_axes(rng, width, axes, batch):
    x = rng.normal(size=(3, 5, width)).astype("float32")
    positions = rng.integers(0, 30, size=(*batch, 5, axes))
    found = run(SinusoidalPositions(axes=axes), x, positions=positions)
    assert_close(found, oracle(x, positions, sizes=PARTS[width, axes]))


def test_cells_of_a_grid(rng):
    x = rng.normal(size=(2, 6, 8)).astype("float32")
    cells = np.array([[i, j] for i in range(2) for j in range(3)])
    found = run(SinusoidalPositions(axes=2, grid=(2, 3)), x)
    assert_close(found, oracle(x, cells, sizes=[4, 4]))


def test_a_shift_is_a_rotation():
    """Sec. 3.5: P[p + k] is a linear function of P[p], the same for all p."""
    table = run(SinusoidalPositions(), np.zeros((1, 40, 8), "float32"))[0]
    products = table @ table.T
    assert_close(products[3:, 3:], products[:-3, :-3])


@pytest.mark.parametrize(
    ("policy", "rounding"), [("mixed_float16", 2**-11), ("mixed_bfloat16", 2**-9)]
)
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_half_precision_far_away(policy, rounding, dtype):
    """A position above 2048 is none in float16, and above 65504 infinite."""
    x, positions = np.zeros((1, 5, 12), "float32"), (100001 + np.arange(5)).astype(dtype)
    y = SinusoidalPositions(dtype=policy)(x, positions=keras.ops.convert_to_tensor(positions))
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    found = run(keras.ops.cast, y, "float32")
    assert_close(found, oracle(x, positions[:, None]), 1.2 * rounding)


def test_the_mask_is_kept(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    keep = checks.some_padding(x)
    x[~keep] = 0.0
    node = keras.Input((5, 8))
    output = SinusoidalPositions()(keras.layers.Masking()(node))
    mask = keras.Model(node, output._keras_mask).predict(x, verbose=0)
    np.testing.assert_array_equal(mask, keep)


def test_positions_of_a_functional_model(rng):
    node, places = keras.Input((None, 11)), keras.Input((None, 2), dtype="int32")
    model = keras.Model([node, places], SinusoidalPositions(axes=2)(node, positions=places))
    x = rng.normal(size=(3, 5, 11)).astype("float32")
    positions = rng.integers(0, 30, size=(3, 5, 2))
    assert_close(model.predict([x, positions], verbose=0), oracle(x, positions, sizes=[6, 5]))


def test_positions_of_a_compiled_call(rng):
    layer, x = SinusoidalPositions(), rng.normal(size=(3, 5, 7)).astype("float32")
    tensors = [keras.ops.convert_to_tensor(a) for a in (x, POSITIONS["(B, T)"].astype("int32"))]
    found = run(compiled(lambda x, p: layer(x, positions=p)), *tensors)
    assert_close(found, oracle(x, POSITIONS["(B, T)"][..., None]))


def make(**options):
    return SinusoidalPositions(**{"base": 50.0, "scale": 0.5, **options})


def make_2d(**options):
    return make(**{"axes": 2, "grid": (2, 3), **options})


@pytest.mark.parametrize("check", ["config", "sublayers", "precision", "compiled", "saving"])
@pytest.mark.parametrize("maker", [make, make_2d])
def test_battery(rng, check, maker):
    """But for training: there are no weights."""
    getattr(checks, f"check_{check}")(maker, [rng.normal(size=(3, 6, 7)).astype("float32")])


def test_models_of_other_backends():
    checks.check_fixture(make, "sinusoidal_positions")


def test_unknown_sizes(rng):
    checks.check_unknown_sizes(make, [rng.normal(size=(3, 6, 7)).astype("float32")])


def test_decoding(rng):
    checks.check_decoding(make, [rng.normal(size=(3, 5, 7)).astype("float32")])
    layer = make_2d()
    layer.build((3, 6, 7))
    with pytest.raises(ValueError, match=r"positions on one axis only.*axes=2"):
        layer.init_cache(3, 6)


def test_it_is_absolute():
    assert issubclass(SinusoidalPositions, InputPosition)
    assert SinusoidalPositions.is_absolute
    assert not make().weights


BAD = {
    "base": ({"base": 1}, "`base` must be a number above 1; received: base=1"),
    "axes": ({"axes": 0}, "`axes` must be an integer >= 1.*axes=0"),
    "grid": ({"grid": (2, 3)}, r"`grid` must be None or hold.*grid=\(2, 3\), axes=1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        SinusoidalPositions(**options)


def test_bad_input():
    x = np.ones((2, 5, 3), "float32")
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(2, 5\)"):
        SinusoidalPositions()(x[..., 0])
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(2, 5\)"):
        SinusoidalPositions().embed(x[..., 0])
    with pytest.raises(ValueError, match=r"twice the number of axes.*width=3, axes=2"):
        SinusoidalPositions(axes=2, grid=(1, 5))(x)
    with pytest.raises(ValueError, match=r"twice the number of axes.*width=3, axes=2"):
        SinusoidalPositions(axes=2).attach(width=3, num_heads=1, key_dim=3)
    with pytest.raises(ValueError, match=r"`positions` must have shape.*shape=\(4,\)"):
        SinusoidalPositions()(x, positions=np.arange(4))
    with pytest.raises(ValueError, match=r"no default positions without `grid`.*axes=2"):
        SinusoidalPositions(axes=2)(np.ones((2, 5, 4), "float32"))
