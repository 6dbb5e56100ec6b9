"""`chunked`: block by block with an online softmax, and a gradient that recomputes.

Forward and backward hold one block of scores at a time, so memory is O(T * D + block^2) where
`dense` needs O(T * S). Blocks that the mask's reach rules out are never visited: half of them
under a causal mask, all but T * W / block^2 under a window of W.

Reference: Milakov and Gimelshein 2018, algorithm 3, https://arxiv.org/abs/1805.02867 (the online
softmax); Dao et al. 2022, algorithms 1 and 4, https://arxiv.org/abs/2205.14135 (the gradient).
"""

import dataclasses
import functools
from typing import Any

from keras import ops

from kattn import backend, masks
from kattn.masks import Mask, Steps
from kattn.ops import masking
from kattn.ops.kernels import block

# Measured on two CPU cores at T = 4096, D = 64: 512 beats 256 by 1.2x and 128 by 1.3x.
BLOCK = 512


def refusal(call):
    """It serves every call."""
    return


def hesitation(call):
    """Where nothing is saved, or less time than the loop costs."""
    keys = call.key.shape[1]
    if keys is not None and keys <= BLOCK:
        return f"S={keys} keys fit in one block of {BLOCK}"
    if masks.UNBOUNDED == call.reach[0] == call.reach[1]:
        batch, queries, heads = (1 if n is None else n for n in call.query.shape[:3])
        scores = batch * heads * queries * (1 if keys is None else keys)
        if backend.dense_pays(scores, dropout=call.dropout_rate > 0.0):
            return f"no block can be left out, and {scores} scores are faster made at once"
    return None


