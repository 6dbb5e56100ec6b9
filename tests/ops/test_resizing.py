"""Linear interpolation of maps against loops, and of images against Keras."""

import keras
import numpy as np
import pytest

from kattn.ops.resizing import resize
from tests.compute import assert_close, differentiate, result


def along(x, axis, side):
    """One axis, cell by cell: a sum over all cells, each of which has a tent as wide as two."""
    own, x = x.shape[axis], np.moveaxis(x, axis, 0)
    y = np.zeros((side, *x.shape[1:]))
    for i in range(side):
        place = np.clip((i + 0.5) * own / side - 0.5, 0, own - 1)
        for j in range(own):
            y[i] += max(0.0, 1 - abs(place - j)) * x[j]
    return np.moveaxis(y, 0, axis)


CASES = [
    ((3,), (7,)),
    ((7,), (3,)),
    ((1,), (4,)),
    ((2, 5), (6, 5)),
    ((2, 5), (5, 3)),
    ((2, 3, 1), (5, 6, 4)),
]


@pytest.mark.parametrize(("own", "sides"), CASES)
def test_matches_oracle(rng, own, sides):
    x = rng.normal(size=(2, *own, 3))
    expected = x
    for axis, side in enumerate(sides, 1):
        expected = along(expected, axis, side)
    assert_close(result(lambda x: resize(x, sides), x.astype("float32")), expected)


def test_images_as_keras_resizes_them(rng):
    x = rng.normal(size=(2, 3, 4, 2)).astype("float32")
    options = {"interpolation": "bilinear", "data_format": "channels_last"}
    expected = result(lambda x: keras.ops.image.resize(x, (5, 8), **options), x)
    assert_close(result(lambda x: resize(x, (5, 8)), x), expected)


def test_gradients(rng):
    """The interpolation is linear: its gradient is its transpose."""
    x, upstream = rng.normal(size=(1, 3, 1)), rng.normal(size=(1, 8, 1))
    _, (found,) = differentiate(lambda x: resize(x, (8,)), [x], upstream)
    expected = [np.sum(along(np.eye(3)[j], 0, 8) * upstream[0, :, 0]) for j in range(3)]
    assert_close(found[0, :, 0], expected)


def test_same_sides_are_left_alone(rng):
    x = keras.ops.convert_to_tensor(rng.normal(size=(2, 3, 4, 2)))
    assert resize(x, (3, 4)) is x
