"""Keras's recurrent layers, one on the other, with dropout between them."""

from typing import Any

import keras

from kattn import arguments
from kattn.layers.recurrent.native_loop import use_native_loops

LAYERS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
CELLS = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell}


def run_recurrent(layer, x, *, mask, states, training):
    """All outputs of a recurrent layer, and its last states.

    On PyTorch a layer for which `use_native_loops` was called runs the loop of that framework.

    Args:
        layer: `keras.layers.LSTM`, `keras.layers.GRU` or `keras.layers.Bidirectional` of one, with
            `return_sequences` and `return_state`.
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; or None.
        states: List of the states before the first step, or None for zeros.
        training: Whether anything is dropped.

    Returns:
        `(outputs, states)`: `(B, T, C')`, and a list of tensors `(B, size)`.
    """
    outputs, *states = layer(x, initial_state=states, mask=mask, training=training)
    return outputs, states


class RecurrentStack(keras.layers.Layer):
    """Recurrent layers, of which each reads the outputs of the one before.

    Args:
        kind: "lstm" or "gru".
        num_layers: Number of layers, 0 to give back what is read.
        width: Number of channels of the outputs; of a bidirectional layer each direction has half.
        bidirectional: Whether each layer goes through the sequence in both directions.
        dropout: Fraction of the channels that are dropped before each layer but the first.
        seed: Integer seed of what is dropped, or None for a random one.
        **kwargs: `name` and `dtype`.
    """

    def __init__(
        self, kind, num_layers, width, *, bidirectional=False, dropout=0.0, seed=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.width = width
        self.bidirectional = bidirectional
        policy = self.dtype_policy
        if bidirectional and width % 2:
            raise arguments.error(
                "`width` must be even where layers are bidirectional, as each direction has half "
                "of the channels",
                width=width,
            )
        self._dropouts: list[Any] = []
        self._layers_in_turn: list[Any] = []
        for i in range(num_layers):
            options = {"return_sequences": True, "return_state": True, "dtype": policy}
            if bidirectional:
                layer = LAYERS[kind](width // 2, name=kind, **options)
                layer = keras.layers.Bidirectional(layer, dtype=policy, name=f"layer{i}")
            else:
                layer = LAYERS[kind](width, name=f"layer{i}", **options)
            use_native_loops(layer)
            self._layers_in_turn.append(layer)
            own = None if seed is None else seed + i
            drop = keras.layers.Dropout(dropout, seed=own, dtype=policy) if i and dropout else None
            self._dropouts.append(drop)

    def build(self, x_shape):
        for layer in self._layers_in_turn:
            layer.build(x_shape)
            x_shape = (*x_shape[:2], self.width)
        self.built = True

    def call(self, x, mask=None, states=None, training=None):
        """The outputs; and for each layer the list of its last states.

        Args:
            x: Input sequence, float, shape `(B, T, C)`.
            mask: Padding, bool, shape `(B, T)`, True = real step; or None.
            states: For each layer the list of its states before the first step, or None.
            training: Whether anything is dropped.
        """
        last = []
        for i, layer in enumerate(self._layers_in_turn):
            if self._dropouts[i] is not None:
                x = self._dropouts[i](x, training=training)
            first = None if states is None else list(states[i])
            x, own = run_recurrent(layer, x, mask=mask, states=first, training=training)
            last.append(own)
        return x, last

    def last_hidden(self, states):
        """The last hidden state `(B, width)` of the last layer, of both directions side by side."""
        states = states[-1]
        if not self.bidirectional:
            return states[0]
        return keras.ops.concatenate([states[0], states[len(states) // 2]], axis=-1)
