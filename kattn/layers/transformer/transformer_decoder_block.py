"""A block of causal attention, attention to a context, and a feed-forward network."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.mask_reader import read_masks, read_padded, set_keras_mask
from kattn.layers.attention.patterns import is_causal
from kattn.layers.transformer.transformer_block import (
    TransformerBlock,
    check_part_decodes,
    part_config,
    read_part,
)


@keras.saving.register_keras_serializable("kattn")
class TransformerDecoderBlock(TransformerBlock):
    """Causal attention, attention to a context if there is one, then a feed-forward network.

    It is like a `TransformerEncoderBlock` whose attention must be causal, and may attend to a
    second sequence, too. Without `cross_attention` it is the block of a language model.

    Shapes: B batch, T steps and C width of the sequence, S steps and E width of its context.

    Args:
        attention: Causal layer from `(B, T, C)` to `(B, T, C)` that mixes steps and decodes, such
            as `SelfAttention(8, causal=True)` or `GatedLinearAttention(8)`.
        feed_forward: Layer that acts on each step alone. None for `FeedForward()`.
        cross_attention: Layer that attends to a context, such as `CrossAttention(8)`. None for a
            block without context.
        norm: "layer" for `LayerNormalization(epsilon=1e-5)`; "rms" for
            `RMSNormalization(epsilon=1e-6)`; another normalisation layer, of which each place gets
            a copy; or a function without arguments that makes one, which must be registered with
            Keras if the block is saved.
        placement: Where the norms stand: "pre", x + f(norm(x)), after the last block of which you
            add a norm; "post", norm(x + f(x)); "sandwich", x + norm(f(norm(x))); or "parallel",
            x + f(norm(x)) + g(norm(x)) with one norm for all parts f, g.
        residual_scale: Number that x is multiplied by where f(x) is added, as DeepNorm's alpha.
        dropout: Fraction of the channels of each f(x) that are dropped during training, in [0, 1).
        drop_path: Fraction of the items for which each f is skipped during training, in [0, 1);
            see `DropPath`.
        layer_scale: Number that a learned gain for each channel of f(x) starts at; see
            `LayerScale`. None for no gains.
        remat: If True, the block keeps nothing but its inputs for the gradient, and runs again when
            that is computed.
        seed: Integer seed of what is dropped, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer. The layers that are
            given keep the dtype that they were made with. Their names become "attention",
            "cross_attention" and "feed_forward", unless they are built, so that weights are named
            alike in every block.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        context: Sequence that `cross_attention` attends to, float, shape `(B, S, E)`. None if the
            block has no `cross_attention`.
        mask: Mask of `attention`, bool, True = may attend, of any kind that it takes: padding
            `(B, T)` (True = real step), or query by key `(B, T, T)` or `(B, N, T, T)`, or a
            `kattn.masks.Mask`. It is combined with the Keras mask of `x`. What `x` holds at
            padding, be it NaN, changes nothing.
        context_mask: Mask of the context, bool, True = may be attended to, of any kind that
            `cross_attention` takes. It is combined with the Keras mask of `context`.
        positions: Positions of the steps for the position layer of `attention`, integers, shape
            `(T,)` or `(B, T)`. None to count from 0 at the first real step.
        memory: Earlier steps of the same sequence, float, shape `(B, M, C)`, which `attention`
            reads in front of those of `x`, as in Transformer-XL. They give no output, and no
            gradient flows into them. With them `mask` must be padding, and `positions` None. None
            for no earlier steps.
        memory_mask: Which earlier steps are real, bool, shape `(B, M)`, True = real step. None if
            all are.
        training: Whether anything is dropped.
        mask_arrays: Arrays of mask objects, which a functional model keeps apart from them. Leave
            it None.

    Returns:
        `(B, T, C)`; at padding steps it means nothing. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range, a part is no layer, or `attention` is not causal
            or cannot decode; when called, if there is a context and no `cross_attention`, or the
            other way round, or if there are `positions` or a mask of query by key beside `memory`.

    Example:
        >>> attention = kattn.layers.SelfAttention(4, causal=True)
        >>> block = kattn.layers.TransformerDecoderBlock(attention, dropout=0.1)
        >>> block(keras.random.normal((2, 9, 64))).shape
        (2, 9, 64)
        >>> cache = block.init_cache(batch_size=2, length=9)
        >>> y, cache = block.decode(keras.random.normal((2, 1, 64)), cache)
        >>> y.shape
        (2, 1, 64)

    Reference:
        Vaswani et al. 2017, sec. 3.1, https://arxiv.org/abs/1706.03762; for the arguments that
        this block shares with `TransformerEncoderBlock` see there.
        Memory: Dai et al. 2019 (Transformer-XL), sec. 3.2, https://arxiv.org/abs/1901.02860
    """

    def __init__(self, attention, feed_forward=None, *, cross_attention=None, **kwargs):
        super().__init__(attention, feed_forward, **kwargs)
        check_part_decodes(self.attention)
        _check_causal(self.attention)
        if cross_attention is not None:
            cross_attention = read_part("cross_attention", cross_attention)
        self.cross_attention = cross_attention

    def build(self, x_shape, context_shape=None):
        self._check_context(context_shape)
        self._build_part(self.attention, x_shape)
        roles = ["attention", "feed_forward"]
        if self.cross_attention is not None:
            self._build_part(self.cross_attention, x_shape, context_shape)
            roles.insert(1, "cross_attention")
        self._build_part(self.feed_forward, x_shape)
        self._build_residuals(x_shape, *roles)

    def call(
        self,
        x,
        context=None,
        mask=None,
        context_mask=None,
        positions=None,
        memory=None,
        memory_mask=None,
        training=None,
        mask_arrays=None,
    ):
        self._check_context(context)
        x, padding, _ = read_masks(x, mask)
        parts = [self._attend(padding, mask, positions), self.feed_forward]
        if memory is not None:
            _check_memory(mask, positions)
            parts[0] = self._attend_behind(memory, memory_mask, padding)
        if self.cross_attention is not None:
            parts.insert(1, self._attend_to(context, padding, context_mask))
        return self._through(x, parts, training=training)  # (B, T, C)

    def compute_output_shape(self, x_shape, context_shape=None):
        return x_shape

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode`, without steps, which holds a context once projected.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Sequence that `cross_attention` attends to, float, shape `(B, S, E)`. None if
                the block has no `cross_attention`.
            context_mask: Padding of the context, bool, shape `(B, S)`, True = real step. It is
                combined with the Keras mask of `context`.

        Returns:
            A tuple of the cache of `attention` and that of `cross_attention`, if there is one.

        Raises:
            ValueError: If the block is not built, if a size is not an integer >= 1, or if the
                context is missing, superfluous or of another batch size.
        """
        if self.cross_attention is None:
            return super().init_cache(batch_size, length, context, context_mask)
        own = self.attention.init_cache(batch_size, length)
        return own, self.cross_attention.init_cache(batch_size, length, context, context_mask)

    def get_config(self):
        return {**super().get_config(), "cross_attention": part_config(self.cross_attention)}

    def _mixers(self):
        return [x for x in (self.attention, self.cross_attention) if x is not None]

    def _attend_behind(self, memory, memory_mask, padding):
        """The attention to earlier steps and to those of x, as a function of what it reads of x."""
        memory = ops.stop_gradient(ops.convert_to_tensor(memory, self.compute_dtype))
        memory, real = read_padded(memory, memory_mask, "memory_mask")

        def attend(h, training):
            earlier = self._read(memory, training)
            keep = _joined_padding((earlier, real), (h, padding))
            both = set_keras_mask(ops.concatenate([earlier, h], axis=1), keep)  # (B, M + T, C)
            return self.attention(both, training=training)[:, earlier.shape[1] :]

        return attend

    def _attend_to(self, context, padding, context_mask):
        """The attention to a context as a function of what it reads."""
        given = {} if context_mask is None else {"context_mask": context_mask}
        return lambda h, training: self.cross_attention(
            set_keras_mask(h, padding), context, training=training, **given
        )

    def _check_context(self, context):
        """Raises ValueError unless there is a context, or its shape, where one is needed."""
        if (context is None) == (self.cross_attention is None):
            return
        rule = "A block with `cross_attention` must be given a `context`, and no other block may"
        raise arguments.error(rule, cross_attention=self.cross_attention, context=context)


def _joined_padding(*sequences):
    """The padding of sequences `(B, T, C)` one behind the other; None if all steps are real."""
    if all(padding is None for _, padding in sequences):
        return None
    return ops.concatenate(
        [ops.ones_like(x[..., 0], "bool") if p is None else p for x, p in sequences], axis=1
    )


def _check_memory(mask, positions):
    """Raises ValueError for what says something of the steps of x alone."""
    is_padding = mask is None or len(getattr(mask, "shape", ())) == 2
    if not is_padding or positions is not None:
        raise arguments.error(
            "With `memory`, `mask` must be padding (B, T) or None, and `positions` None",
            mask=mask,
            positions=positions,
        )


def _check_causal(attention):
    """Raises ValueError unless no step sees later ones, but for a prefix."""
    if getattr(attention, "causal", True) or is_causal(getattr(attention, "pattern", None)):
        return
    raise arguments.error(
        "The `attention` of a decoder block must be causal: build it with causal=True or with a "
        "causal `pattern`, or use TransformerEncoderBlock",
        attention=attention,
    )
