"""An LSTM whose states are sums of all states before, by attention (Cheng et al., 2016).

All states are written one behind the other on a tape, and no row of it ever changes. So the
gradient needs no more than the tape when it is full: each step is run again, backwards, on the rows
that it saw, and what it gives for these rows is added up in a tape of gradients. Memory is O(T),
where a framework that differentiates the loop would keep a tape for each step.
"""

import functools
import itertools
from typing import Any, NamedTuple

from keras import ops

from kattn import backend
from kattn.ops.alignment import MASKED


class TapeWeights(NamedTuple):
    """The matrices of a step, float32, and so for U channels of a state and A of the scores.

    Args:
        recurrent: Matrix of the gates for the state that is mixed, `(U, 4 U)`.
        previous: Matrix of the scores for the state that was mixed in the step before, `(U, A)`.
        key: Matrix of the scores for the states on the tape, `(U, A)`.
        energy: Vector of the scores, `(A,)`.
    """

    recurrent: Any
    previous: Any
    key: Any
    energy: Any


def first_row(h, c, weights):
    """The row of a state that comes before the first step.

    Args:
        h: Hidden state, float32, shape `(B, U)`.
        c: Cell state, float32, shape `(B, U)`.
        weights: `TapeWeights`.

    Returns:
        `(B, 3 U + A)` float32: hidden state, cell state, the mixed hidden state, which is 0, and
        what the scores read of the hidden state.
    """
    return ops.concatenate([h, c, ops.zeros_like(h), ops.matmul(h, weights.key)], axis=-1)


def split_rows(rows, units):
    """Hidden states, cell states, mixed hidden states and keys of rows, by their last axis."""
    ends = (0, units, 2 * units, 3 * units, None)
    return [rows[..., a:b] for a, b in itertools.pairwise(ends)]


def tape_step(rows, keep, previous, gates, scores, real, weights):
    """One step: the row that it writes.

    Args:
        rows: Rows of the tape that the step may see, float32, shape `(n, B, 3 U + A)`.
        keep: Which of them it does see, bool, shape `(n, B)`.
        previous: Hidden state that was mixed in the step before, float32, shape `(B, U)`.
        gates: What the gates read of the input, float32, shape `(B, 4 U)`.
        scores: What the scores read of the input, float32, shape `(B, A)`.
        real: Whether the step is none of padding, bool, shape `(B,)`; or None.
        weights: `TapeWeights`.

    Returns:
        `(B, 3 U + A)` float32.
    """
    units = weights.recurrent.shape[0]
    h, c, _, k = split_rows(rows, units)
    asked = scores + ops.matmul(previous, weights.previous)
    energy = ops.matmul(ops.tanh(k + asked[None]), weights.energy[:, None])[..., 0]  # (n, B)
    shares = shares_of(energy, keep, axis=0)[..., None]
    mixed_h, mixed_c = ops.sum(shares * h, axis=0), ops.sum(shares * c, axis=0)
    i, f, g, o = ops.split(gates + ops.matmul(mixed_h, weights.recurrent), 4, axis=-1)
    c = ops.sigmoid(f) * mixed_c + ops.sigmoid(i) * ops.tanh(g)
    h = ops.sigmoid(o) * ops.tanh(c)
    mixed_h = mixed_h if real is None else ops.where(real[:, None], mixed_h, previous)
    return ops.concatenate([h, c, mixed_h, ops.matmul(h, weights.key)], axis=-1)


def shares_of(energy, keep, axis):
    """The softmax of scores along an axis; 0 where `keep` is False, and where all of it is."""
    masked, zero = (ops.convert_to_tensor(x, "float32") for x in (MASKED, 0.0))
    energy = ops.where(keep, energy, masked)
    powers = ops.exp(energy - ops.stop_gradient(backend.highest(energy, axis)))
    powers = ops.where(keep, powers, zero)
    total = ops.sum(powers, axis=axis, keepdims=True)
    return powers / ops.where(total > 0, total, zero + 1.0)


