"""An LSTM that attends to all of its states before, instead of reading the last (Cheng, 2016)."""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_padded, read_padding, set_keras_mask, silence
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.initializers import numbered
from kattn.layers.recurrent.attention_rnn import last_output
from kattn.ops.cache import check_room, count_steps
from kattn.ops.state_tape import (
    TapeWeights,
    first_row,
    record_tape,
    shares_of,
    split_rows,
    tape_step,
)
from kattn.ops.step_loop import loop_steps

ARGUMENTS = ("units", "attention_units", "memory_length", "return_sequences", "return_state")


class LSTMNCache(NamedTuple):
    """The states of the steps so far; the batch axis is the first of each tensor.

    Args:
        rows: Hidden states, cell states, mixed hidden states and keys, side by side, float32, shape
            `(B, L, 3 U + A)`; with `memory_length` a ring.
        previous: Hidden state that was mixed in the last step, float32, shape `(B, U)`.
        length: Number of real steps that each item has so far, int32, shape `(B,)`.
    """

    rows: Any
    previous: Any
    length: Any


@keras.saving.register_keras_serializable("kattn")
class LSTMN(QuantizableLayer):
    """An LSTM step on (m_t, n_t) = sum_i a_ti (h_i, c_i) in place of (h_{t-1}, c_{t-1}).

    a_t is the softmax over all steps i < t of v . tanh(h_i W_h + x_t W_x + m_{t-1} W_m). Time is
    O(T^2), or O(T * memory_length), and memory is O(T): states are kept, and scores are not.

    Shapes: B batch, T steps, C width, U units.

    Args:
        units: Number of channels of the states, U.
        attention_units: Number of channels of the hidden layer of the scores. None for `units`.
        memory_length: Number of steps before a step that it attends to. None for all of them.
        return_sequences: Whether to return the outputs of all steps, or that of the last real step.
        return_state: Whether to return the states after the last real step, too.
        kernel_initializer: Initializer of the matrices for the input and of the scores.
        recurrent_initializer: Initializer of the matrix for the state.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which is not
            attended to. It is combined with the Keras mask of `x`.
        initial_state: States `[h, c]`, `(B, U)` each, of a step before the first, which the others
            attend to. None if there is none.

    Returns:
        `(B, T, U)`, 0 at padding, where the padding of `x` is the Keras mask; or `(B, U)` without
        `return_sequences`. With `return_state` a tuple of this and the states h and c, which for an
        item without a real step are those of `initial_state`, or 0.

    Raises:
        ValueError: If a size is not an integer >= 1; when called, if `x` or `mask` has a wrong rank
            or dtype, or if states do not fit.

    Example:
        >>> layer = kattn.layers.LSTMN(8)
        >>> layer(keras.random.normal((2, 30, 6))).shape
        (2, 30, 8)
        >>> cache = layer.init_cache(batch_size=2, length=30)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 6)), cache)

    Reference:
        Cheng et al. 2016, sec. 3.2, eq. 4 to 10, https://arxiv.org/abs/1601.06733. Other than
        there: `memory_length`; and the scores have a bias.
    """

    def __init__(
        self,
        units,
        *,
        attention_units=None,
        memory_length=None,
        return_sequences=True,
        return_state=False,
        kernel_initializer="glorot_uniform",
        recurrent_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_integers(1, units=units)
        arguments.check_optional_integers(
            1, attention_units=attention_units, memory_length=memory_length
        )
        self.units = units
        self.attention_units = attention_units
        self.memory_length = memory_length
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self._projections = ProjectionOptions(kernel_initializer=kernel_initializer)

    def build(self, x_shape):
        check_sequence("x", x_shape)
        hidden = self.attention_units or self.units
        self._input = self._projections.dense(
            "input", x_shape[-1], 4 * self.units, hidden, dtype=self.dtype_policy
        )
        first = self._projections.kernel_initializer

        def weight(name, shape, initializer):
            # The sums over steps are float32, whatever the rest of the layer is.
            return self.add_weight(shape=shape, initializer=initializer, name=name, autocast=False)

        self._weights_of_steps = [
            weight("recurrent_kernel", (self.units, 4 * self.units), self.recurrent_initializer),
            weight("previous_kernel", (self.units, hidden), numbered(first, 2)),
            weight("key_kernel", (self.units, hidden), numbered(first, 3)),
            weight("energy", (hidden,), "random_normal"),
        ]
        self.built = True

    def call(self, x, mask=None, initial_state=None):
        x, padding = read_padded(x, mask)
        rows = self._rows(x, padding, initial_state)
        h, c, _, _ = split_rows(ops.swapaxes(rows, 0, 1), self.units)  # (B, T, U)
        h, c = (ops.cast(each, self.compute_dtype) for each in (h, c))
        if self.return_sequences:
            y = set_keras_mask(silence(h, padding), padding)
        else:
            y = last_output(h, padding)
        if not self.return_state:
            return y
        return y, *self._last_states((h, c), padding, initial_state)

    def attention_weights(self, x, mask=None, initial_state=None):
        """The attention weights of each step.

        Args:
            x: Input sequence, float, shape `(B, T, C)`.
            mask: Padding, bool, shape `(B, T)`, True = real step.
            initial_state: States `[h, c]` of a step before the first, or None.

        Returns:
            `(B, 1, T, T)` float32, step by earlier step. Rows sum to 1, and are 0 at padding and
            where there is no earlier step. With `initial_state` they sum to less than 1, because
            the step before the first gets a weight, too, which has no column.
        """
        if not self.built:
            self.build(x.shape)
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        rows = self._rows(x, padding, initial_state)
        weights, count = self._step_weights(), ops.shape(x)[1]
        _, scores = self._read(x)
        first = self._first(x, initial_state)
        _, _, mixed, keys = split_rows(ops.concatenate([first[None], rows], axis=0), self.units)
        asked = ops.swapaxes(scores, 0, 1) + ops.matmul(mixed[:-1], weights.previous)  # (T, B, A)
        hidden = ops.tanh(asked[:, None] + keys[None])  # (T, 1 + T, B, A)
        energy = ops.matmul(hidden, weights.energy[:, None])[..., 0]
        step, other = ops.arange(count, dtype="int32"), ops.arange(count + 1, dtype="int32")
        distance = step[:, None] + 1 - other
        keep = distance >= 1
        if self.memory_length is not None:
            keep = ops.logical_and(keep, distance <= self.memory_length)
        real = self._real(x, padding)
        ahead = ops.zeros_like(real[:1]) if initial_state is None else ops.ones_like(real[:1])
        keep = ops.logical_and(keep[..., None], ops.concatenate([ahead, real], axis=0)[None])
        shares = shares_of(energy, keep, axis=1)[:, 1:]  # (T, T, B)
        shares = ops.where(real[:, None], shares, ops.zeros_like(shares))
        return ops.transpose(shares, (2, 0, 1))[:, None]

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode`, without steps.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the layer attends to its own states.
            context_mask: Must be None, as there is no context.

        Returns:
            An `LSTMNCache`, which is as long as `memory_length`, if that is shorter.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        slots = min(length, self.memory_length or length)
        width = 3 * self.units + (self.attention_units or self.units)
        return LSTMNCache(
            ops.zeros((batch_size, slots, width), "float32"),
            ops.zeros((batch_size, self.units), "float32"),
            ops.zeros((batch_size,), "int32"),
        )

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which is not kept. It is combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, U)`, which is 0 at padding; and the cache with
            the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If `mask` is of another kind, or if the steps do not fit into the cache,
                where that can be seen. A cache as long as `memory_length` takes any number of them.
        """
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        if self.memory_length is None or cache.rows.shape[1] < self.memory_length:
            steps = cache.length + count_steps(x.shape[1], padding)
            check_room(cache.rows.shape[1], steps)
        gates, scores = self._read(x)
        weights, slots = self._step_weights(), cache.rows.shape[1]
        index = ops.arange(slots, dtype="int32")[None]

        def step(state, now):
            rows, before, length = state
            real = now.get("real")
            keep = ops.transpose(index < length[:, None])  # all slots of a ring that is full
            given = now["x"], now["scores"], real, weights
            row = tape_step(ops.swapaxes(rows, 0, 1), keep, before, *given)
            _, _, mixed, _ = split_rows(row, self.units)
            is_new = index == (length % slots)[:, None]  # (B, L)
            is_new = is_new if real is None else ops.logical_and(is_new, real[:, None])
            rows = ops.where(is_new[..., None], row[:, None], rows)
            taken = 1 if real is None else ops.cast(real, "int32")
            return [rows, mixed, length + taken], [row[:, : self.units]]

        inputs = {"x": gates, "scores": scores}
        if padding is not None:
            inputs["real"] = padding
        like = [ops.zeros((ops.shape(x)[0], self.units), "float32")]
        (rows, previous, length), (h,) = loop_steps(step, list(cache), inputs, like)
        # A copy lies in memory as the first one does, for which PyTorch has traced a step.
        cache = LSTMNCache(rows, ops.copy(previous), length)
        return silence(ops.cast(h, self.compute_dtype), padding), cache

    def compute_mask(self, x, previous_mask):
        padding = read_padding(x, previous_mask) if self.return_sequences else None
        return (padding, None, None) if self.return_state else padding

    def compute_output_shape(self, x_shape):
        steps = x_shape[1:2] if self.return_sequences else ()
        y, state = (x_shape[0], *steps, self.units), (x_shape[0], self.units)
        return (y, state, state) if self.return_state else y

    def get_config(self):
        initializer = keras.initializers.serialize
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            "kernel_initializer": initializer(self._projections.kernel_initializer),
            "recurrent_initializer": initializer(self.recurrent_initializer),
        }

    def _read(self, x):
        """What gates `(B, T, 4 U)` and scores `(B, T, A)` read of the input, float32."""
        z = ops.cast(self._input(x), "float32")
        return z[..., : 4 * self.units], z[..., 4 * self.units :]

    def _step_weights(self):
        return TapeWeights(*(ops.convert_to_tensor(w, "float32") for w in self._weights_of_steps))

    def _real(self, x, padding):
        """`(T, B)` bool."""
        return (
            ops.ones(ops.shape(x)[:2][::-1], "bool") if padding is None else ops.transpose(padding)
        )

    def _first(self, x, initial_state):
        """The row before the first step `(B, 3 U + A)`."""
        weights, shape = self._step_weights(), (ops.shape(x)[0], self.units)
        if initial_state is None:
            zeros = ops.zeros(shape, "float32")
            return first_row(zeros, zeros, weights)
        states = [ops.cast(state, "float32") for state in initial_state]
        for state in states:
            fits = len(state.shape) == 2 and state.shape[1] == self.units
            if len(states) != 2 or not fits or state.shape[0] not in (None, x.shape[0]):
                raise arguments.error(
                    "`initial_state` must be two tensors (B, units), with the batch size of `x`",
                    count=len(states),
                    state=state,
                    units=self.units,
                    x=x,
                )
        h, c = states
        return first_row(h, c, weights)

    def _last_states(self, states, padding, initial_state):
        """The states `(B, U)` after the last real step, or the given ones where there is none."""
        last = [last_output(each, padding) for each in states]
        if initial_state is None:
            return last
        real = ops.ones_like(states[0][..., 0], "bool") if padding is None else padding
        has_steps = ops.any(real, axis=1, keepdims=True)  # (B, 1)
        given = [ops.cast(each, self.compute_dtype) for each in initial_state]
        return [ops.where(has_steps, *pair) for pair in zip(last, given, strict=True)]

    def _rows(self, x, padding, initial_state):
        """The tape of all steps, `(T, B, 3 U + A)`."""
        gates, scores = (ops.swapaxes(z, 0, 1) for z in self._read(x))
        return record_tape(
            gates,
            scores,
            self._first(x, initial_state),
            initial_state is not None,
            self._real(x, padding),
            self._step_weights(),
            self.memory_length,
        )
