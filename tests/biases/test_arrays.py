import numpy as np
import pytest

from kattn.biases import Dense
from tests.biases.battery import ARRAY, CHECK_NAMES, CHECKS, S, T, case

CASES = {
    "dense": (lambda: Dense(ARRAY), ARRAY),
    "dense of rank 2": (lambda: Dense(ARRAY[0, 0]), np.broadcast_to(ARRAY[0, 0], ARRAY.shape)),
    "one row for all": (
        lambda: Dense(ARRAY[:, :1, :1]),
        np.broadcast_to(ARRAY[:, :1, :1], ARRAY.shape),
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", CASES)
def test_dense(name, check):
    check(*case(CASES, name))


def test_it_holds_scores():
    assert Dense(ARRAY).holds_scores


BAD = {
    "a mask": (
        lambda: Dense(np.ones((5, 7), bool)),
        r"`bias` must be float; a boolean array is a mask: pass it as `mask`.*dtype='bool'",
    ),
    "rank 3": (
        lambda: Dense(ARRAY[0]),
        r"`bias` must have rank 2, \(T, S\), or rank 4.*bias\.shape=\(3, 6, 8\)",
    ),
    "other sizes": (
        lambda: Dense(ARRAY).check(2, 3, T, S + 1),
        r"`bias` must broadcast to \(B, N, T, S\)=\(2, 3, 6, 9\).*bias\.shape=\(2, 3, 6, 8\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
