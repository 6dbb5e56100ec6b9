"""What the layers of softmax attention share: arguments, normalisation, scores and output."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention import positions as where
from kattn.layers.attention.head_sizes import HeadSizes, check_heads, merge_heads
from kattn.layers.attention.mask_object_layer import MaskObjectLayer
from kattn.layers.attention.mask_reader import read_padding, silence
from kattn.layers.attention.rms_norm import RMSNorm
from kattn.layers.nested_layers import layer_config
from kattn.ops.attention import KERNELS

# The arguments that the layers of this family have in common, beside those of `ProjectionOptions`.
ARGUMENTS = (
    "num_heads",
    "key_dim",
    "value_dim",
    "num_key_value_heads",
    "use_qk_norm",
    "qk_norm_epsilon",
    "softcap",
    "use_sinks",
    "use_gate",
    "use_output_bias",
    "dropout",
    "implementation",
    "seed",
)


class AttentionLayer(MaskObjectLayer):
    """Base of the layers that mix values by a softmax over keys.

    A subclass makes its query, key and value projections, reads its masks and calls the attention
    core; what stands around the core is here, and the same for all of them.

    Args:
        projections: The `ProjectionOptions` of all projections of the layer.
        output_initializer: Initializer of the matrix of the last projection, or None for that of
            all projections.
        **kwargs: The arguments named in `ARGUMENTS`, `position`, and those of any Keras layer.
    """

    def __init__(self, *, projections, output_initializer, position, **kwargs):
        shared = {name: kwargs.pop(name) for name in ARGUMENTS}
        super().__init__(**kwargs)
        self.supports_masking = True
        for name, value in shared.items():
            setattr(self, name, value)
        check_heads(self.num_heads, self.key_dim, self.value_dim, self.num_key_value_heads)
        arguments.check_fractions(dropout=self.dropout)
        arguments.check_optional_positive(softcap=self.softcap)
        arguments.check_positive(qk_norm_epsilon=self.qk_norm_epsilon)
        arguments.check_choice(("auto", *KERNELS), implementation=self.implementation)
        self.position = where.read_position(position)
        self._projections = projections
        self.output_initializer = keras.initializers.get(output_initializer)
        self._seed_generator = keras.random.SeedGenerator(self.seed) if self.dropout else None
        self._gate = self._sinks = None

    def compute_mask(self, x, previous_mask):
        """Padding of the input is padding of the output, whatever else is given."""
        return read_padding(x, previous_mask, query_by_key=True)

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            **self._projections.get_config(),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
            "position": layer_config(self.position),
        }

    def _dense(self, name, width, *parts, **options):
        return self._projections.dense(name, width, *parts, dtype=self.dtype_policy, **options)

    def _build_around_core(self, sizes: HeadSizes, width):
        """The weights of all that stands around the core, for inputs of `width` channels."""
        self.head_sizes = sizes
        self._output = self._dense(
            "output",
            sizes.output_width,
            width,
            use_bias=self.use_output_bias,
            kernel_initializer=self.output_initializer,
        )
        if self.use_gate:
            self._gate = self._dense("gate", width, sizes.output_width)
        if self.use_qk_norm:
            self._query_norm = self._norm("query_norm", sizes.key_dim, self.qk_norm_epsilon)
            self._key_norm = self._norm("key_norm", sizes.key_dim, self.qk_norm_epsilon)
        if self.use_sinks:
            self._sinks = self.add_weight(name="sinks", shape=(sizes.heads,), initializer="zeros")
        where.attach(self.position, width, sizes)
        self.built = True

    def _norm(self, name, width, epsilon=1e-6):
        norm = RMSNorm(epsilon=epsilon, dtype=self.dtype_policy, name=name)
        norm.build((None, width))
        return norm

    def _normalize(self, q, k):
        """Queries and keys, each head brought to a root mean square of its learned scale."""
        return (self._query_norm(q), self._key_norm(k)) if self.use_qk_norm else (q, k)

    def _scores(self, q):
        """What changes the scores of queries `(B, T, N, D)`, beside the mask."""
        sinks = None if self._sinks is None else ops.convert_to_tensor(self._sinks)
        bias = where.score_bias(self.position, q)
        return {"bias": bias, "softcap": self.softcap, "sinks": sinks}

    def _weighting(self, training):
        """How the weights are made of the scores: dropout, and which algorithm."""
        rate = self.dropout if training else 0.0
        options = {"dropout_rate": rate, "seed": self._seed_generator}
        return {**options, "implementation": self.implementation}

    def _finish(self, x, mixed, padding):
        """The output of the mixed values `(B, T, N, Dv)`: gated, silent at padding, projected."""
        y = merge_heads(mixed)  # (B, T, N * Dv)
        if self._gate is not None:
            y = y * ops.sigmoid(self._gate(x))
        return self._output(silence(y, padding))  # (B, T, C)


def check_sequence(name, shape):
    """Raises ValueError unless the shape is (batch, steps, width) with a known width."""
    if len(shape) == 2:
        raise ValueError(
            f"`{name}` must have rank 3, (batch, steps, width); for one sequence (steps, width) "
            f"write {name}[None]; received: {name}.shape={tuple(shape)}"
        )
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(
            f"`{name}` must have rank 3, (batch, steps, width), and a known width; "
            f"received: {name}.shape={tuple(shape)}"
        )
