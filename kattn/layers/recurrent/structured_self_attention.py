"""Attention that pools a sequence into a few vectors (Lin et al., 2017)."""

import keras
from keras import ops

from kattn import arguments, masks
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.mask_reader import read_padded
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.initializers import numbered
from kattn.ops.attention import attention, attention_weights


@keras.saving.register_keras_serializable("kattn")
class StructuredSelfAttention(QuantizableLayer):
    """A H with A = softmax(W_2 tanh(W_1 H^T)): r weighted means of the steps of a sequence.

    Each of the r rows of A, a hop, is a distribution over the steps. A penalty on A A^T - I can
    keep the hops apart. The layer usually reads what a bidirectional LSTM gives.

    Shapes: B batch, T steps, C width, r hops.

    Args:
        num_hops: Number of weighted means, r.
        hidden_dim: Number of rows of W_1.
        penalty: Number that the squared Frobenius norm of A A^T - I is multiplied by, at least 0.
            The mean over the items of a batch is added to the loss. With 0 nothing is added.
        use_bias: Whether the product with W_1 adds a bias.
        kernel_initializer: Initializer of W_1 and W_2.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of W_1 and W_2, or None.
        bias_regularizer: Regularizer of the bias, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Sequence H, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step. Padding has weight 0. It is combined
            with the Keras mask of `x`. What `x` holds at padding, be it NaN, changes nothing.

    Returns:
        `(B, r, C)`, without a Keras mask; 0 for an item that is padding alone, which does not count
        in the penalty. For a classifier follow the layer with `keras.layers.Flatten()`.

    Raises:
        ValueError: If an argument is out of range; when called, if `x` or `mask` has a wrong rank
            or dtype.

    Example:
        >>> layer = kattn.layers.StructuredSelfAttention(4, 16, penalty=0.1)
        >>> x = keras.random.normal((2, 9, 8))
        >>> layer(x).shape, len(layer.losses)
        ((2, 4, 8), 1)
        >>> layer.attention_weights(x).shape
        (2, 4, 9)

    Reference:
        Lin et al. 2017, eq. 6 to 8, https://arxiv.org/abs/1703.03130
    """

    def __init__(
        self,
        num_hops,
        hidden_dim,
        *,
        penalty=0.0,
        use_bias=False,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_integers(1, num_hops=num_hops, hidden_dim=hidden_dim)
        arguments.check_rates(penalty=penalty)
        self.num_hops = num_hops
        self.hidden_dim = hidden_dim
        self.penalty = penalty
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape):
        check_sequence("x", x_shape)
        options = self._projections
        self._hidden = options.dense(
            "hidden", x_shape[-1], self.hidden_dim, dtype=self.dtype_policy
        )
        self._hops = self.add_weight(
            name="hops",
            shape=(self.num_hops, self.hidden_dim),
            initializer=numbered(options.kernel_initializer, 1),
            regularizer=options.kernel_regularizer,
        )
        self.built = True

    def call(self, x, mask=None):
        x, padding = read_padded(x, mask)
        scores = self._scores(x, padding)
        if self.penalty:
            weights = attention_weights(**scores)[:, 0]  # (B, r, T)
            self.add_loss(self.penalty * self._overlap(weights, padding))
        return attention(value=x[:, :, None], **scores)[:, :, 0]  # (B, r, C)

    def attention_weights(self, x, mask=None):
        """The weights A with which the steps are mixed.

        Args:
            x: Sequence, float, shape `(B, T, C)`.
            mask: Padding, bool, shape `(B, T)`, True = real step.

        Returns:
            `(B, r, T)` float32. Rows sum to 1, or are 0 for an item that is padding alone.
        """
        if not self.built:
            self.build(x.shape)
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        return attention_weights(**self._scores(x, padding))[:, 0]

    def compute_mask(self, x, previous_mask):
        """None: hops are no steps."""
        return

    def compute_output_shape(self, x_shape):
        return (x_shape[0], self.num_hops, x_shape[-1])

    def rematerialized_call(self, layer_call, *args, **kwargs):
        """The call as it is where there is a penalty: what runs again can add no loss."""
        if self.penalty:
            return layer_call
        return super().rematerialized_call(layer_call, *args, **kwargs)

    def get_config(self):
        return {
            **super().get_config(),
            "num_hops": self.num_hops,
            "hidden_dim": self.hidden_dim,
            "penalty": self.penalty,
            **self._projections.get_config(),
        }

    def _scores(self, x, padding):
        """The arguments of the attention core: the rows of W_2 are the queries of each item."""
        keys = ops.tanh(self._hidden(x))[:, :, None]  # (B, T, 1, hidden)
        hops = ops.cast(ops.convert_to_tensor(self._hops), keys.dtype)[None, :, None]
        shape = (ops.shape(x)[0], *hops.shape[1:])
        mask = None if padding is None else masks.Padding(padding)
        return {"query": ops.broadcast_to(hops, shape), "key": keys, "mask": mask, "scale": 1.0}

    def _overlap(self, weights, padding):
        """The mean of |A A^T - I|^2 over the items that have a real step."""
        overlap = ops.matmul(weights, ops.swapaxes(weights, 1, 2))
        excess = ops.square(overlap - ops.eye(self.num_hops, dtype="float32"))
        by_item = ops.sum(excess, axis=(1, 2))
        counts = ops.ones_like(by_item)
        if padding is not None:
            counts = ops.cast(ops.any(padding, axis=1), "float32")
        return ops.sum(by_item * counts) / ops.maximum(ops.sum(counts), 1.0)
