"""The linear recurrence h_t = a_t h_{t-1} + b_t, channel by channel, in three forms.

"step" takes T steps one after the other. "chunked", in chunks of about sqrt(T) steps, takes
2 sqrt(T): all chunks go through their own steps side by side, each from a state of 0; then the
chunks, one after the other, hand on their last states, which have decayed until each step by the
product of its decays. "associative" takes log2(T), in each of which a step takes in what came as
far before it as it has taken in already. Products of decays are made of their terms, never as a
quotient, so that a decay of 0 forgets.

Where a loop would become T copies of its body, as in what PyTorch compiles, "auto" is
"associative"; and a program that PyTorch traces for any number of steps has no other form.

Its gradient is the same recurrence backwards: with G_t = g_t + a_{t+1} G_{t+1} for the gradient g
of the output, b_t has the gradient G_t and a_t has G_t h_{t-1}.
"""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import backend
from kattn.arguments import check_choice, check_integers, error
from kattn.masks.checks import REAL_STEP, bool_tensor
from kattn.ops.sizes import at_least_one, ceil_divide, has_shape, is_symbol, known_shape

IMPLEMENTATIONS = ("auto", "associative", "chunked", "step")
CHUNK = 32  # where the number of steps is not known
ROUNDS = 20  # of the associative form where T is a symbol: enough for a million steps


class RecurrentState(NamedTuple):
    """What a recurrent layer knows of the steps before, batch first in every tensor.

    Shapes: B batch, C channels.

    Args:
        state: State of each channel, float32, shape `(B, C)`.
        length: Number of real steps that each item has so far, int32, shape `(B,)`.
    """

    state: Any
    length: Any


def initial_recurrent_state(batch_size, channels):
    """The `RecurrentState` before the first step.

    Args:
        batch_size: Number of sequences, B.
        channels: Number of channels, C.

    Returns:
        A `RecurrentState` of zeros.

    Example:
        >>> state = initial_recurrent_state(2, 64)
        >>> state.state.shape, state.length
        ((2, 64), [0, 0])
    """
    zeros = ops.zeros((batch_size, channels), "float32")
    return RecurrentState(zeros, ops.zeros((batch_size,), "int32"))


def linear_recurrence(
    decay, x, *, initial=None, mask=None, starts=None, implementation="auto", chunk=None
):
    """h_t = a_t h_{t-1} + x_t for each channel, computed in float32.

    Shapes: B batch, T steps, C channels.

    Args:
        decay: Decays a, float, shape `(B, T, C)`, or `(C,)` for one per channel that is the same at
            all steps.
        x: Inputs of the recurrence, float, shape `(B, T, C)`.
        initial: State h before the first step, float, shape `(B, C)`. None for zeros.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the state as it
            is. None if all steps are real.
        starts: Bool, shape `(B, T)`; True at the first real step of a segment, which does not see
            the state before it; at padding it has no effect. None if there is one segment.
        implementation: "step" takes one step after the other; "chunked" takes chunks of steps side
            by side, and then one chunk after the other; "associative" takes pairs of steps, pairs
            of pairs and so on; on TensorFlow the number of steps must be known for it. "auto" is
            "step" on a CPU, "chunked" where there is a GPU, and "associative" in what PyTorch
            compiles. All give the same result. A model that PyTorch exports for any number of
            steps is always "associative".
        chunk: Number of steps in a chunk. None for about the square root of the number of steps.

    Returns:
        The states h after each step, shape `(B, T, C)`, in the dtype of `x`. At padding it is the
        state of the last real step.

    Raises:
        ValueError: If ranks or sizes do not fit, if a mask is not boolean, or if `implementation`
            or `chunk` is not one of the values above.

    Example:
        >>> x = keras.ops.ones((2, 5, 3))
        >>> linear_recurrence(0.5 * x, x)[0, :, 0]
        [1.0, 1.5, 1.75, 1.875, 1.9375]

    Reference:
        Blelloch 1990, sec. 1.4, on recurrences as scans,
        https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf. Resets at starts of segments: as in the code
        that the authors of Griffin published, https://github.com/google-deepmind/recurrentgemma
    """
    if initial is None:
        _check_sequence(x)
        initial = ops.zeros((ops.shape(x)[0], ops.shape(x)[-1]), "float32")
    _check_shapes(decay, x, initial=initial)
    return decode_linear_recurrence(
        decay, x, initial, mask=mask, starts=starts, implementation=implementation, chunk=chunk
    )[0]


