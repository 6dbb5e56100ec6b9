"""The block of the R-Transformer: a local RNN, attention, a feed-forward network."""

import keras

from kattn.layers.attention.mask_reader import read_masks
from kattn.layers.recurrent.local_rnn import LocalRNN
from kattn.layers.transformer.transformer_block import (
    TransformerBlock,
    check_part_decodes,
    part_config,
)


@keras.saving.register_keras_serializable("kattn")
class RTransformerBlock(TransformerBlock):
    """A recurrent layer over the last K steps, attention, and a feed-forward network.

    Each has a residual connection and a norm. The recurrent layer tells the order of near steps, so
    that attention needs no positions. It reads all windows at once, in K steps whatever the length.
    On PyTorch an LSTM or a GRU runs PyTorch's own kernel, see `explain_loops`.

    Shapes: B batch, T steps, C width.

    Args:
        rnn: Recurrent layer of Keras that returns its last output alone, of width C, such as
            `keras.layers.GRU(C)`.
        attention: Layer from `(B, T, C)` to `(B, T, C)` that mixes steps, such as
            `SelfAttention(8, causal=True)`.
        feed_forward: Layer that acts on each step alone. None for `FeedForward()`.
        window: Number of steps that the recurrent layer reads for a step, itself included, K.
        **kwargs: Arguments of `TransformerEncoderBlock`: `norm`, `placement`, `residual_scale`,
            `dropout`, `drop_path`, `layer_scale`, `remat` and `seed`; and `name`, `dtype` and
            `trainable`, as for any Keras layer. The layers that are given keep the dtype that they
            were made with.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Mask of the attention, bool, True = may attend, of any kind that `attention` takes:
            padding `(B, T)` (True = real step), or query by key `(B, T, T)` or `(B, N, T, T)`, or a
            `kattn.masks.Mask`. It is combined with the Keras mask of `x`. Padding is no part of any
            window: those of the other steps are as if it were not there.
        positions: Positions of the steps for the position layer of `attention`, integers, shape
            `(T,)` or `(B, T)`. None to count from 0 at the first real step.
        training: Whether anything is dropped.
        mask_arrays: Arrays of a mask object, which a functional model keeps apart from it. Leave it
            None.

    Returns:
        `(B, T, C)`; at padding steps it means nothing. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range, a part is no layer, or `rnn` returns something
            else than its last output, or is stateful; when built, if its width is not C.

    Example:
        >>> attention = kattn.layers.SelfAttention(4, causal=True)
        >>> block = kattn.layers.RTransformerBlock(keras.layers.GRU(64), attention, window=5)
        >>> block(keras.random.normal((2, 9, 64))).shape
        (2, 9, 64)
        >>> cache = block.init_cache(batch_size=2, length=9)
        >>> y, cache = block.decode(keras.random.normal((2, 1, 64)), cache)
        >>> y.shape
        (2, 1, 64)

    Reference:
        Wang et al. 2019, sec. 2, https://arxiv.org/abs/1907.05572. From the paper: the order of the
        three parts, and zeros before the first step. Other than there: the norms stand where
        `placement` says, by default before each part, as in the authors' code; one recurrent layer
        in each block, where that code can have several (give `keras.layers.RNN` several cells).
    """

    def __init__(self, rnn, attention, feed_forward=None, *, window, **kwargs):
        super().__init__(attention, feed_forward, **kwargs)
        self.window = window
        self.local = LocalRNN(rnn, window, dtype=self.dtype_policy, name="local")

    def build(self, x_shape):
        for part in (self.local, self.attention, self.feed_forward):
            self._build_part(part, x_shape)
        self._build_residuals(x_shape, "local", "attention", "feed_forward")

    def call(self, x, mask=None, positions=None, training=None, mask_arrays=None):
        x, padding, _ = read_masks(x, mask)

        def read_windows(h, training):
            return self.local(h, mask=padding, training=training)

        parts = read_windows, self._attend(padding, mask, positions), self.feed_forward
        return self._through(x, parts, training=training)  # (B, T, C)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """An empty cache for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the block reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of the last K - 1 inputs of the recurrent layer, `(B, K - 1, C)`, and the cache
            of `attention`.

        Raises:
            ValueError: If `attention` cannot decode, if it is not causal or not built, if a size is
                not an integer >= 1, or if there is a context.
        """
        check_part_decodes(self.attention)
        cache = self.attention.init_cache(batch_size, length, context, context_mask)
        return self.local.init_cache(batch_size, length), cache

    def get_config(self):
        return {
            **super().get_config(),
            "rnn": part_config(self.local.rnn),
            "window": self.window,
        }

    def _mixers(self):
        return [self.local, self.attention]
