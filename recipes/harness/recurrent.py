"""Recurrent networks. They need Keras, so import this only once the backend is chosen."""

from typing import Any

import keras

from kattn.models import sa_rnn
from recipes.harness.mixers import width_of_size


def rnn_of_size(
    parameters: int,
    vocabulary_size: int,
    steps: int,
    *,
    num_layers: int,
    num_heads: int | None,
    dropout: float,
) -> Any:
    """A language model of LSTM layers, whose width follows from its size.

    Args:
        parameters: Number of parameters that it shall have; the nearest possible is taken.
        vocabulary_size: Number of tokens.
        steps: Number of steps of a sequence in training.
        num_layers: Number of LSTM layers.
        num_heads: Heads of the attention over the outputs of each. None for no attention.
        dropout: Fraction of the channels that are dropped behind each layer.
    """

    def make(width: int) -> Any:
        return sa_rnn(
            vocabulary_size=vocabulary_size,
            input_length=steps,
            units=width,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
        )

    return make(width_of_size(parameters, make, num_heads or 1))


def lstm_classifier(
    vocabulary_size: int, classes: int, steps: int, *, width: int, dropout: float
) -> Any:
    """A functional classifier of tokens by an LSTM in both directions; token 0 is padding."""
    tokens = keras.Input((steps,), dtype="int32")
    h = keras.layers.Embedding(vocabulary_size, width, mask_zero=True, name="embedding")(tokens)
    h = keras.layers.Bidirectional(keras.layers.LSTM(width), name="lstm")(h)
    h = keras.layers.Dropout(dropout)(h)
    return keras.Model(tokens, keras.layers.Dense(classes, name="head")(h), name="lstm")
