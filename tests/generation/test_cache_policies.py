import keras
import numpy as np
import pytest

from kattn.generation import (
    FullCache,
    Int8Cache,
    PrefixCache,
    RandomSampler,
    StreamingCache,
    WindowCache,
    generate,
)
from kattn.layers import LearnedPositions, RotaryEmbedding, SelfAttention
from tests.compute import quick, run
from tests.generation_models import Decoder, ready, uncached

PROMPTS = [[3, 1, 4, 1, 5], [9]]
OPTIONS = {"sampler": RandomSampler(), "seed": 1}


@pytest.fixture(scope="module")
def model():
    return ready(Decoder(RotaryEmbedding()))


@pytest.fixture
def full(model):
    """What the model generates with all steps in its cache."""
    return generate(model, PROMPTS, 6, **OPTIONS)


def sizes(model, policy, length=64):
    """The sizes in bytes of the arrays of a cache."""
    cache = policy.new_cache(model, 2, length)
    return sum(x.nbytes for x in map(keras.ops.convert_to_numpy, keras.tree.flatten(cache)))


def test_a_window_is_attention_with_a_window(model, full):
    """Also inside of the prompt, which is longer than the window."""
    windowed = ready(Decoder(RotaryEmbedding(), window=3))
    found = generate(model, PROMPTS, 6, cache_policy=WindowCache(3), **OPTIONS)
    expected = uncached(windowed, PROMPTS, 6, **OPTIONS)
    np.testing.assert_array_equal(found, expected)
    assert (expected != full).any()


@pytest.mark.parametrize(
    "policy", [WindowCache(4), StreamingCache(2, 4), Int8Cache(WindowCache(4))]
)
def test_the_memory_of_a_window_is_constant(model, policy):
    size = sizes(model, policy, 64)
    assert size == sizes(model, policy, 1024) < sizes(model, FullCache(), 64) / 4


def test_first_steps_and_a_window(model, full):
    """As long as nothing is lost it is as if all were kept; then memory stays as it is.

    `tests.ops.test_sink_cache` compares what it computes with attention to these steps alone.
    """
    found = generate(model, PROMPTS, 6, cache_policy=StreamingCache(2, 3), **OPTIONS)
    assert (found != full).any()
    # The second prompt does not outgrow the cache before its last token.
    np.testing.assert_array_equal(found[1, :5], full[1, :5])


def test_eight_bits_are_near(model):
    """The logits behind a prompt, of which the cache has all tokens but the last."""
    prompt = np.array([PROMPTS[0]], "int32")
    near, _ = quick(model.decode)(prompt, Int8Cache().new_cache(model, 1, 5))
    exact = run(quick(model), prompt)
    error = np.abs(run(keras.ops.stop_gradient, near) - exact).max() / np.abs(exact).max()
    assert 0 < error < 1e-2


def test_eight_bits_take_a_quarter_of_the_memory(model):
    """Of heads of width 4 the factors take as much as the numbers, so that it is half here."""
    assert sizes(model, Int8Cache()) < 0.55 * sizes(model, FullCache())


def test_a_policy_goes_with_a_cache_that_is_kept(model):
    """The beginning is read in one piece or in two, of which the second is behind the window."""
    cache, policy = PrefixCache(64), Int8Cache(WindowCache(3))
    generate(model, PROMPTS, 0, cache=cache, cache_policy=policy)
    found = generate(model, [[2], [7]], 3, cache=cache, cache_policy=policy)
    whole = [[*p, b] for p, b in zip(PROMPTS, (2, 7), strict=True)]
    np.testing.assert_array_equal(found, generate(model, whole, 3, cache_policy=policy))


@pytest.mark.parametrize(
    "policy", [WindowCache(3), StreamingCache(2, 3), Int8Cache(WindowCache(3))]
)
def test_a_table_of_positions_must_have_all_steps(policy):
    """However few of them are kept: positions that are added to inputs go on."""

    def model(length):
        tokens = keras.Input((None,), dtype="int32")
        h = LearnedPositions(length)(keras.layers.Embedding(10, 8)(tokens))
        h = SelfAttention(2, causal=True)(h)
        return keras.Model(tokens, keras.layers.Dense(10)(h))

    assert generate(model(11), PROMPTS, 6, cache_policy=policy).shape == (2, 6)
    with pytest.raises(ValueError, match=r"length=11, length of the table=10"):
        generate(model(10), PROMPTS, 6, cache_policy=policy)


def test_full_is_the_default(model, full):
    found = generate(model, PROMPTS, 6, cache_policy=FullCache(), **OPTIONS)
    np.testing.assert_array_equal(found, full)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`window` must be an integer >= 1"):
        WindowCache(0)
    with pytest.raises(ValueError, match=r"`first` must be an integer >= 1"):
        StreamingCache(0, 4)
