"""Linear attention: a kernel of feature maps in place of softmax (Katharopoulos et al., 2020)."""

import dataclasses
import functools
import math

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.head_sizes import HeadSizes, check_heads, merge_heads
from kattn.layers.attention.mask_reader import (
    read_padded,
    read_padding,
    silence,
    silence_weights,
)
from kattn.layers.attention.positions import (
    attach,
    embed,
    read_position,
    step_positions,
)
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.nested_layers import layer_config
from kattn.layers.position.head_position import HeadPosition
from kattn.ops import chunks, feature_maps
from kattn.ops.cache import next_positions
from kattn.ops.linear import (
    decode_linear_attention,
    initial_linear_state,
    linear_attention,
    linear_attention_weights,
)

FEATURE_MAPS = ("elu", "softmax", "performer", "performer_relu")
RANDOM = ("performer", "performer_relu")
ARGUMENTS = (
    "num_heads",
    "key_dim",
    "value_dim",
    "num_key_value_heads",
    "feature_map",
    "num_features",
    "causal",
    "use_gate",
    "implementation",
    "seed",
)


@keras.saving.register_keras_serializable("kattn")
class LinearAttention(QuantizableLayer):
    """phi(Q) (phi(K)^T V), its rows divided by the sums of their weights, in `num_heads` subspaces.

    Time and memory are O(T). Where causal, a step of decoding is O(1), for the steps before are
    one state of D x Dv numbers a head.

    Shapes: B batch, T steps, C width, N heads, K key/value heads, D and Dv head widths, F features.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for the width of the input
            divided by the number of heads, C / N, which must then be whole.
        value_dim: Width of the values of one head, Dv. None for `key_dim`.
        num_key_value_heads: Number of key/value heads, K, a divisor of `num_heads`; each serves
            N / K query heads (grouped-query attention; 1 is multi-query attention). None for
            `num_heads`.
        feature_map: Feature map phi: "elu" is elu(x) + 1; "softmax" is a softmax over D for queries
            and over T for keys, or, where causal, over D for both; "performer" are random features
            whose weights are an unbiased estimate of exp(q k / sqrt(D)); "performer_relu" are
            rectified random features.
        num_features: Number of random features, F. None for D ln D, rounded up. The error of
            "performer" goes as 1 / sqrt(F), and grows with the size of queries and keys.
        causal: If True, step t attends to steps <= t only.
        position: Position layer that is added to the inputs, or one that turns queries and keys,
            such as `RotaryEmbedding()`: it then turns their features, in the weighted values but
            not in the sum of the weights. None for no positions.
        use_gate: If True, each head's output is multiplied by sigmoid(x W_g + b_g), channel by
            channel.
        use_bias: Whether the projections add a bias.
        implementation: Name of the algorithm: "parallel" takes all pairs of steps at once,
            "chunked" goes through the sequence chunk by chunk, "auto" chooses. All give the same
            result.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though they are stored as one matrix.
        bias_initializer: Initializer of the biases of the projections.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases of the projections, or None.
        seed: Integer seed of the random features, which are a weight that is saved, not trained.
            None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which is never
            attended to. It is combined with the Keras mask of `x`.
        positions: Positions of the steps for `position`, integers, shape `(T,)` or `(B, T)`. None
            to count from 0 at the first real step.

    Returns:
        `(B, T, C)`; at padding steps it is the output bias. The padding of `x`, by its Keras mask
        and by `mask`, is the Keras mask of the output.

    Raises:
        ValueError: If an argument is out of range; when built, if C is not divisible by
            `num_heads` while `key_dim` is None; when called, if `x` or `mask` has a wrong rank or
            dtype; when decoding, if the layer is not causal.

    Example:
        >>> layer = kattn.layers.LinearAttention(8, 8, causal=True)
        >>> layer(keras.random.normal((2, 1024, 64))).shape
        (2, 1024, 64)
        >>> cache = layer.init_cache(batch_size=2, length=1024)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), cache)

    Reference:
        "elu": Katharopoulos et al. 2020, eq. 7, https://arxiv.org/abs/2006.16236
        "softmax": Shen et al. 2018, sec. 3.3, https://arxiv.org/abs/1812.01243. Their keys are
        normalised over all T steps, which no causal form can be: there keys are normalised over D,
        as queries are, and the weights by their sum.
        "performer": Choromanski et al. 2020, FAVOR+, https://arxiv.org/abs/2009.14794. The vectors
        are drawn once and not again while training; nothing is added to the positive features.
        Rotation: Su et al. 2021, eq. 19, https://arxiv.org/abs/2104.09864
    """

    def __init__(
        self,
        num_heads,
        key_dim=None,
        *,
        value_dim=None,
        num_key_value_heads=None,
        feature_map="elu",
        num_features=None,
        causal=False,
        position=None,
        use_gate=False,
        use_bias=True,
        implementation="auto",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        check_heads(num_heads, key_dim, value_dim, num_key_value_heads)
        _check_features(feature_map, num_features)
        arguments.check_choice(chunks.IMPLEMENTATIONS, implementation=implementation)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.num_key_value_heads = num_key_value_heads
        self.feature_map = feature_map
        self.num_features = num_features
        self.causal = causal
        self.position = read_position(position, scores=False)
        self.use_gate = use_gate
        self.implementation = implementation
        self.seed = seed
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape):
        check_sequence("x", x_shape)
        width = x_shape[-1]
        dense = functools.partial(self._projections.dense, dtype=self.dtype_policy)
        self.head_sizes = sizes = HeadSizes.of(self, width)
        self._qkv = dense("qkv", width, sizes.query_width, sizes.key_width, sizes.value_width)
        self._output = dense("output", sizes.output_width, width)
        if self.use_gate:
            self._gate = dense("gate", width, sizes.output_width)
        self._features = sizes.key_dim
        if self.feature_map in RANDOM:
            default = max(1, math.ceil(sizes.key_dim * math.log(sizes.key_dim)))
            self._features = self.num_features or default
            self._projection = self.add_weight(
                shape=(sizes.key_dim, self._features),
                initializer=self._draw_projection,
                trainable=False,
                autocast=False,
                dtype="float32",
                name="projection",
            )
        attach(self.position, width, dataclasses.replace(sizes, key_dim=self._features))
        self.built = True

    def call(self, x, mask=None, positions=None):
        x, padding = read_padded(x, mask)
        positions = step_positions(self.position, positions, padding)
        x = embed(self.position, x, positions)  # (B, T, C)
        q, k, v = self.head_sizes.split_qkv(
            self._qkv(x)
        )  # (B, T, N, D), (B, T, K, D), (B, T, K, Dv)
        y = linear_attention(
            q,
            k,
            v,
            feature_map=self._feature_maps(padding),
            rotation=self._rotation(positions),
            mask=padding,
            causal=self.causal,
            implementation=self.implementation,
        )  # (B, T, N, Dv)
        return self._finish(x, y, padding)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state before the first step, for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The state has one size for any.
            context: Must be None: the layer attends to its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A `kattn.ops.LinearState`.

        Raises:
            ValueError: If the layer is not causal or not built, if a size is not an integer >= 1,
                or if there is a context.
        """
        check_decodes(self, batch_size, length, context, context_mask, causal=self.causal)
        sizes = self.head_sizes
        return initial_linear_state(batch_size, sizes.key_heads, self._features, sizes.value_dim)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: State that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which leaves the state as it is. It is combined with the Keras mask
                of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, C)`, which is the output bias at padding; and
            the state after these steps.

        Raises:
            ValueError: If `mask` is of another kind, or shapes do not fit.
        """
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = next_positions(cache, x.shape[1], padding)
        x = embed(self.position, x, positions)  # (B, t, C)
        q, k, v = self.head_sizes.split_qkv(
            self._qkv(x)
        )  # (B, t, N, D), (B, t, K, D), (B, t, K, Dv)
        y, cache = decode_linear_attention(
            q,
            k,
            v,
            cache,
            feature_map=self._feature_maps(padding),
            rotation=self._rotation(positions),
            mask=padding,
            implementation=self.implementation,
        )  # (B, t, N, Dv)
        return self._finish(x, y, padding), cache

    def attention_weights(self, x, mask=None, positions=None):
        """The weights phi(q)^T phi(k) / sum that the call mixes values with.

        Args:
            x: Input sequence, float, shape `(B, T, C)`.
            mask: Padding, bool, shape `(B, T)`, True = real step.
            positions: Positions of the steps for `position`, integers, shape `(T,)` or `(B, T)`.

        Returns:
            `(B, N, T, T)` float32, query by key. Rows sum to 1, or are 0 at padding steps. Under a
            rotation they may be negative, and sum to another number.
        """
        if not self.built:
            self.build(x.shape)
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = step_positions(self.position, positions, padding)
        q, k, _ = self.head_sizes.split_qkv(self._qkv(embed(self.position, x, positions)))
        weights = linear_attention_weights(
            q,
            k,
            feature_map=self._feature_maps(padding),
            rotation=self._rotation(positions),
            mask=padding,
            causal=self.causal,
        )  # (B, N, T, T)
        return silence_weights(weights, padding)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            **self._projections.get_config(),
            "position": layer_config(self.position),
        }

    def _draw_projection(self, shape, dtype=None):
        key_dim, features = shape
        return feature_maps.orthogonal_projection(key_dim, features, seed=self.seed)

    def _rotation(self, positions):
        """What turns the features of queries, and of keys, or None."""
        if not isinstance(self.position, HeadPosition):
            return None
        turn = functools.partial(self.position.rotate, positions=positions)
        return turn, turn

    def _feature_maps(self, padding):
        """Phi of queries and phi of keys; where causal, no step's features depend on another."""
        if self.feature_map == "elu":
            return feature_maps.elu_plus_one, feature_maps.elu_plus_one
        if self.feature_map == "softmax":
            over_steps = functools.partial(feature_maps.softmax_steps, mask=padding)
            of_keys = feature_maps.softmax_features if self.causal else over_steps
            return feature_maps.softmax_features, of_keys
        projection = ops.convert_to_tensor(self._projection)
        if self.feature_map == "performer_relu":
            phi = functools.partial(feature_maps.rectified_random_features, projection=projection)
            return phi, phi
        phi = functools.partial(feature_maps.positive_random_features, projection=projection)
        together = {} if self.causal else {"scaled_over": (1, 3), "mask": padding}
        return functools.partial(phi, scaled_over=-1), functools.partial(phi, **together)

    def _finish(self, x, mixed, padding):
        """The output of the mixed values `(B, T, N, Dv)`: gated, silent at padding, projected."""
        y = merge_heads(mixed)  # (B, T, N * Dv)
        if self.use_gate:
            y = y * ops.sigmoid(self._gate(x))
        return self._output(silence(y, padding))  # (B, T, C)


def _check_features(feature_map, num_features):
    arguments.check_choice(FEATURE_MAPS, feature_map=feature_map)
    arguments.check_optional_integers(1, num_features=num_features)
    if num_features is not None and feature_map not in RANDOM:
        raise arguments.error(
            f"`num_features` is for random features ({', '.join(RANDOM)})",
            num_features=num_features,
            feature_map=feature_map,
        )
