"""Windows of maps against their definition, cell by cell."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from kattn import masks
from kattn.ops.windows import Windows
from kattn.spans import Span
from tests.compute import result, run
from tests.traced import traced_for_any_length

# Sides, window, shift: what is left over, what is exact, and sides of one window and of none.
MAPS = [
    ((7,), (3,), (0,)),
    ((7,), (3,), (2,)),
    ((6,), (3,), (1,)),
    ((2,), (3,), (2,)),
    ((5, 4), (2, 3), (1, 2)),
    ((6, 4), (3, 2), (0, 1)),
    ((4, 6), (2, 3), (0, 0)),
    ((3, 2, 5), (2, 2, 3), (1, 1, 2)),
    ((4, 0), (2, 3), (1, 1)),
]
CASES = [(*case, "windows") for case in MAPS]
CASES += [(sides, window, (0,) * len(sides), "grid") for sides, window, _ in MAPS]


def group(cell, sides, window, shift, partition):
    """By definition, cells see each other if these are equal."""
    found = []
    for c, side, w, s in zip(cell, sides, window, shift, strict=True):
        if partition == "grid":
            found.append(c % -(-side // w))  # so many cells apart
        else:
            found.append((c - s) // w if side > w else 0)
    return tuple(found)


def numbered(sides, batch=2):
    """Maps whose cells all differ, and none of which is 0."""
    return np.arange(1, batch * np.prod(sides) + 1, dtype="float32").reshape(batch, *sides, 1)


def computed(x, padding, *options):
    """The cells of the windows, which of them each sees, and which are real, as NumPy."""

    def function(x, padding):
        windows = Windows.of_map(x, *options)
        cells, mask = windows.split(x)[..., 0], windows.mask(padding)
        span = Span(0, cells.shape[1])
        block = ops.ones((1, 1, 1, 1), "bool") if mask is None else mask.block(span, span)
        real = windows.real(padding)
        real = ops.ones_like(cells, "bool") if real is None else real
        return cells, block[:, 0], real, windows.merge(windows.split(x))

    return result(function, x, padding)


def seen(cells, block, real):
    """Pairs of numbers of the cells of `numbered` maps that see each other."""
    allowed = np.broadcast_to(block, (*cells.shape, cells.shape[1])) & real[..., None]
    return {(int(cells[w, i]), int(cells[w, j])) for w, i, j in np.argwhere(allowed)}


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(("sides", "window", "shift", "partition"), CASES)
def test_cells_see_those_of_their_window(sides, window, shift, partition, is_padded):
    x = numbered(sides)
    keep = np.ones(x.shape[:-1], bool)
    if is_padded:
        keep = np.random.default_rng(0).uniform(size=keep.shape) < 0.6
    expected = set()
    for b, *cell in np.ndindex(keep.shape):
        for other in np.ndindex(sides):
            groups = [group(c, sides, window, shift, partition) for c in (cell, other)]
            if groups[0] == groups[1] and keep[b, *cell] and keep[b, *other]:
                expected.add((int(x[b, *cell, 0]), int(x[b, *other, 0])))
    padding = ops.convert_to_tensor(keep) if is_padded else None
    x = ops.convert_to_tensor(x)
    *found, merged = computed(x, padding, window, shift, partition)
    assert seen(*found) == expected
    counts = [-(-side // w) for side, w in zip(sides, window, strict=True)]
    assert found[0].shape == (2 * np.prod(counts), np.prod(window))
    np.testing.assert_array_equal(merged, run(ops.copy, x))


@pytest.mark.parametrize("sides", [(6, 4, 3), (5, 7, 2)])
def test_order_of_windows_and_of_their_cells(sides):
    """Row-major both; the cells of a window stand where they stand on the map."""
    x, window = numbered(sides, 1), (3, 2, 2)
    windows = Windows.of_map(ops.convert_to_tensor(x), window, (0, 0, 0), "windows")
    found = iter(result(windows.split, ops.convert_to_tensor(x))[..., 0])
    starts = (range(0, side, w) for side, w in zip(sides, window, strict=True))
    padded = np.zeros((8, 8, 4))
    padded[tuple(map(slice, sides))] = x[0, ..., 0]
    for a, b, c in itertools.product(*starts):
        np.testing.assert_array_equal(next(found), padded[a : a + 3, b : b + 2, c : c + 2].ravel())


def test_a_grid_spans_the_map():
    x = ops.reshape(ops.arange(6), (1, 6, 1))
    windows = Windows.of_map(x, (3,), (0,), "grid")
    np.testing.assert_array_equal(run(windows.split, x)[..., 0], [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize("partition", ["windows", "grid"])
def test_no_mask_where_nothing_is_padded_or_shifted(partition):
    x = ops.ones((2, 4, 6, 1))
    windows = Windows.of_map(x, (2, 3), (0, 0), partition)
    assert windows.mask(None) is None
    assert windows.real(None) is None
    assert isinstance(windows.mask(ops.ones((2, 4, 6), "bool")), masks.Padding)
    # A side of one window is not shifted.
    assert Windows.of_map(x, (4, 6), (1, 2), "windows").mask(None) is None


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="torch.export asks whether there is one window; `test_exported_models` has ONNX",
)
@pytest.mark.parametrize("partition", ["windows", "grid"])
def test_traced_once_for_any_sides(partition):
    """A side may turn out to be in one window, which is not shifted then."""
    window, shift = (2, 4), (1, 3) if partition == "windows" else (0, 0)

    def function(x):
        windows = Windows.of_map(x, window, shift, partition)
        mask = windows.mask(None).block(Span(0, 8), Span(0, 8))[:, 0]
        split = windows.split(x)
        return split[..., 0], mask, windows.real(None), windows.merge(split)

    traced = traced_for_any_length(function, [numbered((5, 5))], [(2, "T", "T", 1)])
    for side in (7, 4, 8):
        x = ops.convert_to_tensor(numbered((side, side)))
        *found, merged = run(traced, x)
        np.testing.assert_array_equal(merged, run(ops.copy, x))
        *expected, _ = computed(x, None, window, shift, partition)
        np.testing.assert_array_equal(found[0], expected[0])
        assert seen(*found) == seen(*expected)
