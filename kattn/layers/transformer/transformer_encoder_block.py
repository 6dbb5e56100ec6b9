"""A block of attention and a feed-forward network (Vaswani et al., 2017)."""

import keras

from kattn.layers.attention.mask_reader import read_masks
from kattn.layers.transformer.transformer_block import TransformerBlock


@keras.saving.register_keras_serializable("kattn")
class TransformerEncoderBlock(TransformerBlock):
    """Attention, then a feed-forward network, each with a residual connection and a norm.

    A block is made of layers, and has their options: any attention layer of kattn, with any
    position, and any layer that acts on each step alone. If the attention is causal, the block
    decodes step by step.

    Shapes: B batch, T steps, C width.

    Args:
        attention: Layer from `(B, T, C)` to `(B, T, C)` that mixes steps, such as
            `SelfAttention(8)`, `LinearAttention(8)` or `GatedLinearAttention(8)`.
        feed_forward: Layer that acts on each step alone. None for `FeedForward()`.
        norm: "layer" for `LayerNormalization(epsilon=1e-5)`; "rms" for
            `RMSNormalization(epsilon=1e-6)`; another normalisation layer, of which each place gets
            a copy; or a function without arguments that makes one, which must be registered with
            Keras if the block is saved.
        placement: Where the norms stand: "pre", x + f(norm(x)), after the last block of which you
            add a norm; "post", norm(x + f(x)); "sandwich", x + norm(f(norm(x))); or "parallel",
            x + attention(norm(x)) + feed_forward(norm(x)) with one norm for both.
        residual_scale: Number that x is multiplied by where f(x) is added, as DeepNorm's alpha.
        dropout: Fraction of the channels of each f(x) that are dropped during training, in [0, 1).
        drop_path: Fraction of the items for which each f is skipped during training, in [0, 1);
            see `DropPath`.
        layer_scale: Number that a learned gain for each channel of f(x) starts at; see
            `LayerScale`. None for no gains.
        remat: If True, the block keeps nothing but its input for the gradient, and runs again when
            that is computed.
        seed: Integer seed of what is dropped, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer. The layers that are
            given keep the dtype that they were made with. Their names become "attention" and
            "feed_forward", unless they are built, so that weights are named alike in every block.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Mask of the attention, bool, True = may attend, of any kind that `attention` takes:
            padding `(B, T)` (True = real step), or query by key `(B, T, T)` or `(B, N, T, T)`, or a
            `kattn.masks.Mask`. It is combined with the Keras mask of `x`. What `x` holds at
            padding, be it NaN, changes nothing.
        positions: Positions of the steps for the position layer of `attention`, integers, shape
            `(T,)` or `(B, T)`. None to count from 0 at the first real step.
        training: Whether anything is dropped.
        mask_arrays: Arrays of a mask object, which a functional model keeps apart from it. Leave it
            None.

    Returns:
        `(B, T, C)`; at padding steps it means nothing. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range, or a part is no layer.

    Example:
        >>> attention = kattn.layers.SelfAttention(4, position=kattn.layers.RotaryEmbedding())
        >>> feed_forward = kattn.layers.FeedForward(activation="swiglu")
        >>> block = kattn.layers.TransformerEncoderBlock(attention, feed_forward, norm="rms")
        >>> block(keras.random.normal((2, 9, 64))).shape
        (2, 9, 64)

    Reference:
        Vaswani et al. 2017, sec. 3.1, https://arxiv.org/abs/1706.03762
        Placements: Xiong et al. 2020, https://arxiv.org/abs/2002.04745; Ding et al. 2021, sec. 3.2,
        https://arxiv.org/abs/2105.13290; parallel: Chowdhery et al. 2022, sec. 2,
        https://arxiv.org/abs/2204.02311
        Residual scale: Wang et al. 2022, https://arxiv.org/abs/2203.00555
    """

    def build(self, x_shape):
        self._build_part(self.attention, x_shape)
        self._build_part(self.feed_forward, x_shape)
        self._build_residuals(x_shape, "attention", "feed_forward")

    def call(self, x, mask=None, positions=None, training=None, mask_arrays=None):
        x, padding, _ = read_masks(x, mask)
        parts = self._attend(padding, mask, positions), self.feed_forward
        return self._through(x, parts, training=training)  # (B, T, C)
