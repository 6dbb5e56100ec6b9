import itertools

import keras
import numpy as np
import pytest
from keras import ops

from kattn.grid import Grid
from tests.compute import compiled, run

SIDES = [(6,), (2, 3), (3, 1, 4)]


def cells(sides):
    """Coordinates of all cells, the last axis fastest."""
    return list(itertools.product(*map(range, sides)))


def centers(side, stride):
    """Middle of each window of a pooling with "same" padding, of which half goes before."""
    count = -(-side // stride)
    before = (count * stride - side) // 2
    starts = [window * stride - before for window in range(count)]
    return [np.mean(range(start, start + stride)) for start in starts]


@pytest.mark.parametrize("sides", SIDES)
def test_cells_are_counted_row_by_row(sides):
    grid = Grid(sides)
    assert (grid.rank, grid.size) == (len(sides), len(cells(sides)))
    assert grid.coordinates().dtype == "int32"
    np.testing.assert_array_equal(grid.coordinates(), cells(sides))
    np.testing.assert_array_equal(run(grid.cells), cells(sides))
    assert [grid.unravel(index) for index in range(grid.size)] == cells(sides)
    found = run(grid.unravel, ops.arange(grid.size))
    np.testing.assert_array_equal(np.stack(found, axis=-1), cells(sides))


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_of_a_pooling(sides, stride):
    assert Grid(sides, stride).keys == Grid(tuple(-(-side // stride) for side in sides))
    found = run(Grid(sides, stride).key_positions)
    assert found.dtype == ("int32" if stride == 1 else "float32")
    expected = list(itertools.product(*(centers(side, stride) for side in sides)))
    np.testing.assert_array_equal(found, expected)


def test_a_pooled_map_has_as_many_cells():
    x = ops.ones((2, 5, 7, 3))
    pooled = ops.max_pool(x, 3, 3, padding="same", data_format="channels_last")
    assert Grid.of_map(x, 3).keys == Grid.of_map(pooled)


def test_maps_are_flattened_and_back(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    grid = Grid.of_map(x)
    assert grid.sides == (3, 4)
    flat = run(grid.flatten, x)
    for index, (row, column) in enumerate(cells((3, 4))):
        np.testing.assert_array_equal(flat[:, index], x[:, row, column])
    np.testing.assert_array_equal(run(grid.unflatten, flat), x)


def of_a_map(x):
    grid = Grid.of_map(x, key_stride=2)
    numbers = (grid.coordinates(), grid.cells(), grid.key_positions())
    return *(ops.cast(array, "float32") for array in numbers), grid.unflatten(grid.flatten(x))


def test_inside_a_compiled_function(rng):
    x = ops.convert_to_tensor(rng.normal(size=(2, 5, 4, 3)).astype("float32"))
    for found, wanted in zip(run(compiled(of_a_map), x), run(of_a_map, x), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="only TensorFlow runs with unknown sides"
)
def test_sides_that_only_the_run_knows(rng):
    import tensorflow as tf

    x = rng.normal(size=(2, 5, 4, 3)).astype("float32")
    unknown = [tf.TensorSpec((None, None, None, 3))]
    function = tf.function(of_a_map, input_signature=unknown, autograph=False)
    for found, wanted in zip(run(function, x), run(of_a_map, x), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_sides_that_are_not_known():
    grid = Grid.of_map(keras.KerasTensor((None, None, 4, 3)))
    assert grid.sides == (None, 4)
    assert grid.size is None
    assert not grid.is_static
    assert Grid((None, 4), 3).keys.sides == (None, 2)
    assert Grid((3, 4)).is_static


def test_equal_sides_are_equal_grids():
    assert Grid([2, 3]) == Grid((2, 3))
    assert Grid((2, 3)) != Grid((3, 2))
    assert {Grid((2, 3)): "a"}[Grid([2, 3])] == "a"


BAD = {
    "no sides": (lambda: Grid(()), r"`sides` of a grid must be one or more .* sides=\(\)"),
    "a number": (lambda: Grid(4), r"`sides` of a grid must be .* sides=4"),
    "negative": (lambda: Grid((2, -1)), r"`sides` of a grid must be .* sides=\(2, -1\)"),
    "a fraction": (lambda: Grid((2.0,)), r"`sides` of a grid must be .* sides=\(2\.0,\)"),
    "a bool": (lambda: Grid((True, 2)), r"`sides` of a grid must be .* sides=\(True, 2\)"),
    "no map": (lambda: Grid.of_map(np.zeros((2, 3))), r"`x` must be a map .* x\.shape=\(2, 3\)"),
    "stride": (lambda: Grid((2,), 0), "`key_stride` must be an integer >= 1.*key_stride=0"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
