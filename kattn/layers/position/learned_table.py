"""The weight of a position layer that learns a table."""

import keras
from keras import ops


def read_initializer(initializer):
    """The initializer of a table; None gives a truncated normal of standard deviation 0.02."""
    if initializer is None:
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.initializers.get(initializer)


def add_table(layer, name, shape, initializer):
    """A weight that keeps float32 inside layers that compute in half precision."""
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        regularizer=layer.regularizer,
        autocast=False,
    )


def read_table(layer, table):
    """The weight as a float32 tensor; raises ValueError if it was never made."""
    if table is None:
        raise ValueError(
            "The position layer has no weights yet: call it, or use it as `position=` of an "
            f"attention layer that is built; received: layer {layer.name!r}, which is not built"
        )
    return ops.cast(ops.convert_to_tensor(table), "float32")
