"""The state of a training is read and set as it is."""

import random

import keras
import numpy as np
import pytest

from kattn.callbacks.backup import training_state
from kattn.callbacks.update.values import copies


def draw():
    drawn = [random.random(), np.random.random()]  # noqa: NPY002
    if keras.backend.backend() == "torch":
        import torch

        drawn.append(float(torch.rand(())))
    return drawn


def test_random_state():
    state = training_state.random_state()
    first, second = draw(), draw()
    assert all(a != b for a, b in zip(first, second, strict=True))
    training_state.set_random_state(state)
    assert [draw(), draw()] == [first, second]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_variables(dtype):
    variable = keras.Variable([[0.0, 1.0, 3.0]], dtype=dtype, trainable=False)
    (array,) = copies([variable])
    expected = np.array([[0.0, 1.0, 3.0]]).astype("bool" if dtype == "bool" else "float32")
    variable.assign(keras.ops.zeros((1, 3), dtype))
    np.testing.assert_array_equal(array.astype(expected.dtype), expected)  # it is a copy
    training_state.set_variables("model", [variable], [array])
    found = keras.ops.convert_to_numpy(keras.ops.cast(variable, expected.dtype.name))
    np.testing.assert_array_equal(found, expected)


def test_other_shapes_are_refused():
    variable = keras.Variable(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"metrics\[0\]=\(3, 2\) in the backup, \(2, 3\) here"):
        training_state.set_variables("metrics", [variable], [np.zeros((3, 2))])
    with pytest.raises(ValueError, match=r"metrics\[1\]=\(\) .*, None here \(of 2 and 1\)"):
        training_state.set_variables("metrics", [variable], [np.zeros((2, 3)), np.zeros(())])


STOPPING = ("wait", "stopped_epoch", "best", "best_epoch", "best_weights")
STATES = [
    (keras.callbacks.EarlyStopping, STOPPING),
    (keras.callbacks.ReduceLROnPlateau, ("best", "cooldown_counter", "wait")),
    (lambda monitor: keras.callbacks.ModelCheckpoint("x.keras", monitor), ("best",)),
]


@pytest.mark.parametrize(("make", "names"), STATES)
def test_callbacks_of_keras(make, names):
    one, other = make("loss"), make("loss")
    for i, name in enumerate(names):
        assert hasattr(other, name) or name in ("best_epoch", "stopped_epoch")
        setattr(one, name, i + 7)
    training_state.set_state(other, training_state.state_of(one))
    assert [getattr(other, name) for name in names] == list(range(7, 7 + len(names)))
