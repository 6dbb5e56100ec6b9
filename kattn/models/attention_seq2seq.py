"""Recurrent encoder and decoder, of which the decoder attends: from sequence to sequence."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.caches import check_built
from kattn.layers.attention.mask_reader import keras_mask, set_keras_mask
from kattn.layers.recurrent.attention_cell import SCORES
from kattn.layers.recurrent.attention_rnn import AttentionRNN, AttentionRNNCache
from kattn.layers.recurrent.attention_score import AttentionScore
from kattn.layers.recurrent.multi_head_score import MultiHeadScore
from kattn.layers.transformer.token_embedding import TokenEmbedding, token_table
from kattn.layers.transformer.transformer_block import part_config
from kattn.models.recurrent_stack import CELLS, RecurrentStack
from kattn.models.transformer_model import check_tokens, new_dense

ARGUMENTS = (
    "vocabulary_size",
    "num_layers",
    "width",
    "num_heads",
    "attend",
    "input_feeding",
    "cell",
    "bidirectional",
    "target_vocabulary_size",
    "tie_embeddings",
    "padding_token",
    "dropout",
    "seed",
)


@keras.saving.register_keras_serializable("kattn")
class AttentionSeq2Seq(keras.Model):
    """Logits of the next token of a target at each step, given a source, by recurrent layers.

    The encoder reads the source; its last states, through one matrix, are the first ones of the
    decoder. The decoder reads the target, and in each step attends to all outputs of the encoder;
    or, with attention=None, it gets the last state of the encoder with each token: the baseline
    that attention is measured by.

    "before" is the decoder of Bahdanau et al.: the state before a step asks, and the context enters
    the state. "after" is that of Luong et al.: the state after the step asks. Its attention is
    computed for all steps at once in training, unless there is input feeding.

    Shapes: B batch, S steps of the source, T steps of the target, V tokens of the target's
    vocabulary, N heads.

    Args:
        vocabulary_size: Number of tokens of the vocabulary.
        num_layers: Number of layers of the encoder, and of the decoder.
        width: Number of channels of the vectors of tokens and of all layers.
        attention: Name of the score, "additive", "general", "dot", "location" or "multi_head", or a
            score such as `AdditiveScore(64)`. None for no attention.
        num_heads: Number of attention heads, N, for attention="multi_head". None for any other.
        attend: Whether the decoder attends "before" its state changes, or "after" that.
        input_feeding: Whether the output of a step is read with the next token, for
            attend="after".
        cell: Kind of the recurrent layers, "lstm" or "gru".
        bidirectional: Whether the encoder goes through the source in both directions, with half of
            the channels each.
        target_vocabulary_size: Number of tokens of the target's vocabulary, V. None if source and
            target have one vocabulary.
        tie_embeddings: If True, the vectors of the target's tokens are also the matrix that gives
            the logits; else that is a matrix of its own.
        padding_token: Token that stands for padding at any step of a source, which is masked. None
            if masks alone say what is padding.
        dropout: Fraction of the channels that are dropped during training: of the vectors of
            tokens, between layers, and before the logits. Between layers of the decoder that wait
            for its attention in each step, as those of "before" and of input feeding do, the same
            channels are dropped at all steps of a target.
        seed: Integer seed of what is dropped, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        inputs: A pair `(source, target)` of tokens, integers, shapes `(B, S)` and `(B, T)`. In
            training the target is shifted: it begins with a token that means the beginning, and
            what is to be predicted at a step is the next token.
        mask: A pair of padding masks of the source and of the target, bool, shapes `(B, S)` and
            `(B, T)`, True = real step; either may be None. They are combined with the Keras masks
            of the tokens. What stands at padding changes nothing.
        training: Whether anything is dropped.

    Returns:
        Logits `(B, T, V)`; at padding steps they mean nothing. The padding of the target is the
        Keras mask of the logits.

    Raises:
        ValueError: If an argument is out of range or does not fit the others; when built, if tokens
            are not of rank 2.

    Example:
        >>> model = kattn.models.AttentionSeq2Seq(50, 1, 32, attention="additive", padding_token=0)
        >>> source, target = np.array([[7, 3, 9, 0]]), np.array([[1, 8, 5]])
        >>> model((source, target)).shape
        (1, 3, 50)
        >>> model.attention_weights((source, target)).shape
        (1, 1, 3, 4)
        >>> kattn.generate(model, target[:, :1], 5, context=source).shape
        (1, 5)

    Reference:
        "before": Bahdanau et al. 2014, https://arxiv.org/abs/1409.0473. Other than there: the first
        state reads both directions of the encoder, and logits come from tanh([context; state] W).
        "after": Luong et al. 2015, https://arxiv.org/abs/1508.04025
        Without attention: Cho et al. 2014, https://arxiv.org/abs/1406.1078
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        width,
        *,
        attention="additive",
        num_heads=None,
        attend="before",
        input_feeding=False,
        cell="lstm",
        bidirectional=True,
        target_vocabulary_size=None,
        tie_embeddings=True,
        padding_token=None,
        dropout=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_integers(
            1, vocabulary_size=vocabulary_size, num_layers=num_layers, width=width
        )
        arguments.check_optional_integers(
            1, num_heads=num_heads, target_vocabulary_size=target_vocabulary_size
        )
        arguments.check_choice(tuple(CELLS), cell=cell)
        arguments.check_fractions(dropout=dropout)
        _check_attention(attention, num_heads, attend, input_feeding)
        given = locals()
        for name in ARGUMENTS:
            setattr(self, name, given[name])
        policy = self.dtype_policy
        self._source_table = self._target_table = token_table(vocabulary_size, width, policy)
        if target_vocabulary_size is not None:
            self._target_table = token_table(target_vocabulary_size, width, policy)
        self._source = self._embedding("source", self._source_table, 0, padding_token)
        self._target = self._embedding("target", self._target_table, 1)
        self._encoder = self._stack("encoder", num_layers, 10, bidirectional=bidirectional)
        self._attending = self._new_attending(attention)
        # The decoder's other layers, below the one that attends, do not wait for its attention.
        below = num_layers - (0 if attention is None else self._layers_in_attending())
        self._decoder = self._stack("decoder", below, 20)
        sizes = num_layers * width * (2 if cell == "lstm" else 1)
        self._bridge = new_dense("bridge", sizes, policy, activation="tanh")
        self._drops = [
            keras.layers.Dropout(dropout, seed=self._seed_of(part), dtype=policy)
            for part in (30, 31)  # below the layer that attends, and before the logits
            if dropout and (part == 31 or (attention is not None and below))
        ]
        self._head = None
        if not tie_embeddings:
            size = target_vocabulary_size or vocabulary_size
            self._head = new_dense("head", size, policy, use_bias=False)

    def build(self, inputs_shape):
        source, target = inputs_shape
        check_tokens("source", source)
        check_tokens("target", target)
        memory, read = ((*shape, self.width) for shape in (source, target))
        self._source.build(source)
        self._target.build(target)
        self._encoder.build(memory)
        self._bridge.build((source[0], self.width))
        if self._attending is None:
            self._decoder.build((*target, 2 * self.width))
        else:
            self._decoder.build(read)
            self._attending.build(read, memory)
        if self._head is not None:
            self._head.build(read)
        self.built = True

    def call(self, inputs, mask=None, training=None):
        source, target = inputs
        source_mask, target_mask = (None, None) if mask is None else mask
        memory, last = self._encode(source, source_mask, training=training)
        h = self._target(target, mask=target_mask, training=training)  # (B, T, C)
        padding = keras_mask(h)
        h, states = self._below(h, padding, last, self._first_states(last), training=training)
        if self._attending is not None:
            first = self._states_of_attending(states)
            given = {"mask": padding, "memory_mask": keras_mask(memory), "initial_state": first}
            h = self._attending(h, memory, training=training, **given)
        # Keras's trainer on JAX goes by `call`, and the loss asks its output for the mask.
        return set_keras_mask(self._logits(h, training=training), padding)  # (B, T, V)

    def attention_weights(self, inputs, mask=None):
        """Which steps of the source each step of the target attends to: an alignment.

        Args:
            inputs: A pair `(source, target)` of tokens, as in the call.
            mask: A pair of padding masks of the source and of the target, or None.

        Returns:
            `(B, N, T, S)` float32. Rows sum to 1, and are 0 at padding steps of the target.

        Raises:
            ValueError: If the model has no attention.
        """
        if self._attending is None:
            raise arguments.error(
                "A model without attention has no attention weights", attention=None
            )
        source, target = inputs
        if not self.built:
            self.build([source.shape, target.shape])
        source_mask, target_mask = (None, None) if mask is None else mask
        memory, last = self._encode(source, source_mask, training=False)
        h = self._target(target, mask=target_mask, training=False)
        padding = keras_mask(h)
        h, states = self._below(h, padding, last, self._first_states(last), training=False)
        given = {"mask": padding, "memory_mask": keras_mask(memory)}
        first = self._states_of_attending(states)
        return self._attending.attention_weights(h, memory, initial_state=first, **given)

    def compute_mask(self, inputs, previous_mask):
        mask = None if previous_mask is None else previous_mask[1]
        return self._target.compute_mask(inputs[1], mask)

    def compute_output_shape(self, inputs_shape):
        return (*inputs_shape[1], self.target_vocabulary_size or self.vocabulary_size)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode` that holds what the encoder made of a source, once.

        Args:
            batch_size: Number of targets that are decoded, B.
            length: Number of steps that are decoded at most. The cache has one size for any.
            context: Tokens of the source, integers, shape `(B, S)`.
            context_mask: Padding of the source, bool, shape `(B, S)`, True = real step. It is
                combined with the Keras mask of `context`.

        Returns:
            A tuple of the states of the decoder's layers; and of the cache of the layer that
            attends, or of the last state of the encoder.

        Raises:
            ValueError: If the model is not built, if a size is not an integer >= 1, or if there is
                no source or it is of another batch size.
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
        memory, last = self._encode(context, context_mask, training=False)
        # Copies, as slices lie in memory in another way than the states of later steps do, and
        # PyTorch would trace the first step for itself.
        states = [[ops.copy(x) for x in layer] for layer in self._first_states(last)]
        if self._attending is None:
            return states, last
        cache = self._attending.init_cache(batch_size, length, memory, keras_mask(memory))
        first = [ops.cast(x, self.compute_dtype) for x in self._states_of_attending(states)]
        own = {**cache.states, "cell": first[: len(cache.states["cell"])]}
        below = states[: len(states) - self._layers_in_attending()]
        return below, AttentionRNNCache(own, cache.memory)

    def decode(self, tokens, cache, mask=None):
        """The logits of new steps of a target, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole target without its padding.

        Args:
            tokens: Tokens of the new steps, integers, shape `(B, t)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which leaves the states as they are. It is combined with the Keras
                mask of `tokens`.

        Returns:
            `(logits, cache)`: the logits, shape `(B, t, V)`, which mean nothing at padding; and the
            cache with the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If `mask` is of another kind.
        """
        states, above = cache
        h = self._target(tokens, mask=mask, training=False)
        padding = keras_mask(h)
        last = above if self._attending is None else None
        h, states = self._below(h, padding, last, states, training=False)
        if self._attending is not None:
            h, above = self._attending.decode(h, above, mask=padding)
        return self._logits(h, training=False), (states, above)

    def get_config(self):
        attention = self._attention
        is_score = isinstance(attention, AttentionScore)
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            "attention": part_config(attention) if is_score else attention,
        }

    def _seed_of(self, part):
        return None if self.seed is None else self.seed + part

    def _embedding(self, name, table, part, padding_token=None):
        return TokenEmbedding(
            table,
            position=None,
            padding_token=padding_token,
            dropout=self.dropout,
            seed=self._seed_of(part),
            dtype=self.dtype_policy,
            name=name,
        )

    def _stack(self, name, num_layers, part, **options):
        return RecurrentStack(
            self.cell,
            num_layers,
            self.width,
            dropout=self.dropout,
            seed=self._seed_of(part),
            dtype=self.dtype_policy,
            name=name,
            **options,
        )

    def _new_cell(self, i):
        """The i-th of the cells that wait for each other; all but the first drop what they read."""
        return CELLS[self.cell](
            self.width,
            dropout=self.dropout if i else 0.0,
            seed=self._seed_of(40 + i),
            dtype=self.dtype_policy,
            name=f"cell{i}",
        )

    def _layers_in_attending(self):
        """The number of layers whose inputs hang on what was attended to before."""
        waits = self.attend == "before" or self.input_feeding
        return self.num_layers if waits else 1

    def _new_attending(self, attention):
        """The layer that attends, or None."""
        if isinstance(attention, dict):
            attention = keras.saving.deserialize_keras_object(attention)
        self._attention = attention
        if attention is None:
            return None
        policy = self.dtype_policy
        if attention == "multi_head":
            attention = MultiHeadScore(self.num_heads, dtype=policy, name="attention")
        count = self._layers_in_attending()
        cells = [self._new_cell(i) for i in range(count)]
        cell = cells[0] if count == 1 else keras.layers.StackedRNNCells(cells, dtype=policy)
        return AttentionRNN(
            cell,
            attention,
            attend=self.attend,
            output="attentional",
            input_feeding=self.input_feeding,
            dtype=policy,
            name="attending",
        )

    def _encode(self, source, mask, *, training):
        """`(B, S, C)` with the padding of the source as its Keras mask; and the last state."""
        h = self._source(source, mask=mask, training=training)
        padding = keras_mask(h)
        memory, states = self._encoder(h, mask=padding, training=training)
        return set_keras_mask(memory, padding), self._encoder.last_hidden(states)

    def _first_states(self, last):
        """For each layer of the decoder the list of its first states."""
        parts = 2 if self.cell == "lstm" else 1
        flat = ops.split(self._bridge(last), self.num_layers * parts, axis=-1)
        return [list(flat[i * parts : (i + 1) * parts]) for i in range(self.num_layers)]

    def _states_of_attending(self, states):
        """The flat list of states of the layer that attends, which the last layers are in."""
        flat = [state for layer in states[-self._layers_in_attending() :] for state in layer]
        if self.input_feeding:
            flat.append(ops.zeros_like(flat[0]))
        return flat

    def _below(self, h, padding, last, states, *, training):
        """What the layer that attends reads, or the output of a decoder that does not attend.

        Returns it, and the states of all layers, of which those above are the ones given.
        """
        if self._attending is None:
            with_each = ops.repeat(last[:, None], ops.shape(h)[1], axis=1)
            h = ops.concatenate([h, ops.cast(with_each, h.dtype)], axis=-1)
            count = self.num_layers
        else:
            count = self.num_layers - self._layers_in_attending()
        if count == 0:
            return h, states
        h, own = self._decoder(h, mask=padding, states=states[:count], training=training)
        if self._drops and self._attending is not None:
            h = self._drops[0](h, training=training)
        return h, [*own, *states[count:]]

    def _logits(self, h, *, training):
        if self._drops:
            h = self._drops[-1](h, training=training)
        return self._target_table(h, reverse=True) if self._head is None else self._head(h)


def _check_attention(attention, num_heads, attend, input_feeding):
    if (attention == "multi_head") != (num_heads is not None):
        raise arguments.error(
            '`num_heads` must be given for attention="multi_head", and for no other',
            num_heads=num_heads,
            attention=attention,
        )
    if isinstance(attention, str):
        arguments.check_choice((*SCORES, "multi_head"), attention=attention)
    if attention is None and (attend != "before" or input_feeding):
        raise arguments.error(
            "`attend` and `input_feeding` must be left out for attention=None",
            attend=attend,
            input_feeding=input_feeding,
        )
