"""A Transformer with an encoder and a decoder: from one sequence of tokens to another."""

import dataclasses

import keras

from kattn import arguments
from kattn.layers.attention.caches import check_built
from kattn.layers.attention.mask_reader import keras_mask, set_keras_mask
from kattn.layers.nested_layers import layer_config
from kattn.layers.transformer.block_stack import BlockStack
from kattn.layers.transformer.token_embedding import TokenEmbedding, token_table
from kattn.models.published_sizes import SEQ2SEQ_MODELS
from kattn.models.transformer_model import (
    TransformerModel,
    check_tokens,
    heads_position,
    new_dense,
    read_model_position,
)


@keras.saving.register_keras_serializable("kattn")
class TransformerSeq2Seq(TransformerModel):
    """Logits of the next token of a target at each step, given a source.

    The tokens of the source become vectors and pass the blocks of the encoder; those of the target
    pass the blocks of the decoder, which attend to earlier tokens of the target and to all of the
    source. Both have one vocabulary. With its arguments it is a T5.

    Published sizes, for `from_size`: "t5-small".

    Shapes: B batch, S steps of the source, T steps of the target, V tokens of the vocabulary.

    Args:
        vocabulary_size: Number of tokens of the vocabulary, V.
        num_layers: Number of blocks of the encoder, and of the decoder.
        num_heads: Number of attention heads of each block.
        width: Number of channels of the vectors that the blocks read and give.
        position: Position layer of the source. One that is added to inputs, such as
            `LearnedPositions(512)`, is added to the vectors of the tokens; another one, such as
            `T5RelativeBias()`, is shared by the self-attention layers of the encoder. None for no
            positions.
        decoder_position: Position layer of the target, likewise. None for no positions.
        tie_embeddings: If True, the vectors of the tokens are also the matrix that gives the
            logits; else that is a matrix of its own.
        padding_token: Token that stands for padding at any step of a source, which is masked. A
            target may begin with it, as in T5. None if masks alone say what is padding.
        **kwargs: Arguments of the blocks, and `name`, `dtype` and `trainable`, as for any Keras
            layer. The arguments of the blocks are those of `TransformerLM`; a `window` does not
            limit which steps of the source a target sees.

    Call args:
        inputs: A pair `(source, target)` of tokens, integers in [0, V), shapes `(B, S)` and
            `(B, T)`. In training the target is shifted: it begins with a token that means the
            beginning, and what is to be predicted at a step is the next token.
        mask: A pair of padding masks of the source and of the target, bool, shapes `(B, S)` and
            `(B, T)`, True = real step; either may be None. They are combined with the Keras masks
            of the tokens. What stands at padding changes nothing.
        training: Whether anything is dropped.

    Returns:
        Logits `(B, T, V)`; at padding steps they mean nothing. The padding of the target is the
        Keras mask of the logits.

    Raises:
        ValueError: If an argument is out of range; when built, if tokens are not of rank 2.

    Example:
        >>> model = kattn.models.TransformerSeq2Seq(50, 2, 4, 32, padding_token=0)
        >>> source, target = np.array([[7, 3, 9, 0]]), np.array([[1, 8, 5]])
        >>> model((source, target)).shape
        (1, 3, 50)
        >>> cache = model.init_cache(batch_size=1, length=8, context=source)
        >>> logits, cache = model.decode(target[:, :1], cache)
        >>> logits.shape
        (1, 1, 50)

    Reference:
        Vaswani et al. 2017, sec. 3.1, https://arxiv.org/abs/1706.03762
        T5: Raffel et al. 2019, sec. 2.1, https://arxiv.org/abs/1910.10683. It does not scale its
        scores, and scales its logits by 1 / sqrt(width); weights can be made to do the same here.
    """

    sizes = SEQ2SEQ_MODELS

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        width,
        *,
        position=None,
        decoder_position=None,
        tie_embeddings=True,
        padding_token=None,
        **kwargs,
    ):
        super().__init__(num_layers, num_heads, width, **kwargs)
        self.vocabulary_size = vocabulary_size
        self.position = read_model_position(position)
        self.decoder_position = read_model_position(decoder_position, "decoder_position")
        self.tie_embeddings = tie_embeddings
        self.padding_token = padding_token
        options, policy = self.options, self.dtype_policy
        self._table = token_table(vocabulary_size, width, policy)
        of_decoder = dataclasses.replace(options, seed=options.seed_of(num_layers, 0))
        self._source = self._embedding("source", options, self.position, padding_token)
        self._target = self._embedding("target", of_decoder, self.decoder_position)
        encoder = options.encoder_blocks(policy, position=heads_position(self.position))
        decoder = of_decoder.decoder_blocks(
            policy, position=heads_position(self.decoder_position), attends_to_context=True
        )
        self._encoder = BlockStack(encoder, options.final_norm, dtype=policy, name="encoder")
        self._decoder = BlockStack(decoder, options.final_norm, dtype=policy, name="decoder")
        self._head = None
        if not tie_embeddings:
            self._head = new_dense("head", vocabulary_size, policy, use_bias=False)

    def build(self, inputs_shape):
        shapes = []
        for name, shape in zip(("source", "target"), inputs_shape, strict=True):
            check_tokens(name, shape)
            shapes.append((*shape, self.options.width))
        source, target = shapes
        self._source.build(source[:2])
        self._target.build(target[:2])
        self._encoder.build(source)
        self._decoder.build(target, source)
        if self._head is not None:
            self._head.build(target)
        self.built = True

    def call(self, inputs, mask=None, training=None):
        source, target = inputs
        source_mask, target_mask = (None, None) if mask is None else mask
        context = self.encode(source, source_mask, training=training)  # (B, S, C)
        h = self._target(target, mask=target_mask, training=training)  # (B, T, C)
        h = self._decoder(h, context, training=training)
        # Keras's trainer on JAX goes by `call`, and the loss asks its output for the mask.
        return set_keras_mask(self._logits(h), keras_mask(h))  # (B, T, V)

    def encode(self, source, mask=None, *, training=None):
        """What the decoder attends to.

        Args:
            source: Tokens of the source, integers in [0, V), shape `(B, S)`.
            mask: Padding of the source, bool, shape `(B, S)`, True = real step. It is combined with
                the Keras mask of `source`.
            training: Whether anything is dropped.

        Returns:
            `(B, S, C)`, with the padding of the source as its Keras mask.
        """
        h = self._source(source, mask=mask, training=training)
        return self._encoder(h, training=training)

    def compute_mask(self, inputs, previous_mask):
        mask = None if previous_mask is None else previous_mask[1]
        return self._target.compute_mask(inputs[1], mask)

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape[1], self.vocabulary_size)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode` that holds what the encoder made of a source, once.

        Args:
            batch_size: Number of targets that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Tokens of the source, integers in [0, V), shape `(B, S)`.
            context_mask: Padding of the source, bool, shape `(B, S)`, True = real step. It is
                combined with the Keras mask of `context`.

        Returns:
            A tuple of the cache of the target's embedding and that of the decoder's blocks, each of
            which is a tuple of caches.

        Raises:
            ValueError: If the model is not built, if a size is not an integer >= 1, if there is no
                source or it is of another batch size, or if `decoder_position` has fewer positions.
        """
        check_built(self)
        arguments.check_integers(1, batch_size=batch_size, length=length)
        if context is None or context.shape[0] not in (None, batch_size):
            raise arguments.error(
                "`context` must be an array (B, S) of tokens with one source for each of the "
                "B=`batch_size` targets that are decoded",
                batch_size=batch_size,
                context=context,
            )
        context = self.encode(context, context_mask, training=False)
        return (
            self._target.init_cache(batch_size, length),
            self._decoder.init_cache(batch_size, length, context),
        )

    def decode(self, tokens, cache, mask=None):
        """The logits of new steps of a target, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole target without its padding.

        Args:
            tokens: Tokens of the new steps, integers in [0, V), shape `(B, t)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which is not kept. It is combined with the Keras mask of `tokens`.

        Returns:
            `(logits, cache)`: the logits, shape `(B, t, V)`, which mean nothing at padding; and the
            cache with the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If the steps do not fit into the cache, where that can be seen.
        """
        embedded, blocks = cache
        h, embedded = self._target.decode(tokens, embedded, mask)
        h, blocks = self._decoder.decode(h, blocks, mask)
        return self._logits(h), (embedded, blocks)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "position": layer_config(self.position),
            "decoder_position": layer_config(self.decoder_position),
            "tie_embeddings": self.tie_embeddings,
            "padding_token": self.padding_token,
        }

    def _embedding(self, name, options, position, padding_token=None):
        return TokenEmbedding(
            self._table,
            position=position,
            padding_token=padding_token,
            dropout=options.dropout,
            seed=options.seed_of(0, 9),
            dtype=self.dtype_policy,
            name=name,
        )

    def _logits(self, h):
        return self._table(h, reverse=True) if self._head is None else self._head(h)

    def _stacks(self):
        return [self._encoder, self._decoder]
