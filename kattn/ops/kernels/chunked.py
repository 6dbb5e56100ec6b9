"""`chunked`: block by block with an online softmax, and a gradient that recomputes.

Forward and backward hold one block of scores at a time, so memory is O(T * D + block^2) where
`dense` needs O(T * S). Blocks that the mask's reach rules out are never visited: half of them
under a causal mask, all but T * W / block^2 under a window of W.

Reference: Milakov and Gimelshein 2018, algorithm 3, https://arxiv.org/abs/1805.02867 (the online
softmax); Dao et al. 2022, algorithms 1 and 4, https://arxiv.org/abs/2205.14135 (the gradient).
"""

import dataclasses
import functools
import itertools
from typing import Any

from keras import ops

from kattn import backend, biases, masks
from kattn.biases import Bias
from kattn.masks import Mask
from kattn.ops import masking
from kattn.ops.kernels import block
from kattn.spans import Span

# Measured on two CPU cores at T = 4096, D = 64: 512 beats 256 by 1.2x and 128 by 1.3x.
BLOCK = 512
# The share of blocks above which leaving out the rest saves nothing to speak of.
MOST = 0.9


def unsupported(call):
    """It serves every call."""
    return


def unprofitable(call):
    """Where nothing is saved, or less time than the loop costs."""
    keys = call.key.shape[1]
    if keys is not None and keys <= BLOCK:
        return f"S={keys} keys fit in one block of {BLOCK}"
    if _visited(call) > MOST:
        batch, queries, heads = (1 if n is None else n for n in call.query.shape[:3])
        scores = batch * heads * queries * (1 if keys is None else keys)
        if backend.dense_pays(scores, dropout=call.dropout_rate > 0.0):
            return f"no block can be left out, and {scores} scores are faster made at once"
    return None


def _visited(call):
    """The share of blocks that the mask does not rule out; 1/2 or 1 where T or S is unknown."""
    queries, keys = call.query.shape[1], call.key.shape[1]
    if call.mask is None:
        return 1.0
    if queries is None or keys is None:
        return 1.0 if masks.UNBOUNDED == call.reach[0] == call.reach[1] else 0.5
    (rows, row_blocks), (columns, column_blocks) = (_blocks(n) for n in (queries, keys))
    sizes = row_blocks, column_blocks, keys - queries, rows, columns
    kinds = [kind for row in _coverage(call.mask, *sizes) for kind in row]
    return 1.0 - kinds.count(masks.NONE) / len(kinds)


def attend(call):
    """`(B, T, N, Dv)`."""
    queries, keys = ops.shape(call.query)[1], ops.shape(call.key)[1]
    rows, row_blocks = _blocks(queries)
    columns, column_blocks = _blocks(keys)
    more_queries, more_keys = row_blocks * rows - queries, column_blocks * columns - keys
    mask = call.mask
    if _shows_keys_behind_the_last(mask, more_keys):
        mask = masking.intersect(mask, _Length(keys))
    if mask is not None:
        mask = mask.padded(more_queries, more_keys)
    parts = () if call.bias is None else call.bias.parts()
    parts = tuple(_bias_in_blocks(part, rows, more_queries, more_keys) for part in parts)
    plan = _Plan(
        rows=rows,
        columns=columns,
        row_blocks=row_blocks,
        column_blocks=column_blocks,
        offset=keys - queries,
        mask=masking.without_arrays(mask),
        parts=tuple(masking.without_arrays(part) for part in parts),
        softcap=call.softcap,
        dropout_rate=call.dropout_rate,
    )
    arrays = {
        "q": _to_blocks(block.split_heads(call.query, call.groups) * call.scale, rows),
        "k": _to_blocks(block.heads_first(call.key), columns),
        "v": _to_blocks(block.heads_first(call.value), columns),
        "sinks": block.by_head(call),
        "seed": block.draw_seed(call.seed) if call.dropout_rate else None,
    }
    bias_arrays = [masking.arrays_of(part) for part in parts]
    o = _attend_blocks(plan, arrays, masking.arrays_of(mask), bias_arrays)
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
    parts: tuple[Bias, ...]  # the biases, without their arrays
    softcap: float | None
    dropout_rate: float

    @property
    def reach(self):
        return (masks.UNBOUNDED, masks.UNBOUNDED) if self.mask is None else self.mask.reach

    @functools.cached_property
    def coverage(self):
        """What the mask says of each block, `(row_blocks, column_blocks)`; None for unknown T."""
        sizes = self.row_blocks, self.column_blocks, self.offset
        if self.mask is None or not all(isinstance(size, int) for size in sizes):
            return None
        return _coverage(self.mask, *sizes, self.rows, self.columns)


