"""Neighborhood against the windows of NAT and SASA, cell by cell."""

import itertools

import keras
import numpy as np
import pytest

from kattn import masks
from kattn.grid import Grid
from kattn.masks import Neighborhood
from kattn.spans import Cells, Places
from tests.compute import run

SIDES = [(7,), (5, 6), (3, 4, 2)]


def window(side, place, size, dilation, causal, clamped):
    """The coordinates that are seen from `place` along one side."""
    own = [i for i in range(side) if i % dilation == place % dilation]
    last = own.index(place) if causal else own.index(place) + size - 1 - size // 2
    if clamped and not causal:
        last = min(max(last, size - 1), len(own) - 1)
        return own[max(last - size + 1, 0) : last + 1]
    return own[max(last - size + 1, 0) : last + 1]


def expected(sides, *rule):
    """`(T, T)` for the same rule along all sides."""
    cells = list(itertools.product(*map(range, sides)))
    return np.array(
        [
            [
                all(
                    k in window(side, q, *rule)
                    for side, q, k in zip(sides, query, key, strict=True)
                )
                for key in cells
            ]
            for query in cells
        ]
    )


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("sides", SIDES)
def test_whole_maps(sides, size, dilation, causal, clamped):
    if dilation >= min(sides):
        pytest.skip("refused: see test_bad_input")
    mask = Neighborhood(size, dilation, causal, clamped, sides)
    steps = int(np.prod(sides))
    found = np.broadcast_to(run(lambda: mask[0:steps, 0:steps]), (1, 1, steps, steps))
    wanted = expected(sides, size, dilation, causal, clamped)
    np.testing.assert_array_equal(found[0, 0], wanted)
    assert wanted.any(axis=1).all()  # each cell sees itself at least
    if clamped and not causal and dilation == 1 and size <= min(sides):
        assert (wanted.sum(axis=1) == size ** len(sides)).all()


@pytest.mark.parametrize("sides", SIDES)
def test_blocks_places_and_cells(sides):
    mask, steps = Neighborhood(3, sides=sides), int(np.prod(sides))
    whole = run(lambda: mask[0:steps, 0:steps])[0, 0]
    np.testing.assert_array_equal(run(lambda: mask[1:4, 2:7])[0, 0], whole[1:4, 2:7])
    rows, columns = np.array([[2, 0], [5, 1]]), np.array([[6, 0, 3], [2, 5, 1]])
    as_tensor = keras.ops.convert_to_tensor
    found = run(mask.block, *(Places(as_tensor(x, "int32")) for x in (rows, columns)))
    wanted = np.stack([whole[np.ix_(r, c)] for r, c in zip(rows, columns, strict=True)])
    np.testing.assert_array_equal(found[:, 0], wanted)
    cells = [
        Cells(tuple(as_tensor(i, "int32") for i in np.unravel_index(x, sides)), sides)
        for x in (rows, columns)
    ]
    np.testing.assert_array_equal(run(mask.block, *cells)[:, 0, 0], wanted)


def test_each_side_has_its_own_window():
    mask = Neighborhood((2, 3), dilation=(1, 2), causal=(True, False), clamped=False)
    found = run(lambda: mask.on_grid(Grid((3, 5)))[0:15, 0:15])[0, 0]
    for (i, q), (j, k) in itertools.product(enumerate(np.ndindex(3, 5)), repeat=2):
        rows = q[0] - k[0] in (0, 1)
        assert found[i, j] == (rows and q[1] - k[1] in (-2, 0, 2))


def test_joined_with_others():
    near, padding = Neighborhood(3), masks.Padding(np.ones((1, 6), bool))
    on_map = (near & masks.Causal() & padding).on_grid(Grid((2, 3)))
    assert on_map.neighborhood.sides == (2, 3)
    assert (near & masks.Causal()).neighborhood is None
    assert masks.Causal().neighborhood is None
    assert (~near).on_grid(Grid((2, 3))).neighborhood is None
    assert near.on_grid(Grid((None, 3))).neighborhood is None
    assert masks.Causal().on_grid(Grid((2, 3))) == masks.Causal()


def test_config():
    mask = Neighborhood((2, 3), (1, 2), (True, False), clamped=False, sides=(4, 5))
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(mask))
    assert copy == mask
    assert copy != Neighborhood((2, 3), (1, 2), (True, False), clamped=True, sides=(4, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neighborhood(0), r"`size` must be an integer >= 1, or a tuple.*size=0"),
        (lambda: Neighborhood(()), r"`size` must be an integer >= 1, or a tuple.*size=\(\)"),
        (lambda: Neighborhood(3, 1.5), r"`dilation` must be an integer >= 1.*dilation=1\.5"),
        (lambda: Neighborhood(3, causal=1), "`causal` must be a bool, or a tuple.*causal=1"),
        (lambda: Neighborhood((3, 3), (1,)), r"The tuples must have one entry for each axis"),
        (lambda: Neighborhood((3, 3), sides=(5,)), r"`size` must have one entry for each side"),
        (lambda: Neighborhood(3, 5, sides=(9, 5)), r"`dilation` must be smaller than each side"),
        (lambda: Neighborhood(3).on_grid(Grid((4,), 2)), r"`key_stride` must be 1 for a mask"),
        (
            lambda: Neighborhood(3).check(1, 1, 4, 4),
            r"must know the sides of its grid; write Neighborhood\(size, sides=\(H, W\)\)",
        ),
        (
            lambda: Neighborhood(3, sides=(2, 3)).check(1, 1, 6, 5),
            r"A grid of \(2, 3\) has 6 cells; received: S=5",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
