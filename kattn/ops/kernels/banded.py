"""`banded`: windows in O(T * W) time and memory, all blocks of queries at once.

Queries are cut into blocks; each sees its own block of keys and as many neighbours as the window
reaches: a frame. Where the framework's fused kernel serves, it takes the frames as one batch;
else of the forward pass only output and log-sum-exp stay, and the gradient recomputes the rest.
"""

import dataclasses
import functools
import math

from keras import ops

from kattn import backend, masks
from kattn.biases import Bias
from kattn.masks import Mask
from kattn.ops import masking
from kattn.ops.kernels import block, fused
from kattn.spans import Span

# Blocks narrower than this cost more in small matrix products than they save in masked scores.
NARROWEST = 64
# Numbers in the frames of keys above which heads are done in parts. Smaller parts cost time.
MANY = 2**20


def unsupported(call):
    """Why it cannot serve the call, or None."""
    before, after = call.reach
    if masks.UNBOUNDED in (before, after):
        return "the mask has no window on both sides of a query (Window, or Causal with Window)"
    if call.mask.holds_scores:
        return "the mask holds a T x S array (Dense), which has no cheap diagonal"
    if call.bias is not None and call.bias.holds_scores:
        return "a bias array is T x S itself, and has no cheap diagonal"
    if None in (call.query.shape[1], call.key.shape[1]):
        return "T and S must be known when the call is traced"
    return None


def unprofitable(call):
    """It pays where a frame of keys is much shorter than the sequence."""
    frame, keys = _Frames.make(call).frame, call.key.shape[1]
    if 2 * frame > keys:
        return f"its frames of {frame} keys are more than half of S={keys}"
    if _is_fused(call) and "window" in (fused.native_rules(call) or {}):
        return "the framework's own kernel has windows"
    return None


def attend(call):
    """`(B, T, N, Dv)`."""
    frames = _Frames.make(call)
    if _is_fused(call):
        return _attend_fused(call, frames)
    seed = block.draw_seed(call.seed) if call.dropout_rate else None
    rules = masking.without_arrays(call.mask), masking.without_arrays(call.bias)
    plan = _Plan(frames, *rules, call.softcap, call.dropout_rate)
    arrays = {
        "q": frames.cut_queries(block.split_heads(call.query, call.groups) * call.scale),
        "k": frames.cut_keys(block.heads_first(call.key)),
        "v": frames.cut_keys(block.heads_first(call.value)),
        "sinks": block.by_head(call),
        "seed": seed,
    }
    of_rules = masking.arrays_of(call.mask), masking.arrays_of(call.bias)
    o = _attend_frames(plan, arrays, *of_rules)
    return block.merge_heads(frames.join_queries(o), call.query.dtype)


def _is_fused(call):
    return not (fused.unsupported(call) or fused.unprofitable(call))


