import keras
import numpy as np
import pytest

from kattn.biases import ALiBi
from tests.biases.battery import CHECK_NAMES, CHECKS, SLOPES, S, T, case, each

EXPECTED = each(lambda b, n, i, j: -SLOPES[n] * abs(i + 2 - j))
CASES = {
    "constants": (ALiBi(SLOPES), EXPECTED),
    "array": (ALiBi(np.float32(SLOPES)), EXPECTED),
    "tensor": (lambda: ALiBi(keras.ops.convert_to_tensor(np.float32(SLOPES))), EXPECTED),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", CASES)
def test_alibi(name, check):
    check(*case(CASES, name))


def test_it_is_stationary():
    assert ALiBi(SLOPES).is_stationary
    assert ALiBi([0.5, 0.25, 0.125]) == ALiBi(SLOPES)
    assert hash(ALiBi([0.5, 0.25, 0.125])) == hash(ALiBi(SLOPES))


BAD = {
    "a number": (lambda: ALiBi(0.5), r"`slopes` must be numbers \(N,\), one for.*slopes=0\.5"),
    "a matrix": (lambda: ALiBi(np.ones((2, 3))), r"`slopes` must be.*slopes\.shape=\(2, 3\)"),
    "heads": (
        lambda: ALiBi(SLOPES).check(2, 4, T, S),
        r"`slopes` of a bias must have one row for each head, N=4.*slopes=\(0\.5, 0\.25, 0\.125\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