def attend(call):
    """`(B, T, N, Dv)`."""
    queries, keys = ops.shape(call.query)[1], ops.shape(call.key)[1]
    rows, row_blocks = _blocks(queries, call.reach)
    columns, column_blocks = _blocks(keys, call.reach)
    more_queries, more_keys = row_blocks * rows - queries, column_blocks * columns - keys
    mask = call.mask
    if _shows_keys_behind_the_last(mask, more_keys):
        mask = masking.both(mask, _Length(keys))
    if mask is not None:
        mask = mask.padded(more_queries, more_keys)
    bias = call.bias
    if bias is not None:
        bias = masks.pad_block(ops.cast(bias, "float32"), more_queries, more_keys)
        bias = block.group_heads(bias, call.key_heads, call.groups)
    plan = _Plan(
        rows=rows,
        columns=columns,
        row_blocks=row_blocks,
        column_blocks=column_blocks,
        offset=keys - queries,
        mask=masking.skeleton(mask),
        softcap=call.softcap,
        dropout_rate=call.dropout_rate,
    )
    arrays = {
        "q": _to_blocks(block.split_heads(call.query, call.groups) * call.scale, rows),
        "k": _to_blocks(block.heads_first(call.key), columns),
        "v": _to_blocks(block.heads_first(call.value), columns),
        "bias": bias,
        "sinks": block.by_head(call),
        "seed": block.draw_seed(call.seed) if call.dropout_rate else None,
    }
    o = _attend_blocks(plan, arrays, masking.arrays_of(mask))
    return block.merge_heads(_from_blocks(o)[..., :queries, :], call.query.dtype)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that is known before the tensors are: what a compiled kernel depends on."""

    rows: Any  # queries in a block
    columns: Any  # keys in a block
    row_blocks: Any
    column_blocks: Any
    offset: Any  # position of query 0 on the key axis
    mask: Mask | None  # without its arrays
    softcap: float | None
    dropout_rate: float

    @property
    def reach(self):
        return (masks.UNBOUNDED, masks.UNBOUNDED) if self.mask is None else self.mask.reach


@backend.compiled
def _attend_blocks(plan, arrays, mask_arrays):
    """`(row_blocks, B, K, G, rows, Dv)` from blocks, with the recomputing gradient."""
    names = [name for name, array in arrays.items() if array is not None]

    def block_of(inputs):
        return _Blocks(plan, dict(zip(names, inputs, strict=False)), inputs[len(names) :])

    def forward(*inputs):
        o, level = block_of(inputs).forward()
        return o, (o, level)

    def backward(inputs, residuals, do):
        gradients = block_of(inputs).backward(*residuals, do)
        return [gradients.get(name) for name in names] + [None] * len(mask_arrays)

    run = backend.custom_gradient(forward, backward)
    return run(*(arrays[name] for name in names), *mask_arrays)


class _Blocks:
    """The tensors of one call, a block at a time."""

    def __init__(self, plan, arrays, mask_arrays):
        self.plan = plan
        self.q, self.k, self.v = arrays["q"], arrays["k"], arrays["v"]
        self.bias, self.sinks, self.seed = (arrays.get(x) for x in ("bias", "sinks", "seed"))
        self.mask = masking.with_arrays(plan.mask, mask_arrays)

    def forward(self):
        """Output, and the log-sum-exp of each row's scores."""
        shape = (*ops.shape(self.q)[1:-1], 1)
        level = ops.zeros(shape) + (block.FLOOR if self.sinks is None else self.sinks)
        total = ops.zeros(shape) if self.sinks is None else ops.ones(shape)
        mixed = ops.zeros((*shape[:-1], ops.shape(self.v)[-1]))

        def row(i, outputs):
            q = backend.take(self.q, i)

            def column(j, state, masked):
                level, total, mixed = state
                z, _ = self._logits(q, backend.take(self.k, j), i, j, masked)
                top = ops.maximum(level, ops.max(z, axis=-1, keepdims=True))
                shrink, p = ops.exp(level - top), ops.exp(z - top)
                total = total * shrink + ops.sum(p, axis=-1, keepdims=True)
                if self.seed is not None:
                    p = p * self._dropout(p, i, j)
                return (
                    top,
                    total,
                    mixed * shrink + block.weights_by_values(p, backend.take(self.v, j)),
                )

            state = self._over_columns(i, column, (level, total, mixed))
            return tuple(
                backend.put_at(x, i, y) for x, y in zip(outputs, block.finish(*state), strict=True)
            )

        count = self.plan.row_blocks
        outputs = (ops.zeros((count, *ops.shape(mixed))), ops.zeros((count, *shape)))
        return backend.loop(0, count, row, outputs)

    def backward(self, o, level, do):
        """A gradient for q, k, v and, where given, bias and sinks."""
        delta = ops.sum(do * o, axis=-1, keepdims=True)
        gradients = {"q": ops.zeros_like(self.q), "k": ops.zeros_like(self.k)}
        gradients["v"] = ops.zeros_like(self.v)
        if self.bias is not None:
            gradients["bias"] = self._zero_bias_blocks()

        def column(j, gradients):
            k, v = backend.take(self.k, j), backend.take(self.v, j)

            def row(i, state, masked):
                dk, dv, rest = state
                q, do_i = backend.take(self.q, i), backend.take(do, i)
                z, slope = self._logits(q, k, i, j, masked)
                p = ops.exp(z - backend.take(level, i))
                dp, dropped = block.queries_by_keys(do_i, v), p
                if self.seed is not None:
                    scale = self._dropout(p, i, j)
                    dp, dropped = dp * scale, p * scale
                dz = p * (dp - backend.take(delta, i))
                ds = dz if slope is None else dz * slope
                rest = {**rest, "q": backend.add_at(rest["q"], i, block.weights_by_values(ds, k))}
                if self.bias is not None:
                    rest["bias"] = self._add_to_bias(rest["bias"], dz, i, j)
                dv = dv + block.weights_by_queries(dropped, do_i)
                return dk + block.weights_by_queries(ds, q), dv, rest

            rest = {name: x for name, x in gradients.items() if name not in ("k", "v")}
            state = self._over_rows(j, row, (ops.zeros_like(k), ops.zeros_like(v), rest))
            put_k, put_v = (
                backend.put_at(gradients[n], j, x) for n, x in zip("kv", state, strict=False)
            )
            return {**state[2], "k": put_k, "v": put_v}

        gradients = backend.loop(0, self.plan.column_blocks, column, gradients)
        if self.bias is not None:
            gradients["bias"] = self._join_bias_blocks(gradients["bias"])
        if self.sinks is not None:
            gradients["sinks"] = block.gradient_of_sinks(self.sinks, level, delta)
        return gradients

    def _logits(self, q, k, i, j, masked):
        keep = bias = None
        rows, columns = self._steps(i, j)
        if masked and self.mask is not None:
            heads, groups = self.q.shape[2], self.q.shape[3]
            keep = self.mask.block(rows, columns, self.plan.offset)
            keep = block.group_heads(keep, heads, groups)
        if self.bias is not None:
            bias = masks.cut_block(self.bias, rows, columns)
        return block.logits(q, k, keep, bias, self.softcap)

    @property
    def softcap(self):
        return self.plan.softcap

    def _steps(self, i, j):
        plan = self.plan
        return Steps(i * plan.rows, plan.rows), Steps(j * plan.columns, plan.columns)

    def _dropout(self, p, i, j):
        number = i * self.plan.column_blocks + j  # another pattern for each block
        seed = ops.stack([self.seed[0], self.seed[1] + number])
        return block.dropout_scale(ops.shape(p), self.plan.dropout_rate, seed)

    # Which blocks meet: a run of blocks, split into those that the mask cuts and those it does not.

    def _over_columns(self, i, body, state):
        """Visits the blocks of keys that block i of queries can see."""
        plan, (before, after) = self.plan, self.plan.reach
        first = i * plan.rows + plan.offset
        limits = _limits(first, plan.rows, plan.columns, plan.column_blocks, before, after, 0)
        return self._visit(limits, body, state)

    def _over_rows(self, j, body, state):
        """Visits the blocks of queries that can see block j of keys."""
        plan, (before, after) = self.plan, self.plan.reach
        first = j * plan.columns
        limits = _limits(
            first, plan.columns, plan.rows, plan.row_blocks, after, before, plan.offset
        )
        return self._visit(limits, body, state)

    def _visit(self, limits, body, state):
        lower, clear_from, clear_to, upper = limits
        cut = functools.partial(body, masked=True)
        if self.mask is None:
            return backend.loop(lower, upper, functools.partial(body, masked=False), state)
        if not self.mask.is_band:
            return backend.loop(lower, upper, cut, state)
        if clear_from is not lower:
            state = backend.loop(lower, clear_from, cut, state)
        state = backend.loop(clear_from, clear_to, functools.partial(body, masked=False), state)
        return state if clear_to is upper else backend.loop(clear_to, upper, cut, state)

    # The gradient of a bias, a block of which is written at a time.

    def _bias_blocks(self):
        """(blocks, length) along T and S; an axis of length 1 is one block."""
        plan, (queries, keys) = self.plan, self.bias.shape[-2:]
        rows = (1, 1) if queries == 1 else (plan.row_blocks, plan.rows)
        columns = (1, 1) if keys == 1 else (plan.column_blocks, plan.columns)
        return rows, columns

    def _zero_bias_blocks(self):
        (row_blocks, rows), (column_blocks, columns) = self._bias_blocks()
        return ops.zeros((row_blocks * column_blocks, *ops.shape(self.bias)[:-2], rows, columns))

    def _add_to_bias(self, gradient, dz, i, j):
        _, (column_blocks, _) = self._bias_blocks()
        shape = self.bias.shape
        axes = [a for a, n in enumerate(shape) if n == 1]
        number = (0 if shape[-2] == 1 else i) * column_blocks + (0 if shape[-1] == 1 else j)
        return backend.add_at(
            gradient, number, ops.sum(dz, axis=axes, keepdims=True) if axes else dz
        )

    def _join_bias_blocks(self, gradient):
        (row_blocks, rows), (column_blocks, columns) = self._bias_blocks()
        lead = ops.shape(self.bias)[:-2]
        gradient = ops.reshape(gradient, (row_blocks, column_blocks, *lead, rows, columns))
        gradient = ops.transpose(gradient, (2, 3, 4, 0, 5, 1, 6))
        return ops.reshape(gradient, (*lead, row_blocks * rows, column_blocks * columns))


