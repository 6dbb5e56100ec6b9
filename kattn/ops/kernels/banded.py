"""`banded`: windows in O(T * W) time and memory, all blocks of queries at once.

Queries are cut into blocks, of a sequence or of a map; each sees its own block of keys and as many
neighbours as the window reaches: a frame. Where the framework's fused kernel serves, it takes the
frames as one batch; else of the forward pass only output and log-sum-exp stay, and the gradient
recomputes the rest.
"""

import dataclasses
import functools

from keras import ops

from kattn import backend, masks
from kattn.biases import Bias
from kattn.masks import Mask
from kattn.ops import masking
from kattn.ops.kernels import block, dropout, fused
from kattn.ops.kernels.frames import Axis, Frames

# Numbers in the frames of keys above which heads are done in parts. Smaller parts cost time.
MANY = 2**20


def unsupported(call):
    """Why it cannot serve the call, or None."""
    near = _neighborhood(call.mask)
    if near is not None and _axes_of_frames(near) > backend.MOST_AXES:
        return f"its frames would have more than {backend.MOST_AXES} axes, the framework's most"
    if masks.UNBOUNDED in call.reach and near is None:
        return "the mask has no window on both sides of a query (Window, or Causal with Window)"
    if call.mask.holds_scores:
        return "the mask holds a T x S array (Dense), which has no cheap diagonal"
    if call.bias is not None and call.bias.holds_scores:
        return "a bias array is T x S itself, and has no cheap diagonal"
    if None in (call.queries, call.keys):
        return "T and S must be known when the call is traced"
    return None


def unprofitable(call):
    """It pays where a frame of keys is much shorter than the sequence."""
    frame = _frames(call).frame
    if 2 * frame > call.keys:
        return f"its frames of {frame} keys are more than half of S={call.keys}"
    if _is_fused(call) and "window" in (fused.native_rules(call) or {}):
        return "the framework's own kernel has windows"
    if _is_fused(call) and backend.fused_masks_pay(call):
        return "the framework's own kernel is faster with a mask of T x S"
    return None


def attend(call):
    """`(B, T, N, Dv)`."""
    frames = _frames(call)
    if _is_fused(call):
        return _attend_fused(call, frames)
    rules = masking.without_arrays(call.mask), masking.without_arrays(call.bias)
    plan = _Plan(frames, *rules, call.softcap, call.dropout_rate)
    arrays = {
        "q": frames.cut_queries(block.split_heads(call.query, call.groups) * call.scale),
        "k": frames.cut_keys(block.heads_first(call.key)),
        "v": frames.cut_keys(block.heads_first(call.value)),
        "sinks": block.by_head(call),
    }
    row_counters, column_counters = dropout.counters(call)
    if row_counters is not None:
        arrays["row_counters"] = frames.cut_queries(row_counters)
        arrays["column_counters"] = frames.cut_keys(column_counters)
    of_rules = masking.arrays_of(call.mask), masking.arrays_of(call.bias)
    o = _attend_frames(plan, arrays, *of_rules)
    return block.merge_heads(frames.join_queries(o), call.query.dtype)


def _neighborhood(mask):
    """The windows of a map that the mask has, or None if it is one of a sequence."""
    return None if mask is None else mask.neighborhood


def _axes_of_frames(near):
    """Number of axes while a map is cut: B, K, G and D, and two or three for each side."""
    classes = any(side.dilation > 1 for side in near.axes)
    return 4 + 2 * len(near.axes) + classes


def _frames(call):
    """The frames of a map, which has an axis for each side; or of a sequence, which has one."""
    near = _neighborhood(call.mask)
    if near is not None:
        return Frames(tuple(Axis.of_side(side, len(near.axes)) for side in near.axes))
    # A fused kernel passes over nothing in a frame, but wants long rows.
    parts = 1 if _is_fused(call) else 2
    return Frames((Axis.make(call.queries, call.keys, call.reach, parts=parts),))


