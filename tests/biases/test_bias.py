import numpy as np
import pytest
from keras import ops

from kattn.biases import ALiBi, Bias, Clipped
from kattn.biases.bias import check_heads
from kattn.block_rule import registered_rule
from tests.biases.battery import BY_QUERY, SLOPES
from tests.compute import assert_close, run


def test_slices_of_equal_sequences():
    found = run(lambda: ALiBi(SLOPES)[1:3, 0:4])
    distance = np.abs(np.arange(1, 3)[:, None] - np.arange(4))
    assert_close(found[0, 1], -SLOPES[1] * distance)
    found = run(lambda: Clipped(BY_QUERY)[2:4, 1:3])
    assert_close(found[1, 2, 0, 1], BY_QUERY[1, 2, 2, 2 - 2 + 3])
    with pytest.raises(ValueError, match=r"no step; received: queries=slice\(0, 4, 2\)"):
        ALiBi(SLOPES)[0:4:2, 0:4]


def test_biases_are_added_to_biases_only():
    with pytest.raises(ValueError, match=r"Both sides of `\+` must be biases.*type='ndarray'"):
        ALiBi(SLOPES) + BY_QUERY


@registered_rule("tests")
class FirstKey(Bias):
    """A bias as a user would write it."""

    weight: float

    def block(self, queries, keys, offset=0):
        return self.weight * ops.cast(keys.along(-1) == 0, "float32")


def test_a_bias_of_ones_own():
    bias = FirstKey(2.0)
    assert not bias.is_stationary
    assert not bias.is_by_query
    assert not bias.holds_scores
    assert bias.parts() == (bias,)
    found = run(lambda: (bias + ALiBi(SLOPES))[0:1, 0:3])
    assert_close(found[0, :, 0], 2.0 * np.eye(3)[:1] - np.outer(SLOPES, range(3)))


def test_heads():
    check_heads(3, 3, slopes=SLOPES)
    check_heads(1, 3, slopes=SLOPES)
    check_heads(None, 3, slopes=SLOPES)
    with pytest.raises(ValueError, match="`slopes` of a bias must have one row for each head, N=4"):
        check_heads(3, 4, slopes=SLOPES)
