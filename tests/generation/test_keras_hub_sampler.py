import keras
import numpy as np
import pytest

from kattn.generation import generate
from kattn.generation.keras_hub_sampler import KerasHubSampler, is_keras_hub_sampler
from tests.generation_models import Recurrent, ready


class Sampler:
    """What KerasHub's base class does."""

    def compute_probabilities(self, logits):
        return keras.ops.softmax(logits, axis=-1)

    def get_next_token(self, probabilities):
        raise NotImplementedError


class Drawn(Sampler):
    """Draws by a seed of its own."""

    def __init__(self):
        self.generator = keras.random.SeedGenerator(5)

    @property
    def variables(self):
        return [self.generator.state]

    def get_next_token(self, probabilities):
        logits = keras.ops.log(probabilities)
        drawn = keras.random.categorical(logits, 1, seed=self.generator, dtype="int32")
        return keras.ops.squeeze(drawn, axis=-1)


def test_draws_go_on_and_begin_anew_with_the_seed():
    assert is_keras_hub_sampler(Drawn())
    model, sampler, prompts = ready(Recurrent()), Drawn(), [[3, 1]] * 4
    first, second = (generate(model, prompts, 5, sampler=sampler) for _ in range(2))
    assert (first != second).any()
    assert len(np.unique(first, axis=0)) > 1, "rows draw the same"
    sampler.generator.state.assign(keras.random.SeedGenerator(5).state.value)
    np.testing.assert_array_equal(generate(model, prompts, 5, sampler=sampler), first)


def test_samplers_that_search_are_refused():
    class BeamSampler(Sampler):
        pass

    with pytest.raises(ValueError, match=r"by its `get_next_token`.*BeamSearch.*BeamSampler"):
        KerasHubSampler(BeamSampler())


@pytest.fixture(scope="module")
def samplers():
    """KerasHub's, which tox installs."""
    return pytest.importorskip("keras_hub").samplers


def test_the_samplers_of_keras_hub(samplers):
    model, prompts = ready(Recurrent()), [[3, 1], [5]]
    found = generate(model, prompts, 4, sampler=samplers.GreedySampler())
    np.testing.assert_array_equal(found, generate(model, prompts, 4))
    for make in (samplers.TopKSampler, samplers.TopPSampler, samplers.RandomSampler):
        options = {} if make is samplers.RandomSampler else {"k": 3}
        one, other = (
            generate(model, prompts, 4, sampler=make(seed=2, **options)) for _ in range(2)
        )
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"use kattn.generation.BeamSearch.*BeamSampler"):
        generate(model, prompts, 4, sampler=samplers.BeamSampler())
