"""Linear attention: a kernel of feature maps in place of softmax (Katharopoulos et al., 2020)."""

import functools
import math

import keras
from keras import ops

from kattn.layers.attention import linear_parts, projections, schemes
from kattn.layers.attention.mask_reader import MaskReader, padding_of
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
    "use_bias",
    "implementation",
    "seed",
)


@keras.saving.register_keras_serializable("kattn")
class LinearAttention(keras.layers.Layer):
    """phi(Q) (phi(K)^T V), its rows divided by the sums of their weights, in `num_heads` subspaces.

    Time and memory are O(T). Where causal, a step of decoding is O(1), for the steps before are
    one state of D x Dv numbers a head.

    Shapes: B batch, T steps, C width, N heads, K key/value heads, D and Dv head widths, F features.

    Args:
        num_heads: N.
        key_dim: D; None for C / N, which then must be whole.
        value_dim: Dv; None for D.
        num_key_value_heads: K, a divisor of N: each serves N / K query heads. None for N.
        feature_map: phi. "elu", elu(x) + 1; "softmax", over D for queries and over T for keys, or,
            where causal, over D for both; "performer", random features whose weights are an
            unbiased estimate of exp(q k / sqrt(D)); "performer_relu", rectified random features.
        num_features: F of random features; None for D ln D, rounded up. The error of "performer"
            goes as 1 / sqrt(F), and grows with the size of queries and keys.
        causal: If True, step t attends to steps <= t only.
        position: A position layer of the inputs, or one that turns queries and keys,
            `RotaryEmbedding()`: it then turns their features, in the weighted values but not in
            the sum of the weights. None for none.
        use_gate: If True, each head's output is multiplied by sigmoid(x W_g + b_g), per channel.
        use_bias: Whether the projections add a bias.
        implementation: "parallel", all pairs of steps at once; "chunked"; or "auto". Results agree.
        kernel_initializer: Of each projection on its own, though stored as one matrix.
        bias_initializer: Of the biases.
        kernel_regularizer: Of the projection matrices.
        bias_regularizer: Of the biases.
        seed: Integer seed of the random features, which are a weight that is saved, not trained.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        x: `(B, T, C)` float.
        mask: `(B, T)` bool, True = real step; False = padding, which is never attended to. It is
            combined with the Keras mask of `x`, which means the same.
        positions: `(T,)` or `(B, T)` int32 for `position`; None for 0 to T - 1, counted from the
            first real step.

    Returns:
        `(B, T, C)`; at padding steps it is the output bias. The Keras mask of `x` is set on it.

    Raises:
        ValueError: For arguments out of range; when built, if C is not divisible by `num_heads`
            while `key_dim` is None; when called, if `x` or `mask` has a wrong rank or dtype; on
            decoding, if not causal.

    Example:
        >>> layer = kattn.layers.LinearAttention(8, 8, causal=True)
        >>> layer(keras.random.normal((2, 1024, 64))).shape
        (2, 1024, 64)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), layer.init_cache(2))

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
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.num_key_value_heads = num_key_value_heads
        self.feature_map = feature_map
        self.num_features = num_features
        self.causal = causal
        self.position = linear_parts.read_position(position)
        self.use_gate = use_gate
        self.use_bias = use_bias
        self.implementation = implementation
        self.seed = seed
        linear_parts.set_initializers(
            self,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
        )
        self._check()
        self._mask_reader = MaskReader(name="mask_reader", dtype=self.dtype_policy)

    def build(self, x_shape):
        projections.check_rank("x", x_shape)
        width = x_shape[-1]
        heads, key_heads, self._key_dim, value_dim = projections.sizes(self, width)
        self._sizes = (heads * self._key_dim, key_heads * self._key_dim, key_heads * value_dim)
        self._qkv = projections.dense(self, self._sizes, "qkv", width)
        self._output = projections.dense(self, (width,), "output", heads * value_dim)
        if self.use_gate:
            self._gate = projections.dense(self, (heads * value_dim,), "gate", width)
        if self.feature_map in RANDOM:
            self._projection = self.add_weight(
                shape=(self._key_dim, self._features()),
                initializer=self._draw_projection,
                trainable=False,
                autocast=False,
                dtype="float32",
                name="projection",
            )
        linear_parts.attach(self, width, key_dim=self._features())
        self.built = True

    def call(self, x, mask=None, positions=None):
        padding = linear_parts.read_padding(self, x, mask, called=True)
        positions = schemes.step_positions(self.position, positions, padding, None)
        x = linear_parts.embed(self, x, positions)
        q, k, v = self._project(x)
        phi = self._feature_maps(padding)
        options = {"mask": padding, "causal": self.causal, "implementation": self.implementation}
        options["rotation"] = self._rotation(positions)
        return self._finish(x, linear_attention(q, k, v, feature_map=phi, **options), padding)

    def attention_weights(self, x, mask=None, positions=None):
        """The weights phi(q)^T phi(k) / sum that the call mixes values with.

        Args:
            x: As in the call.
            mask: As in the call.
            positions: As in the call.

        Returns:
            `(B, N, T, T)` float32, query by key; rows sum to 1, or are 0 at padding steps. Under a
            rotation they may be negative, and sum to another number.
        """
        if not self.built:
            self.build(x.shape)
        padding = linear_parts.read_padding(self, x, mask, called=False)  # a cast drops a mask
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = schemes.step_positions(self.position, positions, padding, None)
        q, k, _ = self._project(linear_parts.embed(self, x, positions))
        options = {"mask": padding, "causal": self.causal, "rotation": self._rotation(positions)}
        phi = self._feature_maps(padding)
        weights = linear_attention_weights(q, k, feature_map=phi, **options)
        return weights if padding is None else ops.where(padding[:, None, :, None], weights, 0.0)

    def init_cache(self, batch_size, length=None):
        """The state before the first step.

        Args:
            batch_size: B.
            length: Ignored: the state has one size for any number of steps. Layers that keep keys
                need it, and a model of both kinds makes all its caches alike.

        Returns:
            A `kattn.ops.LinearState`.

        Raises:
            ValueError: If not causal; if `key_dim` is None and the layer is not built.
        """
        self._check_causal()
        key_dim = linear_parts.key_dim_of(self)
        key_heads = self.num_key_value_heads or self.num_heads
        features = self._features(key_dim)
        return initial_linear_state(batch_size, key_heads, features, self.value_dim or key_dim)

    def decode(self, x, cache, mask=None):
        """The call on new steps, which attend to themselves and to the steps before.

        Args:
            x: `(B, t, C)` float, any number of new steps.
            cache: The state of the steps before, of `init_cache` or of the last `decode`.
            mask: `(B, t)` bool, True = real step; padding leaves the state as it is.

        Returns:
            `(B, t, C)`, and the new cache.

        Raises:
            ValueError: If not causal; where the call would.
        """
        self._check_causal()
        if not self.built:
            self.build(x.shape)
        padding = linear_parts.read_padding(self, x, mask, called=False)  # a cast drops a mask
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = next_positions(cache, x.shape[1], padding)
        x = linear_parts.embed(self, x, positions)
        q, k, v = self._project(x)
        phi = self._feature_maps(padding)
        options = {
            "mask": padding,
            "implementation": self.implementation,
            "rotation": self._rotation(positions),
        }
        y, cache = decode_linear_attention(q, k, v, cache, feature_map=phi, **options)
        return self._finish(x, y, padding), cache

    def compute_mask(self, x, previous_mask):
        return padding_of(previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        fields = linear_parts.config(self, *ARGUMENTS)
        return {**super().get_config(), **fields, "position": schemes.write(self.position)}

    def _check(self):
        linear_parts.check_integers(
            self, "num_heads", "key_dim", "value_dim", "num_key_value_heads", "num_features"
        )
        heads, key_heads = self.num_heads, self.num_key_value_heads
        if key_heads is not None and heads % key_heads:
            raise ValueError(
                "`num_heads` must be a multiple of `num_key_value_heads`; received: "
                f"num_heads={heads}, num_key_value_heads={key_heads}"
            )
        linear_parts.check_choice(self, "feature_map", FEATURE_MAPS)
        linear_parts.check_choice(self, "implementation", chunks.IMPLEMENTATIONS)
        if self.num_features is not None and self.feature_map not in RANDOM:
            raise ValueError(
                f"`num_features` is for random features ({', '.join(RANDOM)}); received: "
                f"num_features={self.num_features}, feature_map={self.feature_map!r}"
            )

    def _check_causal(self):
        if not self.causal:
            raise ValueError(
                "Decoding needs a causal layer: in any other a new step changes the outputs of the "
                f"steps before it; received: causal={self.causal}"
            )

    def _features(self, key_dim=None):
        """F."""
        key_dim = key_dim or self._key_dim
        if self.feature_map not in RANDOM:
            return key_dim
        return self.num_features or max(1, math.ceil(key_dim * math.log(key_dim)))

    def _draw_projection(self, shape, dtype=None):
        key_dim, features = shape
        return feature_maps.orthogonal_projection(key_dim, features, seed=self.seed)

    def _project(self, x):
        q, k, v = projections.split(self._qkv(x), self._sizes)
        key_heads = self.num_key_value_heads or self.num_heads
        k, v = projections.split_heads(k, key_heads), projections.split_heads(v, key_heads)
        return projections.split_heads(q, self.num_heads), k, v

    def _rotation(self, positions):
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

    def _finish(self, x, y, padding):
        y = ops.reshape(y, (*ops.shape(x)[:2], self._output.kernel.shape[0]))
        if self.use_gate:
            y = y * ops.sigmoid(self._gate(x))
        return self._output(projections.silence(y, padding))