def decode_linear_recurrence(
    decay, x, state, *, mask=None, starts=None, implementation="auto", chunk=None
):
    """`linear_recurrence` of any number of new steps, and the state after them.

    Shapes: B batch, T new steps, C channels.

    Args:
        decay: Decays a of the new steps, float, shape `(B, T, C)`, or `(C,)` for one per channel
            that is the same at all steps.
        x: Inputs of the new steps, float, shape `(B, T, C)`.
        state: State h before the new steps, float, shape `(B, C)`.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the state as it
            is. None if all new steps are real.
        starts: Bool, shape `(B, T)`; True at the first real step of a segment, which does not see
            the state before it; at padding it has no effect. None if there is one segment.
        implementation: "step" takes one step after the other; "chunked" takes chunks of steps side
            by side, and then one chunk after the other; "associative" takes pairs of steps, pairs
            of pairs and so on; on TensorFlow the number of steps must be known for it. "auto" is
            "step" on a CPU, "chunked" where there is a GPU, and "associative" in what PyTorch
            compiles. All give the same result. A model that PyTorch exports for any number of
            steps is always "associative".
        chunk: Number of steps in a chunk. None for about the square root of the number of steps.

    Returns:
        `(h, state)`: the states after each new step, shape `(B, T, C)`, in the dtype of `x`; and
        the state after all of them, float32, shape `(B, C)`.

    Raises:
        ValueError: If ranks or sizes do not fit, if a mask is not boolean, or if `implementation`
            or `chunk` is not one of the values above.

    Example:
        >>> x, state = keras.ops.ones((2, 3, 4)), keras.ops.zeros((2, 4))
        >>> h, state = decode_linear_recurrence(0.5 * x, x, state)
        >>> state[0, 0]
        1.75

    Reference:
        See `linear_recurrence`.
    """
    check_choice(IMPLEMENTATIONS, implementation=implementation)
    if chunk is not None:
        check_integers(1, chunk=chunk)
    _check_shapes(decay, x, state=state)
    a, b = (ops.cast(each, "float32") for each in (decay, x))
    if len(a.shape) == 1:
        a = a + ops.zeros_like(b)
    if starts is not None:
        a = ops.where(read_steps(starts, "starts", x), 0.0, a)
    if mask is not None:  # last: a padded step may not start a segment either
        is_real = read_steps(mask, "mask", x)
        a, b = ops.where(is_real, a, 1.0), ops.where(is_real, b, 0.0)
    size = _chunk_size(b, implementation, chunk)
    h = _recur(size, a, b, ops.cast(state, "float32"))
    return ops.cast(h, x.dtype), last_state(h, ops.cast(state, "float32"))