@backend.compiled
def _attend_blocks(plan, arrays, mask_arrays, bias_arrays):
    """`(row_blocks, B, K, G, rows, Dv)` from blocks, with the recomputing gradient."""
    names = [name for name, array in arrays.items() if array is not None]
    sizes = [len(names), len(mask_arrays), *(len(part) for part in bias_arrays)]
    ends = list(itertools.accumulate(sizes))

    def block_of(inputs):
        named, mask_arrays, *bias_arrays = (
            inputs[end - size : end] for size, end in zip(sizes, ends, strict=True)
        )
        named = dict(zip(names, named, strict=True))
        return _Blocks(plan, named, mask_arrays, bias_arrays)

    def forward(*inputs):
        o, level = block_of(inputs).forward()
        return o, (o, level)

    def backward(inputs, residuals, do):
        gradients = block_of(inputs).backward(*residuals, do)
        of_bias = [x for part in gradients["bias"] for x in part]
        return [*(gradients.get(name) for name in names), *[None] * len(mask_arrays), *of_bias]

    run = backend.custom_gradient(forward, backward)
    flat = [array for part in bias_arrays for array in part]
    return run(*(arrays[name] for name in names), *mask_arrays, *flat)


class _Blocks:
    """The tensors of one call, a block at a time."""

    def __init__(self, plan, arrays, mask_arrays, bias_arrays):
        self.plan = plan
        self.q, self.k, self.v = arrays["q"], arrays["k"], arrays["v"]
        self.sinks, self.seed = arrays.get("sinks"), arrays.get("seed")
        self.mask = masking.with_arrays(plan.mask, mask_arrays)
        self.biases = [
            masking.with_arrays(part, its)
            for part, its in zip(plan.parts, bias_arrays, strict=True)
        ]

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
        gradients["bias"] = tuple(self._zeros_of(part) for part in self.biases)

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
                rest["bias"] = tuple(
                    self._add_to(gradient, part, dz, i, j)
                    for gradient, part in zip(rest["bias"], self.biases, strict=True)
                )
                dv = dv + block.weights_by_queries(dropped, do_i)
                return dk + block.weights_by_queries(ds, q), dv, rest

            rest = {name: x for name, x in gradients.items() if name not in ("k", "v")}
            state = self._over_rows(j, row, (ops.zeros_like(k), ops.zeros_like(v), rest))
            put_k, put_v = (
                backend.put_at(gradients[n], j, x) for n, x in zip("kv", state, strict=False)
            )
            return {**state[2], "k": put_k, "v": put_v}

        gradients = backend.loop(0, self.plan.column_blocks, column, gradients)
        gradients["bias"] = tuple(
            (self._join_blocks(part, gradient[0]),) if part.holds_scores else gradient
            for gradient, part in zip(gradients["bias"], self.biases, strict=True)
        )
        if self.sinks is not None:
            gradients["sinks"] = block.gradient_of_sinks(self.sinks, level, delta)
        return gradients

    def _logits(self, q, k, i, j, masked):
        keep = bias = None
        if masked and self.mask is not None:
            keep = self._grouped(self.mask.block(*self._steps(i, j), self.plan.offset))
        for part in self.biases:
            local = masking.with_arrays(part, self._local(part, masking.arrays_of(part), i))
            found = self._bias_of(local, i, j)
            bias = found if bias is None else bias + found
        return block.logits(q, k, keep, bias, self.softcap)

    def _grouped(self, array):
        return block.group_heads(array, self.q.shape[2], self.q.shape[3])

    def _bias_of(self, part, i, j):
        return self._grouped(part.block(*self._steps(i, j), self.plan.offset))

    def _local(self, part, arrays, i):
        """The arrays of a bias for block i of queries."""
        return [backend.take(x, i) for x in arrays] if part.is_by_query else arrays

    @property
    def softcap(self):
        return self.plan.softcap

    def _steps(self, i, j):
        plan = self.plan
        return Span(i * plan.rows, plan.rows), Span(j * plan.columns, plan.columns)

    def _dropout(self, p, i, j):
        number = i * self.plan.column_blocks + j  # another pattern for each block
        seed = ops.stack([self.seed[0], self.seed[1] + number])
        return block.dropout_scale(ops.shape(p), self.plan.dropout_rate, seed)

    # Which blocks meet: a run of blocks, split into those that the mask cuts and those it does not.

    def _over_columns(self, i, body, state):
        """Visits the blocks of keys that block i of queries can see."""
        plan, (before, after) = self.plan, self.plan.reach
        if plan.coverage is not None:
            return self._visit_listed(plan.coverage, i, body, state)
        first = i * plan.rows + plan.offset
        limits = _limits(first, plan.rows, plan.columns, plan.column_blocks, before, after, 0)
        return self._visit(limits, body, state)

    def _over_rows(self, j, body, state):
        """Visits the blocks of queries that can see block j of keys."""
        plan, (before, after) = self.plan, self.plan.reach
        if plan.coverage is not None:
            return self._visit_listed(list(zip(*plan.coverage, strict=True)), j, body, state)
        first = j * plan.columns
        limits = _limits(
            first, plan.columns, plan.rows, plan.row_blocks, after, before, plan.offset
        )
        return self._visit(limits, body, state)

    def _visit_listed(self, coverage, i, body, state):
        """Visits the blocks that row i of `coverage` does not rule out."""
        for kind in (masks.SOME, masks.ALL):
            rows = [[j for j, each in enumerate(row) if each == kind] for row in coverage]
            if any(rows):
                visit = functools.partial(body, masked=kind == masks.SOME)
                state = backend.loop_over(rows, i, visit, state)
        return state

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

    # The gradients of biases. That of an array of scores is written a block at a time; others are
    # sums over blocks, or over the blocks of a row where the numbers are each query's own.

    def _zeros_of(self, part):
        if not part.holds_scores:
            return tuple(ops.zeros_like(x) for x in masking.arrays_of(part))
        (row_blocks, rows), (column_blocks, columns) = self._bias_blocks(part)
        lead = ops.shape(part.array)[:-2]
        return (ops.zeros((row_blocks * column_blocks, *lead, rows, columns)),)

    def _add_to(self, gradients, part, dz, i, j):
        """The gradients of a bias with those of block (i, j), given that of its logits."""
        if part.holds_scores:
            return (self._put_into(gradients[0], part, dz, i, j),)
        arrays = masking.arrays_of(part)
        if not arrays:
            return gradients

        def spread(*arrays):
            found = self._bias_of(masking.with_arrays(part, arrays), i, j)
            return ops.broadcast_to(found, ops.shape(dz))

        found = backend.vjp(spread, self._local(part, arrays, i), dz)
        if part.is_by_query:
            return tuple(backend.add_at(x, i, y) for x, y in zip(gradients, found, strict=True))
        return tuple(x + y for x, y in zip(gradients, found, strict=True))

    def _put_into(self, gradient, part, dz, i, j):
        _, (column_blocks, _) = self._bias_blocks(part)
        shape = part.array.shape
        batch, heads, groups, rows, columns = ops.shape(dz)
        dz = ops.reshape(dz, (batch, heads * groups, rows, columns))
        axes = [a for a, n in enumerate(shape) if n == 1]
        dz = ops.sum(dz, axis=axes, keepdims=True) if axes else dz
        number = (0 if shape[-2] == 1 else i) * column_blocks + (0 if shape[-1] == 1 else j)
        return backend.add_at(gradient, number, dz)

    def _bias_blocks(self, part):
        """(blocks, length) along T and S; an axis of length 1 is one block."""
        plan, (queries, keys) = self.plan, part.array.shape[-2:]
        rows = (1, 1) if queries == 1 else (plan.row_blocks, plan.rows)
        columns = (1, 1) if keys == 1 else (plan.column_blocks, plan.columns)
        return rows, columns

    def _join_blocks(self, part, gradient):
        (row_blocks, rows), (column_blocks, columns) = self._bias_blocks(part)
        lead = ops.shape(part.array)[:-2]
        gradient = ops.reshape(gradient, (row_blocks, column_blocks, *lead, rows, columns))
        gradient = ops.transpose(gradient, (2, 3, 0, 4, 1, 5))
        return ops.reshape(gradient, (*lead, row_blocks * rows, column_blocks * columns))


