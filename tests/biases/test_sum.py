import pytest

from kattn.biases import ALiBi, Clipped, Dense, Sum
from tests.biases.battery import (
    ARRAY,
    BY_QUERY,
    CHECK_NAMES,
    CHECKS,
    SLOPES,
    TABLE,
    S,
    T,
    case,
    each,
)

CASES = {
    "alibi, clipped by query and dense": (
        lambda: ALiBi(SLOPES) + Clipped(BY_QUERY) + Dense(ARRAY[:1, :, :1]),
        each(
            lambda b, n, i, j: (
                -SLOPES[n] * abs(i + 2 - j)
                + BY_QUERY[b, n, i, min(max(j - i - 2, -3), 3) + 3]
                + ARRAY[0, n, 0, j]
            )
        ),
    ),
    "alibi and clipped": (
        lambda: ALiBi(SLOPES) + Clipped(TABLE),
        each(
            lambda b, n, i, j: TABLE[n, min(max(j - i - 2, -4), 4) + 4] - SLOPES[n] * abs(i + 2 - j)
        ),
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", CASES)
def test_sums(name, check):
    check(*case(CASES, name))


def test_parts_of_a_sum():
    one, two, three = ALiBi(SLOPES), ALiBi(SLOPES[::-1]), Clipped(TABLE)
    total = Sum(one, two) + three
    assert total.parts() == (one, two, three)
    assert total.is_stationary
    assert not total.is_by_query
    assert not total.holds_scores
    assert (one + Clipped(BY_QUERY)).is_by_query
    assert (one + Dense(ARRAY)).holds_scores
    assert not (one + Dense(ARRAY)).is_stationary


def test_parts_are_checked():
    with pytest.raises(ValueError, match=r"`slopes` of a bias .*N=2"):
        (Dense(ARRAY[:, :2]) + ALiBi(SLOPES)).check(2, 2, T, S)
