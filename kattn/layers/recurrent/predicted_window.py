"""A window of attended steps around a position that is predicted (Luong et al., 2015)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer


@keras.saving.register_keras_serializable("kattn")
class PredictedWindow(QuantizableLayer):
    """The steps in [p_t - D, p_t + D] of a memory, p_t = S sigmoid(v . tanh(s_t W)) for a state s.

    S is the number of real steps of the memory; if steps attend to earlier ones only, it is the
    number of steps so far, unless the memory has fewer. Attention weights are multiplied by a
    Gaussian around p_t, and do not sum to 1 any more.

    Shapes: B batch, T steps and U channels of the state, S steps of the memory.

    Args:
        reach: Number of steps D that are attended to before and after p_t. The Gaussian has the
            standard deviation D / 2.
        units: Number of channels of W. None for as many as the state has.
        kernel_initializer: Initializer of W and v.
        kernel_regularizer: Regularizer of W and v, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        query: States that ask, float, shape `(B, T, U)`.
        counts: Numbers of steps S, integers, shape `(B, T)` or `(B, 1)`.

    Returns:
        The positions p_t, float32, shape `(B, T)`, counted from the first real step of the memory.

    Raises:
        ValueError: If a size is not an integer >= 1.

    Example:
        >>> window = kattn.layers.PredictedWindow(4)
        >>> layer = kattn.layers.AttentionRNN(keras.layers.GRUCell(8), "general", window=window)
        >>> layer(keras.random.normal((2, 30, 6))).shape
        (2, 30, 8)

    Reference:
        Luong et al. 2015, eq. 9 and 10, "local-p", https://arxiv.org/abs/1508.04025
    """

    def __init__(
        self,
        reach,
        units=None,
        *,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        arguments.check_integers(1, reach=reach)
        arguments.check_optional_integers(1, units=units)
        self.reach = reach
        self.units = units
        self._projections = ProjectionOptions(
            use_bias=False,
            kernel_initializer=kernel_initializer,
            kernel_regularizer=kernel_regularizer,
        )

    def build(self, query_shape):
        width, options = query_shape[-1], {"dtype": self.dtype_policy}
        units = self.units or width
        self._query = self._projections.dense("query", width, units, **options)
        self._position = self._projections.dense("position", units, 1, **options)
        self.built = True

    def call(self, query, counts):
        share = self._position(ops.tanh(self._query(query)))[..., 0]  # (B, T)
        return ops.cast(counts, "float32") * ops.sigmoid(ops.cast(share, "float32"))

    def distances(self, query, positions, counts):
        """How far the steps of a memory are from the predicted position.

        Args:
            query: States that ask, float, shape `(B, T, U)`.
            positions: Positions of the steps of the memory, int32, shape `(B, S)` or `(1, S)`.
            counts: Numbers of steps S, integers, shape `(B, T)` or `(B, 1)`.

        Returns:
            Distances, float32, shape `(B, 1, T, S)`.
        """
        centers = self(query, counts)[:, None, :, None]
        return ops.cast(positions, "float32")[:, None, None, :] - centers

    def gaussian(self, distances):
        """The factors of the attention weights at these distances."""
        return ops.exp(-2.0 * ops.square(distances / self.reach))  # 1 / (2 sigma^2), sigma = D / 2

    def compute_output_shape(self, query_shape, counts_shape):
        return query_shape[:2]

    def get_config(self):
        config = self._projections.get_config()
        names = ("kernel_initializer", "kernel_regularizer")
        options = {name: config[name] for name in names}
        return {**super().get_config(), **options, "reach": self.reach, "units": self.units}
