"""The simple recurrent unit (Lei et al., 2018)."""

import math

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.head_sizes import split_channels
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.recurrent.recurrent_layer import RecurrentLayer
from kattn.ops.recurrence import decode_linear_recurrence, last_state
from kattn.ops.sru import simple_recurrence


@keras.saving.register_keras_serializable("kattn")
class SRU(RecurrentLayer):
    """c_t = f_t c_{t-1} + (1 - f_t) x_t W and h_t = r_t c_t + (1 - r_t) x_t.

    The gates f_t = sigmoid(x_t W_f + v_f c_{t-1} + b_f) and r_t = sigmoid(x_t W_r + v_r c_{t-1} +
    b_r) see the state channel by channel. All products with matrices are taken for all steps at
    once; what is left of the recurrence are a few operations for each channel.

    Shapes: B batch, T steps, C width of the input.

    Args:
        units: Number of channels of the state and of the output. If it is not C, x in the equation
            of h is a further projection of the input.
        peephole: Whether the gates see the state, by v_f and v_r. Without that the recurrence is
            linear, and `implementation` says how it is computed. With it a program that PyTorch
            compiles holds a copy of the recurrence for each step.
        highway_bias: Number that b_r starts at. The lower it is, the more of the input passes by.
        rescale: Whether x in the equation of h is multiplied by sqrt(1 + 2 exp(highway_bias)),
            which keeps the variance from layer to layer.
        use_bias: Whether the gates have biases.
        implementation: How the recurrence is computed without `peephole`: "step", "chunked",
            "associative" or "auto", see `kattn.ops.linear_recurrence`. With it the steps always
            come one after the other.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though they are stored as one matrix, in the order W, W_f, W_r.
        bias_initializer: Initializer of the bias b_f, and of b_r without its `highway_bias`.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which leaves the
            state as it is. It is combined with the Keras mask of `x`.
        starts: Bool, shape `(B, T)`; True at the first real step of a segment, which does not see
            the steps before it, as where texts are packed into one sequence; at padding it has no
            effect. None for one segment.

    Returns:
        `(B, T, units)`; at padding steps it means nothing. The padding of `x` is the Keras mask of
        the output.

    Raises:
        ValueError: If an argument is out of range; when called, if `x`, `mask` or `starts` has a
            wrong rank, shape or dtype.

    Example:
        >>> layer = kattn.layers.SRU(64)
        >>> layer(keras.random.normal((2, 128, 64))).shape
        (2, 128, 64)
        >>> cache = layer.init_cache(batch_size=2, length=128)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), cache)

    Reference:
        Lei et al. 2018, sec. 3, https://arxiv.org/abs/1709.02755. There the matrices are drawn
        uniformly with a variance of 1 / C; here v_f and v_r start at 0.
    """

    def __init__(
        self,
        units,
        *,
        peephole=True,
        highway_bias=-2.0,
        rescale=False,
        use_bias=True,
        implementation="auto",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )
        super().__init__(projections=projections, implementation=implementation, **kwargs)
        arguments.check_integers(1, units=units)
        arguments.check_numbers("a finite number", lambda x: True, highway_bias=highway_bias)
        self.units = units
        self.peephole = peephole
        self.highway_bias = highway_bias
        self.rescale = rescale

    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.units)

    def get_config(self):
        names = ("units", "peephole", "highway_bias", "rescale")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _build(self, width):
        self._build_recurrence(width, self._build_inputs("inputs", width, width))

    def _build_inputs(self, name, read, width):
        """The projection of `read` channels to what the recurrence of `width` channels takes."""
        parts = [self.units] * (3 if width == self.units else 4)
        dense = self._projections.dense
        return dense(name, read, *parts, use_bias=False, dtype=self.dtype_policy)

    def _build_recurrence(self, width, inputs):
        self._inputs, self._channels = inputs, self.units
        self._past_gain = 1.0
        if self.rescale:
            self._past_gain = math.sqrt(1.0 + 2.0 * math.exp(self.highway_bias))
        self._gate_bias = self._peephole = None
        options, shape = self._projections, (2, self.units)
        if options.use_bias:
            self._gate_bias = self.add_weight(
                name="gate_bias",
                shape=shape,
                initializer=self._initial_bias,
                regularizer=options.bias_regularizer,
                autocast=False,
            )
        if self.peephole:
            self._peephole = self.add_weight(
                name="peephole", shape=shape, initializer="zeros", autocast=False
            )

    def _initial_bias(self, shape, dtype=None):
        highway = ops.convert_to_tensor([[0.0], [self.highway_bias]], dtype)
        return self._projections.bias_initializer(shape, dtype=dtype) + highway

    def _advance(self, x, cache, padding, starts):
        return self._recur(x, self._inputs(x), cache.state, padding, starts)

    def _recur(self, x, inputs, state, padding, starts):
        """The output and the last state, by what the matrices make of x."""
        parts = ops.cast(inputs, "float32")
        widths = [self.units] * (parts.shape[-1] // self.units)
        u, forget, reset, *past = split_channels(parts, widths)
        past = self._past_gain * (past[0] if past else ops.cast(x, "float32"))
        if self._gate_bias is not None:
            bias = ops.cast(self._gate_bias, "float32")
            forget, reset = forget + bias[0], reset + bias[1]
        options = {"mask": padding, "starts": starts}
        if self._peephole is None:
            keep = ops.sigmoid(forget)
            new = ops.sigmoid(-forget) * u
            options["implementation"] = self.implementation
            c, last = decode_linear_recurrence(keep, new, state, **options)
        else:
            weights = ops.cast(self._peephole, "float32")
            c, before = simple_recurrence(u, forget, weights[0], state, **options)
            reset, last = reset + weights[1] * before, last_state(c, state)
        r = ops.sigmoid(reset)
        return ops.cast(r * c + (1.0 - r) * past, self.compute_dtype), last