def _bias_in_blocks(part, rows, more_queries, more_keys):
    """A bias whose arrays are filled up, and in blocks of queries where it has queries."""
    if isinstance(part, biases.Dense):
        part = part.padded(more_queries, more_keys)
        return part.map_arrays(lambda x: ops.cast(x, "float32"))
    if part.is_by_query:
        return part.map_arrays(lambda x: _to_blocks(ops.cast(x, "float32"), rows))
    return part


@dataclasses.dataclass(frozen=True)
class _Length(Mask):
    """Key j exists iff j < length: the rest is there to fill the last block."""

    length: Any

    def block(self, queries, keys, offset=0):
        return keys.along(-1) < self.length

    def coverage(self, rows, columns):
        return masks.Prefix(self.length).coverage(rows, columns)


def _shows_keys_behind_the_last(mask, more_keys):
    """Whether a real query could see a key that only fills the last block."""
    if isinstance(more_keys, int) and more_keys == 0:
        return False
    return mask is None or mask.reach[1] > 0


def _coverage(mask, row_blocks, column_blocks, offset, rows, columns):
    """`Mask.coverage` of each block of the scores, a list for each block of queries."""
    found = []
    for i in range(row_blocks):
        block_rows = i * rows + offset, (i + 1) * rows + offset - 1
        starts = range(0, column_blocks * columns, columns)
        found.append([mask.coverage(block_rows, (j, j + columns - 1)) for j in starts])
    return found


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


def _blocks(steps):
    """Span in a block, and the number of blocks; the blocks fill `steps` as well as they can."""
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
