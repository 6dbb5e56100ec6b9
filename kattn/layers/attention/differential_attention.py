"""Differential self-attention (Ye et al., 2024)."""

import math

import keras
from keras import ops

from kattn.layers.attention import projections
from kattn.layers.attention.self_attention import SelfAttention
from kattn.ops.attention import Call, attention, attention_weights
from kattn.ops.decoding import decode_maps


@keras.saving.register_keras_serializable("kattn")
class DifferentialAttention(SelfAttention):
    """(softmax(Q1 K1^T / sqrt(D)) - lambda softmax(Q2 K2^T / sqrt(D))) V in `num_heads` subspaces.

    What both maps give to irrelevant keys cancels. lambda is learned, one number for all heads:
    exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + `lambda_init`. Each head's output passes an RMS norm
    over Dv and is multiplied by 1 - `lambda_init`.

    Shapes: B batch, T steps, C width, N heads, K key/value heads, D width of a query or key of
    either map, Dv width of a value.

    Args:
        num_heads: N.
        key_dim: D; None for C / N / 2, which then must be whole.
        value_dim: Dv; None for 2 * D.
        lambda_init: In (0, 1): 0.8, or for layer l = 1, 2, ... of a stack the paper's
            `DifferentialAttention.lambda_of(l)`.
        **kwargs: The other arguments of `SelfAttention`, which mean the same; those of any Keras
            layer, too.

    Call args:
        x: `(B, T, C)` float.
        mask: As in `SelfAttention`.
        positions: As in `SelfAttention`.
        training: Whether dropout applies, to each map apart.

    Returns:
        `(B, T, C)`; at padding steps it is the output bias. A `(B, T)` mask is set on it.

    Raises:
        ValueError: As in `SelfAttention`; if `lambda_init` is out of range.

    Example:
        >>> layer = kattn.layers.DifferentialAttention(4, causal=True)
        >>> layer(keras.random.normal((2, 128, 64))).shape
        (2, 128, 64)

    Reference:
        Ye et al. 2024, eq. 1 to 3, https://arxiv.org/abs/2410.05258
    """

    def __init__(self, num_heads, key_dim=None, *, value_dim=None, lambda_init=0.8, **kwargs):
        super().__init__(num_heads, key_dim, value_dim=value_dim, **kwargs)
        if not 0.0 < lambda_init < 1.0:
            raise ValueError(
                f"`lambda_init` must be in (0, 1); received: lambda_init={lambda_init}"
            )
        self.lambda_init = lambda_init

    @staticmethod
    def lambda_of(layer):
        """0.8 - 0.6 exp(-0.3 (l - 1)) for layer l of a stack, counted from 1."""
        return 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))

    def build(self, x_shape):
        super().build(x_shape)
        _, _, key_dim, value_dim = self._sizes(x_shape[-1])
        self._norm = projections.norm(self, "norm", value_dim)
        initializer = keras.initializers.RandomNormal(stddev=0.1)
        self._lambdas = [
            self.add_weight(
                name=f"lambda_{name}", shape=(key_dim,), initializer=initializer.clone()
            )
            for name in ("q1", "k1", "q2", "k2")
        ]

    def attention_weights(self, x, mask=None, positions=None):
        """The weights that the call mixes values with: one map minus lambda times the other.

        Args:
            x: As in the call.
            mask: As in the call.
            positions: As in the call.

        Returns:
            `(B, N, T, T)` float32, query by key, some of them negative; rows sum to 1 - lambda, or
            are 0 at padding steps and where a query may attend to nothing.
        """
        return super().attention_weights(x, mask=mask, positions=positions)

    def get_config(self):
        return {**super().get_config(), "lambda_init": self.lambda_init}

    _maps = 2

    def _sizes(self, width):
        if self.key_dim is None and width % (2 * self.num_heads):
            raise ValueError(
                "The width of the input must be divisible by 2 * `num_heads` where `key_dim` is "
                f"None; received: width={width}, num_heads={self.num_heads}"
            )
        key_dim = self.key_dim or width // (2 * self.num_heads)
        key_heads = self.num_key_value_heads or self.num_heads
        return self.num_heads, key_heads, key_dim, self.value_dim or 2 * key_dim

    def _attend(self, q, k, v, **options):
        maps = [
            attention(query, key, v, **options, **self._options(query))
            for query, key in _pairs(q, k)
        ]
        return self._difference(*maps)

    def _weights(self, q, k, mask):
        first, second = (
            attention_weights(query, key, mask=mask, **self._options(query))
            for query, key in _pairs(q, k)
        )
        return first - self._lambda() * second

    def _decode(self, q, k, v, cache, **options):
        calls = [Call.make(query, key, v, **self._options(query)) for query, key in _pairs(q, k)]
        outputs, cache = decode_maps(calls, cache, **options)
        return self._difference(*outputs), cache

    def _difference(self, first, second):
        y = first - ops.cast(self._lambda(), first.dtype) * second
        return self._norm(y) * (1.0 - self.lambda_init)

    def _lambda(self):
        q1, k1, q2, k2 = (ops.cast(weight, "float32") for weight in self._lambdas)
        return ops.exp(ops.sum(q1 * k1)) - ops.exp(ops.sum(q2 * k2)) + self.lambda_init


def _pairs(q, k):
    """Queries and keys of the first map, and of the second."""
    return zip(ops.split(q, 2, axis=2), ops.split(k, 2, axis=2), strict=True)
