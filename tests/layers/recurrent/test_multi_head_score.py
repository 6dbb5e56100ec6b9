import pytest

from kattn.layers import MultiHeadScore
from tests.score_checks import check_score


def test_matches_oracle():
    check_score(lambda **o: MultiHeadScore(2, 3, value_dim=5, **o), "heads", heads=2)


def test_sizes_and_biases():
    score = MultiHeadScore(2, use_bias=False)
    score.build((None, None, 8), (None, None, 6))
    assert [tuple(w.shape) for w in score.weights] == [(8, 8), (6, 16)]
    with pytest.raises(ValueError, match=r"`num_heads` must be an integer >= 1.*num_heads=0"):
        MultiHeadScore(0)
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=8, num_heads=3"):
        MultiHeadScore(3).build((None, None, 8), (None, None, 6))
