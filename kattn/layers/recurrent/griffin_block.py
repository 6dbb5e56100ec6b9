"""The blocks of Griffin (De et al., 2024): linear recurrences, and attention to a window."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.head_sizes import check_heads
from kattn.layers.attention.mask_reader import read_padding
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.attention.self_attention import SelfAttention
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from kattn.layers.recurrent.griffin_recurrence import GriffinRecurrence
from kattn.layers.transformer.block_stack import BlockStack
from kattn.layers.transformer.feed_forward import FeedForward
from kattn.layers.transformer.transformer_encoder_block import TransformerEncoderBlock

MIXERS = ("recurrent", "attention")
ARGUMENTS = (
    "num_heads",
    "window",
    "num_key_value_heads",
    "recurrent_units",
    "kernel_size",
    "hidden_dim",
    "dropout",
    "seed",
)


@keras.saving.register_keras_serializable("kattn")
class GriffinBlock(QuantizableLayer):
    """Two recurrent blocks and one of attention to a window, as Griffin repeats them.

    Each is x + mix(norm(x)) and then x + feed_forward(norm(x)), with RMS norms and a feed-forward
    network with a gate. What mixes is `GriffinRecurrence`, or causal attention to the last steps
    with rotary positions on half of the channels. Time is O(T); the state of decoding has one size
    for any number of steps.

    Shapes: B batch, T steps, C width.

    Args:
        num_heads: Number of attention heads, and of blocks of the gates of the RG-LRU.
        window: Number of steps that attention looks at, the step's own included.
        pattern: What mixes in each block in turn: a sequence of "recurrent" and "attention".
        num_key_value_heads: Number of heads of keys and values, which must divide `num_heads`. The
            paper has one for all.
        recurrent_units: Number of channels of the recurrences. None for C.
        kernel_size: Number of steps that the convolutions see, its own included.
        hidden_dim: Number of hidden channels of the feed-forward networks. None for 3 C.
        dropout: Fraction of the channels behind each part that are dropped during training, in
            [0, 1).
        seed: Integer seed of what is dropped, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step. It is combined with the Keras mask of
            `x`.
        training: Whether anything is dropped.

    Returns:
        `(B, T, C)`; at padding steps it means nothing. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when built, if C or `recurrent_units` is not
            divisible by `num_heads`; when called, if `x` or `mask` has a wrong rank or dtype.

    Example:
        >>> block = kattn.layers.GriffinBlock(4, window=64)
        >>> block(keras.random.normal((2, 128, 64))).shape
        (2, 128, 64)
        >>> cache = block.init_cache(batch_size=2, length=1024)
        >>> y, cache = block.decode(keras.random.normal((2, 1, 64)), cache)

    Reference:
        De et al. 2024, sec. 2, https://arxiv.org/abs/2402.19427. In the paper the window has 1,024
        steps.
    """

    def __init__(
        self,
        num_heads,
        *,
        window=1024,
        pattern=("recurrent", "recurrent", "attention"),
        num_key_value_heads=1,
        recurrent_units=None,
        kernel_size=4,
        hidden_dim=None,
        dropout=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_integers(1, window=window, kernel_size=kernel_size)
        arguments.check_optional_integers(1, hidden_dim=hidden_dim, recurrent_units=recurrent_units)
        check_heads(num_heads, None, None, num_key_value_heads)
        arguments.check_fractions(dropout=dropout)
        if isinstance(pattern, str) or not pattern:
            rule = "`pattern` must be a sequence of one mixer or more, such as ('recurrent',)"
            raise arguments.error(rule, pattern=pattern)
        for mixer in pattern:
            arguments.check_choice(MIXERS, pattern=mixer)
        self.num_heads = num_heads
        self.window = window
        self.pattern = tuple(pattern)
        self.num_key_value_heads = num_key_value_heads
        self.recurrent_units = recurrent_units
        self.kernel_size = kernel_size
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.seed = seed

    def build(self, x_shape):
        check_sequence("x", x_shape)
        hidden_dim = self.hidden_dim or 3 * x_shape[-1]
        blocks = [self._block(i, mixer, hidden_dim) for i, mixer in enumerate(self.pattern)]
        self._stack = BlockStack(blocks, dtype=self.dtype_policy, name="blocks")
        self._stack.build(x_shape)
        self.built = True

    def call(self, x, mask=None, training=None):
        return self._stack(x, mask=read_padding(x, mask), training=training)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """An empty cache for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the block reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of the caches of the blocks.

        Raises:
            ValueError: If the block is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        return self._stack.init_cache(batch_size, length)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side. It is combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, C)`, which means nothing at padding; and the
            cache with the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If `mask` is of another kind.
        """
        padding = read_padding(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        return self._stack.decode(x, cache, padding)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            "pattern": list(self.pattern),
        }

    def _mixer(self, mixer):
        if mixer == "recurrent":
            return GriffinRecurrence(
                self.num_heads,
                self.recurrent_units,
                kernel_size=self.kernel_size,
                dtype=self.dtype_policy,
            )
        return SelfAttention(
            self.num_heads,
            causal=True,
            window=self.window,
            num_key_value_heads=self.num_key_value_heads,
            position=RotaryEmbedding(fraction=0.5),
            dtype=self.dtype_policy,
        )

    def _block(self, number, mixer, hidden_dim):
        """A block, which draws other numbers than the others where it drops something."""
        return TransformerEncoderBlock(
            self._mixer(mixer),
            FeedForward(hidden_dim, activation="geglu_tanh", dtype=self.dtype_policy),
            norm="rms",
            dropout=self.dropout,
            seed=None if self.seed is None else self.seed + 10 * number,
            dtype=self.dtype_policy,
            name=f"block{number}",
        )
