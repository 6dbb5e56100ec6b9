"""What layers for maps of any rank have in common."""

import keras

from kattn import arguments
from kattn.layers.attention.mask_reader import read_map_padding
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.spatial.map_axes import LAYOUTS, MapAxes, channel_axis


class MapLayer(QuantizableLayer):
    """Base of layers that keep the shape and the padding of a map with 1 to 3 sides.

    Args:
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.
    """

    rank: int | None = None  # number of sides that maps must have; None for 1 to 3

    def __init__(self, data_format, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        data_format = data_format or keras.config.image_data_format()
        arguments.check_choice(LAYOUTS, data_format=data_format)
        self.data_format = data_format

    def axes_of(self, x_shape, name="x"):
        """The axes of the maps that the layer is built for.

        Args:
            x_shape: Shape of the maps.
            name: Name of the argument that they come in, for messages.

        Raises:
            ValueError: If they have other sides, or unknown channels.
        """
        return MapAxes.of_shape(x_shape, self.data_format, name, rank=self.rank)

    def compute_mask(self, x, previous_mask):
        return read_map_padding(x, previous_mask, channel_axis(self.data_format))

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {**super().get_config(), "data_format": self.data_format}
