"""A recurrent layer whose state attends, in each step, to its input or to a memory."""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_built, check_decodes
from kattn.layers.attention.mask_reader import (
    keras_mask,
    read_padded,
    read_padding,
    set_keras_mask,
    silence,
)
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.recurrent.attention_cell import (
    AttentionCell,
    check_memory,
    count_real,
    read_score,
)
from kattn.layers.recurrent.attention_loop import Rules, attend_at_once, attend_in_turn
from kattn.layers.recurrent.predicted_window import PredictedWindow
from kattn.layers.recurrent.recurrent_cells import Cell, read_cell
from kattn.layers.recurrent.split_steps import cell_steps
from kattn.layers.transformer.transformer_block import part_config, read_part
from kattn.ops.alignment import count_positions, seen
from kattn.ops.cache import KVCache, RingCache, count_steps, empty_cache, extend, next_positions
from kattn.ops.context_cache import ContextCache, context_cache
from kattn.ops.step_loop import Memory


class AttentionRNNCache(NamedTuple):
    """What decoding of an `AttentionRNN` goes on with; the batch axis is the first of each tensor.

    Args:
        states: Dictionary of the states of the cell, of the output that is fed, and of the weights
            of the last step, as far as there are any.
        memory: `ContextCache` of the memory, or `KVCache` or `RingCache` of the inputs so far.
    """

    states: Any
    memory: Any