@dataclasses.dataclass(frozen=True)
class _Length(Mask):
    """Key j exists iff j < length: the rest is there to fill the last block."""

    length: Any

    def block(self, queries, keys, offset=0):
        return keys.positions()[None, None, None, :] < self.length


def _shows_keys_behind_the_last(mask, more_keys):
    """Whether a real query could see a key that only fills the last block."""
    if isinstance(more_keys, int) and more_keys == 0:
        return False
    return mask is None or mask.reach[1] > 0


def _limits(first, size, other, count, before, after, shift):
    """Which blocks of the other axis meet the block [first, first + size): four indices.

    Blocks [lower, upper) meet it, [clear_from, clear_to) are visible whole. Positions are on
    the key axis; block b of the other axis begins at b * other + shift.
    """
    last, lower, upper = first + size - 1, 0, count
    clear_from, clear_to = lower, upper
    if before != masks.UNBOUNDED:
        lower = _clip((first - before - shift) // other, 0, count)
        clear_from = -((before - last + shift) // other)
    if after != masks.UNBOUNDED:
        upper = _clip((last + after - shift) // other + 1, lower, count)
        clear_to = (first + after + 1 - shift) // other
    clear_from = lower if before == masks.UNBOUNDED else _clip(clear_from, lower, upper)
    clear_to = upper if after == masks.UNBOUNDED else _clip(clear_to, clear_from, upper)
    return lower, clear_from, clear_to, upper


def _clip(x, lower, upper):
    if isinstance(x, int) and isinstance(lower, int) and isinstance(upper, int):
        return max(lower, min(x, upper))
    return ops.maximum(ops.minimum(x, upper), lower)


def _blocks(steps, reach):
    """Steps in a block, and the number of blocks; the blocks fill `steps` as well as they can."""
    limit = BLOCK
    if not isinstance(steps, int):
        size = ops.minimum(steps, limit)
        return size, -(-steps // size)
    count = max(1, -(-steps // limit))
    return -(-steps // count), count


def _to_blocks(x, size):
    """`(B, ..., T, D)` to `(blocks, B, ..., size, D)`, filled with zeros."""
    *lead, steps, width = ops.shape(x)
    count = -(-steps // size)
    x = ops.pad(x, [(0, 0)] * len(lead) + [(0, count * size - steps), (0, 0)])
    return ops.moveaxis(ops.reshape(x, (*lead, count, size, width)), len(lead), 0)


def _from_blocks(x):
    """The way back from `_to_blocks`, still filled."""
    count, *lead, size, width = ops.shape(x)
    return ops.reshape(ops.moveaxis(x, 0, len(lead)), (*lead, count * size, width))
