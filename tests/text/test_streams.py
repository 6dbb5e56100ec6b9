"""A long text read by a batch of readers."""

import numpy as np
import pytest

from kattn.text import streams


@pytest.mark.parametrize("steps", [13, 15, 24, 25])
def test_each_batch_goes_on_where_the_last_one_ended(steps):
    x, y = streams(np.arange(steps), 3, 2)
    np.testing.assert_array_equal(y, x + 1)
    batches = len(x) // 2
    assert batches == (steps - 1) // 3 // 2
    for reader in range(2):
        read = x[reader::2].ravel()
        np.testing.assert_array_equal(read, np.arange(3 * batches) + 3 * batches * reader)


def test_too_few_tokens():
    with pytest.raises(ValueError, match=r"at least length \* batch_size \+ 1.*batch_size=2"):
        streams(np.arange(6), 3, 2)
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer >= 1"):
        streams(np.arange(9), 3, 0)
