"""A language model of Transformer decoder blocks: GPT-2, Llama and their relatives."""

import keras

from kattn import arguments
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import keras_mask, set_keras_mask
from kattn.layers.nested_layers import layer_config
from kattn.layers.position.input_position import InputPosition
from kattn.layers.transformer.block_stack import BlockStack
from kattn.layers.transformer.token_embedding import TokenEmbedding, token_table
from kattn.models.published_sizes import LANGUAGE_MODELS
from kattn.models.transformer_model import (
    TransformerModel,
    check_tokens,
    heads_position,
    new_dense,
    read_model_position,
)


@keras.saving.register_keras_serializable("kattn")
class TransformerLM(TransformerModel):
    """Logits of the next token at each step, by causal attention to the tokens so far.

    Tokens become vectors, pass `num_layers` blocks and a norm, and are compared with the vector of
    each token of the vocabulary. With its arguments it is a GPT-2, Llama, Mistral, Qwen2 or Qwen3.

    Published sizes, for `from_size`: "nanogpt-char-cpu", "nanogpt-char-gpu", "gpt2" (124M),
    "gpt2-medium" (355M), "gpt2-large" (774M), "gpt2-xl" (1.5B), "llama-2-7b", "tinyllama-1.1b",
    "smollm-135m", "mistral-7b", "qwen2-0.5b", "qwen3-0.6b".

    Shapes: B batch, T steps, V tokens of the vocabulary.

    Args:
        vocabulary_size: Number of tokens of the vocabulary, V.
        num_layers: Number of blocks, L.
        num_heads: Number of attention heads of each block.
        width: Number of channels of the vectors that the blocks read and give.
        position: Position layer. One that is added to inputs, such as `LearnedPositions(1024)`, is
            added to the vectors of the tokens; another one, such as `RotaryEmbedding()`, is shared
            by the attention layers of all blocks. None for no positions.
        tie_embeddings: If True, the vectors of the tokens are also the matrix that gives the
            logits; else that is a matrix of its own.
        padding_token: Token that stands for padding at any step: it is masked, and steps that hold
            it do not count in the loss of `fit`. None if masks alone say what is padding.
        memory_length: Number of steps M of the calls before that each block reads in front of those
            of a call, as in Transformer-XL, so that a batch goes on where the last one ended: see
            `kattn.text.streams` and `kattn.callbacks.ResetMemory`. All batches must have one size
            then. Positions must be of attention layers and count distances, such as
            `RotaryEmbedding()`. Decoding has caches for this, and leaves the memory alone. None for
            no memory.
        **kwargs: Arguments of the blocks, and `name`, `dtype` and `trainable`, as for any Keras
            layer. The arguments of the blocks are:

            - `num_key_value_heads`, `key_dim`, `use_qk_norm`, `qk_norm_epsilon`: as in
              `SelfAttention`.
            - `hidden_dim`, `activation` ("gelu"): as in `FeedForward`.
            - `norm` ("layer"), `placement` ("pre"): as in `TransformerDecoderBlock`.
            - `window`: number of steps that a step attends to, itself included, or None; or a tuple
              of both, whose entries the layers take in turn.
            - `dropout` (0): fraction of the channels that are dropped behind the embedding and each
              part of a block; `attention_dropout` (0): fraction of the attention weights;
              `hidden_dropout` (0): fraction of the hidden channels of the feed-forward networks.
            - `drop_path` (0): fraction of the items for which the parts of the last block are
              skipped in training; it grows evenly from 0 in the first block.
            - `use_bias` (True); `use_qkv_bias` and `use_feed_forward_bias`: whether queries, keys
              and values have one, and the feed-forward networks. None for `use_bias`.
            - `kernel_initializer`: initializer of all matrices of the blocks. None for GPT-2's: a
              standard deviation of 0.02, for the last matrix of each part 0.02 / sqrt(2 L).
            - `remat` (False): whether blocks run again for the gradient, which saves memory.
            - `seed`: integer seed of what is dropped, or None for a random one.

    Call args:
        tokens: Tokens, integers in [0, V), shape `(B, T)`.
        mask: Mask, bool, True = may attend, of any kind that `SelfAttention` takes: padding
            `(B, T)` (True = real step), query by key `(B, T, T)`, or a `kattn.masks.Mask` such as
            `Segments` of packed sequences. It is combined with the Keras mask of `tokens`. What
            stands at padding, be it no token, changes nothing.
        training: Whether anything is dropped.
        mask_arrays: Arrays of a mask object, which a functional model keeps apart from it. Leave it
            None.

    Returns:
        Logits `(B, T, V)`; at padding steps they mean nothing. The padding of `tokens` is the Keras
        mask of the logits.

    Raises:
        ValueError: If an argument is out of range; when built, if `tokens` are not of rank 2, or if
            the batch size is not known where there is a memory.

    Example:
        >>> position = kattn.layers.RotaryEmbedding()
        >>> model = kattn.models.TransformerLM(65, 2, 4, 32, position=position, norm="rms")
        >>> tokens = np.array([[3, 1, 4, 1, 5]])
        >>> model(tokens).shape
        (1, 5, 65)
        >>> cache = model.init_cache(batch_size=1, length=16)
        >>> logits, cache = model.decode(tokens, cache)
        >>> next_token = keras.ops.argmax(logits[:, -1:], axis=-1)
        >>> logits, cache = model.decode(next_token, cache)
        >>> logits.shape
        (1, 1, 65)

    Reference:
        GPT-2: Radford et al. 2019, sec. 2.3,
        https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
        Llama: Touvron et al. 2023, sec. 2.2, https://arxiv.org/abs/2307.09288
        Memory: Dai et al. 2019 (Transformer-XL), sec. 3.2, https://arxiv.org/abs/1901.02860
        Tied embeddings: Press and Wolf 2016, https://arxiv.org/abs/1608.05859
    """

    sizes = LANGUAGE_MODELS

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        width,
        *,
        position=None,
        tie_embeddings=True,
        padding_token=None,
        memory_length=None,
        **kwargs,
    ):
        super().__init__(num_layers, num_heads, width, **kwargs)
        arguments.check_optional_integers(1, memory_length=memory_length)
        self.vocabulary_size = vocabulary_size
        self.position = read_model_position(position)
        self.tie_embeddings = tie_embeddings
        self.padding_token = padding_token
        self.memory_length = memory_length
        if memory_length is not None and isinstance(self.position, InputPosition):
            raise arguments.error(
                "With `memory_length`, `position` must be one of attention layers, such as "
                "RotaryEmbedding(): what is added to inputs would count from 0 in each call",
                position=self.position,
            )
        options, policy = self.options, self.dtype_policy
        self._table = token_table(vocabulary_size, width, policy)
        self._embedding = TokenEmbedding(
            self._table,
            position=self.position,
            padding_token=padding_token,
            dropout=options.dropout,
            seed=options.seed_of(0, 9),
            dtype=policy,
            name="embedding",
        )
        blocks = options.decoder_blocks(policy, position=heads_position(self.position))
        self._stack = BlockStack(
            blocks, options.final_norm, memory_length, dtype=policy, name="decoder"
        )
        self._head = None
        if not tie_embeddings:
            self._head = new_dense("head", vocabulary_size, policy, use_bias=False)

    def build(self, tokens_shape):
        check_tokens("tokens", tokens_shape)
        shape = (*tokens_shape, self.options.width)
        self._embedding.build(tokens_shape)
        self._stack.build(shape)
        if self._head is not None:
            self._head.build(shape)
        self.built = True

    def call(self, tokens, mask=None, training=None, mask_arrays=None):
        h = self._embedding(tokens, mask=mask, training=training)  # (B, T, C)
        h = self._stack(h, mask=mask, training=training)
        # Keras's trainer on JAX goes by `call`, and the loss asks its output for the mask.
        return set_keras_mask(self._logits(h), keras_mask(h))  # (B, T, V)

    def compute_mask(self, tokens, previous_mask):
        return self._embedding.compute_mask(tokens, previous_mask)

    def compute_output_shape(self, tokens_shape):
        return (*tokens_shape, self.vocabulary_size)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """An empty cache for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the model reads its own sequence only.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of the cache of the embedding and that of the blocks, each of which is a tuple
            of caches.

        Raises:
            ValueError: If the model is not built, if a size is not an integer >= 1, if there is a
                context, or if `position` has fewer positions.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        return (
            self._embedding.init_cache(batch_size, length),
            self._stack.init_cache(batch_size, length),
        )

    def decode(self, tokens, cache, mask=None):
        """The logits of new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            tokens: Tokens of the new steps, integers in [0, V), shape `(B, t)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which is not kept. Or a `kattn.masks.Mask` over the positions of the
                whole sequence. It is combined with the Keras mask of `tokens`.

        Returns:
            `(logits, cache)`: the logits, shape `(B, t, V)`, which mean nothing at padding; and the
            cache with the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If the steps do not fit into the cache, where that can be seen.
        """
        embedded, blocks = cache
        h, embedded = self._embedding.decode(tokens, embedded, mask)
        h, blocks = self._stack.decode(h, blocks, mask)
        return self._logits(h), (embedded, blocks)

    def reset_memory(self):
        """Forgets the steps of earlier calls; without `memory_length` there are none."""
        self._stack.reset_memory()

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "position": layer_config(self.position),
            "tie_embeddings": self.tie_embeddings,
            "padding_token": self.padding_token,
            "memory_length": self.memory_length,
        }

    def _logits(self, h):
        return self._table(h, reverse=True) if self._head is None else self._head(h)
