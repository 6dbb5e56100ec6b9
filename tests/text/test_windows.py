"""A long text cut into windows."""

import numpy as np
import pytest

from kattn.data import EpochShuffled
from kattn.text import windows


@pytest.mark.parametrize("stride", [None, 1, 2, 5])
@pytest.mark.parametrize("steps", [4, 9, 10])
def test_each_target_is_the_next_token(stride, steps):
    tokens = np.random.default_rng(0).permutation(steps)
    starts = range(0, steps - 3, stride or 3)
    x, y = windows(tokens, 3, stride=stride)
    assert x.tolist() == [tokens[i : i + 3].tolist() for i in starts]
    assert y.tolist() == [tokens[i + 1 : i + 4].tolist() for i in starts]


def test_nothing_is_copied_and_batches_are_made_of_it():
    tokens = np.arange(1000, dtype="int32")
    x, y = windows(tokens, 10, stride=1)
    assert np.shares_memory(x, tokens)
    batch_x, batch_y = EpochShuffled((x, y), batch_size=4)[0]
    assert batch_x.shape == (4, 10)
    np.testing.assert_array_equal(batch_y, batch_x + 1)


@pytest.mark.parametrize("tokens", [np.arange(3), np.zeros((4, 4), int)])
def test_too_few_tokens(tokens):
    with pytest.raises(ValueError, match="more tokens than a window"):
        windows(tokens, 3)
