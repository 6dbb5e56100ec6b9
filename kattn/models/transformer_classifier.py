"""A classifier of token sequences by Transformer encoder blocks: BERT and its relatives."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.mask_reader import silence
from kattn.layers.nested_layers import layer_config
from kattn.layers.transformer.block_stack import BlockStack
from kattn.layers.transformer.token_embedding import TokenEmbedding, token_table
from kattn.models.published_sizes import CLASSIFIERS
from kattn.models.transformer_model import (
    TransformerModel,
    check_tokens,
    heads_position,
    new_dense,
    read_model_position,
)

POOLING = ("mean", "first")


@keras.saving.register_keras_serializable("kattn")
class TransformerClassifier(TransformerModel):
    """Logits of classes for a sequence of tokens, every one of which attends to all others.

    Tokens become vectors and pass `num_layers` blocks; what comes out is made one vector, and that
    is compared with each class. With its arguments it is a BERT.

    Published sizes, for `from_size`: "bert-base", which needs `num_classes`, too.

    Shapes: B batch, T steps, V tokens of the vocabulary, M classes.

    Args:
        vocabulary_size: Number of tokens of the vocabulary, V.
        num_classes: Number of classes, M.
        num_layers: Number of blocks, L.
        num_heads: Number of attention heads of each block.
        width: Number of channels of the vectors that the blocks read and give.
        position: Position layer. One that is added to inputs, such as `LearnedPositions(512)`, is
            added to the vectors of the tokens; another one, such as `RotaryEmbedding()`, is shared
            by the attention layers of all blocks. None for no positions.
        pooling: How the vectors of all steps become one: "mean", their mean over the real steps; or
            "first", that of the first real step.
        use_pooler: Whether that vector passes a layer with tanh before the logits, as in BERT.
        num_token_types: Number of types of tokens, such as 2 for those of a first and of a second
            sentence. None if there are no types.
        use_embedding_norm: Whether a norm stands behind the embedding, as in BERT.
        padding_token: Token that stands for padding at any step, which is masked. None if masks
            alone say what is padding.
        **kwargs: Arguments of the blocks, and `name`, `dtype` and `trainable`, as for any Keras
            layer. The arguments of the blocks are those of `TransformerLM`, of which `dropout` is
            applied before the logits, too.

    Call args:
        tokens: Tokens, integers in [0, V), shape `(B, T)`.
        mask: Mask, bool, True = may attend, of any kind that `SelfAttention` takes: padding
            `(B, T)` (True = real step), query by key `(B, T, T)`, or a `kattn.masks.Mask`. It is
            combined with the Keras mask of `tokens`. What stands at padding changes nothing.
        token_types: Type of each token, integers in [0, `num_token_types`), shape `(B, T)`. None
            for type 0.
        training: Whether anything is dropped.
        mask_arrays: Arrays of a mask object, which a functional model keeps apart from it. Leave it
            None.

    Returns:
        Logits `(B, M)`. For an item without a real step they mean nothing.

    Raises:
        ValueError: If an argument is out of range; when built, if `tokens` are not of rank 2; when
            called, if there are types of tokens for a model without them.

    Example:
        >>> model = kattn.models.TransformerClassifier(
        ...     100, 3, 2, 4, 32, position=kattn.layers.LearnedPositions(16), padding_token=0
        ... )
        >>> short_and_long = np.array([[7, 3, 0, 0, 0], [9, 2, 8, 1, 6]])
        >>> model(short_and_long).shape
        (2, 3)

    Reference:
        Devlin et al. 2018 (BERT), sec. 3, https://arxiv.org/abs/1810.04805
    """

    sizes = CLASSIFIERS

    def __init__(
        self,
        vocabulary_size,
        num_classes,
        num_layers,
        num_heads,
        width,
        *,
        position=None,
        pooling="mean",
        use_pooler=False,
        num_token_types=None,
        use_embedding_norm=False,
        padding_token=None,
        **kwargs,
    ):
        super().__init__(num_layers, num_heads, width, **kwargs)
        arguments.check_integers(1, num_classes=num_classes)
        arguments.check_optional_integers(1, num_token_types=num_token_types)
        arguments.check_choice(POOLING, pooling=pooling)
        self.vocabulary_size = vocabulary_size
        self.num_classes = num_classes
        self.position = read_model_position(position)
        self.pooling = pooling
        self.use_pooler = use_pooler
        self.num_token_types = num_token_types
        self.use_embedding_norm = use_embedding_norm
        self.padding_token = padding_token
        options, policy = self.options, self.dtype_policy
        self._embedding = TokenEmbedding(
            token_table(vocabulary_size, width, policy),
            position=self.position,
            padding_token=padding_token,
            num_types=num_token_types,
            norm=options.norm if use_embedding_norm else None,
            dropout=options.dropout,
            seed=options.seed_of(0, 9),
            dtype=policy,
            name="embedding",
        )
        blocks = options.encoder_blocks(policy, position=heads_position(self.position))
        self._stack = BlockStack(blocks, options.final_norm, dtype=policy, name="encoder")
        self._pooler = None
        if use_pooler:
            self._pooler = new_dense("pooler", width, policy, activation="tanh")
        seed = options.seed_of(options.num_layers, 0)
        self._dropout = keras.layers.Dropout(options.dropout, seed=seed, dtype=policy)
        self._head = new_dense("head", num_classes, policy)

    def build(self, tokens_shape):
        check_tokens("tokens", tokens_shape)
        width = self.options.width
        self._embedding.build(tokens_shape)
        self._stack.build((*tokens_shape, width))
        for layer in (self._pooler, self._dropout, self._head):
            if layer is not None:
                layer.build((tokens_shape[0], width))
        self.built = True

    def call(self, tokens, mask=None, token_types=None, training=None, mask_arrays=None):
        h = self.encode(tokens, mask, token_types, training=training)  # (B, T, C)
        h = self._pool(h, self._embedding.compute_mask(tokens, mask))  # (B, C)
        h = h if self._pooler is None else self._pooler(h)
        return self._head(self._dropout(h, training=training))  # (B, M)

    def encode(self, tokens, mask=None, token_types=None, *, training=None):
        """The vectors of all steps, of which the call makes its logits.

        Args:
            tokens: Tokens, integers in [0, V), shape `(B, T)`.
            mask: Mask, bool, True = may attend, of any kind that the call takes.
            token_types: Type of each token, integers in [0, `num_token_types`), shape `(B, T)`.
                None for type 0.
            training: Whether anything is dropped.

        Returns:
            `(B, T, C)`, with the padding of the tokens as its Keras mask; at padding steps they
            mean nothing.

        Raises:
            ValueError: If there are types of tokens for a model without them.
        """
        if token_types is not None and self.num_token_types is None:
            raise arguments.error(
                "A model that is called with `token_types` must be made with `num_token_types`",
                num_token_types=None,
            )
        given = {"mask": mask, "token_types": token_types}
        h = self._embedding(tokens, **given, training=training)
        return self._stack(h, mask=mask, training=training)

    def compute_mask(self, tokens, previous_mask):
        return None  # there is one vector for all steps

    def compute_output_shape(self, tokens_shape):
        return (tokens_shape[0], self.num_classes)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_classes": self.num_classes,
            "position": layer_config(self.position),
            "pooling": self.pooling,
            "use_pooler": self.use_pooler,
            "num_token_types": self.num_token_types,
            "use_embedding_norm": self.use_embedding_norm,
            "padding_token": self.padding_token,
        }

    def _pool(self, h, padding):
        """One vector `(B, C)` of those of all steps, `(B, T, C)`."""
        if padding is None:
            return h[:, 0] if self.pooling == "first" else ops.mean(h, axis=1)
        if self.pooling == "first":
            is_first = ops.cumsum(ops.cast(padding, "int32"), axis=1) == 1
            padding = ops.logical_and(padding, is_first)
        count = ops.sum(ops.cast(padding, "float32"), axis=1, keepdims=True)
        total = ops.sum(ops.cast(silence(h, padding), "float32"), axis=1)
        return ops.cast(total / ops.maximum(count, ops.ones_like(count)), h.dtype)
