"""Networks of equal size: what they see, and how large they are."""

import keras
import numpy as np
import pytest

from recipes.harness.mixers import MIXERS, network, width_of_size


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_step_sees_a_later_one(rng, mixer):
    model = network(mixer, 11, 6, 8, num_heads=2)
    assert model.output_shape == (None, 6, 11)
    tokens = rng.integers(0, 11, (1, 6))
    changed = tokens.copy()
    changed[0, 4] = (changed[0, 4] + 1) % 11
    one, other = (model.predict(each, verbose=0)[0] for each in (tokens, changed))
    np.testing.assert_allclose(one[:4], other[:4], rtol=1e-4, atol=1e-6)
    assert (np.abs(one[4:] - other[4:]).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("mixer", ["attention", "lstm-attention", "rg-lru-window", "transformer"])
def test_attention_has_a_window(mixer):
    model = network(mixer, 11, 6, 8, window=3)
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "window")]
    assert layers
    assert all(layer.window == 3 for layer in layers)


@pytest.mark.parametrize(("steps", "seen"), [(6, 3), (1, 1)])
def test_griffin_sees_half_of_the_steps(steps, seen):
    (layer,) = (x for x in network("rg-lru-window", 11, steps, 8).layers if hasattr(x, "window"))
    assert layer.window == seen


def test_the_lstm_attends_and_remembers_itself(rng):
    """h + attention(h), by the layers that the model holds."""
    model = network("lstm-attention", 11, 6, 8, num_heads=2)
    embedding, layer = model.get_layer("embedding"), model.get_layer("lstm_attention")
    read = keras.Model(embedding.output, model.get_layer("norm").input)
    vectors = embedding(rng.integers(0, 11, (2, 6)))
    h = layer.rnn(vectors)
    found, wanted = (keras.ops.convert_to_numpy(x) for x in (read(vectors), h + layer.attention(h)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_vectors_are_of_a_size_that_an_lstm_learns_from():
    table = network("lstm", 50, 6, 40).get_layer("embedding").get_weights()[0]
    assert table.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("mixer", MIXERS)
def test_widths_of_equal_size(mixer):
    wanted = network("lstm-attention", 30, 6, 48).count_params()

    def make(width):
        return network(mixer, 30, 6, width)

    step = MIXERS[mixer].multiple
    width = width_of_size(wanted, make, step)
    sizes = [make(each).count_params() for each in (width - step, width, width + step)]
    assert min(sizes, key=lambda size: abs(size - wanted)) == sizes[1]
    assert sizes[1] == pytest.approx(wanted, rel=0.06)
    assert width_of_size(wanted, make, 12) % 12 == 0


def test_no_width_is_too_small_to_be_found():
    def make(width):
        return network("lstm", 30, 6, width)

    assert width_of_size(1, make, 4) == 4
