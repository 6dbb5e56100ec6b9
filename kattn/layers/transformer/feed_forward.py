"""The feed-forward network of a Transformer (Vaswani et al., 2017), also with gates."""

import functools

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.head_sizes import split_channels
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer


def _gelu_tanh(x):
    return keras.activations.gelu(x, approximate=True)


def _relu_squared(x):
    return ops.square(ops.relu(x))


PLAIN = {"gelu_tanh": _gelu_tanh, "relu_squared": _relu_squared}
# Name of a gated network: what its gate passes through.
GATED = {
    "glu": keras.activations.sigmoid,
    "reglu": keras.activations.relu,
    "geglu": keras.activations.gelu,
    "geglu_tanh": _gelu_tanh,
    "swiglu": keras.activations.silu,
}


@keras.saving.register_keras_serializable("kattn")
class FeedForward(QuantizableLayer):
    """f(x W_1) W_2, or (f(x W_g) * x W_1) W_2 with a gate, at each step alone.

    The gate W_g and W_1 are one matrix product.

    Shapes: C width, F hidden width.

    Args:
        hidden_dim: Number of hidden channels, F. None for 4 C; with a gate for 8 C / 3, rounded
            up to a multiple of 8, which has as many weights.
        activation: Name of what f is and whether there is a gate. Plain: "gelu", "gelu_tanh" (the
            approximation by tanh, of GPT-2), "relu", "relu_squared", any other name of a Keras
            activation, or a function of your own. Gated: "glu" (f = sigmoid), "reglu" (ReLU),
            "geglu" (GELU), "geglu_tanh" and "swiglu" (SiLU).
        dropout: Fraction of the hidden channels that are dropped during training, in [0, 1).
        use_bias: Whether the projections add a bias.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though W_g and W_1 are stored as one matrix, W_g first.
        output_initializer: Initializer of the matrix of the last projection. None for
            `kernel_initializer`.
        bias_initializer: Initializer of the biases of the projections.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases of the projections, or None.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input, float, shape `(B, ..., C)`.
        training: Whether dropout is applied.

    Returns:
        `(B, ..., C)`. The Keras mask of `x` is that of the output.

    Raises:
        ValueError: If an argument is out of range; when built, if the width of `x` is not known.

    Example:
        >>> layer = kattn.layers.FeedForward(activation="swiglu", use_bias=False)
        >>> layer(keras.random.normal((2, 9, 96))).shape
        (2, 9, 96)
        >>> layer.weights[0].shape  # twice 8 * 96 / 3
        (96, 512)

    Reference:
        Vaswani et al. 2017, sec. 3.3, https://arxiv.org/abs/1706.03762
        Gates: Shazeer 2020, eq. 5 and 6, https://arxiv.org/abs/2002.05202
        Squared ReLU: So et al. 2021, sec. 3.1, https://arxiv.org/abs/2109.08668
        GELU: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415
    """

    acts_on_each_step = True  # so that generation knows that a call decodes new steps

    def __init__(
        self,
        hidden_dim=None,
        activation="gelu",
        *,
        dropout=0.0,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        output_initializer=None,
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_optional_integers(1, hidden_dim=hidden_dim)
        arguments.check_fractions(dropout=dropout)
        self.hidden_dim = hidden_dim
        self._function = _read_activation(activation)
        self.activation = activation if isinstance(activation, str) else self._function
        self.dropout = dropout
        self.seed = seed
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )
        self.output_initializer = keras.initializers.get(output_initializer)
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    @property
    def is_gated(self):
        """Whether a second projection of the input multiplies the hidden channels."""
        return isinstance(self.activation, str) and self.activation in GATED

    def build(self, x_shape):
        width = x_shape[-1]
        if width is None:
            raise ValueError(
                f"`x` must have a known width, its last axis; received: x.shape={tuple(x_shape)}"
            )
        hidden = self.hidden_dim or _default_width(width, is_gated=self.is_gated)
        parts = (hidden, hidden) if self.is_gated else (hidden,)
        dense = functools.partial(self._projections.dense, dtype=self.dtype_policy)
        self._hidden = dense("hidden", width, *parts)
        self._output = dense("output", hidden, width, kernel_initializer=self.output_initializer)
        self.built = True

    def call(self, x, training=None):
        h = self._hidden(x)  # (B, ..., F), with a gate (B, ..., 2 F)
        if self.is_gated:
            gate, h = split_channels(h, (h.shape[-1] // 2,) * 2)
            h = self._function(gate) * h
        else:
            h = self._function(h)
        if training and self.dropout:
            h = keras.random.dropout(h, self.dropout, seed=self._seed_generator)
        return self._output(h)  # (B, ..., C)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        activation = self.activation
        if not isinstance(activation, str):
            activation = keras.activations.serialize(activation)
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "activation": activation,
            "dropout": self.dropout,
            "seed": self.seed,
            **self._projections.get_config(),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }


def _read_activation(activation):
    """The function f."""
    if isinstance(activation, str) and activation in PLAIN | GATED:
        return (PLAIN | GATED)[activation]
    try:
        return keras.activations.get(activation)
    except ValueError as fault:
        known = ", ".join(PLAIN | GATED)
        raise arguments.error(
            f"`activation` must be one of {known}, a Keras activation or a function",
            activation=activation,
        ) from fault


def _default_width(width, *, is_gated):
    return 8 * -(-width // 3) if is_gated else 4 * width