def _visible(frames, mask):
    """Which keys of its frame a query sees, `(blocks, B or 1, 1, size, frame)`."""
    near = _neighborhood(mask)
    if near is not None:
        rows, columns = frames.cells(near.sides)
        real = columns.is_inside[:, None, None, None, :]
        return ops.logical_and(mask.block(rows, columns), real)
    (axis,) = frames.axes
    rows, columns = axis.steps()
    index = columns.positions()[:, None, None, None, :]
    real = ops.logical_and(index >= 0, index < axis.keys)
    return ops.logical_and(mask.block(rows, columns, axis.offset), real)


def _biases(frames, bias, mask):
    """`(B or 1, N or 1, size, frame)`, with the blocks in front where they differ."""
    near = _neighborhood(mask)
    if near is not None:
        return _biases_of_cells(frames, bias, near.sides)
    (axis,) = frames.axes
    if bias.is_stationary and not bias.is_by_query:
        return bias.block(*axis.first_steps(), axis.offset)
    rows, columns = axis.steps()
    return bias.at(rows).block(rows, columns, axis.offset)


def _biases_of_cells(frames, bias, sides):
    is_relative = bias.compares_cells or (bias.is_stationary and len(sides) == 1)
    if is_relative and not bias.is_by_query:
        return bias.block(*frames.cells(sides, first=True))[0]
    rows, columns = frames.cells(sides)
    return bias.at(rows).block(rows, columns)


def _is_fused(call):
    return not (fused.unsupported(call) or fused.unprofitable(call))


def _attend_fused(call, frames):
    """`(B, T, N, Dv)` from the framework's kernel, some heads at a time if the frames are large.

    Then the gradient makes them again: kept for all heads, they would be half of the memory.
    """
    keep = _visible(frames, call.mask)
    parts = _parts(call, frames)
    attend = functools.partial(_attend_batch, call, frames, keep)
    if parts == 1:
        return attend(call.query, call.key, call.value)
    attend = backend.recomputed(attend)
    pieces = (ops.split(x, parts, axis=2) for x in (call.query, call.key, call.value))
    return ops.concatenate([attend(*some) for some in zip(*pieces, strict=True)], axis=2)


def _parts(call, frames):
    """Into how many equal parts the key heads go, so that the frames of one are not large."""
    if call.bias is not None:  # whose rows are for all heads
        return 1
    batch, _, heads, width = call.key.shape
    large = frames.blocks * frames.frame * width * heads * (batch or 1)
    return next((n for n in range(1, heads) if heads % n == 0 and large <= n * MANY), heads)


def _attend_batch(call, frames, keep, query, key, value):
    """`(B, T, heads, Dv)` of some heads, each frame an item of one batch."""
    tensors = (
        frames.cut_queries(ops.swapaxes(query, 1, 2)),
        frames.gather(frames.cut_keys(ops.swapaxes(key, 1, 2))),
        frames.gather(frames.cut_keys(ops.swapaxes(value, 1, 2))),
    )
    count, batch = ops.shape(tensors[0])[:2]
    query, key, value = (
        ops.swapaxes(ops.reshape(x, (count * batch, *ops.shape(x)[2:])), 1, 2) for x in tensors
    )
    bias = None if call.bias is None else _biases(frames, call.bias, call.mask)
    if bias is not None and len(bias.shape) == 5:
        bias = _join_batches(bias, count, batch)
    framed = dataclasses.replace(call, query=query, key=key, value=value, mask=None, bias=bias)
    keep = _join_batches(keep, count, batch)
    o = ops.swapaxes(fused.attend_where(framed, keep), 1, 2)
    o = frames.join_queries(ops.reshape(o, (count, batch, *ops.shape(o)[1:])))
    return ops.swapaxes(o, 1, 2)


