import numpy as np
from keras import ops

from kattn.generation import History
from kattn.generation.history import empty_history
from tests.compute import run


def test_extend():
    history = empty_history(2, 5, 9).extend(
        ops.convert_to_tensor(np.array([[3, 1, 4], [7, 0, 0]], "int32")),
        ops.convert_to_tensor(np.array([3, 1], "int32")),
    )
    history = history.extend(
        ops.convert_to_tensor(np.array([[6], [8]], "int32")),
        ops.convert_to_tensor(np.array([0, 1], "int32")),
    )
    assert isinstance(history, History)
    tokens, length = run(lambda: tuple(history))
    np.testing.assert_array_equal(tokens, [[3, 1, 4, 9, 9], [7, 8, 9, 9, 9]])
    np.testing.assert_array_equal(length, [3, 2])
    expected = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(run(history.is_token), expected)
