import math
import sys

import keras
import numpy as np
import pytest
from keras import ops

from kattn.ops import positions
from tests.compute import assert_close, run

X = np.zeros((2, 6, 4), "float32")


def test_cells_of_a_grid_are_counted_row_by_row():
    expected = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    np.testing.assert_array_equal(positions.default_positions(X, 2, (2, 3)), expected)
    np.testing.assert_array_equal(positions.default_positions(X, 1, (6,)), range(6))


def test_steps_are_counted_from_zero():
    np.testing.assert_array_equal(run(positions.default_positions, X, 1, None), range(6))


@pytest.mark.parametrize("shape", [(6, 3), (2, 6, 3), (1, 6, 3)])
def test_axes_are_taken_apart(rng, shape):
    array = rng.integers(0, 9, size=shape)
    found = run(positions.by_axis, array, X, 3)
    assert [part.dtype for part in found] == ["float32"] * 3
    for axis in range(3):
        np.testing.assert_array_equal(found[axis], array[..., axis])


def test_lists_are_positions():
    np.testing.assert_array_equal(
        run(positions.by_axis, [5, 4, 3, 2, 1, 0], X, 1)[0], range(6)[::-1]
    )


@pytest.mark.parametrize("start", [-70000, 0, 500, 100000, 999000])
def test_angles_hold_far_away(start):
    """Against angles in float64; those of float32 are off by 4e-3 at 100000."""
    frequencies = 10000.0 ** (-np.arange(16) / 16)
    steps = start + np.arange(600)
    found = run(
        positions.angles, keras.ops.cast(steps, "float32"), positions.angle_steps(frequencies)
    )
    for function in (np.cos, np.sin):
        error = function(found.astype(float)) - function(steps[:, None] * frequencies)
        assert np.abs(error).max() < (1e-4 if abs(start) <= 100000 else 1e-3)


def test_many_frequencies_cost_no_more_python(rng):
    """A step of training on PyTorch waits for Python."""
    calls = []
    for count in (4, 64):
        turns, places = positions.angle_steps(rng.random(count)), ops.zeros((3,))
        positions.angles(places, turns)
        seen = []
        sys.setprofile(lambda _, event, __, seen=seen: seen.append(event))
        positions.angles(places, turns)
        sys.setprofile(None)
        calls.append(seen.count("call"))
    few, many = calls
    assert many < few + 60  # less than one for each


def test_angles_of_fractions():
    steps = np.array([0.25, 511.5, 512.0, 1023.75])
    found = run(
        positions.angles,
        keras.ops.cast(steps, "float32"),
        positions.angle_steps(np.array([1.0, 0.3])),
    )
    expected = np.exp(1j * steps[:, None] * np.array([1.0, 0.3]))
    assert_close(np.cos(found.astype(float)), expected.real, 5e-5)
    assert_close(np.sin(found.astype(float)), expected.imag, 5e-5)
    assert np.abs(found).max() < 512 + 2 * math.pi


BAD_POSITIONS = {
    "too few": (np.arange(5), 1),
    "too many items": (np.zeros((3, 6)), 1),
    "one step for all": (np.zeros(1), 1),
    "scalar": (np.zeros(()), 1),
    "an axis too many": (np.zeros((2, 6, 1)), 1),
    "an axis too few": (np.zeros((6,)), 2),
    "other axes": (np.zeros((6, 3)), 2),
    "steps and axes": (np.zeros((2, 5, 2)), 2),
}


@pytest.mark.parametrize("name", BAD_POSITIONS)
def test_bad_positions(name):
    array, axes = BAD_POSITIONS[name]
    last = ", 2" if axes == 2 else ","
    shape = str(array.shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"`positions` must have shape \(T{last}\).*shape={shape}, .*\(2, 6\), axes={axes}"
    with pytest.raises(ValueError, match=message):
        positions.by_axis(array, X, axes)


@pytest.mark.parametrize(
    ("axes", "grid", "message"),
    [
        (0, None, "`axes` must be an integer >= 1.*axes=0"),
        (2.0, None, r"`axes` must be an integer >= 1.*axes=2\.0"),
        (True, None, "`axes` must be an integer >= 1.*axes=True"),
        (2, (6,), r"`grid` must be None or hold.*grid=\(6,\), axes=2"),
        (2, (6, 0), r"`grid` must be None or hold.*grid=\(6, 0\), axes=2"),
    ],
)
def test_bad_axes(axes, grid, message):
    with pytest.raises(ValueError, match=message):
        positions.check_axes(axes, grid)


def test_no_default():
    with pytest.raises(ValueError, match=r"no default positions without `grid`.*axes=2"):
        positions.default_positions(X, 2, None)
    with pytest.raises(
        ValueError, match=r"as many steps as `grid` has.*\(2, 6, 4\), grid=\(2, 2\)"
    ):
        positions.default_positions(X, 2, (2, 2))
