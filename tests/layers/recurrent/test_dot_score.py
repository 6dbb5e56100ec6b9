import numpy as np
import pytest

from kattn.layers import DotScore
from tests.compute import assert_close, result


def test_matches_oracle(rng):
    """Luong et al. 2015, eq. 8, "dot"."""
    query, memory = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 4))
    score = DotScore()
    assert_close(
        result(score, query.astype("float32"), memory.astype("float32")),
        np.einsum("btu,bsu->bts", query, memory)[:, None],
    )
    assert not score.weights
    assert DotScore.from_config(score.get_config()).name == score.name


def test_widths_must_be_equal():
    with pytest.raises(ValueError, match=r"`memory` must be as wide.*memory_width=6, state_w"):
        DotScore()(np.ones((2, 3, 4), "float32"), np.ones((2, 5, 6), "float32"))
