"""The steps of an `AttentionCell` over a whole sequence: in turn, or its attention at once."""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import masks
from kattn.ops.alignment import joined
from kattn.ops.attention import attention
from kattn.ops.step_loop import loop_frames, loop_steps


class Rules(NamedTuple):
    """Which steps of a memory a step may attend to.

    Args:
        allowed: Bool, shape `(B, 1, T, S)` or `(1, 1, T, S)`, True = may be attended to; None if
            there is no rule but the padding of the memory.
        counts: Number of steps that a predicted window may lie on, `(B, T)` or `(1, T)`. None for
            the real steps of the memory.
        window: Number of steps in the window over the input itself that cuts it into frames, in
            place of `allowed`; or None.
        causal: Whether such a window holds earlier steps only.
    """

    allowed: Any = None
    counts: Any = None
    window: int | None = None
    causal: bool = False


def attend_in_turn(cell, steps, states, inputs, memory, rules, *, wants_weights=False):
    """The outputs, or the weights, of steps that wait for each other; and the last states.

    Args:
        cell: `AttentionCell`, built.
        steps: How its cell is called, see `kattn.layers.recurrent.split_steps`.
        states: Dictionary of the states before the first step.
        inputs: Dictionary of "x", what `steps.prepare` gave, `(B, T, ...)`; and, if there is
            padding, of "real", `(B, T)` bool.
        memory: `Memory` to attend to.
        rules: `Rules`.
        wants_weights: Whether to return the weights instead of the outputs.

    Returns:
        `(y, states)`: outputs `(B, T, output_size)`, or weights `(B, T, N, S)`; and the states.
    """
    batch, length = ops.shape(inputs["x"])[:2]

    def advance(states, now, memory, allowed, counts=None):
        new, y, weights = cell.step(steps, states, now["x"], memory, allowed, counts)
        return _kept(states, new, now.get("real")), [weights if wants_weights else y]

    like = [ops.zeros((batch, cell.output_size), cell.compute_dtype)]
    if rules.window is not None:
        given = {"real": ops.ones((batch, length), "bool"), **inputs}
        states, (y,) = loop_frames(
            lambda states, now, frame: advance(states, now, frame, now["allowed"][:, None, None]),
            states,
            given,
            memory,
            like,
            window=rules.window,
            causal=rules.causal,
        )
        return y, states

    real = None if memory.real is None else memory.real[:, None, None]  # (B, 1, 1, S)
    rows = None if rules.allowed is None else joined(rules.allowed, real)[:, 0]  # (B, T, S)
    given = {"allowed": rows, "counts": rules.counts}
    given = {**inputs, **{name: x for name, x in given.items() if x is not None}}

    def step(states, now):
        allowed = now["allowed"][:, None, None] if "allowed" in now else real
        counts = now["counts"][:, None] if "counts" in now else None
        return advance(states, now, memory, allowed, counts)

    if wants_weights:
        shape = (batch, cell.attention.num_heads, ops.shape(memory.keys)[2])
        like = [ops.zeros(shape, "float32")]
    states, (y,) = loop_steps(step, states, given, like)
    return y, states


def attend_at_once(cell, steps, states, inputs, memory, rules, *, wants_weights=False):
    """What `attend_in_turn` gives, where no step waits for the attention of the one before."""
    cells = cell.wrapped

    def step(own, now):
        output, new = steps.step(now["x"], None, own["cell"])
        outputs = [output] if cells.output_is_hidden else [output, new[cells.hidden]]
        return _kept(own, {"cell": new}, now.get("real")), outputs

    batch, dtype = ops.shape(inputs["x"])[0], cells.cell.compute_dtype
    widths = [cells.output_size] if cells.output_is_hidden else [cells.output_size, cells.units]
    like = [ops.zeros((batch, width), dtype) for width in widths]
    states, found = loop_steps(step, states, inputs, like)
    output, query = found[0], ops.cast(found[-1], cell.compute_dtype)
    if not wants_weights and cell.attention.is_product and cell.window is None:
        context = _product_attention(cell, query, memory, rules)
        return cell.outputs(output, context), states
    real = None if memory.real is None else memory.real[:, None, None]
    allowed = joined(rules.allowed, real)
    context, weights = cell.attend_all(query, memory, allowed, rules.counts)
    if wants_weights:
        return ops.swapaxes(weights, 1, 2), states
    return cell.outputs(output, context), states


def _product_attention(cell, query, memory, rules):
    """The contexts `(B, T, N * Dv)` by whichever kernel is the fastest."""
    q = ops.cast(cell.attention.split_query(query), "float32")  # (B, T, N, D)
    k, v = (ops.swapaxes(x, 1, 2) for x in (memory.keys, memory.values))
    mask: Any = None if memory.real is None else masks.Padding(memory.real)
    if rules.window is not None:
        mask = masks.intersect(masks.Window(rules.window), mask)
        mask = masks.intersect(masks.Causal(), mask) if rules.causal else mask
    elif rules.allowed is not None:
        mask = masks.intersect(masks.Dense(rules.allowed), mask)
    context = attention(q, k, v, mask=mask, scale=1.0)  # (B, T, N, Dv)
    batch, length, heads, width = ops.shape(context)
    context = ops.reshape(context, (batch, length, heads * width))
    return ops.cast(context, cell.compute_dtype)


def _kept(old, new, real):
    """The new states, or the old ones where a step is padding."""
    if real is None:
        return new

    def keep(x, y):
        return ops.where(real[(slice(None), *[None] * (len(x.shape) - 1))], x, y)

    return keras.tree.map_structure(keep, new, old)