def _attend_fused(call, frames):
    """`(B, T, N, Dv)` from the framework's kernel, some heads at a time if the frames are large.

    Then the gradient makes them again: kept for all heads, they would be half of the memory.
    """
    keep = frames.visible(call.mask)
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
    bias = None if call.bias is None else frames.bias(call.bias)
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
class _Frames:
    """How T queries and S keys are cut: query block i sees key blocks [i, i + width)."""

    queries: int
    keys: int
    size: int  # steps in a block
    blocks: int  # blocks of queries
    behind: int  # key blocks in front of a query's own
    width: int  # key blocks in a frame

    @classmethod
    def make(cls, call):
        queries, keys = call.query.shape[1], call.key.shape[1]
        before, after = (int(x) for x in call.reach)
        # A fused kernel passes over nothing in a frame, but wants long rows.
        parts = 1 if _is_fused(call) else 2
        size = max(NARROWEST, math.ceil((max(before, after) + 1) / parts))
        size = min(size, -(-queries // 8) * 8)
        behind, ahead = -(-before // size), -(-after // size)
        return cls(queries, keys, size, -(-queries // size), behind, behind + 1 + ahead)

    @property
    def frame(self):
        """Keys in a frame."""
        return self.width * self.size

    @property
    def first_key(self):
        """Key at which the first frame begins, often negative."""
        return self.keys - self.queries - self.behind * self.size

    def visible(self, mask):
        """Which keys of its frame a query sees, `(blocks, B or 1, 1, size, frame)`."""
        rows, columns = self._steps()
        index = columns.positions()[:, None, None, None, :]
        real = ops.logical_and(index >= 0, index < self.keys)
        return ops.logical_and(mask.block(rows, columns, self.keys - self.queries), real)

    def bias(self, bias):
        """`(B or 1, N or 1, size, frame)`, with the blocks in front where they differ."""
        offset = self.keys - self.queries
        if bias.is_stationary and not bias.is_by_query:
            return bias.block(Span(0, self.size), Span(self.first_key, self.frame), offset)
        rows, columns = self._steps()
        return bias.at(rows).block(rows, columns, offset)

    def _steps(self):
        """The queries and the keys of each frame."""
        starts = ops.arange(self.blocks, dtype="int32") * self.size
        return Span(starts, self.size), Span(starts + self.first_key, self.frame)

    def cut_queries(self, x):
        """`(B, ..., T, D)` to `(blocks, B, ..., size, D)`."""
        return self._cut(_fit(x, 0, self.blocks * self.size), self.blocks)

    def join_queries(self, x):
        """The way back from `cut_queries`."""
        x = ops.moveaxis(x, 0, -3)
        *lead, _, _, width = ops.shape(x)
        x = ops.reshape(x, (*lead, self.blocks * self.size, width))
        return x[..., : self.queries, :]

    def cut_keys(self, x):
        """`(B, K, S, D)` to `(blocks + width - 1, B, K, size, D)`."""
        count = self.blocks + self.width - 1
        return self._cut(_fit(x, self.first_key, self.first_key + count * self.size), count)

    def _cut(self, x, count):
        *lead, _, width = ops.shape(x)
        return ops.moveaxis(ops.reshape(x, (*lead, count, self.size, width)), len(lead), 0)

    def gather(self, x):
        """Blocks of keys to frames, `(blocks, B, K, frame, D)`."""
        return ops.concatenate([x[i : i + self.blocks] for i in range(self.width)], axis=-2)

    def scatter(self, x):
        """Frames to blocks of keys, overlaps summed: the transpose of `gather`."""
        still = [(0, 0)] * (len(x.shape) - 1)
        total = 0.0
        for i in range(self.width):
            part = x[..., i * self.size : (i + 1) * self.size, :]
            total = total + ops.pad(part, [(i, self.width - 1 - i), *still])
        return total


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that is known before the tensors are: what a compiled kernel depends on."""

    frames: _Frames
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
        return o, (o, level)

    def backward(inputs, residuals, do):
        named, rules = unpack(inputs)
        gradients, of_bias = _backward(plan, rules, residuals, do, **named)
        return [*(gradients.get(name) for name in names), *[None] * len(mask_arrays), *of_bias]

    run = backend.custom_gradient(forward, backward)
    return run(*(arrays[name] for name in names), *mask_arrays, *bias_arrays)


def _forward(plan, rules, q, k, v, sinks=None, seed=None):
    """Output, and the log-sum-exp of each row's scores."""
    z, _ = _logits(plan, rules, q, plan.frames.gather(k))
    level = ops.max(z, axis=-1, keepdims=True)
    level = ops.maximum(level, block.FLOOR if sinks is None else sinks)
    p = ops.exp(z - level)
    total = ops.sum(p, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + ops.exp(sinks - level)
    if seed is not None:
        p = p * block.dropout_scale(ops.shape(p), plan.dropout_rate, seed)
    return block.finish(level, total, block.weights_by_values(p, plan.frames.gather(v)))


def _backward(plan, rules, residuals, do, q, k, v, sinks=None, seed=None):
    """A gradient for q, k, v and, where given, sinks; and one for each array of the bias."""
    frames, (o, level) = plan.frames, residuals
    k, v = frames.gather(k), frames.gather(v)
    z, slope = _logits(plan, rules, q, k)
    p = ops.exp(z - level)
    dp, dropped = block.queries_by_keys(do, v), p
    if seed is not None:
        scale = block.dropout_scale(ops.shape(p), plan.dropout_rate, seed)
        dp, dropped = dp * scale, p * scale
    delta = ops.sum(do * o, axis=-1, keepdims=True)
    ds = p * (dp - delta)
    of_bias = _bias_gradients(plan, rules[1], q, ds)
    if slope is not None:
        ds = ds * slope
    gradients = {
        "q": block.weights_by_values(ds, k),
        "k": frames.scatter(block.weights_by_queries(ds, q)),
        "v": frames.scatter(block.weights_by_queries(dropped, do)),
    }
    if sinks is not None:
        gradients["sinks"] = block.gradient_of_sinks(sinks, level, delta)
    return gradients, of_bias


def _logits(plan, rules, q, k):
    mask, bias = rules
    heads, groups = q.shape[2], q.shape[3]
    keep = block.group_heads(plan.frames.visible(mask), heads, groups)
    bias = None if bias is None else block.group_heads(plan.frames.bias(bias), heads, groups)
    return block.logits(q, k, keep, bias, plan.softcap)


def _bias_gradients(plan, bias, q, dz):
    """One for each array of the bias, given that of the logits."""
    arrays = masking.arrays_of(bias)
    if not arrays:
        return []

    def spread(*arrays):
        found = plan.frames.bias(masking.with_arrays(plan.bias, arrays))
        return ops.broadcast_to(block.group_heads(found, q.shape[2], q.shape[3]), ops.shape(dz))

    return backend.vjp(spread, arrays, dz)


def _fit(x, start, stop):
    """Span [start, stop) of axis -2, with zeros where there are none."""
    steps = x.shape[-2]
    x = x[..., max(start, 0) : min(stop, steps), :]
    ends = (max(-start, 0), max(stop - steps, 0))
    return ops.pad(x, [(0, 0)] * (len(x.shape) - 2) + [ends, (0, 0)])
