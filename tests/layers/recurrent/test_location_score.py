import numpy as np
import pytest

from kattn.layers import LocationScore
from tests.compute import run
from tests.score_checks import check_score


@pytest.mark.parametrize("size", [3, 7])
def test_matches_oracle(size):
    """Also where the convolution reaches beyond both ends."""
    check_score(lambda **o: LocationScore(5, filters=2, kernel_size=size, **o), "location")


def test_a_memory_without_steps():
    score = LocationScore(5, filters=2, kernel_size=3)
    empty = np.zeros((2, 0, 6), "float32")
    assert run(score, np.ones((2, 1, 4), "float32"), empty).shape == (2, 1, 1, 0)


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"`kernel_size` must be odd.*kernel_size=4"):
        LocationScore(kernel_size=4)
    with pytest.raises(ValueError, match=r"`filters` must be an integer >= 1.*filters=0"):
        LocationScore(filters=0)
