"""The vectors of tokens with their positions, which the first block of a model reads."""

import keras
from keras import ops

from kattn import masks
from kattn.layers.attention.mask_reader import read_padding, set_keras_mask
from kattn.layers.attention.positions import step_positions
from kattn.layers.position.input_position import InputPosition
from kattn.layers.transformer.norms import new_norm


class TokenEmbedding(keras.layers.Layer):
    """A vector of each token, plus that of its type and of its position; then norm and dropout.

    Args:
        table: The `keras.layers.ReversibleEmbedding` of the tokens, made by `token_table`. Several
            embeddings may share it.
        position: Position layer of a model. One that is added to inputs is added here; another kind
            is for the attention layers. None for no positions.
        padding_token: Token that stands for padding, or None.
        num_types: Number of types of tokens, or None.
        norm: What `read_norm` returned, or None for no norm.
        dropout: Fraction of the channels that are dropped during training.
        seed: Integer seed of what is dropped, or None.
        **kwargs: `name` and `dtype`.
    """

    def __init__(
        self, table, *, position, padding_token, num_types=None, norm=None, dropout, seed, **kwargs
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.padding_token = padding_token
        self._table = table
        self._position = position if isinstance(position, InputPosition) else None
        policy, width = self.dtype_policy, table.output_dim
        self._types = self._norm = self._dropout = None
        if num_types is not None:
            self._types = keras.layers.Embedding(
                num_types, width, new_initializer(), dtype=policy, name="types"
            )
        if norm is not None:
            self._norm = new_norm(norm, "norm", policy)
        if dropout:
            self._dropout = keras.layers.Dropout(dropout, seed=seed, dtype=policy)

    def build(self, tokens_shape):
        shape = (*tokens_shape, self._table.output_dim)
        for layer in (self._table, self._types):
            if layer is not None and not layer.built:  # the table may be that of another embedding
                layer.build(tokens_shape)
        for layer in (self._position, self._norm, self._dropout):
            if layer is not None and not layer.built:
                layer.build(shape)
        self.built = True

    def call(self, tokens, mask=None, token_types=None, training=None):
        padding = self.compute_mask(tokens, mask)
        packed = mask if isinstance(mask, masks.Mask) else None
        h = self._look_up(tokens, token_types, padding)  # (B, T, C)
        if self._position is not None:
            positions = step_positions(self._position, None, padding, packed)
            h = self._position.embed(h, positions)
        h = self._normalize(h)
        return h if self._dropout is None else self._dropout(h, training=training)

    def compute_mask(self, tokens, previous_mask):
        """Which steps are real, `(B, T)`: by masks, and by the token of padding; None for all."""
        padding = read_padding(tokens, previous_mask, query_by_key=True)
        if self.padding_token is None:
            return padding
        real = ops.not_equal(tokens, self.padding_token)
        return real if padding is None else ops.logical_and(padding, real)

    def compute_output_shape(self, tokens_shape):
        return (*tokens_shape, self._table.output_dim)

    def init_cache(self, batch_size, length):
        """The cache of the position layer, if there is one, as a tuple."""
        if self._position is None:
            return ()
        return (self._position.init_cache(batch_size, length),)

    def decode(self, tokens, cache, mask=None):
        """The vectors of new tokens `(B, t)`, with their Keras mask; and the cache after them."""
        padding = self.compute_mask(tokens, mask)
        h = set_keras_mask(self._look_up(tokens, None, padding), padding)
        if self._position is not None:
            h, own = self._position.decode(h, cache[0], mask=mask)
            h, cache = ops.cast(h, self.compute_dtype), (own,)
        return set_keras_mask(self._normalize(h), padding), cache

    def _look_up(self, tokens, types, padding):
        if padding is not None:  # where any number may stand
            tokens = ops.where(padding, tokens, 0)
        h = self._table(tokens)
        if self._types is None:
            return h
        types = ops.zeros_like(tokens) if types is None else types
        return h + self._types(types)

    def _normalize(self, h):
        return h if self._norm is None else self._norm(h)


def new_initializer():
    """The initializer of vectors as in GPT-2 and BERT; each weight needs one of its own."""
    return keras.initializers.RandomNormal(stddev=0.02)


def token_table(vocabulary_size, width, policy):
    """The vectors of all tokens, which also score a vector against each token.

    Args:
        vocabulary_size: Number of tokens.
        width: Number of channels of a vector.
        policy: Dtype policy.

    Returns:
        A `keras.layers.ReversibleEmbedding` that is not built.
    """
    table = keras.layers.ReversibleEmbedding(
        vocabulary_size,
        width,
        embeddings_initializer=new_initializer(),
        reverse_dtype=policy.compute_dtype,  # else a matrix product in half precision is none
        dtype=policy,
        name="tokens",
    )
    table.supports_masking = True  # it has no mask of its own, and needs none
    return table
