"""The block of the SHA-RNN: a recurrent layer, attention by one head, a Boom layer."""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import arguments, masks
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_padded, read_padding
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.recurrent.held_rnn import decode_rnn, read_rnn, rnn_cache
from kattn.layers.recurrent.segment_keeper import SegmentKeeper
from kattn.layers.transformer.norms import new_norm, norm_config, normalize, read_norm
from kattn.layers.transformer.transformer_block import part_config
from kattn.ops.attention import attention
from kattn.ops.cache import KVCache, empty_cache
from kattn.ops.decoding import decode

NORMS = ("start", "memory", "middle", "query", "output", "boom")
# Those that a block without attention has not.
OF_ATTENTION = ("memory", "middle", "query")
ARGUMENTS = ("use_attention", "hidden_dim", "memory_length", "dropout", "seed")


class SegmentMemory(NamedTuple):
    """What a block carries from one segment of a text to the next, the batch axis first.

    Args:
        state: State of the recurrent layer after the last step, a tree of tensors.
        steps: What attention reads of the last M steps, `(B, M, C)`.
        is_real: Which of these are real steps, bool, `(B, M)`.
    """

    state: Any
    steps: Any
    is_real: Any


@keras.saving.register_keras_serializable("kattn")
class SHARNNBlock(QuantizableLayer):
    """A recurrent layer, causal attention by a single head, and a Boom layer.

    With M the normalised outputs of the recurrent layer, at the steps so far and in the segments
    before, keys are sigmoid(k) * M and values g(sigmoid(v)) * M for learned vectors k and v: only
    queries have a matrix. g(u) = sigmoid(f) * tanh(c) with [c, f] = W u + b is a constant vector
    once the block is trained. Boom(x) sums the parts of width C of gelu(W x + b).

    A text that is cut into segments can be read segment by segment: the state of the recurrent
    layer and M are carried on, and no gradient flows back into earlier segments. Either `segment`
    hands them in and out, or, with `memory_length`, the layer keeps them between calls.

    Shapes: B batch, T steps, C width, M steps of the memory.

    Args:
        rnn: Recurrent layer of Keras of width C that returns sequences and states, such as
            `keras.layers.LSTM(C, return_sequences=True, return_state=True)`.
        use_attention: Whether there is attention between the recurrent layer and the Boom layer.
            The paper has it in the block before the last alone.
        hidden_dim: Number of rows of the Boom layer's W, a multiple of C. None for 4 C.
        memory_length: Number of steps of earlier calls that the layer remembers, M; the batch size
            must then be known and stay the same: see `kattn.text.streams` and
            `kattn.callbacks.ResetMemory`. None for no memory.
        norm: Normalisation: what `TransformerEncoderBlock` takes.
        dropout: Fraction of the channels that are dropped behind each of the three parts during
            training, in [0, 1).
        kernel_initializer: Initializer of the matrices of queries, of g and of the Boom layer.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer. The recurrent layer keeps
            the dtype that it was made with.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step. It is combined with the Keras mask of
            `x`. What `x` holds at padding, be it NaN, changes nothing.
        memory: What `init_memory` or the last `segment` returned, which is read in place of what
            the layer has kept. None for that, or for no memory.
        training: Whether dropout is applied.

    Returns:
        `(B, T, C)`; at padding steps it means nothing. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range, or `rnn` is no recurrent layer or does not
            return sequences and states; when built, if widths do not fit, or if the batch size is
            not known where there is a memory; when called, if the memory does not fit.

    Example:
        >>> rnn = keras.layers.LSTM(16, return_sequences=True, return_state=True)
        >>> block = kattn.layers.SHARNNBlock(rnn, memory_length=32)
        >>> block.build((2, 10, 16))
        >>> text = keras.random.normal((2, 20, 16))
        >>> memory = block.init_memory(batch_size=2)
        >>> y, memory = block.segment(text[:, :10], memory)
        >>> y, memory = block.segment(text[:, 10:], memory)
        >>> y.shape
        (2, 10, 16)

    Reference:
        Merity 2019, sec. 2 and 3, https://arxiv.org/abs/1911.11423, in the form of the author's
        code: the input is not added to what the recurrent layer gives; gelu(x) is
        x * sigmoid(1.702 x); the Boom layer has no second matrix. Other than there: the epsilon of
        the norms is 1e-5.
    """

    def __init__(
        self,
        rnn,
        *,
        use_attention=True,
        hidden_dim=None,
        memory_length=None,
        norm="layer",
        dropout=0.0,
        kernel_initializer="glorot_uniform",
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_optional_integers(1, hidden_dim=hidden_dim, memory_length=memory_length)
        arguments.check_fractions(dropout=dropout)
        self.rnn = read_rnn(rnn, state=True)
        if self.rnn.stateful:
            rule = "`rnn` must not be stateful, as the block itself carries its state"
            raise arguments.error(rule, stateful=True)
        self.use_attention = use_attention
        self.hidden_dim = hidden_dim
        self.memory_length = memory_length
        self.norm = read_norm(norm)
        self.dropout = dropout
        self.seed = seed
        self._projections = ProjectionOptions(kernel_initializer=kernel_initializer)
        policy = {"dtype": self.dtype_policy}
        self._drop = keras.layers.Dropout(dropout, seed=seed, **policy) if dropout else None
        self._keeper = None if memory_length is None else SegmentKeeper(memory_length, **policy)
        names = [name for name in NORMS if use_attention or name not in OF_ATTENTION]
        made = {name: new_norm(self.norm, f"{name}_norm", self.dtype_policy) for name in names}
        self._norms = list(made.values())
        self._norm_of = dict(zip(names, range(len(names)), strict=True))

    def build(self, x_shape):
        check_sequence("x", x_shape)
        width = x_shape[-1]
        hidden = 4 * width if self.hidden_dim is None else self.hidden_dim
        if hidden % width:
            rule = "`hidden_dim` must be a multiple of the width of the input"
            raise arguments.error(rule, hidden_dim=hidden, width=width)
        if not self.rnn.built:
            self.rnn.build(x_shape)
        given = self.rnn.compute_output_shape(x_shape)[0][-1]
        if given != width:
            rule = "`rnn` must give outputs of the width of the input"
            raise arguments.error(rule, rnn_width=given, width=width)
        for norm in self._norms:
            norm.build(x_shape)
        self._width = width
        self._boom = self._dense("boom", width, hidden)
        if self.use_attention:
            self._query = self._dense("query", width, width)
            self._of_value = self._dense("value_gate", width, width, width)
            gates = ("query_scale", "key_scale", "value_scale")
            self._scales = [
                self.add_weight(name=name, shape=(width,), initializer="zeros") for name in gates
            ]
        if self._keeper is not None:
            self._keeper.build_for(x_shape[0], self.init_memory)
        self.built = True

    def call(self, x, mask=None, memory=None, training=None):
        x, padding = read_padded(x, mask)
        if memory is not None:
            memory = self._checked_memory(memory, x)
        if memory is not None or self._keeper is None:
            return self._read(x, padding, memory, training)[0]
        y, memory = self._read(x, padding, SegmentMemory(*self._keeper.read(x)), training)
        self._keeper.write(memory)
        return y

    def segment(self, x, memory, mask=None, *, training=None):
        """The output for a segment of a text, and what the next segment is to be given.

        Args:
            x: Segment, float, shape `(B, T, C)`.
            memory: What `init_memory` or the last `segment` returned. No gradient flows into it.
            mask: Padding, bool, shape `(B, T)`, True = real step.
            training: Whether dropout is applied.

        Returns:
            `(y, memory)`: the output, shape `(B, T, C)`, and the memory, a `SegmentMemory` of the
            shapes that it had.

        Raises:
            ValueError: If the layer has no `memory_length`, if `mask` is of another kind, or if the
                memory is none of this layer for the batch size of `x`.
        """
        x, padding = read_padded(x, mask)
        return self._read(x, padding, self._checked_memory(memory, x), training)

    def init_memory(self, batch_size):
        """The memory before the first segment.

        Args:
            batch_size: Number of sequences, B.

        Returns:
            A `SegmentMemory`.

        Raises:
            ValueError: If the layer has no `memory_length` or is not built, or if `batch_size` is
                not an integer >= 1.
        """
        self._check_memory()
        state = rnn_cache(self.rnn, batch_size, self.memory_length)
        shape = (batch_size, self.memory_length)
        steps = ops.zeros((*shape, self._width), self.compute_dtype)
        return SegmentMemory(state, steps, ops.zeros(shape, "bool"))

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode`, without steps and without a memory.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the block reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of the state of the recurrent layer and, if there is attention, a
            `kattn.ops.KVCache`.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        state = rnn_cache(self.rnn, batch_size, length)
        if not self.use_attention:
            return (state,)
        sizes = {"heads": 1, "key_dim": self._width, "value_dim": self._width}
        cache = empty_cache(KVCache, batch_size, length, dtype=self.compute_dtype, **sizes)
        return state, cache

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding, and
        without a memory.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side. It is combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, C)`, which means nothing at padding; and the
            cache with the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If `mask` is of another kind, or if the steps do not fit into the cache,
                where that can be seen.
        """
        x, padding = read_padded(x, mask)
        state, *rest = cache
        h = self._normalized("start", ops.convert_to_tensor(x, self.compute_dtype))
        h, state = decode_rnn(self.rnn, h, state, padding)

        def attend(h, m):
            q, k, v = self._heads(h, m)
            y, rest[0] = decode(q, k, v, rest[0], real=padding)
            return y

        return self._behind_rnn(h, attend, training=False), (state, *rest)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        initializer = self._projections.kernel_initializer
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            "norm": norm_config(self.norm),
            "kernel_initializer": keras.initializers.serialize(initializer),
            "rnn": part_config(self.rnn),
        }

    def _read(self, x, padding, memory, training):
        """The output for a sequence behind a memory, and the memory after it; None for none."""
        x = ops.convert_to_tensor(x, self.compute_dtype)
        if 0 in x.shape[:2]:
            return x, memory
        given = {} if padding is None else {"mask": padding}
        if memory is not None:
            memory = SegmentMemory(*keras.tree.map_structure(ops.stop_gradient, tuple(memory)))
            given["initial_state"] = memory.state
        h, *state = self.rnn(self._normalized("start", x), training=training, **given)
        held: list[Any] = []  # what is attended to, and which of it is real

        def attend(h, m):
            keep = padding
            if memory is not None:
                keep = ops.ones_like(m[..., 0], "bool") if padding is None else padding
                keep = ops.concatenate([memory.is_real, keep], axis=1)
                m = ops.concatenate([ops.cast(memory.steps, m.dtype), m], axis=1)  # (B, M + T, C)
            held[:] = m, keep
            real = None if keep is None else masks.Padding(keep)
            q, k, v = self._heads(h, m)
            return attention(q, k, v, mask=masks.intersect(masks.Causal(), real))

        y = self._behind_rnn(h, attend, training=training)
        if memory is None:
            return y, None
        state = keras.tree.pack_sequence_as(memory.state, keras.tree.flatten(state))
        if not held:
            return y, memory._replace(state=state)
        steps, is_real = (each[:, -memory.is_real.shape[1] :] for each in held)
        return y, SegmentMemory(state, steps, is_real)

    def _behind_rnn(self, h, attend, *, training):
        """The output, given that of the recurrent layer; `attend(h, m)` is `(B, T, 1, C)`."""
        h = self._dropped(ops.cast(h, self.compute_dtype), training)
        if self.use_attention:
            m, h = self._normalized("memory", h), self._normalized("middle", h)
            h = h + self._dropped(attend(h, m)[:, :, 0], training)
        boom = self._boom(self._normalized("boom", h))  # (B, T, k C)
        boom = boom * ops.sigmoid(1.702 * boom)
        count = boom.shape[-1] // self._width
        parts = ops.reshape(boom, (*ops.shape(boom)[:2], count, self._width))
        y = self._dropped(ops.sum(parts, axis=2), training)
        return self._normalized("output", h) + y  # (B, T, C)

    def _heads(self, h, m):
        """Queries of h, keys and values of m, with an axis for the one head."""
        of_query, of_key, of_value = (
            ops.sigmoid(ops.cast(ops.convert_to_tensor(scale), self.compute_dtype))
            for scale in self._scales
        )
        q = of_query * self._normalized("query", self._query(h))
        c, f = ops.split(self._of_value(of_value[None]), 2, axis=-1)
        v = ops.sigmoid(f) * ops.tanh(c) * m
        return q[:, :, None], (of_key * m)[:, :, None], v[:, :, None]

    def _normalized(self, name, x):
        return normalize(self._norms[self._norm_of[name]], x)

    def _dropped(self, x, training):
        return x if self._drop is None else self._drop(x, training=training)

    def _dense(self, name, width, *parts):
        return self._projections.dense(name, width, *parts, dtype=self.dtype_policy)

    def _checked_memory(self, memory, x):
        """A memory that is given; ValueError unless its tensors are those of `init_memory`."""
        self._check_memory()
        parts = memory if isinstance(memory, (tuple, list)) else ()
        found = [tuple(getattr(leaf, "shape", ())) for leaf in keras.tree.flatten(parts)]
        batch, like = x.shape[0], keras.tree.flatten(self.init_memory(1))
        wanted = [(batch, *leaf.shape[1:]) for leaf in like]
        if len(parts) != 3 or len(found) != len(wanted) or not all(map(_agree, found, wanted)):
            raise arguments.error(
                "`memory` must be what `init_memory` or the last `segment` of this layer returned, "
                "for the batch size of `x`",
                memory=found or memory,
                expected=wanted,
            )
        return SegmentMemory(*parts)

    def _check_memory(self):
        if self.memory_length is None:
            raise arguments.error(
                "`memory_length` must be the number of steps that are remembered",
                memory_length=None,
            )


def _agree(shape, wanted):
    """Whether a shape is the one that is wanted, as far as both batch sizes are known."""
    is_known = None not in (*shape[:1], *wanted[:1])
    return shape[1:] == wanted[1:] and (not is_known or shape[0] == wanted[0])
