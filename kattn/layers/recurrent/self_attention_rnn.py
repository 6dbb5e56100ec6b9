"""A recurrent layer whose outputs attend to each other."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_padded, read_padding, silence
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.attention.self_attention import SelfAttention
from kattn.layers.nested_layers import layer_config
from kattn.layers.recurrent.held_rnn import (
    decode_rnn,
    is_causal_rnn,
    read_rnn,
    rnn_cache,
    run_rnn,
)
from kattn.layers.transformer.transformer_block import (
    check_part_decodes,
    part_config,
    read_part,
)

COMBINE = ("add", "concat", "gate")
# The arguments that make the attention, and their defaults.
OF_ATTENTION = {
    "num_heads": None,
    "window": None,
    "key_dim": None,
    "num_key_value_heads": None,
    "position": None,
    "dropout": 0.0,
    "seed": None,
}


@keras.saving.register_keras_serializable("kattn")
class SelfAttentionRNN(QuantizableLayer):
    """h + attention(h) over the outputs h of a recurrent layer.

    The recurrent layer is any of Keras's: LSTM, GRU, SimpleRNN, an RNN of any cell or of several,
    Bidirectional; or a layer of kattn that decodes step by step. On PyTorch an LSTM or a GRU runs
    PyTorch's own kernel, see `explain_loops`.

    Shapes: B batch, T steps, C width, U width of the outputs of the recurrent layer.

    Args:
        rnn: Recurrent layer that returns whole sequences, such as
            `keras.layers.LSTM(64, return_sequences=True)`.
        num_heads: Number of attention heads. None if `attention` is given.
        combine: How the outputs h and what they attend to, a, become one: "add" for h + a;
            "concat" for [h; a] W + b, of the width of h; "gate" for g * h + (1 - g) * a with
            g = sigmoid([h; a] W + b), channel by channel.
        causal: If True, step t attends to steps <= t only. It must be False for a `Bidirectional`
            layer, whose outputs know later steps.
        window: Number of steps that a step attends to, itself included. None for no limit.
        key_dim: Width of the queries and keys of one head. None for U divided by `num_heads`.
        num_key_value_heads: Number of key/value heads, a divisor of `num_heads`. None for
            `num_heads`.
        position: Position layer of the attention, such as `RotaryEmbedding()`. None for no
            positions: a recurrent layer knows the order of its steps.
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1).
        attention: Layer that attends, such as `SelfAttention(4, causal=True, use_gate=True)` or
            `LinearAttention(4, causal=True)`, in place of the arguments from `num_heads` to
            `dropout`. None for a `SelfAttention` with these.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer. Layers that are given
            keep the dtype that they were made with.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step, at either side or between. It is
            combined with the Keras mask of `x`. What `x` holds at padding, be it NaN, changes
            nothing.
        training: Whether dropout is applied, in the recurrent layer, too.

    Returns:
        `(B, T, U)`; at padding steps it is 0. The padding of `x` is the Keras mask of the output.

    Raises:
        ValueError: If an argument is out of range, if `rnn` is no recurrent layer or does not
            return its outputs alone in their order, or if both `attention` and an argument that
            makes one are given; when called, if `x` or `mask` has a wrong rank or dtype.

    Example:
        >>> rnn = keras.layers.LSTM(32, return_sequences=True)
        >>> layer = kattn.layers.SelfAttentionRNN(rnn, 4, window=64)
        >>> layer(keras.random.normal((2, 100, 8))).shape
        (2, 100, 32)
        >>> cache = layer.init_cache(batch_size=2, length=100)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 8)), cache)
        >>> y.shape
        (2, 1, 32)

    Reference:
        Attention: Vaswani et al. 2017, sec. 3.2.2, https://arxiv.org/abs/1706.03762, over the
        outputs of a recurrent layer, as Cheng et al. 2016, sec. 3, have it inside of one,
        https://arxiv.org/abs/1601.06733. "concat" without a tanh: Luong et al. 2015, eq. 5,
        https://arxiv.org/abs/1508.04025
    """

    def __init__(
        self,
        rnn,
        num_heads=None,
        *,
        combine="add",
        causal=True,
        window=None,
        key_dim=None,
        num_key_value_heads=None,
        position=None,
        dropout=0.0,
        attention=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_choice(COMBINE, combine=combine)
        self.rnn = read_rnn(rnn)
        self.combine = combine
        self.causal = causal
        self._options = {
            "num_heads": num_heads,
            "window": window,
            "key_dim": key_dim,
            "num_key_value_heads": num_key_value_heads,
            "position": position,
            "dropout": dropout,
            "seed": seed,
        }
        self._is_given = attention is not None
        if self._is_given:
            _check_alone(self._options)
            self.attention = read_part("attention", attention)
            given = getattr(self.attention, "causal", causal)
            if given != causal:
                rule = "`causal` must be what it is in `attention`"
                raise arguments.error(rule, causal=causal, **{"attention.causal": given})
        else:
            options = {**self._options, "causal": causal, "dtype": self.dtype_policy}
            self.attention = SelfAttention(**options, name="attention")
            self._options["position"] = self.attention.position
        if causal and not is_causal_rnn(self.rnn):
            raise arguments.error(
                "`causal` must be False for a Bidirectional `rnn`, whose outputs know later steps",
                causal=causal,
                rnn=self.rnn,
            )

    def build(self, x_shape):
        check_sequence("x", x_shape)
        if not self.rnn.built:
            self.rnn.build(x_shape)
        shape = self.rnn.compute_output_shape(x_shape)
        if not self.attention.built:
            self.attention.build(shape)
        width = shape[-1]
        if self.combine != "add":
            options = ProjectionOptions()
            self._mix = options.dense(self.combine, 2 * width, width, dtype=self.dtype_policy)
        self.built = True

    def call(self, x, mask=None, training=None):
        x, padding = read_padded(x, mask)
        h = run_rnn(self.rnn, x, padding, training=training)  # (B, T, U)
        options = {} if padding is None else {"mask": padding}
        a = self.attention(h, training=training, **options)
        return silence(self._combined(h, a), padding)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state of the recurrent layer before the first step, and an empty cache for attention.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the layer reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of the state, a tree of tensors, and the cache of the attention.

        Raises:
            ValueError: If the layer is not causal or not built, if a size is not an integer >= 1,
                or if there is a context.
        """
        check_decodes(self, batch_size, length, context, context_mask, causal=self.causal)
        check_part_decodes(self.attention)
        state = rnn_cache(self.rnn, batch_size, length)
        return state, self.attention.init_cache(batch_size, length)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side. It is combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, U)`, which is 0 at padding; and the cache with
            the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If `mask` is of another kind, or if the steps do not fit into the cache,
                where that can be seen.
        """
        x, padding = read_padded(x, mask)
        state, earlier = cache
        h, state = decode_rnn(self.rnn, x, state, padding)  # (B, t, U)
        a, earlier = self.attention.decode(h, earlier, mask=padding)
        return silence(self._combined(h, a), padding), (state, earlier)

    def attention_weights(self, x, mask=None):
        """The attention weights with which the outputs of the recurrent layer are mixed.

        Args:
            x: Input sequence, float, shape `(B, T, C)`.
            mask: Padding, bool, shape `(B, T)`, True = real step.

        Returns:
            What `attention_weights` of the attention returns: `(B, N, T, T)` float32 of
            `SelfAttention`. Dropout is not applied.

        Raises:
            ValueError: If the attention is a layer without such a method.
        """
        if not hasattr(self.attention, "attention_weights"):
            rule = "`attention` must be a layer that has `attention_weights`"
            raise arguments.error(rule, attention=self.attention)
        if not self.built:
            self.build(x.shape)
        x, padding = read_padded(x, mask)
        h = run_rnn(self.rnn, ops.convert_to_tensor(x), padding)
        return self.attention.attention_weights(h, mask=padding)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return self.rnn.compute_output_shape(x_shape)

    def get_config(self):
        return {
            **super().get_config(),
            **self._options,
            "position": layer_config(self._options["position"]),
            "combine": self.combine,
            "causal": self.causal,
            "rnn": part_config(self.rnn),
            "attention": part_config(self.attention) if self._is_given else None,
        }

    def _combined(self, h, a):
        h, a = (ops.cast(x, self.compute_dtype) for x in (h, a))
        if self.combine == "add":
            return h + a
        mixed = self._mix(ops.concatenate([h, a], axis=-1))
        if self.combine == "concat":
            return mixed
        g = ops.sigmoid(mixed)
        return g * h + (1 - g) * a


def _check_alone(options):
    """Raises ValueError if an argument that makes an attention stands beside one."""
    given = {name: x for name, x in options.items() if x != OF_ATTENTION[name]}
    if given:
        raise arguments.error(
            "`attention` must stand alone: give these arguments to the layer itself", **given
        )