def record_tape(gates, scores, first, has_first, real, weights, window=None):
    """All rows of a tape.

    Args:
        gates: What the gates read of the inputs, float32, shape `(T, B, 4 U)`.
        scores: What the scores read of the inputs, float32, shape `(T, B, A)`.
        first: Row before the first step, see `first_row`, shape `(B, 3 U + A)`.
        has_first: Whether steps see it.
        real: Which steps are none of padding, bool, shape `(T, B)`; padding is not seen.
        weights: `TapeWeights`.
        window: Number of rows before a step that it sees. None for all of them.

    Returns:
        The rows of the steps, float32, shape `(T, B, 3 U + A)`.
    """
    front = 1 if window is None else window
    batch = ops.shape(first)[0]
    if first.shape[0] == 0 or gates.shape[0] == 0:
        # TensorFlow writes no rows of no items, and JAX traces a step though there is none.
        return ops.repeat(gates[..., :1], first.shape[1], axis=-1)
    ahead = ops.zeros((front, batch), "bool")
    if has_first:
        last = ops.arange(front, dtype="int32")[:, None] == front - 1
        ahead = ops.logical_or(ahead, last)
    seen = ops.concatenate([ahead, real], axis=0)
    return _record(window or 0, gates, scores, first, seen, *weights)


@backend.compiled
def _record(window, *tensors):
    """The rows, with their gradient."""
    forward = functools.partial(_written, window)
    backward = functools.partial(_gradients, window)
    return backend.custom_gradient(lambda *x: (forward(*x), ()), backward)(*tensors)


def _view(window, tape, seen, t):
    """What step t sees: rows, which of them, and where they begin."""
    if window:
        return backend.cut(tape, t, window), backend.cut(seen, t, window), t
    index = ops.arange(ops.shape(tape)[0], dtype="int32")[:, None]
    return tape, ops.logical_and(seen, index <= t), 0


def _mixed_before(window, tape, t, units):
    """The hidden state that the step before t has mixed."""
    return split_rows(backend.take(tape, t + (window or 1) - 1), units)[2]


def _written(window, gates, scores, first, seen, *weights):
    """The rows of all steps."""
    front, steps = window or 1, ops.shape(gates)[0]
    weights = TapeWeights(*weights)
    units = weights.recurrent.shape[0]
    tape = ops.zeros((front + steps, *ops.shape(first)), "float32")

    def step(t, tape):
        rows, keep, _ = _view(window, tape, seen, t)
        inputs = backend.take(gates, t), backend.take(scores, t), backend.take(seen, t + front)
        row = tape_step(rows, keep, _mixed_before(window, tape, t, units), *inputs, weights)
        return backend.put_at(tape, t + front, row)

    return backend.loop(0, steps, step, backend.put_at(tape, front - 1, first))[front:]


def _gradients(window, inputs, residuals, gradient):
    """The gradients of all inputs: each step again, the last one first."""
    gates, scores, first, seen, *weights = inputs
    front, steps, units = window or 1, ops.shape(gates)[0], weights[0].shape[0]
    ahead = ops.concatenate([ops.zeros_like(first)[None]] * (front - 1) + [first[None]], axis=0)
    tape = ops.concatenate([ahead, residuals[0]], axis=0)

    def step(i, state):
        t = steps - 1 - i
        slopes, of_gates, of_scores, *of_weights = state
        rows, keep, start = _view(window, tape, seen, t)
        real = backend.take(seen, t + front)

        def again(rows, before, gates, scores, *weights):
            return tape_step(rows, keep, before, gates, scores, real, TapeWeights(*weights))

        read = backend.take(gates, t), backend.take(scores, t)
        given = rows, _mixed_before(window, tape, t, units), *read, *weights
        found = backend.vjp(again, given, backend.take(slopes, t + front))
        nothing = ops.zeros_like(first)
        of_before = [nothing[:, : 2 * units], found[1], nothing[:, 3 * units :]]
        slopes = backend.add_span(slopes, start, found[0])
        slopes = backend.add_at(slopes, t + front - 1, ops.concatenate(of_before, axis=-1))
        of_gates = backend.put_at(of_gates, t, found[2])
        of_scores = backend.put_at(of_scores, t, found[3])
        sums = [a + b for a, b in zip(of_weights, found[4:], strict=True)]
        return slopes, of_gates, of_scores, *sums

    slopes = ops.concatenate([ops.zeros_like(ahead), gradient], axis=0)
    zeros = [ops.zeros_like(x) for x in (gates, scores, *weights)]
    slopes, *others = backend.loop(0, steps, step, (slopes, *zeros))
    of_gates, of_scores, *of_weights = others
    return of_gates, of_scores, slopes[front - 1], None, *of_weights
