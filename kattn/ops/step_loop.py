"""Loops over the steps of a sequence that attend to a memory.

A loop never unrolls in a graph. What a step reads of the sequence is cut up outside of the loop.

The gradient keeps what each step computes of the memory. So over a memory of S steps T steps take
O(T * S), times the units of an additive score, whose hidden layer is kept. And as the memory is the
same in all steps, its gradient is a sum over steps of tensors as long as it is. For a window over
the sequence itself both would take T * T. So there the sequence is cut into chunks, each with the
frame of keys that its steps can see: a loop over chunks, and in it one over the steps of a chunk,
in O(T) times the window.
"""

from typing import Any, NamedTuple

from keras import ops

from kattn import backend
from kattn.ops.sizes import at_least_one, ceil_divide

NARROWEST = 16  # steps in a chunk, where a window is shorter than that


class Memory(NamedTuple):
    """What the steps attend to.

    Args:
        keys: Keys, float32, shape `(B, K, S, D)`.
        values: Values, float32, shape `(B, K, S, Dv)`.
        real: Bool, shape `(B, S)`, True = real step; or None.
        positions: Positions of the steps, int32, shape `(B, S)` or `(1, S)`; or None where none are
            needed.
    """

    keys: Any
    values: Any
    real: Any = None
    positions: Any = None


def loop_steps(step, state, inputs, like):
    """The last state and all outputs of `state, output = step(state, inputs of a step)`.

    Args:
        step: Function of a state and of a dictionary with the inputs of one step, which returns the
            next state and an output. Where "real" is among the inputs, `(B,)` bool, it must leave
            the state as it is where that is False.
        state: State before the first step, a structure of tensors.
        inputs: Dictionary of tensors, each with the batch and the steps as its first axes,
            `(B, T, ...)`, or `(1, T, ...)`; "x" among them, `(B, T, C)`.
        like: List of tensors with the shapes and dtypes of an output.

    Returns:
        `(state, outputs)`: the last state; and the outputs, each of shape `(B, T, ...)`.
    """
    steps = next(iter(inputs.values())).shape[1]
    if steps == 0:  # one step of padding, so that the outputs have shapes and gradients
        inputs = {"real": inputs["x"][..., 0] > 0, **inputs}
        ends = [(0, 0), (0, 1)]
        inputs = {
            name: backend.pad(x, ends + [(0, 0)] * (len(x.shape) - 2)) for name, x in inputs.items()
        }
    inputs = {name: ops.swapaxes(x, 0, 1) for name, x in inputs.items()}
    state, outputs = backend.scan_trees(step, state, inputs, like)
    return state, [ops.swapaxes(x, 0, 1)[:, :steps] for x in outputs]


def loop_frames(step, state, inputs, memory, like, *, window, causal):
    """`loop_steps` for a window over the sequence itself: a step gets its frame of the memory.

    Args:
        step: Function of a state, of the inputs of a step, and of a `Memory` that holds the frame.
            Among the inputs are "real", `(B,)` bool, and "allowed", `(B, F)` bool, which says what
            of the frame may be attended to.
        state: State before the first step, a structure of tensors.
        inputs: Dictionary of tensors `(B, T, ...)`, "real" among them.
        memory: `Memory` of the same T steps.
        like: List of tensors with the shapes and dtypes of the parts of an output.
        window: Number of steps W that a step sees.
        causal: Whether it sees those before it only.

    Returns:
        `(state, outputs)`, as `loop_steps` has them.
    """
    steps = ops.shape(inputs["real"])[1]
    size = max(window // 2, NARROWEST)
    before, after = window - 1, 0 if causal else window - 1
    count = at_least_one(ceil_divide(steps, size))
    frame = size + before + after

    def chunks(x):
        """`(B, T, ...)` to `(chunks, size, B, ...)`."""
        x = backend.pad(x, [(0, 0), (0, count * size - steps), *[(0, 0)] * (len(x.shape) - 2)])
        batch, _, *rest = ops.shape(x)
        return ops.reshape(ops.swapaxes(x, 0, 1), (count, size, batch, *rest))

    index = ops.arange(count, dtype="int32")[:, None] * size + ops.arange(frame, dtype="int32")

    def frames(x, axis):
        """Frames of the steps that lie along an axis: `(chunks, ...)`."""
        ends = [(0, 0)] * len(x.shape)
        ends[axis] = (before, after + count * size - steps)
        x = backend.gather(backend.pad(x, ends), index, axis)
        return ops.moveaxis(x, axis, 0)

    # Step s of a chunk has position s + before in its frame.
    distance = before + ops.arange(size, dtype="int32")[:, None] - ops.arange(frame, dtype="int32")
    distance = distance if causal else ops.abs(distance)
    shape = ops.logical_and(distance >= 0, distance < window)[:, None]  # (size, 1, F)

    def chunk_step(state, given):
        inner = {name: given[name] for name in inputs}
        inner["allowed"] = ops.logical_and(shape, given["seen"][None])  # (size, B, F)
        view = Memory(given["keys"], given.get("values", given["keys"]))
        return backend.scan_trees(lambda state, now: step(state, now, view), state, inner, like)

    outer = {name: chunks(x) for name, x in inputs.items()}
    outer["keys"] = frames(memory.keys, 2)
    if memory.values is not memory.keys:
        outer["values"] = frames(memory.values, 2)
    outer["seen"] = frames(inputs["real"] if memory.real is None else memory.real, 1)
    # The outputs of a chunk have one axis more; their sizes are those of the first.
    whole = [ops.zeros((size, *ops.shape(x)), x.dtype) for x in like]
    state, outputs = backend.scan_trees(chunk_step, state, outer, whole)
    return state, [_join(x, count * size)[:, :steps] for x in outputs]


def _join(x, steps):
    """`(chunks, size, B, ...)` to `(B, T, ...)`."""
    _, _, *rest = ops.shape(x)
    return ops.swapaxes(ops.reshape(x, (steps, *rest)), 0, 1)
