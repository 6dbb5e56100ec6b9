"""What the layers in which the cells of a map attend to cells of the same map have in common."""

import keras
from keras import ops

from kattn import arguments
from kattn.grid import Grid
from kattn.layers.attention.head_sizes import HeadSizes, check_heads
from kattn.layers.attention.mask_reader import silence
from kattn.layers.attention.positions import attach, embed, read_position
from kattn.layers.nested_layers import layer_config
from kattn.layers.spatial.map_layer import MapLayer
from kattn.ops.attention import KERNELS

# The arguments that these layers have in common, beside those of `ProjectionOptions`.
ARGUMENTS = ("num_heads", "key_dim", "value_dim", "dropout", "implementation", "seed")


class MapAttention(MapLayer):
    """Base of layers with one projection to queries, keys and values, and one back to channels.

    A subclass says in `_attend` which cells attend to which.

    Args:
        projections: The `ProjectionOptions` of all projections of the layer.
        position: Position layer, its config, or None.
        data_format: `"channels_last"`, `"channels_first"`, or None for Keras's default.
        **kwargs: The arguments named in `ARGUMENTS`, and those of any Keras layer.
    """

    def __init__(self, *, projections, position, data_format, **kwargs):
        shared = {name: kwargs.pop(name) for name in ARGUMENTS}
        super().__init__(data_format, **kwargs)
        for name, value in shared.items():
            setattr(self, name, value)
        check_heads(self.num_heads, self.key_dim, self.value_dim)
        arguments.check_fractions(dropout=self.dropout)
        arguments.check_choice(("auto", *KERNELS), implementation=self.implementation)
        self.position = read_position(position)
        self._projections = projections
        self._seed_generator = keras.random.SeedGenerator(self.seed) if self.dropout else None

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        self.head_sizes = sizes = HeadSizes.of(self, self._axes.channels)
        self._qkv = self._dense(
            "qkv", self._axes.channels, sizes.query_width, sizes.key_width, sizes.value_width
        )
        self._build_output(sizes)

    def call(self, x, mask=None, training=None):
        x, padding = self._axes.read(x, mask)
        x = self._axes.channels_last(x)
        mixed = self._attend(x, padding, self._weighting(training))  # (B, *sides, N * Dv)
        return self._finish(mixed, padding)

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            **self._projections.get_config(),
            "position": layer_config(self.position),
        }

    def _build_output(self, sizes):
        """The last projection, and the weights of the positions."""
        channels = self._axes.channels
        self._output = self._dense("output", sizes.output_width, channels)
        attach(self.position, channels, sizes)
        self.built = True

    def _dense(self, name, width, *parts):
        return self._projections.dense(name, width, *parts, dtype=self.dtype_policy)

    def _attend(self, x, padding, weighting):
        """The values that each cell attends to, side by side.

        Args:
            x: Map with the channels last and zeros at padding, `(B, *sides, C)`.
            padding: `(B, *sides)` bool, True = real cell, or None.
            weighting: Arguments of `kattn.ops.attention` about how the weights are made.

        Returns:
            `(B, *sides, N * Dv)`; what stands at padding does not matter.
        """
        raise NotImplementedError

    def _read(self, x, mask):
        """What `_attend` gets, for a map that comes by another way than the call of the layer."""
        if not self.built:
            self.build(x.shape)
        x, padding = self._axes.read(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        return self._axes.channels_last(x), padding

    def _embed(self, x):
        """A map `(B, *sides, C)`, with its positions added if they are added to inputs."""
        if self.position is None:
            return x
        grid = Grid.of_map(x)
        return grid.unflatten(embed(self.position, grid.flatten(x), grid.cells()))

    def _weighting(self, training):
        """How the weights are made of the scores: dropout, and which algorithm."""
        rate = self.dropout if training else 0.0
        options = {"dropout_rate": rate, "seed": self._seed_generator}
        return {**options, "implementation": self.implementation}

    def _finish(self, mixed, padding):
        """The map of the mixed values `(B, *sides, N * Dv)`, projected, with zeros at padding."""
        return self._axes.as_given(silence(self._output(mixed), padding))
