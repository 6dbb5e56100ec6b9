import keras
import numpy as np
import pytest

from kattn import spans
from kattn.grid import Grid
from kattn.spans import Cells, Places, Span, coordinates
from tests.compute import run

ARRAY = np.arange(2 * 5 * 7).reshape(2, 5, 7).astype("float32")


def test_spans_along_the_axes_of_scores():
    assert run(Span(2, 3).along, -2).tolist() == [[[[2], [3], [4]]]]
    assert run(Span(2, 3).along, -1).tolist() == [[[[2, 3, 4]]]]
    several = Span(np.array([0, 4], "int32"), 2)
    assert run(several.along, -1).tolist() == [[[[[0, 1]]]], [[[[4, 5]]]]]
    assert run(Span(2, 3).shift(5).positions).tolist() == [7, 8, 9]


def test_places_along_the_axes_of_scores():
    places = Places(np.array([[5, 2], [0, 1]], "int32"))
    assert run(places.along, -2).tolist() == [[[[5], [2]]], [[[0], [1]]]]
    assert run(places.along, -1).tolist() == [[[[5, 2]]], [[[0, 1]]]]
    assert run(lambda: places.shift(1).index).tolist() == [[6, 3], [1, 2]]


@pytest.mark.parametrize("axis", [-1, -2])
def test_cuts(axis):
    at = axis % 3
    np.testing.assert_array_equal(
        run(Span(1, 3).cut, ARRAY, axis), np.take(ARRAY, range(1, 4), axis)
    )
    several = run(Span(np.array([-1, 3], "int32"), 2).cut, ARRAY, axis)  # clipped at 0
    np.testing.assert_array_equal(several[0], np.take(ARRAY, [0, 0], axis))
    np.testing.assert_array_equal(several[1], np.take(ARRAY, [3, 4], axis))
    places = np.array([[4, 0, 2], [1, 1, 3]], "int32")
    found = run(Places(places).cut, ARRAY, axis)
    for b in range(2):
        np.testing.assert_array_equal(found[b], np.take(ARRAY[b], places[b], at - 1))


def test_cut_block_and_pad_block():
    found = run(spans.cut_block, ARRAY, Span(1, 3), Span(2, 4))
    np.testing.assert_array_equal(found, ARRAY[:, 1:4, 2:6])
    one = run(spans.cut_block, ARRAY[:, :1], Span(1, 3), Span(2, 4))
    np.testing.assert_array_equal(one, ARRAY[:, :1, 2:6])
    padded = run(spans.pad_block, ARRAY, 2, 3)
    np.testing.assert_array_equal(padded, np.pad(ARRAY, ((0, 0), (0, 2), (0, 3))))
    assert run(spans.pad_block, ARRAY[:, :1], 2, 3).shape == (2, 1, 10)


def test_cells():
    """Some of them outside of the map, of which nothing may be asked but where they are."""
    rows, columns = np.array([[-1, 0, 1, 2], [0, 1, 1, 0]]), np.array([[0, 2, 1, 1], [0, 3, 0, 1]])
    as_tensor = keras.ops.convert_to_tensor
    cells = Cells((as_tensor(rows, "int32"), as_tensor(columns, "int32")), (2, 3))
    inside = (rows >= 0) & (rows < 2) & (columns < 3)
    np.testing.assert_array_equal(run(lambda: cells.is_inside), inside)
    np.testing.assert_array_equal(run(lambda: cells.index)[inside], (3 * rows + columns)[inside])
    array = np.arange(12.0).reshape(2, 6)
    found = run(cells.cut, as_tensor(array, "float32"), -1)
    assert found.shape == (2, 2, 4)
    wanted = array[:, np.clip(3 * rows + columns, 0, 5)].swapaxes(0, 1)
    np.testing.assert_array_equal(found.swapaxes(1, 2)[inside], wanted.swapaxes(1, 2)[inside])
    assert run(cells.along, -2).shape == (2, 1, 1, 4, 1)
    assert run(cells.along, -1).shape == (2, 1, 1, 1, 4)


def test_coordinates():
    """Of numbers of cells, and of cells, which may lie outside."""
    grid = Grid((2, 3))
    found = run(lambda: coordinates(Span(2, 2), grid, -1))
    np.testing.assert_array_equal(np.squeeze(found), [[0, 1], [2, 0]])
    place = keras.ops.convert_to_tensor(np.array([[-1, 4]], "int32"))
    found = run(lambda: coordinates(Cells((place, place), (2, 3)), grid, -2))
    np.testing.assert_array_equal(np.squeeze(found), [[-1, 4], [-1, 4]])
