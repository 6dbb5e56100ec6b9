"""What minGRU and minLSTM share: a state that is an average of candidates, weighted by gates."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.head_sizes import split_channels
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.recurrent.recurrent_layer import RecurrentLayer
from kattn.ops.recurrence import decode_linear_recurrence


def _positive(x):
    """The function g of the form in log space: above 0, and without a jump."""
    return ops.where(x >= 0, x + 0.5, ops.sigmoid(x))


class GatedAverage(RecurrentLayer):
    """Base of the layers with h_t = a_t h_{t-1} + (1 - a_t) g(x_t W), whose gates see x_t alone.

    A subclass names its gates, and has

        _weights(gates)    a and 1 - a of the values of the gates, float32

    It has the arguments of `MinGRU`.
    """

    gates: tuple[str, ...] = ()

    def __init__(
        self,
        units,
        *,
        activation="positive",
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
        self.units = units
        is_positive = activation == "positive"
        self.activation = activation if is_positive else keras.activations.get(activation)
        self._activation = _positive if is_positive else self.activation

    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.units)

    def get_config(self):
        activation = self.activation
        if activation != "positive":
            activation = keras.activations.serialize(activation)
        return {**super().get_config(), "units": self.units, "activation": activation}

    def _build(self, width):
        self._channels = self.units
        parts = [self.units] * (len(self.gates) + 1)
        self._inputs = self._projections.dense("inputs", width, *parts, dtype=self.dtype_policy)

    def _advance(self, x, cache, padding, starts):
        parts = ops.cast(self._inputs(x), "float32")
        *gates, candidate = split_channels(parts, [self.units] * (len(self.gates) + 1))
        keep, renew = self._weights(*gates)
        h, state = decode_linear_recurrence(
            keep,
            renew * self._activation(candidate),
            cache.state,
            mask=padding,
            starts=starts,
            implementation=self.implementation,
        )
        return ops.cast(h, self.compute_dtype), state
