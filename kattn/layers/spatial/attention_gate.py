"""What a coarse map says of each cell of a finer one: the gates of Attention U-Net."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.spatial.map_layer import MapLayer
from kattn.ops.resizing import resize


class AttentionGateND(MapLayer):
    """The gate for maps with `rank` sides, by subclass; `AttentionGate2D` says what it does."""

    def __init__(
        self,
        hidden_dim=None,
        *,
        use_bias=True,
        data_format=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        arguments.check_optional_integers(1, hidden_dim=hidden_dim)
        self.hidden_dim = hidden_dim
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape, gate_shape):
        self._axes = self.axes_of(x_shape)
        self._gate_axes = self.axes_of(gate_shape, "gate")
        channels, options, policy = self._axes.channels, self._projections, self.dtype_policy
        hidden = self.hidden_dim or max(channels // 2, 1)
        self._features = options.dense("features", channels, hidden, dtype=policy)
        # b_g is the bias of `features`: cells that see no real cell of the gate have it, too.
        self._gate = options.dense(
            "gate", self._gate_axes.channels, hidden, dtype=policy, use_bias=False
        )
        self._energy = options.dense("energy", hidden, 1, dtype=policy)
        self.built = True

    def call(self, x, gate, mask=None, gate_mask=None):
        x, _ = self._axes.read(x, mask)
        gate, real = self._gate_axes.read(gate, gate_mask)
        return x * self._axes.of_cells(self._alpha(x, gate, real))

    def attention_weights(self, x, gate, mask=None, gate_mask=None):
        """The number alpha by which each cell of `x` is multiplied.

        Args:
            x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`.
            gate: Gating signal, float, shape `(B, *sides, E)`, or `(B, E, *sides)`.
            mask: Padding of `x`, bool, shape `(B, *sides)`, True = real cell.
            gate_mask: Padding of `gate`, bool, shape `(B, *sides)`, True = real cell.

        Returns:
            `(B, *sides)` float32, the sides of `x`, between 0 and 1; exactly 0 at padding.
        """
        if not self.built:
            self.build(x.shape, gate.shape)
        x, padding = self._axes.read(x, mask)
        gate, real = self._gate_axes.read(gate, gate_mask)
        x, gate = (ops.convert_to_tensor(each, dtype=self.compute_dtype) for each in (x, gate))
        alpha = ops.cast(self._alpha(x, gate, real), "float32")
        return alpha if padding is None else ops.where(padding, alpha, 0.0)

    def compute_output_shape(self, x_shape, gate_shape=None):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            **self._projections.get_config(),
        }

    def _alpha(self, x, gate, real):
        """Eq. 1 and 2, `(B, *sides)`."""
        x, gate = self._axes.channels_last(x), self._gate_axes.channels_last(gate)
        sides = ops.shape(x)[1:-1]
        _check_cells(gate, sides)
        hidden = self._features(x) + _resized(self._gate(gate), real, sides)  # (B, *sides, F)
        return ops.sigmoid(self._energy(ops.relu(hidden))[..., 0])


def _resized(g, real, sides):
    """The gating signal at the sides of the map: of real cells alone, and 0 where there is none."""
    if real is None:
        return resize(g, sides)
    share = resize(ops.cast(real, "float32")[..., None], sides)
    # Shares of volumes are smaller than half precision knows.
    mean = resize(ops.cast(g, "float32"), sides) / ops.where(share > 0.0, share, 1.0)
    return ops.cast(mean, g.dtype)


def _check_cells(gate, sides):
    empty = [arguments.is_integer(n) and n == 0 for n in gate.shape[1:-1]]
    if any(has_none and side != 0 for has_none, side in zip(empty, sides, strict=True)):
        raise arguments.error("`gate` must have cells where `x` has", gate=gate, sides=sides)


@keras.saving.register_keras_serializable("kattn")
class AttentionGate1D(AttentionGateND):
    """alpha * x with alpha = sigmoid(psi . relu(W_x x + W_g g + b_g) + b_psi), for sequences.

    The arguments are those of `AttentionGate2D`, and so is all that it says of the call, but that
    `x` and `gate` are sequences: `(B, T, C)` and `(B, T', E)`, or `(B, C, T)` and `(B, E, T')` for
    `"channels_first"`; their masks are `(B, T)` and `(B, T')`.

    Example:
        >>> layer = kattn.layers.AttentionGate1D()
        >>> layer(keras.random.normal((2, 9, 32)), keras.random.normal((2, 5, 64))).shape
        (2, 9, 32)
    """

    rank = 1


@keras.saving.register_keras_serializable("kattn")
class AttentionGate2D(AttentionGateND):
    """alpha * x with alpha = sigmoid(psi . relu(W_x x + W_g g + b_g) + b_psi), for images.

    One number alpha for each cell of x decides how much of the cell passes. It depends on the cell
    itself and on a gating signal g, which as a rule is coarser and knows more of the whole: in a
    U-Net x is what a skip connection carries, and g what the decoder has at the scale below. W_g g
    is brought to the sides of x by linear interpolation, so that any sides go together. There is no
    normalisation in the layer.

    Shapes: B batch, H and W sides of `x`, C its channels, H' and W' sides of `gate`, E its
    channels, F hidden units.

    Args:
        hidden_dim: Number of hidden units, F. None for C // 2, but at least 1.
        use_bias: Whether there are the biases b_g and b_psi.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of W_x, W_g and psi.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of W_x, W_g and psi, or None.
        bias_regularizer: Regularizer of the biases, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Map that is gated, float, shape `(B, H, W, C)`, or `(B, C, H, W)` for `"channels_first"`.
            Its sides may be unknown when the layer is built.
        gate: Gating signal, float, shape `(B, H', W', E)`, or `(B, E, H', W')`. Its sides need not
            divide those of `x`; both maps are taken to cover the same space.
        mask: Padding of `x`, bool, shape `(B, H, W)`, True = real cell. It is combined with the
            Keras mask of `x`. What `x` holds at padding changes nothing.
        gate_mask: Padding of `gate`, bool, shape `(B, H', W')`, True = real cell. It is combined
            with the Keras mask of `gate`. The interpolation is over real cells only, with their
            weights divided by the sum of them; where a cell of `x` is near none, W_g g is 0. What
            `gate` holds at padding changes nothing.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If `hidden_dim` is not an integer >= 1 or None; when built, if `x` or `gate` is
            not of rank 4, or if its channels are unknown; when called, if one of them has other
            channels than the layer was built for, if `gate` has no cells though `x` has, or if a
            mask has a wrong dtype or other sides than its map.

    Example:
        >>> layer = kattn.layers.AttentionGate2D()
        >>> x, gate = keras.random.normal((2, 9, 12, 32)), keras.random.normal((2, 5, 6, 64))
        >>> layer(x, gate).shape
        (2, 9, 12, 32)
        >>> layer.attention_weights(x, gate).shape
        (2, 9, 12)

    Reference:
        Oktay et al. 2018, eq. 1 and 2, https://arxiv.org/abs/1804.03999. There W_x is a convolution
        with a stride that brings x to the sides of g, and alpha is interpolated back to those of x:
        sides must be multiples, and one number alpha serves several cells. Here W_g g is
        interpolated instead, and each cell of x has a say in its own alpha; where x and g have the
        same sides, the two are the same. The authors' code has a 1x1 convolution and a batch
        normalisation behind the gate, which the equations have not. Masks are ours.
    """

    rank = 2


@keras.saving.register_keras_serializable("kattn")
class AttentionGate3D(AttentionGateND):
    """alpha * x with alpha = sigmoid(psi . relu(W_x x + W_g g + b_g) + b_psi), for volumes.

    The arguments are those of `AttentionGate2D`, and so is all that it says of the call, but that
    `x` and `gate` are volumes: `(B, D, H, W, C)` and `(B, D', H', W', E)`, or with the channels on
    the second axis for `"channels_first"`; their masks are `(B, D, H, W)` and `(B, D', H', W')`.

    Example:
        >>> layer = kattn.layers.AttentionGate3D(hidden_dim=4)
        >>> x, gate = keras.random.normal((2, 5, 6, 4, 8)), keras.random.normal((2, 3, 3, 2, 16))
        >>> layer(x, gate).shape
        (2, 5, 6, 4, 8)
    """

    rank = 3
