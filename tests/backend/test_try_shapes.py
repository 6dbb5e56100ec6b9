import pytest
from keras import ops

from kattn import backend


def test_nothing_is_allocated():
    """16 TiB, which no machine here has."""
    made = []

    def make():
        made.append(tuple(ops.zeros((2**20, 2**20, 4), "float32").shape))

    backend.try_shapes(make)
    assert made == [(2**20, 2**20, 4)]


def test_what_is_wrong_is_raised():
    with pytest.raises(Exception, match=r"shape|size|element"):
        backend.try_shapes(lambda: ops.reshape(ops.zeros((4,)), (3,)))
