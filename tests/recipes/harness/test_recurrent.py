"""Recurrent networks: their size, and what they see."""

import keras
import numpy as np
import pytest

from kattn.layers import SelfAttentionRNN
from recipes.harness.recurrent import lstm_classifier, rnn_of_size


@pytest.mark.parametrize("num_heads", [None, 2])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_size(num_layers, num_heads):
    options = {"num_layers": num_layers, "num_heads": num_heads, "dropout": 0.1}
    model = rnn_of_size(20_000, 11, 6, **options)
    assert model.count_params() == pytest.approx(20_000, rel=0.05)
    assert model.output_shape == (None, 6, 11)
    attends = [isinstance(layer, SelfAttentionRNN) for layer in model.layers]
    assert sum(attends) == (num_layers if num_heads else 0)
    narrower = rnn_of_size(16_000, 11, 6, **options)
    assert narrower.count_params() < model.count_params()


def test_classifier_does_not_see_padding():
    model = lstm_classifier(9, 3, 5, width=4, dropout=0.5)
    tokens = np.array([[3, 4, 0, 0, 0]])
    logits = keras.ops.convert_to_numpy(model(tokens))
    assert logits.shape == (1, 3)
    changed = model.get_layer("embedding").get_weights()[0]
    changed[0] += 1
    model.get_layer("embedding").set_weights([changed])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(tokens)), logits, rtol=1e-6)
