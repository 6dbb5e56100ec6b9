import numpy as np
import pytest
from keras import ops

from kattn.generation import GreedySampler, History, RandomSampler, Temperature, TopK
from tests.compute import quick, run

ROWS = 4000


def choose(sampler, logits, seed=0, step=0):
    """The tokens that a sampler chooses from logits `(B, V)`."""
    batch = len(logits)
    history = History(ops.zeros((batch, 1), "int32"), ops.ones((batch,), "int32"))

    def call(logits, seed, step):
        return sampler.next_tokens(logits, history, seed, step, ())[0]

    given = np.asarray(logits, "float32"), np.int32(seed), np.int32(step)
    return run(quick(call), *map(ops.convert_to_tensor, given))


def odd(logits, history):
    return ops.where(ops.arange(logits.shape[-1]) % 2 == 0, float("-inf"), logits)


def test_draws_have_the_distribution_of_the_softmax():
    logits = np.array([0.3, 1.5, -0.2, 0.9, 2.0])
    found = choose(RandomSampler([Temperature(1.5), TopK(4)]), np.tile(logits, (ROWS, 1)))
    expected = np.exp(logits / 1.5) * (logits > -0.2)
    expected /= expected.sum()
    shares = np.bincount(found, minlength=5) / ROWS
    spread = np.sqrt(expected * (1 - expected) / ROWS)
    assert (np.abs(shares - expected) <= 4 * spread).all()
    assert found.dtype == "int32"


def test_seed_and_step_determine_the_draws():
    logits = np.zeros((50, 9))
    first = choose(RandomSampler(), logits)
    np.testing.assert_array_equal(choose(RandomSampler(), logits), first)
    draws = [choose(RandomSampler(), logits, *at) for at in ((0, 1), (1, 0), (1, 1))]
    for i, one in enumerate([first, *draws]):
        for other in draws[i:]:
            assert (one == other).mean() < 0.5


def test_greedy_is_the_most_likely_that_rules_leave():
    logits = np.array([[0.0, 1.0, 5.0, 2.0], [7.0, -1.0, 0.0, -2.0]])
    np.testing.assert_array_equal(choose(GreedySampler(), logits), [2, 0])
    np.testing.assert_array_equal(choose(GreedySampler([odd]), logits), [3, 1])


def test_rules_come_in_their_order():
    """Among the best two, then odd ones; or the best two of the odd ones."""
    logits = np.tile([0.0, 1.0, 5.0, 2.0], (200, 1))
    assert set(choose(RandomSampler([TopK(2), odd]), logits)) == {3}
    assert set(choose(RandomSampler([odd, TopK(2)]), logits)) == {1, 3}


def test_equal_samplers_share_what_is_compiled():
    assert RandomSampler([TopK(2), odd]) == RandomSampler((TopK(2), odd))
    assert len({RandomSampler([TopK(2)]), RandomSampler([TopK(2)]), GreedySampler()}) == 2


def test_rules_must_be_functions():
    with pytest.raises(ValueError, match=r"`rules` must be functions of logits.*rule=0\.7"):
        RandomSampler([0.7])
