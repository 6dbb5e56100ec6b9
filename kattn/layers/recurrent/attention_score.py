"""The base of the scores: how well a state fits each step of a memory."""

from keras import ops

from kattn import arguments
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer


class AttentionScore(QuantizableLayer):
    """Base of the scores that `AttentionRNN` and `AttentionCell` take.

    A subclass makes keys and values of a memory once, in `project`, and compares them with queries
    in `score`, step by step or all at once.

    Args:
        kernel_initializer: Initializer of the matrices.
        kernel_regularizer: Regularizer of the matrices, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        query: States that ask, float, shape `(B, T, U)`.
        memory: Sequence that is attended to, float, shape `(B, S, E)`.

    Returns:
        Scores `(B, N, T, S)`, before the softmax.

    Raises:
        ValueError: If an argument is no initializer or regularizer.

    Example:
        >>> class NearestScore(kattn.layers.AttentionScore):
        ...     def score(self, query, keys, weights=None):
        ...         gap = query[:, None, :, None] - keys[:, :, None]
        ...         return -keras.ops.sum(keras.ops.square(gap), axis=-1)
        >>> layer = kattn.layers.AttentionRNN(keras.layers.GRUCell(6), NearestScore())
        >>> layer(keras.random.normal((2, 5, 6))).shape
        (2, 5, 6)

    Reference:
        Luong et al. 2015, sec. 3.1, https://arxiv.org/abs/1508.04025

    Attributes:
        num_heads: Number of heads, N.
        reads_weights: Whether the scores depend on the attention weights of the step before.
        is_product: Whether the scores are products of queries and keys, so that the kernels of
            `kattn.ops.attention` can compute the attention.
    """

    num_heads = 1
    reads_weights = False
    is_product = False

    def __init__(self, *, kernel_initializer="glorot_uniform", kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self._projections = ProjectionOptions(
            use_bias=False,
            kernel_initializer=kernel_initializer,
            kernel_regularizer=kernel_regularizer,
        )

    def build(self, query_shape, memory_shape):
        self.check_widths(query_shape[-1], memory_shape[-1])
        self.build_projections(query_shape[-1], memory_shape[-1])
        self.built = True

    def check_widths(self, units, width):
        """Raises ValueError if the widths of state and memory do not fit; a subclass may."""

    def build_projections(self, units, width):
        """Makes the weights, for states of `units` channels and a memory of `width`."""

    def context_width(self, width):
        """The number of channels of a context, for a memory of `width` channels."""
        return width

    def project(self, memory):
        """What is computed of a memory once: keys and values.

        Args:
            memory: Sequence that is attended to, float, shape `(B, S, E)`.

        Returns:
            `(keys, values)`, float32, shapes `(B, K, S, D)` and `(B, K, S, Dv)`.
        """
        values = ops.cast(memory, "float32")[:, None]
        return values, values

    def score(self, query, keys, weights=None):
        """The scores of queries and keys.

        Args:
            query: States that ask, float, shape `(B, T, U)`.
            keys: Keys of the memory, float32, shape `(B, K, S, D)`.
            weights: Attention weights of the step before, float32, shape `(B, N, S)`, where the
                scores read them; T is 1 then.

        Returns:
            Scores, float32, shape `(B, N, T, S)`.
        """
        raise NotImplementedError

    def split_query(self, query):
        """The queries `(B, T, N, D)` whose products with the keys are the scores."""
        raise NotImplementedError

    def call(self, query, memory):
        keys, _ = self.project(memory)
        weights = None
        if self.reads_weights:
            weights = ops.zeros((ops.shape(query)[0], self.num_heads, ops.shape(keys)[2]))
        return ops.cast(self.score(query, keys, weights), self.compute_dtype)

    def compute_output_shape(self, query_shape, memory_shape):
        return (query_shape[0], self.num_heads, query_shape[1], memory_shape[1])

    def get_config(self):
        config = self._projections.get_config()
        names = ("kernel_initializer", "kernel_regularizer")
        return {**super().get_config(), **{name: config[name] for name in names}}

    def _dense(self, name, width, *parts, use_bias=False):
        options = {"dtype": self.dtype_policy, "use_bias": use_bias}
        return self._projections.dense(name, width, *parts, **options)


def check_equal_widths(units, width):
    """Raises ValueError unless state and memory can be multiplied."""
    if units != width:
        raise arguments.error(
            "`memory` must be as wide as the state of the cell for scores that are their product; "
            'use attention="general" for other widths',
            memory_width=width,
            state_width=units,
        )
