import numpy as np
import pytest

from kattn.masks import Dense
from tests.masks.battery import ARRAY, CHECK_NAMES, CHECKS, case

RULES = {
    "dense": (lambda: Dense(ARRAY), ARRAY),
    "dense of rank 2": (lambda: Dense(ARRAY[0, 0]), ARRAY[0, 0]),
    "one row for all": (lambda: Dense(ARRAY[:, :1, :1]), ARRAY[:, :1, :1]),
    "one column for all": (lambda: Dense(ARRAY[:1, :, :, :1]), ARRAY[:1, :, :, :1]),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", RULES)
def test_dense(name, check):
    check(*case(RULES, name))


def test_it_holds_scores():
    assert Dense(ARRAY).holds_scores


BAD = {
    "integers": (
        lambda: Dense(np.ones((5, 7), "int32")),
        r"`array` must be boolean, True = may attend; write `array != 0`.*dtype='int32'",
    ),
    "additive": (
        lambda: Dense(np.zeros((5, 7), "float32")),
        r"`array` must be boolean.*pass them as `bias`.*`array > -1` if.*-inf.*dtype='float32'",
    ),
    "rank 3": (
        lambda: Dense(ARRAY[0]),
        r"`array` must have rank 2, \(T, S\) or rank 4, \(B, N, T, S\).*shape=\(3, 5, 7\)",
    ),
    "a list": (lambda: Dense([[True]]), r"wrap a list as np\.array\(array, bool\).*type='list'"),
    "other sizes": (
        lambda: Dense(ARRAY).check(2, 3, 5, 6),
        r"`array` of a mask must broadcast to \(B, N, T, S\)=\(2, 3, 5, 6\).*\(2, 3, 5, 7\)",
    ),
    "other sizes of rank 2": (
        lambda: Dense(ARRAY[0, 0]).check(2, 3, 5, 6),
        r"`array` of a mask must broadcast to \(T, S\)=\(5, 6\).*\(5, 7\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
