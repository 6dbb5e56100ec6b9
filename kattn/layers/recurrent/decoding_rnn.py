"""A recurrent layer of Keras that decodes step by step, and is fast on PyTorch."""

import keras

from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_padded, read_padding, silence
from kattn.layers.recurrent.held_rnn import (
    decode_rnn,
    is_causal_rnn,
    read_rnn,
    rnn_cache,
    run_rnn,
)
from kattn.layers.rematerialized_layer import RematerializedLayer
from kattn.layers.transformer.transformer_block import part_config


@keras.saving.register_keras_serializable("kattn")
class DecodingRNN(RematerializedLayer):
    """The outputs of a recurrent layer of Keras at all steps; `decode` gives those of new steps.

    What `SelfAttentionRNN` is without its attention. On PyTorch an LSTM or a GRU runs PyTorch's own
    kernel, under masks, too, see `explain_loops`. With such layers `kattn.generate` can generate
    text with a functional model.

    Shapes: B batch, T steps, C width, U width of the outputs of the recurrent layer.

    Args:
        rnn: Recurrent layer that returns whole sequences, such as
            `keras.layers.LSTM(64, return_sequences=True)`, also `Bidirectional`, which does not
            decode.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer. The recurrent layer keeps
            the dtype that it was made with.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step, at either side or between. It is
            combined with the Keras mask of `x`. What `x` holds at padding, be it NaN, changes
            nothing.
        training: Whether the recurrent layer drops anything.

    Returns:
        `(B, T, U)`; at padding steps it is 0. The padding of `x` is the Keras mask of the output.

    Raises:
        ValueError: If `rnn` is no recurrent layer or does not return its outputs alone in their
            order; when called, if `x` or `mask` has a wrong rank or dtype.

    Example:
        >>> layer = kattn.layers.DecodingRNN(keras.layers.LSTM(32, return_sequences=True))
        >>> layer(keras.random.normal((2, 100, 8))).shape
        (2, 100, 32)
        >>> cache = layer.init_cache(batch_size=2, length=100)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 8)), cache)
        >>> y.shape
        (2, 1, 32)

    Reference:
        LSTM: Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735
    """

    def __init__(self, rnn, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.rnn = read_rnn(rnn)

    def build(self, x_shape):
        check_sequence("x", x_shape)
        if not self.rnn.built:
            self.rnn.build(x_shape)
        self.built = True

    def call(self, x, mask=None, training=None):
        x, padding = read_padded(x, mask)
        return silence(run_rnn(self.rnn, x, padding, training=training), padding)  # (B, T, U)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state of the recurrent layer before the first step, for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The state has one size for any.
            context: Must be None: the layer reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tree of tensors.

        Raises:
            ValueError: If the recurrent layer is `Bidirectional` or not built, if a size is not an
                integer >= 1, or if there is a context.
        """
        causal = is_causal_rnn(self.rnn)
        check_decodes(self, batch_size, length, context, context_mask, causal=causal)
        return rnn_cache(self.rnn, batch_size, length)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: State that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which leaves the state as it is. It is combined with the Keras mask
                of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, U)`, which is 0 at padding; and the state after
            these steps.

        Raises:
            ValueError: If `mask` is of another kind.
        """
        x, padding = read_padded(x, mask)
        return decode_rnn(self.rnn, x, cache, padding)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return self.rnn.compute_output_shape(x_shape)

    def get_config(self):
        return {**super().get_config(), "rnn": part_config(self.rnn)}