@keras.saving.register_keras_serializable("kattn")
class AttentionRNN(QuantizableLayer):
    """A recurrent layer around any Keras cell whose state attends to a sequence in each step.

    The sequence h is the input itself, or a memory that is given in the call. With weights a_t, the
    softmax of a score of the state and each h_s, the context is c_t = sum_s a_ts h_s.

    attend="before": the state before the step asks, and the context enters the state,
    s_t = cell([x_t; c_t], s_{t-1}). attend="after": the state after the step asks,
    s_t = cell(x_t, s_{t-1}), and the context enters the output; with `input_feeding` the output
    y_t is a part of the next input, s_t = cell([x_t; y_{t-1}], s_{t-1}).

    Keys and values are computed once. Without input feeding, all attention after the steps is
    computed at once, outside of the loop.

    Training keeps what the attention of each step computes, so that memory grows with T * S. With
    an additive or location score of H units, which has a hidden layer for each pair of steps, it
    grows with T * S * H; where all attention is computed at once, in inference, too. With a window
    of W steps over the input itself, S is at most 2 W - 1 here, except for a location score, which
    reads the weights of all steps.

    Shapes: B batch, T steps and C channels of the input, S steps and E channels of the memory, U
    channels of the cell's hidden state, N heads.

    Args:
        cell: Keras cell: a layer with a `state_size`, such as `keras.layers.LSTMCell(64)`. Its
            first state is the hidden state that asks; of `keras.layers.StackedRNNCells` it is that
            of the last cell.
        attention: Name of the score, "dot", "general", "additive" or "location", or one such as
            `MultiHeadScore(4)` or `AdditiveScore(32)`.
        attend: Whether the state asks "before" or "after" it changes.
        output: What a step gives: the cell's output, "state"; the "context"; "both" side by side;
            or "attentional", tanh([context; state] W). None for "state" where it attends before,
            and "attentional" where it attends after.
        input_feeding: Whether the output of a step is a part of the input of the next, for
            attend="after".
        causal: If True, step t attends to steps <= t only.
        window: Number of steps W that are attended to: step t attends to the steps less than W
            away. Or a `PredictedWindow`, whose place depends on the state. None for all steps. In a
            memory, and for a `PredictedWindow`, places are those among the real steps of each
            sequence: padding is not counted. In the input itself a number of steps counts the
            padding between real steps, too.
        return_sequences: Whether to return the outputs of all steps, or that of the last real step.
        return_state: Whether to return the states after the last step, too.
        go_backwards: Whether to begin at the last step, of the input and of the memory. Outputs
            come in the order in which they are computed, as in Keras.
        stateful: Whether a call begins with the states after the last one, for the same batch size.
        kernel_initializer: Initializer of W.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        memory: Sequence that is attended to, float, shape `(B, S, E)`. None for `x` itself. Whether
            there is one is decided when the layer is built.
        mask: Padding of `x`, bool, shape `(B, T)`, True = real step. At padding, which may be on
            either side, states stay as they are. It is combined with the Keras mask of `x`.
        memory_mask: Padding of the memory, bool, shape `(B, S)`, True = real step, which alone is
            attended to. It is combined with the Keras mask of `memory`.
        initial_state: States before the first step: a list of tensors as `return_state` gives them,
            `(B, size)` each, or one tensor if there is one. None for those that the cell begins
            with.
        training: Whether the cell drops anything.

    Returns:
        `(B, T, output size)`, 0 at padding, where the padding of `x` is the Keras mask; or
        `(B, output size)` without `return_sequences`, which is 0 for an item without a real step.
        With `return_state` a tuple of this and the states: those of the cell, and the last output
        if it is fed.

    Raises:
        ValueError: If an argument is out of range; if `cell` is no cell, or `attention` no score;
            when called, if an input or a mask is of a wrong rank or dtype, if a memory does not fit
            the input or what the layer was built for, or if states do not fit the cell.

    Example:
        >>> layer = kattn.layers.AttentionRNN(keras.layers.LSTMCell(8), "additive")
        >>> layer(keras.random.normal((2, 30, 6))).shape
        (2, 30, 8)
        >>> decoder = kattn.layers.AttentionRNN(
        ...     keras.layers.GRUCell(8), kattn.layers.MultiHeadScore(2), attend="after"
        ... )
        >>> x, memory = keras.random.normal((2, 7, 4)), keras.random.normal((2, 9, 6))
        >>> decoder(x, memory).shape
        (2, 7, 8)
        >>> decoder.attention_weights(x, memory).shape
        (2, 2, 7, 9)

    Reference:
        "before", additive scores: Bahdanau et al. 2014, sec. 3.1, https://arxiv.org/abs/1409.0473
        "after", input feeding, `PredictedWindow`: Luong et al. 2015, sec. 3,
        https://arxiv.org/abs/1508.04025
        Location: Chorowski et al. 2015, https://arxiv.org/abs/1506.07503
    """

    def __init__(
        self,
        cell,
        attention="additive",
        *,
        attend="before",
        output=None,
        input_feeding=False,
        causal=False,
        window=None,
        return_sequences=True,
        return_state=False,
        go_backwards=False,
        stateful=False,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        if isinstance(window, dict):
            window = read_part("window", window)
        if window is not None and not isinstance(window, PredictedWindow):
            arguments.check_integers(1, window=window)
        self.causal = causal
        self.window = window
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self._options = {"attend": attend, "output": output, "input_feeding": input_feeding}
        self.cell = read_cell(cell)
        self.attention = read_score(attention, self.dtype_policy)
        self._attending_cell(None)  # which checks the arguments
        self._attends_to_itself = None
        self.states = None

    attend = property(lambda self: self._options["attend"])
    input_feeding = property(lambda self: self._options["input_feeding"])

    def build(self, x_shape, memory_shape=None):
        check_sequence("x", x_shape)
        if memory_shape is not None:
            check_sequence("memory", memory_shape)
        self._attends_to_itself = memory_shape is None
        self._memory_width = (x_shape if memory_shape is None else memory_shape)[-1]
        self._step = self._attending_cell(self._memory_width)
        self._step.build((x_shape[0], x_shape[-1]))
        self._width = x_shape[-1]
        self._inner = Cell(self.cell)
        if self.stateful:
            self._build_states(x_shape[0])
        self.built = True

    def call(self, x, memory=None, mask=None, memory_mask=None, initial_state=None, training=None):
        options = {"training": training}
        y, padding, states = self._run(x, memory, mask, memory_mask, initial_state, **options)
        outputs = [states["cell"][i] for i in range(len(self._inner.sizes))]
        outputs += [states["fed"]] if self.input_feeding else []
        if self.stateful:
            for variable, state in zip(self.states or [], outputs, strict=True):
                variable.assign(state)
        if self.return_sequences:
            y = set_keras_mask(silence(y, padding), padding)
        else:
            y = last_output(y, padding)
        return (y, *outputs) if self.return_state else y

    def attention_weights(self, x, memory=None, mask=None, memory_mask=None, initial_state=None):
        """The attention weights of each step, without dropout.

        Args:
            x: Input sequence, float, shape `(B, T, C)`.
            memory: Sequence that is attended to, float, shape `(B, S, E)`. None for `x` itself.
            mask: Padding of `x`, bool, shape `(B, T)`, True = real step.
            memory_mask: Padding of the memory, bool, shape `(B, S)`, True = real step.
            initial_state: States before the first step, or None.

        Returns:
            `(B, N, T, S)` float32, step of the output by step of the memory, where the steps of the
            memory stand in its own order. Rows sum to 1, to less under a `PredictedWindow`, and are
            0 at padding steps of `x` and where a step may attend to nothing.
        """
        if not self.built:
            self.build(x.shape, *([] if memory is None else [memory.shape]))
        x = _with_mask_of(x, ops.convert_to_tensor(x, dtype=self.compute_dtype))
        options = {"training": False, "wants_weights": True}
        y, padding, _ = self._run(x, memory, mask, memory_mask, initial_state, **options)
        weights = ops.swapaxes(y, 1, 2)  # (B, N, T, S)
        if padding is not None:
            zero = ops.convert_to_tensor(0.0, weights.dtype)
            weights = ops.where(padding[:, None, :, None], weights, zero)
        return ops.flip(weights, axis=3) if self.go_backwards else weights

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode`: the states before the first step, and what they attend to.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Memory, float, shape `(B, S, E)`, if the layer was built with one: its keys and
                values are computed once. None if the layer attends to its own input, which it can
                only if it is causal.
            context_mask: Padding of the memory, bool, shape `(B, S)`, True = real step. It is
                combined with the Keras mask of `context`.

        Returns:
            An `AttentionRNNCache`.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, if a memory is
                missing, does not fit or is not wanted; or if the layer attends to later steps of
                its own input, or goes backwards.
        """
        check_built(self)
        arguments.check_integers(1, batch_size=batch_size, length=length)
        if self.go_backwards:
            raise arguments.error(
                "A layer with go_backwards=True cannot decode step by step, as it begins with the "
                "last step",
                layer=self.name,
            )
        if self._attends_to_itself:
            check_decodes(self, batch_size, length, context, context_mask, causal=self.causal)
            memory = self._empty_memory(batch_size, length)
        else:
            memory = self._context_memory(batch_size, context, context_mask)
        states = self._step.first_states(batch_size, memory.keys.shape[2])
        return AttentionRNNCache(states, memory)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which leaves the states as they are. It is combined with the Keras
                mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, output size)`, which is 0 at padding; and the
            cache with the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If `mask` is of another kind, or the steps do not fit into the cache, where
                that can be seen.
        """
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        states, kept = cache
        queries = next_positions(kept, ops.shape(x)[1], padding)  # (B, t)
        if self._attends_to_itself:
            kept, memory = self._extended(kept, x, padding)
        else:
            positions = count_positions(kept.mask, kept.mask)
            memory = Memory(kept.keys, kept.values, kept.mask, positions)
            taken = kept.length + count_steps(x.shape[1], padding)
            kept = ContextCache(kept.keys, kept.values, kept.mask, taken)
        rules = self._rules(queries, memory)
        y, states = self._loop(x, padding, states, memory, rules, training=False)
        return silence(y, padding), AttentionRNNCache(states, kept)

    def reset_state(self):
        """Forgets the states of the last call, if the layer is stateful."""
        for variable in self.states or []:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def reset_states(self):
        """Does what `reset_state` does, as in Keras."""
        self.reset_state()

    def compute_mask(self, x, previous_mask):
        padding = read_padding(x, previous_mask) if self.return_sequences else None
        if not self.return_state:
            return padding
        count = len(keras.tree.flatten(self.cell.state_size)) + bool(self.input_feeding)
        return (padding, *[None] * count)

    def compute_output_shape(self, x_shape, memory_shape=None):
        if not self.built:
            self.build(x_shape, memory_shape)
        steps = x_shape[1:2] if self.return_sequences else ()
        y = (x_shape[0], *steps, self._step.output_size)
        if not self.return_state:
            return y
        return (y, *((x_shape[0], size) for size in self._state_sizes()))

    def get_config(self):
        names = ("causal", "return_sequences", "return_state", "go_backwards", "stateful")
        is_layer = isinstance(self.window, PredictedWindow)
        return {
            **super().get_config(),
            **self._options,
            **{name: getattr(self, name) for name in names},
            "window": part_config(self.window) if is_layer else self.window,
            "cell": part_config(self.cell),
            "attention": part_config(self.attention),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

    @property
    def _reach(self):
        """The number of steps in the window, if it is a number."""
        return None if isinstance(self.window, PredictedWindow) else self.window

    def _attending_cell(self, memory_width):
        return AttentionCell(
            self.cell,
            self.attention,
            **self._options,
            window=self.window if isinstance(self.window, PredictedWindow) else None,
            memory_width=memory_width,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="step",
        )

    def _build_states(self, batch_size):
        if batch_size is None:
            raise arguments.error(
                "The batch size of a stateful layer must be known when it is built: write "
                "keras.Input(batch_shape=(B, T, C))",
                stateful=True,
                batch_size=None,
            )
        self.states = [
            self.add_weight(
                shape=(batch_size, size), initializer="zeros", trainable=False, name=f"state{i}"
            )
            for i, size in enumerate(self._state_sizes())
        ]

    def _run(self, x, memory, mask, memory_mask, initial_state, *, training, wants_weights=False):
        """Outputs of all steps, or `(B, T, N, S)` weights; the padding; and the last states."""
        x, padding = read_padded(x, mask)
        self._check_memory_is_expected(memory, memory_mask)
        if memory is None:
            memory, real = x, padding
        else:
            memory, real = read_padded(memory, memory_mask, "memory_mask")
            check_memory(memory, self._memory_width, x.shape[0])
        x, memory, order, real = self._in_order(x, memory, padding, real)
        states = self._first_states(x, memory, initial_state)
        keys, values = self._step.project(memory)
        memory = Memory(keys, values, real, self._positions(real, memory))
        rules = self._rules(self._positions(order, x), memory, frames=not wants_weights)
        options = {"training": bool(training), "wants_weights": wants_weights}
        y, states = self._loop(x, order, states, memory, rules, **options)
        return y, order, states

    def _in_order(self, x, memory, *paddings):
        """Sequences and their padding in the order in which they are gone through."""
        if not self.go_backwards:
            return x, memory, *paddings
        flipped = (None if each is None else ops.flip(each, axis=1) for each in paddings)
        return ops.flip(x, axis=1), ops.flip(memory, axis=1), *flipped

    def _positions(self, real, x):
        """Positions of steps. In the input itself a window of W steps counts its padding, too."""
        counts_all = self._attends_to_itself and self._reach is not None
        return count_positions(None if counts_all else real, x)

    def _rules(self, queries, memory, *, frames=False):
        """Which steps of the memory each step may attend to, by the positions of both."""
        causal = self.causal
        by_frames = self._attends_to_itself and self._reach is not None
        if frames and by_frames and not self.attention.reads_weights:
            return Rules(window=self._reach, causal=causal)
        allowed = seen(queries, memory.positions, causal=causal, window=self._reach)
        if not causal:
            return Rules(allowed)
        counts = queries + 1
        if not self._attends_to_itself:  # a memory may be shorter than the input
            counts = ops.minimum(counts, count_real(memory))
        return Rules(allowed, counts)

    def _loop(self, x, padding, states, memory, rules, *, training, wants_weights=False):
        """All outputs or weights, with the steps as axis 1, and the last states."""
        steps = cell_steps(self._inner, self._width, training=training)
        if training:
            self._inner.draw_dropout(ops.shape(x)[0], self._width + self._step.fed_width)
        inputs = {"x": steps.prepare(x)}
        if padding is not None:
            inputs["real"] = padding
        # A small network over pairs of steps takes less memory frame by frame.
        is_free = self.attend == "after" and not self.input_feeding
        is_small = self.attention.is_product or rules.window is None
        at_once = is_free and is_small and not self.attention.reads_weights
        loop = attend_at_once if at_once else attend_in_turn
        try:
            return loop(
                self._step, steps, states, inputs, memory, rules, wants_weights=wants_weights
            )
        finally:
            self._inner.forget_dropout()

    def _first_states(self, x, memory, initial_state):
        """The states before the first step: a dictionary, see `AttentionCell.first_states`."""
        given = initial_state
        if initial_state is None and self.stateful:
            # Copies, as PyTorch writes variables in place, and the gradient needs what was there.
            given = [ops.copy(ops.convert_to_tensor(state)) for state in self.states or []]
        batch, steps = ops.shape(x)[0], ops.shape(memory)[1]
        if given is None:
            return self._step.first_states(batch, steps)
        given = self._checked_states(given, x)
        count = len(self._inner.sizes)
        fed = ops.cast(given[count], self.compute_dtype) if self.input_feeding else None
        own = [ops.cast(state, self.cell.compute_dtype) for state in given[:count]]
        return self._step.first_states(batch, steps, own, fed)

    def _checked_states(self, states, x):
        """Given states as a flat list; ValueError unless they fit the layer and the input."""
        flat = [ops.convert_to_tensor(state) for state in keras.tree.flatten(states)]
        wanted = self._state_sizes()
        if len(flat) != len(wanted):
            raise arguments.error(
                "`initial_state` must hold a tensor for each state of the layer",
                initial_state=[tuple(state.shape) for state in flat],
                sizes=wanted,
            )
        for state, size in zip(flat, wanted, strict=True):
            known = [(x.shape[0], state.shape[0])] if len(state.shape) == 2 else []
            fits = known and state.shape[1] == size
            if not fits or (None not in known[0] and known[0][0] != known[0][1]):
                raise arguments.error(
                    "`initial_state` must hold tensors (B, size), with the batch size of `x`",
                    state=state,
                    size=size,
                    x=x,
                )
        return flat

    def _state_sizes(self):
        sizes = keras.tree.flatten(self.cell.state_size)
        return [*sizes, self._step.output_size] if self.input_feeding else sizes

    def _check_memory_is_expected(self, memory, memory_mask):
        if memory_mask is not None and memory is None:
            raise arguments.error(
                "`memory_mask` must be None where there is no `memory`; that of `x` is `mask`",
                memory=None,
                memory_mask=memory_mask,
            )
        if self._attends_to_itself and memory is not None:
            raise arguments.error(
                "`memory` must be None for a layer that was built without one, and attends to `x`",
                memory=memory,
            )
        if not self._attends_to_itself and memory is None:
            raise arguments.error(
                "`memory` must be given to a layer that was built with one",
                memory=None,
                channels=self._memory_width,
            )

    def _empty_memory(self, batch_size, length):
        """A cache for the keys and values of the inputs: a ring if a window is shorter."""
        keys, values = self._step.project(ops.zeros((1, 1, self._memory_width)))
        kind: Any = KVCache
        size = length
        if self._reach is not None and self._reach < length and not self.attention.reads_weights:
            kind, size = RingCache, self._reach
        sizes = {"heads": keys.shape[1], "key_dim": keys.shape[3], "value_dim": values.shape[3]}
        return empty_cache(kind, batch_size, size, dtype="float32", **sizes)

    def _extended(self, cache, x, padding):
        """The cache with the keys and values of new steps, and what they attend to."""
        keys, values = self._step.project(x)
        cache, keys, values, places = extend(cache, keys, values, padding)
        shape = (-1, ops.shape(keys)[2])
        positions = ops.reshape(places.along(-1), shape)  # (1, S), or (B, S)
        return cache, Memory(keys, values, positions >= 0, positions)

    def _context_memory(self, batch_size, context, context_mask):
        """The keys and values of a memory, as a cache."""
        if context is None:
            raise arguments.error(
                "`context` must be the memory (B, S, E) of the B=`batch_size` sequences, as the "
                "layer was built with one",
                batch_size=batch_size,
                context=None,
            )
        context, real = read_padded(context, context_mask, "context_mask")
        check_memory(context, self._memory_width, batch_size, "context")
        context = ops.convert_to_tensor(context, dtype=self.compute_dtype)
        keys, values = self._step.project(context)
        return context_cache(ops.swapaxes(keys, 1, 2), ops.swapaxes(values, 1, 2), real)


def last_output(y, padding):
    """The output `(B, C)` of the last real step of `y` `(B, T, C)`, 0 where there is none."""
    if padding is None:
        return ops.sum(y[:, -1:], axis=1)  # of one step, or of none
    counts = ops.cumsum(ops.cast(padding, "int32"), axis=1)
    is_last = ops.logical_and(padding, counts == counts[:, -1:])
    return ops.sum(silence(y, is_last), axis=1)


def _with_mask_of(x, y):
    """`y`, a cast of `x`, with the Keras mask that the cast has dropped."""
    return set_keras_mask(y, keras_mask(x))
