import pytest

from kattn.biases import T5
from tests import oracle
from tests.biases.battery import BUCKETS, CHECK_NAMES, CHECKS, case, each

CASES = {
    "two ways": (
        lambda: T5(BUCKETS, max_distance=6),
        each(lambda b, n, i, j: BUCKETS[n, oracle.t5_bucket(j - i - 2, 10, 6, True)]),
    ),
    "one way": (
        lambda: T5(BUCKETS, max_distance=40, bidirectional=False),
        each(lambda b, n, i, j: BUCKETS[n, oracle.t5_bucket(j - i - 2, 10, 40, False)]),
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", CASES)
def test_t5(name, check):
    check(*case(CASES, name))
