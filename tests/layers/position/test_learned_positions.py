"""LearnedPositions against a sum written element by element."""

import keras
import numpy as np
import pytest

from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.learned_positions import LearnedPositions
from tests import checks
from tests.compute import assert_close, run


def build(x, **options):
    """A layer of 7 positions that has seen `x`, and its table."""
    layer = LearnedPositions(7, **options)
    layer.build(x.shape)
    checks.shake(layer)
    return layer, run(keras.ops.convert_to_tensor, layer.table).astype(float)


def oracle(x, table, axis, positions=None):
    """`positions` is `(B, T)`."""
    y = np.array(x, np.float64)
    for place in np.ndindex(*x.shape):
        index = place[axis] if positions is None else positions[place[0], place[axis]]
        y[place] += table[index, place[-1]]
    return y


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 5, 4), 1),
        ((3, 5, 4), -2),
        ((3, 7, 4), 1),
        ((2, 5, 6, 3), 1),
        ((2, 5, 6, 3), 2),
        ((2, 5, 6, 3), -3),
        ((2, 3, 4, 5, 6), 2),
        ((2, 3, 4, 5, 6), 3),
    ],
)
def test_matches_oracle(rng, shape, axis):
    x = rng.normal(size=shape).astype("float32")
    layer, table = build(x, axis=axis)
    assert table.shape == (7, shape[-1])
    assert_close(run(layer, x), oracle(x, table, axis))


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 4), 1), ((3, 4, 5, 2), 2), ((3, 5, 4, 2), 1)])
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_explicit_positions(rng, shape, axis, batch):
    x, positions = rng.normal(size=shape).astype("float32"), rng.integers(0, 7, size=(*batch, 5))
    layer, table = build(x, axis=axis)
    expected = oracle(x, table, axis, np.broadcast_to(positions, (3, 5)))
    assert_close(run(layer, x, positions=positions), expected)


def test_the_table_is_small_at_first():
    layer = LearnedPositions(64)
    layer.build((None, None, 64))
    table = run(keras.ops.convert_to_tensor, layer.table)
    assert 0.015 < table.std() < 0.02
    assert np.abs(table).max() <= 0.04


def test_initializer_and_regularizer():
    layer = LearnedPositions(3, initializer="ones", regularizer=keras.regularizers.L2(0.5))
    layer.build((None, None, 4))
    np.testing.assert_array_equal(run(keras.ops.convert_to_tensor, layer.table), np.ones((3, 4)))
    assert_close(run(keras.ops.convert_to_tensor, layer.losses[0]), 6.0)


def test_attached_once(rng):
    layer = LearnedPositions(7)
    layer.attach(width=4, num_heads=2, key_dim=3)
    table = layer.table
    layer.attach(width=4, num_heads=1, key_dim=9)
    assert layer.table is table
    assert len(layer.weights) == 1
    checks.shake(layer)
    x = rng.normal(size=(3, 5, 4)).astype("float32")
    values = run(keras.ops.convert_to_tensor, table)
    for function in (layer, layer.embed):
        assert_close(run(function, keras.ops.convert_to_tensor(x)), oracle(x, values, 1))
    with pytest.raises(
        ValueError, match=r"was built for width=4; it cannot be shared with width=5\."
    ):
        layer.attach(width=5, num_heads=2, key_dim=3)
    with pytest.raises(
        ValueError, match=r"width of the table; received: width=3, width of the table=4"
    ):
        layer.embed(x[..., :3])


def test_the_mask_is_kept(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    keep = checks.some_padding(x)
    x[~keep] = 0.0
    node = keras.Input((5, 8))
    output = LearnedPositions(7)(keras.layers.Masking()(node))
    mask = keras.Model(node, output._keras_mask).predict(x, verbose=0)
    np.testing.assert_array_equal(mask, keep)


def test_positions_of_a_functional_model(rng):
    node, places = keras.Input((None, 4)), keras.Input((None,), dtype="int32")
    layer = LearnedPositions(7)
    model = keras.Model([node, places], layer(node, positions=places))
    checks.shake(layer)
    x, positions = rng.normal(size=(3, 5, 4)).astype("float32"), rng.integers(0, 7, size=(3, 5))
    table = run(keras.ops.convert_to_tensor, layer.table)
    assert_close(model.predict([x, positions], verbose=0), oracle(x, table, 1, positions))


def make(**options):
    return LearnedPositions(
        **{"length": 7, "axis": -2, "initializer": "he_normal", "regularizer": "l2", **options}
    )


def test_battery(rng):
    options = {"masked": False, "dropout": False, "fixture": "learned_positions"}
    checks.check_layer(make, [rng.normal(size=(3, 5, 4))], **options)


def test_decoding(rng):
    checks.check_decoding(make, [rng.normal(size=(3, 5, 4)).astype("float32")])


def test_steps_for_which_there_is_no_position(rng):
    layer, _ = build(rng.normal(size=(3, 5, 4)))
    with pytest.raises(ValueError, match=r"a position for each step.*length=8.*of the table=7"):
        layer.init_cache(3, 8)
    layer, _ = build(rng.normal(size=(3, 5, 6, 4)), axis=2)
    with pytest.raises(ValueError, match=r"Steps lie on axis 1.*axis=2"):
        layer.init_cache(3, 5)


def test_battery_of_images(rng):
    def columns(**options):
        return make(axis=2, **options)

    x = rng.normal(size=(2, 3, 5, 4))
    checks.check_layer(columns, [x], masked=False, dropout=False)


def test_it_is_absolute():
    assert issubclass(LearnedPositions, InputPosition)
    assert LearnedPositions.is_absolute


BAD = {
    "length": ({"length": 0}, "`length` must be an integer >= 1.*length=0"),
    "length of a fraction": ({"length": 2.0}, r"`length` must be.*length=2\.0"),
    "batch": ({"axis": 0}, "`axis` must be an integer, and neither 0.*axis=0"),
    "width": ({"axis": -1}, "`axis` must be an integer, and neither 0.*axis=-1"),
    "axis": ({"axis": None}, "`axis` must be an integer, and neither 0.*axis=None"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        LearnedPositions(**{"length": 7, **options})


@pytest.mark.parametrize("axis", [2, 3, -3])
def test_no_such_axis(axis):
    with pytest.raises(ValueError, match=rf"between the first and the last.*axis={axis}, .*\(2, 5"):
        LearnedPositions(7, axis=axis)(np.ones((2, 5, 3), "float32"))


def test_bad_input():
    x = np.ones((2, 5, 3), "float32")
    with pytest.raises(ValueError, match=r"longer than `length`.*\(2, 5, 3\), axis=1, length=4"):
        LearnedPositions(4)(x)
    with pytest.raises(ValueError, match=r"longer than `length`.*axis=1, length=4"):
        LearnedPositions(4)(keras.Input((5, 3)))
    with pytest.raises(ValueError, match=r"The width of `x` must be known.*width=None"):
        LearnedPositions(7)(keras.Input((5, None)))
    with pytest.raises(ValueError, match=r"`positions` must be integers.*float32"):
        LearnedPositions(7)(x, positions=np.ones(5, "float32"))
    for shape in ((4,), (3, 5), (2, 5, 1), ()):
        with pytest.raises(ValueError, match=r"`positions` must have shape.*\(B, T\)=\(2, 5\)"):
            LearnedPositions(7)(x, positions=np.ones(shape, "int32"))