def last_state(h, first):
    """The state after the last step; the one before, if there is no step.

    Args:
        h: States after each step, shape `(B, T, C)`.
        first: State before the first step, shape `(B, C)`.

    Returns:
        `(B, C)`.

    Example:
        >>> last_state(keras.ops.zeros((2, 0, 3)), keras.ops.ones((2, 3)))
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if known_shape(h)[1]:
        return h[:, -1]
    return ops.concatenate([first[:, None], h], axis=1)[:, -1]


def _chunk_size(b, implementation, chunk):
    """Steps in a chunk; None for a single chunk of all steps, and 0 for pairs of pairs."""
    steps, unrolls = ops.shape(b)[1], backend.unrolls_loops(b)
    if is_symbol(steps) and unrolls:
        return 0
    if implementation == "auto" and chunk is None:
        implementation = "chunked" if backend.is_on_gpu(b) else "step"
        implementation = "associative" if unrolls else implementation
    if implementation == "associative":
        if backend.is_computed(steps):
            rule = '`implementation` must not be "associative" for an unknown number of steps'
            raise error(rule, implementation=implementation, steps=steps)
        return 0
    if implementation == "step":
        return None
    if isinstance(steps, int):
        size = chunk or math.isqrt(max(steps - 1, 0)) + 1
        return None if size >= steps else size
    return chunk or CHUNK


@backend.compiled
def _recur(size, a, b, first):
    """All states `(B, T, C)`, float32, with their gradient."""

    def forward(a, b, first):
        return _scan(size, a, b, first), ()

    def backward(inputs, residuals, gradient):
        a, _, first = inputs
        (h,) = residuals
        # The decay of the last step behind the end is multiplied by 0.
        later = ops.concatenate([a[:, 1:], ops.ones_like(a[:, :1])], axis=1)
        later, gradient = ops.flip(later, axis=1), ops.flip(gradient, axis=1)
        of_b = ops.flip(_scan(size, later, gradient, ops.zeros_like(first)), axis=1)
        before = ops.concatenate([first[:, None], h], axis=1)[:, :-1]
        of_first = ops.sum((a * of_b)[:, :1], axis=1)  # 0 without steps
        return of_b * before, of_b, of_first

    if is_symbol(ops.shape(b)[1]) and backend.unrolls_loops(b):
        return _scan(size, a, b, first)  # ONNX has no function with a gradient of its own
    return backend.custom_gradient(forward, backward)(a, b, first)


def _scan(size, a, b, first):
    """All states `(B, T, C)`."""
    if size == 0:
        return _in_pairs(a, b, first)
    if size is None:
        return ops.moveaxis(_in_turn(ops.moveaxis(a, 1, 0), ops.moveaxis(b, 1, 0), first), 0, 1)
    batch, steps, width = ops.shape(b)
    count = at_least_one(ceil_divide(steps, size))
    shape = (batch, count, size, width)
    fill = ops.zeros((batch, count * size - steps, width), "float32")
    a = ops.reshape(ops.concatenate([a, fill], axis=1), shape)
    b = ops.reshape(ops.concatenate([b, fill], axis=1), shape)
    alone = _in_turn(ops.moveaxis(a, 2, 0), ops.moveaxis(b, 2, 0), ops.zeros_like(b[:, :, 0]))
    alone = ops.moveaxis(alone, 0, 2)  # (B, chunks, size, C): of each chunk by itself
    since = ops.cumprod(a, axis=2)  # what has stayed of the state before the chunk
    ends = _in_turn(ops.moveaxis(since[:, :, -1], 1, 0), ops.moveaxis(alone[:, :, -1], 1, 0), first)
    ends = ops.moveaxis(ends, 0, 1)  # (B, chunks, C)
    before = ops.concatenate([first[:, None], ends], axis=1)[:, :-1]
    h = alone + since * before[:, :, None]
    return ops.reshape(h, (batch, count * size, width))[:, :steps]


def _in_pairs(a, b, first):
    """All states `(B, T, C)`: what 1, 2, 4 ... steps add, and what has stayed from before."""
    steps = b.shape[1]
    rounds = ROUNDS if is_symbol(steps) else max(steps - 1, 0).bit_length()
    for i in range(rounds):
        before_a, before_b = _reach_back(2**i, a, b)
        a, b = a * before_a, a * before_b + b
    return a * first[:, None] + b


def _reach_back(reach, a, b):
    """The decays and sums of so many steps before each; 1 and 0 where there is none."""
    if is_symbol(b.shape[1]):  # which may be smaller than `reach`
        source = ops.arange(b.shape[1], dtype="int32") - reach
        exists, place = (source >= 0)[None, :, None], ops.maximum(source, 0)
        found = (backend.gather(x, place, 1) for x in (a, b))
        return [ops.where(exists, x, fill) for x, fill in zip(found, (1.0, 0.0), strict=True)]
    before_a = ops.concatenate([ops.ones_like(a[:, :reach]), a[:, :-reach]], axis=1)
    return before_a, ops.concatenate([ops.zeros_like(b[:, :reach]), b[:, :-reach]], axis=1)


def _in_turn(a, b, first):
    """All states of steps that lie along the first axis."""
    if b.shape[0] == 0:
        return b

    def step(state, decay_and_input):
        state = decay_and_input[0] * state + decay_and_input[1]
        return state, state

    return backend.scan(step, first, ops.stack([a, b], axis=1))[1]


def read_steps(mask, name, x):
    """A mask of the steps of a sequence.

    Args:
        mask: Bool, shape `(B, T)`.
        name: "mask" for padding, or "starts" for the first steps of segments.
        x: The sequence, `(B, T, C)`.

    Returns:
        A bool tensor `(B, T, 1)`.

    Raises:
        ValueError: If the mask is not boolean, or of another shape.

    Example:
        >>> read_steps(np.array([[True, False]]), "mask", keras.ops.zeros((1, 2, 3))).shape
        (1, 2, 1)
    """
    meaning = REAL_STEP if name == "mask" else "True = first step of a segment"
    mask = bool_tensor(mask, name, ("(B, T)",), meaning)
    shape = known_shape(x)[:2]
    if not has_shape(mask, shape):
        raise error(f"`{name}` must have shape (B, T)={shape}", **{name: mask})
    return mask[:, :, None]


def _check_sequence(x):
    if isinstance(x, keras.KerasTensor):
        rule = "A recurrence takes no symbolic tensors; call it in a layer of a functional model"
        raise error(rule, x=x)
    if len(x.shape) != 3:
        raise error("`x` must have rank 3, (B, T, C)", x=x)


def _check_shapes(decay, x, **first):
    _check_sequence(x)
    shape = known_shape(x)
    _check_shape("decay", decay, [shape, shape[2:]], "(B, T, C) or (C,)")
    for name, state in first.items():
        _check_shape(name, state, [(shape[0], shape[2])], "(B, C)")


def _check_shape(name, value, wanted, words):
    if not any(has_shape(value, shape) for shape in wanted):
        raise error(f"`{name}` must have shape {words}, with the sizes of `x`", **{name: value})
