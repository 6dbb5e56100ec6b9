"""The real-gated linear recurrent unit (De et al., 2024)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.initializers import numbered
from kattn.layers.recurrent.recurrent_layer import RecurrentLayer
from kattn.ops.cache import next_positions
from kattn.ops.recurrence import decode_linear_recurrence, read_steps

SCALE = 8.0  # c of the paper
RADII = 0.9, 0.999  # between which the decay of an open gate lies at the start, to the power 1 / c
STEEPEST = 1000.0  # slope of the square root, beyond which its gradient is cut


@keras.saving.register_keras_serializable("kattn")
class RGLRU(RecurrentLayer):
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t) with a_t = exp(-8 r_t softplus(P)).

    The gates i_t = sigmoid(x_t W_x + b_x) and r_t = sigmoid(x_t W_a + b_a) see the input alone; W_x
    and W_a are made of a block for each of N groups of channels. P is a learned number for each
    channel. The square root keeps the variance of the state that of the input; at the first step,
    before which there is no state, 1 stands in its place.

    Shapes: B batch, T steps, C width, N blocks.

    Args:
        num_heads: Number of blocks of the gates, N, by which the width C must be divisible.
        implementation: How the recurrence is computed: "step", "chunked", "associative" or "auto",
            see `kattn.ops.linear_recurrence`. All give the same result.
        use_bias: Whether the gates have biases.
        kernel_initializer: Initializer of each block of the gates.
        bias_initializer: Initializer of the biases of the gates.
        kernel_regularizer: Regularizer of the blocks of the gates, or None.
        bias_regularizer: Regularizer of the biases of the gates, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which leaves the
            state as it is. It is combined with the Keras mask of `x`.
        starts: Bool, shape `(B, T)`; True at the first real step of a segment, which does not see
            the steps before it, as where texts are packed into one sequence; at padding it has no
            effect. None for one segment.

    Returns:
        `(B, T, C)`; at padding steps it is the state of the last real step. The padding of `x` is
        the Keras mask of the output.

    Raises:
        ValueError: If an argument is out of range; when built, if C is not divisible by
            `num_heads`; when called, if `x`, `mask` or `starts` has a wrong rank, shape or dtype.

    Example:
        >>> layer = kattn.layers.RGLRU(num_heads=4)
        >>> layer(keras.random.normal((2, 1024, 64))).shape
        (2, 1024, 64)
        >>> cache = layer.init_cache(batch_size=2, length=1024)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), cache)

    Reference:
        De et al. 2024, sec. 2.4 and app. A, https://arxiv.org/abs/2402.19427. The blocks of the
        gates, the start of P, and the slope of the square root, which is cut at 1000, are those of
        the code that the authors published; in the paper the gates have whole matrices.
    """

    def __init__(
        self,
        num_heads,
        *,
        implementation="auto",
        use_bias=True,
        kernel_initializer="lecun_normal",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )
        super().__init__(projections=projections, implementation=implementation, **kwargs)
        arguments.check_integers(1, num_heads=num_heads)
        self.num_heads = num_heads

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}

    def _build(self, width):
        if width % self.num_heads:
            rule = "The width of the input must be divisible by `num_heads`"
            raise arguments.error(rule, width=width, num_heads=self.num_heads)
        self._channels = width
        options, block = self._projections, width // self.num_heads
        self._kernel = self.add_weight(
            name="gates_kernel",
            shape=(self.num_heads, block, 2 * block),
            initializer=_by_block(options.kernel_initializer),
            regularizer=options.kernel_regularizer,
        )
        self._bias = None
        if options.use_bias:
            self._bias = self.add_weight(
                name="gates_bias",
                shape=(self.num_heads, 2 * block),
                initializer=numbered(options.bias_initializer, 0),
                regularizer=options.bias_regularizer,
            )
        self._decay = self.add_weight(
            name="decay", shape=(width,), initializer=_spread_decays, autocast=False
        )

    def _advance(self, x, cache, padding, starts):
        input_gate, decay_gate = self._gates(x)
        speed = SCALE * decay_gate * ops.softplus(ops.cast(self._decay, "float32"))  # -log a
        tanh = ops.tanh(speed)
        gain = _square_root(2.0 * tanh / (1.0 + tanh))  # 1 - a^2, also where a is nearly 1
        is_first = next_positions(cache, ops.shape(x)[1], padding) == 0  # (B, T)
        if starts is not None:
            is_first = ops.logical_or(is_first, read_steps(starts, "starts", x)[..., 0])
        gain = ops.where(is_first[..., None], 1.0, gain)
        h, state = decode_linear_recurrence(
            ops.exp(-speed),
            gain * input_gate * ops.cast(x, "float32"),
            cache.state,
            mask=padding,
            starts=starts,
            implementation=self.implementation,
        )
        return ops.cast(h, self.compute_dtype), state

    def _gates(self, x):
        """Both gates, float32 `(B, T, C)`."""
        batch, steps, width = ops.shape(x)
        block = width // self.num_heads
        heads = ops.reshape(x, (batch, steps, self.num_heads, block))
        kernel = ops.cast(self._kernel, x.dtype)  # in `decode` Keras does not cast it
        z = ops.cast(ops.einsum("btnd,nde->btne", heads, kernel), "float32")
        if self._bias is not None:
            z = z + ops.cast(self._bias, "float32")
        z = ops.sigmoid(z)
        shape = (batch, steps, width)
        return ops.reshape(z[..., :block], shape), ops.reshape(z[..., block:], shape)


def _square_root(x):
    """Of numbers in [0, 1), with a slope of `STEEPEST` at most."""
    least = 0.25 / STEEPEST**2  # where the slope is that
    root = ops.sqrt(ops.maximum(x, least))
    near = ops.stop_gradient(ops.sqrt(ops.maximum(x, 0.0)))
    near = near + STEEPEST * (x - ops.stop_gradient(x))
    return ops.where(x > least, root, near)


def _by_block(initializer):
    """An initializer of the blocks of both gates, each as a matrix of its own."""

    def initialize(shape, dtype=None):
        heads, rows, columns = shape
        drawn = [
            numbered(initializer, i)((rows, columns // 2), dtype=dtype) for i in range(2 * heads)
        ]
        pairs = [ops.concatenate(drawn[2 * i : 2 * i + 2], axis=1) for i in range(heads)]
        return ops.stack(pairs)

    return initialize


def _spread_decays(shape, dtype=None):
    """P for which exp(-softplus(P)) is spread between the radii, evenly over the area between."""
    low, high = (radius**2 for radius in RADII)
    squares = keras.initializers.RandomUniform(low, high)(shape, dtype="float32")
    decay = -0.5 * ops.log(squares)  # softplus(P)
    return ops.cast(ops.log(ops.expm1(decay)), dtype)
