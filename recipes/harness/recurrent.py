"""LSTMs to compare with. They need Keras, so import this only once the backend is chosen."""

from typing import Any

import keras


@keras.saving.register_keras_serializable("recipes")
class DecodingLSTM(keras.layers.Layer):
    """`keras.layers.LSTM` that gives all steps and has `init_cache` and `decode`.

    So `kattn.generate` can sample from a functional model of such layers.

    Args:
        units: Width of the output.
        **kwargs: `name` and `dtype`, as for any Keras layer.
    """

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        self.lstm = keras.layers.LSTM(
            units, return_sequences=True, return_state=True, dtype=self.dtype_policy, name="lstm"
        )

    def build(self, x_shape: Any) -> None:
        self.lstm.build(x_shape)
        self.built = True

    def call(self, x: Any) -> Any:
        return self.lstm(x)[0]  # (B, T, units)

    def compute_output_shape(self, x_shape: Any) -> Any:
        return (*x_shape[:-1], self.units)

    def init_cache(
        self, batch_size: int, length: int, context: Any = None, context_mask: Any = None
    ) -> Any:
        """The state before the first step, whatever the length."""
        return tuple(self.lstm.cell.get_initial_state(batch_size=batch_size))

    def decode(self, x: Any, cache: Any, mask: Any = None) -> Any:
        """The output of new steps `(B, t, C)`, and the state after them."""
        y, *state = self.lstm(x, initial_state=list(cache), mask=mask)
        return y, tuple(state)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def lstm_of_size(
    parameters: int, vocabulary_size: int, steps: int, *, layers: int, dropout: float
) -> Any:
    """A functional language model of LSTM layers, whose width follows from its size.

    Args:
        parameters: Number of parameters that it shall have; the nearest possible is taken.
        vocabulary_size: Number of tokens.
        steps: Number of steps of a sequence in training.
        layers: Number of LSTM layers.
        dropout: Fraction of the channels that are dropped behind each of them.
    """

    def size(width: int) -> int:
        each = 8 * width**2 + 4 * width
        return layers * each + vocabulary_size * (2 * width + 1)

    width = min(range(1, 8192), key=lambda width: abs(size(width) - parameters))
    tokens = keras.Input((steps,), dtype="int32")
    h = keras.layers.Embedding(vocabulary_size, width, name="embedding")(tokens)
    for number in range(layers):
        h = DecodingLSTM(width, name=f"lstm{number}")(h)
        h = keras.layers.Dropout(dropout, name=f"dropout{number}")(h)
    return keras.Model(tokens, keras.layers.Dense(vocabulary_size, name="head")(h), name="lstm")


def lstm_classifier(
    vocabulary_size: int, classes: int, steps: int, *, width: int, dropout: float
) -> Any:
    """A functional classifier of tokens by an LSTM in both directions; token 0 is padding."""
    tokens = keras.Input((steps,), dtype="int32")
    h = keras.layers.Embedding(vocabulary_size, width, mask_zero=True, name="embedding")(tokens)
    h = keras.layers.Bidirectional(keras.layers.LSTM(width), name="lstm")(h)
    h = keras.layers.Dropout(dropout)(h)
    return keras.Model(tokens, keras.layers.Dense(classes, name="head")(h), name="lstm")
