import keras
import numpy as np
import pytest

from kattn.callbacks.update.values import assign, copies, number


@pytest.mark.parametrize(("dtype", "kind"), [("int32", int), ("float32", float)])
def test_numbers_are_those_of_python(dtype, kind):
    value = number(keras.Variable(3, dtype=dtype, trainable=False))
    assert (value, type(value)) == (3, kind)


def test_copies_stay_and_are_put_back():
    variables = [keras.Variable(np.arange(3.0)), keras.Variable(np.ones((2, 2)))]
    values = copies(variables)
    assign(variables, [np.zeros(3), np.zeros((2, 2))])
    np.testing.assert_array_equal(values[0], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variables[0]), np.zeros(3))
    assign(variables, values)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variables[1]), np.ones((2, 2)))
