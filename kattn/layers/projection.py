"""A dense layer whose steps are the rows of one matrix, wherever that is faster."""

import keras

from kattn.ops.rows import by_row


class Projection(keras.layers.Dense):
    """A `keras.layers.Dense` that takes all steps of all items for the rows of one matrix."""

    def call(self, x, training=None):
        return by_row(super().call, x)

    def quantize(self, mode=None, *, type_check=True, config=None):
        # Keras refuses subclasses, as they may compute something else. This one does not.
        super().quantize(mode, type_check=False, config=config)
