"""How an attention layer makes its projections: one object for the arguments that they share."""

import dataclasses
from typing import Any

import keras
from keras import ops

from kattn.layers.initializers import numbered
from kattn.layers.projection import Projection

# The number of the first matrix of a projection among those of its layer: a seeded initializer
# draws other numbers for each of them.
FIRST = {
    "key": 1,
    "key_value": 1,
    "energy": 2,
    "position": 1,
    "location": 4,
    "gate": 5,
    "output": 6,
    "decay_down": 7,
    "decay_up": 8,
    "rates": 9,
    "down": 11,
    "expansion": 12,
    "offset": 13,
    "qkv_1": 13,
    "qkv_2": 16,
}


@dataclasses.dataclass(frozen=True)
class ProjectionOptions:
    """Biases, initializers and regularizers of the projections of one layer.

    Args:
        use_bias: Whether the projections add a bias.
        kernel_initializer: Initializer of the projection matrices, or what Keras reads as one.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases, or None.
    """

    use_bias: bool = True
    kernel_initializer: Any = "glorot_uniform"
    bias_initializer: Any = "zeros"
    kernel_regularizer: Any = None
    bias_regularizer: Any = None

    def __post_init__(self):
        for name, get in (
            ("kernel_initializer", keras.initializers.get),
            ("bias_initializer", keras.initializers.get),
            ("kernel_regularizer", keras.regularizers.get),
            ("bias_regularizer", keras.regularizers.get),
        ):
            object.__setattr__(self, name, get(getattr(self, name)))

    def dense(self, name, width, *parts, dtype, use_bias=None, kernel_initializer=None):
        """A built Dense layer that computes one or several projections in one matrix product.

        Args:
            name: Name of the layer, by which `FIRST` numbers its matrices.
            width: Number of channels of its input.
            *parts: Number of channels of each projection. They lie side by side in the output,
                and each is initialised as a matrix of its own.
            dtype: Dtype policy of the layer.
            use_bias: Whether it has a bias, if not as the options say.
            kernel_initializer: Initializer of its matrix, if not as the options say.

        Returns:
            A `Projection` of `sum(parts)` units.
        """
        if kernel_initializer is None:
            kernel_initializer = self.kernel_initializer
        layer = Projection(
            sum(parts),
            use_bias=self.use_bias if use_bias is None else use_bias,
            kernel_initializer=_by_part(kernel_initializer, parts, FIRST.get(name, 0)),
            bias_initializer=numbered(self.bias_initializer, 0),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            dtype=dtype,
            name=name,
        )
        layer.build((None, width))
        return layer

    def get_config(self):
        """The options as the constructor arguments of a layer, for its config."""
        initializer, regularizer = keras.initializers.serialize, keras.regularizers.serialize
        return {
            "use_bias": self.use_bias,
            "kernel_initializer": initializer(self.kernel_initializer),
            "bias_initializer": initializer(self.bias_initializer),
            "kernel_regularizer": regularizer(self.kernel_regularizer),
            "bias_regularizer": regularizer(self.bias_regularizer),
        }


def _by_part(initializer, parts, first):
    """An initializer of a matrix that initialises its parts as matrices of their own."""
    if len(parts) == 1:
        return numbered(initializer, first)

    def initialize(shape, dtype=None):
        copies = [numbered(initializer, first + i) for i in range(len(parts))]
        drawn = [copy((shape[0], n), dtype=dtype) for copy, n in zip(copies, parts, strict=True)]
        return ops.concatenate(drawn, axis=-1)

    return initialize
