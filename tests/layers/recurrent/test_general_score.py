from kattn.layers import GeneralScore
from tests.score_checks import check_score


def test_matches_oracle():
    check_score(lambda **options: GeneralScore(kernel_regularizer="l2", **options), "general")


def test_the_initializer_is_used():
    score = GeneralScore(kernel_initializer="ones")
    score.build((None, None, 3), (None, None, 2))
    assert float(score.get_weights()[0].min()) == 1.0
