import pytest

from kattn.layers import AdditiveScore
from tests.score_checks import check_score


def test_matches_oracle():
    check_score(lambda **options: AdditiveScore(5, **options), "additive")


def test_sizes_and_biases():
    score = AdditiveScore(use_bias=False)
    score.build((None, None, 4), (None, None, 6))
    assert [tuple(w.shape) for w in score.weights] == [(4, 4), (6, 4), (4, 1)]
    with pytest.raises(ValueError, match=r"`units` must be an integer >= 1.*units=0"):
        AdditiveScore(0)