def _join_batches(x, count, batch):
    """`(blocks or 1, B or 1, ...)` to `(blocks * B, ...)`."""
    x = ops.broadcast_to(x, (count, batch, *ops.shape(x)[2:]))
    return ops.reshape(x, (count * batch, *ops.shape(x)[2:]))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that is known before the tensors are: what a compiled kernel depends on."""

    frames: Frames
    mask: Mask | None  # without its arrays
    bias: Bias | None  # without its arrays
    softcap: float | None
    dropout_rate: float


@backend.compiled
def _attend_frames(plan, arrays, mask_arrays, bias_arrays):
    """`(blocks, B, K, G, size, Dv)` with the recomputing gradient."""
    names = [name for name, array in arrays.items() if array is not None]
    end = len(names) + len(mask_arrays)

    def unpack(inputs):
        named = dict(zip(names, inputs, strict=False))
        mask = masking.with_arrays(plan.mask, inputs[len(names) : end])
        return named, (mask, masking.with_arrays(plan.bias, inputs[end:]))

    def forward(*inputs):
        named, rules = unpack(inputs)
        o, level = _forward(plan, rules, **named)
        return o, (level,)

    def backward(inputs, residuals, do):
        named, rules = unpack(inputs)
        gradients, of_bias = _backward(plan, rules, residuals, do, **named)
        return [*(gradients.get(name) for name in names), *[None] * len(mask_arrays), *of_bias]

    run = backend.custom_gradient(forward, backward)
    return run(*(arrays[name] for name in names), *mask_arrays, *bias_arrays)


def _forward(plan, rules, q, k, v, sinks=None, **counters):
    """Output, and the log-sum-exp of each row's scores."""
    z, _ = _logits(plan, rules, q, plan.frames.gather(k))
    level = backend.highest(z)
    level = ops.maximum(level, block.FLOOR if sinks is None else sinks)
    p = backend.exp_difference(z, level)
    total = ops.sum(p, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + ops.exp(sinks - level)
    p = dropout.drop(_draws(plan, counters), p)
    mixed = block.weights_by_values(p, plan.frames.gather(v))
    return block.finish((level, total, mixed), plan.dropout_rate)


def _backward(plan, rules, residuals, do, q, k, v, sinks=None, **counters):
    """A gradient for q, k, v and, where given, sinks; and one for each array of the bias."""
    frames, (o, level) = plan.frames, residuals
    k, v = frames.gather(k), frames.gather(v)
    z, slope = _logits(plan, rules, q, k)
    p = backend.exp_difference(z, level)
    delta = ops.sum(do * o, axis=-1, keepdims=True)
    if plan.dropout_rate:
        do = do / dropout.kept(plan.dropout_rate)
    ds, p = dropout.gradient(_draws(plan, counters), p, block.queries_by_keys(do, v), delta)
    dv = block.weights_by_queries(p, do)
    of_bias = _bias_gradients(plan, rules, q, ds)
    if slope is not None:
        ds = ds * slope
    gradients = {
        "q": block.weights_by_values(ds, k),
        "k": frames.scatter(block.weights_by_queries(ds, q)),
        "v": frames.scatter(dv),
    }
    if sinks is not None:
        gradients["sinks"] = block.gradient_of_sinks(sinks, level, delta)
    return gradients, of_bias


def _draws(plan, counters):
    """The `Draws` of all frames, or None without dropout."""
    if not counters:
        return None
    columns = plan.frames.gather(counters["column_counters"])
    return dropout.Draws(counters["row_counters"], columns, plan.dropout_rate)


def _logits(plan, rules, q, k):
    mask, bias = rules
    heads, groups = q.shape[2], q.shape[3]
    keep = block.group_heads(_visible(plan.frames, mask), heads, groups)
    if bias is not None:
        bias = block.group_heads(_biases(plan.frames, bias, mask), heads, groups)
    return block.logits(q, k, keep, bias, plan.softcap)


def _bias_gradients(plan, rules, q, dz):
    """One for each array of the bias, given that of the logits."""
    mask, bias = rules
    arrays = masking.arrays_of(bias)
    if not arrays:
        return []

    def spread(*arrays):
        biases = _biases(plan.frames, masking.with_arrays(plan.bias, arrays), mask)
        return ops.broadcast_to(block.group_heads(biases, q.shape[2], q.shape[3]), ops.shape(dz))

    return backend.vjp(spread, arrays, dz)
