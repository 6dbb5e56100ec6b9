import numpy as np
import pytest

from kattn.biases import Clipped
from tests.biases.battery import BY_QUERY, CHECK_NAMES, CHECKS, TABLE, case, each

CASES = {
    "for all queries": (
        lambda: Clipped(TABLE),
        each(lambda b, n, i, j: TABLE[n, np.clip(j - i - 2, -4, 4) + 4]),
    ),
    "by query": (
        lambda: Clipped(BY_QUERY),
        each(lambda b, n, i, j: BY_QUERY[b, n, i, np.clip(j - i - 2, -3, 3) + 3]),
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", CASES)
def test_clipped(name, check):
    check(*case(CASES, name))
