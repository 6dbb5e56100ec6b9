"""What one query sees of a map, added to each cell or made a gate (Cao et al., 2019)."""

import keras
from keras import ops

from kattn import arguments, masks
from kattn.layers.attention.mask_reader import silence
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.initializers import numbered
from kattn.layers.spatial.map_layer import MapLayer
from kattn.ops.attention import attention

FUSIONS = ("add", "scale", "both")


@keras.saving.register_keras_serializable("kattn")
class GlobalContext(MapLayer):
    """x + W_2 relu(LN(W_1 c)), where c is a mean of the cells of x with weights softmax(x w).

    One learned query w decides how much each cell counts in the context c, which is the same for
    all cells. What a bottleneck makes of the context is added to each cell of the map, or its
    sigmoid multiplies each cell. The map is a sequence, an image or a volume.

    Shapes: B batch, sides of the map (one, two or three), C channels, hidden width C // `ratio`.

    Args:
        ratio: Factor by which the hidden layer is narrower than the map. It has C // `ratio` units,
            which must be at least 2: the normalisation of a single unit is always 0.
        fusion: "add" adds the transformed context to each cell; "scale" multiplies each cell by the
            sigmoid of the transformed context; "both" multiplies and then adds, with a transform of
            its own for each.
        use_bias: Whether W_1 and W_2 add a bias. The query has none: a softmax does not change when
            the same number is added to all scores.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of w and W_1.
        output_initializer: Initializer of W_2. With zeros a new layer that adds is the identity.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of w, W_1 and W_2, or None.
        bias_regularizer: Regularizer of the biases, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`. The
            number of sides is fixed when the layer is built; their lengths may be unknown.
        mask: Padding, bool, shape `(B, *sides)`, True = real cell. Padding has weight 0. It is
            combined with the Keras mask of `x`. What `x` holds at padding changes nothing.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when built, if the map has no side or more than
            three, if its channels are unknown, or if `ratio` leaves less than two hidden units;
            when called, if `x` has other channels than the layer was built for, or if `mask` has a
            wrong dtype or other sides than the map.

    Example:
        >>> layer = kattn.layers.GlobalContext(ratio=4)
        >>> layer(keras.random.normal((2, 7, 5, 32))).shape
        (2, 7, 5, 32)

    Reference:
        Cao et al. 2019, eq. 6 and table 3, https://arxiv.org/abs/1904.11492; W_2 starts at 0 as in
        the authors' code. Masks and maps other than images are ours.
    """

    def __init__(
        self,
        ratio=16,
        *,
        fusion="add",
        use_bias=True,
        data_format=None,
        kernel_initializer="glorot_uniform",
        output_initializer="zeros",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        arguments.check_integers(1, ratio=ratio)
        arguments.check_choice(FUSIONS, fusion=fusion)
        self.ratio = ratio
        self.fusion = fusion
        self.output_initializer = keras.initializers.get(output_initializer)
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels, options = self._axes.channels, self._projections
        if channels // self.ratio < 2:
            raise arguments.error(
                "`ratio` must leave the hidden layer at least 2 of the channels",
                ratio=self.ratio,
                channels=channels,
            )
        self._query = self.add_weight(
            name="query",
            shape=(channels, 1),
            initializer=numbered(options.kernel_initializer, 1),
            regularizer=options.kernel_regularizer,
        )
        self._scale = self._transform("scale") if self.fusion != "add" else None
        self._shift = self._transform("add") if self.fusion != "scale" else None
        self.built = True

    def call(self, x, mask=None):
        x, padding = self._axes.read(x, mask)
        context = self._context(x, padding)  # (B, C)
        if self._scale is not None:
            x = x * self._axes.of_channels(ops.sigmoid(_transformed(self._scale, context)))
        if self._shift is not None:
            x = x + self._axes.of_channels(_transformed(self._shift, context))
            x = silence(x, padding, self._axes.channel)
        return x

    def get_config(self):
        return {
            **super().get_config(),
            "ratio": self.ratio,
            "fusion": self.fusion,
            "output_initializer": keras.initializers.serialize(self.output_initializer),
            **self._projections.get_config(),
        }

    def _context(self, x, padding):
        cells, padding = self._axes.cells(x, padding)  # (B, S, C)
        keys = cells[:, :, None]
        query = ops.cast(self._query, keys.dtype)[None, None, None, :, 0]
        query = ops.broadcast_to(query, (ops.shape(keys)[0], 1, 1, self._axes.channels))
        mask = None if padding is None else masks.Padding(padding)
        return attention(query, keys, keys, mask=mask, scale=1.0)[:, 0, 0]

    def _transform(self, name):
        """The layers of a bottleneck, which are built."""
        channels, options = self._axes.channels, self._projections
        hidden = channels // self.ratio
        down = options.dense(f"{name}_reduction", channels, hidden, dtype=self.dtype_policy)
        norm = keras.layers.LayerNormalization(
            epsilon=1e-5, dtype=self.dtype_policy, name=f"{name}_norm"
        )
        norm.build((None, hidden))
        up = options.dense(
            f"{name}_expansion",
            hidden,
            channels,
            dtype=self.dtype_policy,
            kernel_initializer=self.output_initializer,
        )
        return [down, norm, up]


def _transformed(transform, context):
    down, norm, up = transform
    return up(ops.relu(norm(down(context))))
