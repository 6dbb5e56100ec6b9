import numpy as np
import pytest

from kattn.generation import GreedySampler, PrefixCache, RepetitionPenalty, WindowCache, generate
from kattn.layers import RotaryEmbedding
from tests.generation_models import Decoder, ready, uncached

# All calls are alike, so that they share what is compiled.
END, LENGTH = 7, 14
OPTIONS = {"sampler": GreedySampler([RepetitionPenalty(1.5)]), "end_token": END}
SHARED = [3, 1, 4]


@pytest.fixture(scope="module")
def model():
    return ready(Decoder(RotaryEmbedding()))


def test_many_calls_behind_one_beginning(model):
    cache = PrefixCache(LENGTH)
    assert generate(model, [SHARED], 0, cache=cache).shape == (1, 0)
    np.testing.assert_array_equal(cache.lengths, [3])
    for prompts in ([[5, 9], [2]], [[6, 1], [8]]):
        found = generate(model, prompts, 4, cache=cache.copy(), **OPTIONS)
        whole = [SHARED + row for row in prompts]
        np.testing.assert_array_equal(found, uncached(model, whole, 4, **OPTIONS))
    np.testing.assert_array_equal(cache.lengths, [3])


def test_a_conversation_goes_on(model):
    """The second call sees the prompt and the answer of the first, and no padding behind ends."""
    prompts, cache = [[3, 1, 4], [5]], PrefixCache(LENGTH)
    first = generate(model, prompts, 4, cache=cache, **OPTIONS).tolist()
    answers = [row[: row.index(END) + 1] if END in row else row for row in first]
    assert len(answers[0]) != len(answers[1]), "both end at the same step"
    whole = [p + a + [2] for p, a in zip(prompts, answers, strict=True)]
    np.testing.assert_array_equal(cache.lengths, [len(row) - 1 for row in whole])
    found = generate(model, [[2], [2]], 3, cache=cache, **OPTIONS)
    np.testing.assert_array_equal(found, uncached(model, whole, 3, **OPTIONS))


def test_what_does_not_fit(model):
    cache = PrefixCache(9)
    generate(model, [[3, 1], [4, 1]], 0, cache=cache)
    with pytest.raises(ValueError, match=r"`cache` must hold one sequence.*sequences=2"):
        generate(model, [[3]] * 3, 2, cache=cache)
    with pytest.raises(ValueError, match=r"`cache` must have room.*length=9, needed=10"):
        generate(model, [[3, 1]] * 2, 6, cache=cache)
    with pytest.raises(ValueError, match=r"`cache_policy` must stay"):
        generate(model, [[3, 1]] * 2, 1, cache=cache, cache_policy=WindowCache(2))
    with pytest.raises(ValueError, match=r"`length` must be an integer >= 1"):
        PrefixCache(0)
