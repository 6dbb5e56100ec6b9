"""`chunked`: block by block with an online softmax, and a gradient that recomputes.

Forward and backward hold one block of scores at a time, so memory is O(T * D + block^2) where
`dense` needs O(T * S). `tiles.py` says which blocks there are, and which are left out.

Reference: Milakov and Gimelshein 2018, algorithm 3, https://arxiv.org/abs/1805.02867 (the online
softmax); Dao et al. 2022, algorithms 1 and 4, https://arxiv.org/abs/2205.14135 (the gradient).
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

from keras import ops

from kattn import backend, masks
from kattn.biases import Bias
from kattn.masks import Mask
from kattn.ops import masking
from kattn.ops.kernels import block, dropout, tiled_biases, tiles
from kattn.ops.kernels.tiled_biases import TiledBiases
from kattn.ops.kernels.tiles import Tiles, from_blocks, to_blocks
from kattn.ops.sizes import is_symbol, stands_for_any


def unsupported(call):
    """Why it cannot serve the call, or None."""
    if is_symbol(call.query.shape[1]) or is_symbol(call.key.shape[1]):
        return "the model is traced for any T and S, which cannot be cut into blocks"
    return None


def unprofitable(call):
    """Why another kernel is the better choice, or None.

    That is where nothing is saved, or less time than the loop over blocks costs.
    """
    if stands_for_any(call.query, 1):
        return "no number is computed, but the shape of the output"
    keys = call.keys
    if keys is not None and keys <= tiles.BLOCK:
        return f"S={keys} keys fit in one block of {tiles.BLOCK}"
    share = _visited(call)
    sizes = call.batch, call.queries, call.heads, keys
    scores = math.prod([1 if size is None else size for size in sizes])
    if backend.dense_pays(scores, share):
        saved = f"{1 - share:.0%} of the blocks" if share < 1 else "no block"
        return f"{saved} can be left out, and {scores} scores are faster made at once"
    return None


def _visited(call):
    """The share of blocks that the mask does not rule out; 1/2 or 1 where T or S is unknown."""
    if call.mask is None:
        return 1.0
    if None in (call.queries, call.keys):
        return 1.0 if masks.UNBOUNDED == call.reach[0] == call.reach[1] else 0.5
    coverage = Tiles.make(call.queries, call.keys, call.mask).coverage
    kinds = [kind for row in coverage for kind in row]
    return 1.0 - kinds.count(masks.NONE) / len(kinds)


def attend(call):
    """The output of attention, `(B, T, N, Dv)`."""
    queries, keys = ops.shape(call.query)[1], ops.shape(call.key)[1]
    cut = Tiles.make(queries, keys)
    more_queries = cut.row_blocks * cut.rows - queries
    more_keys = cut.column_blocks * cut.columns - keys
    mask = call.mask
    if _shows_keys_behind_the_last(mask, more_keys):
        mask = masks.intersect(mask, _Length(keys))
    if mask is not None:
        mask = mask.padded(more_queries, more_keys)
    parts = () if call.bias is None else call.bias.parts()
    parts = tuple(tiled_biases.cut(part, cut, more_queries, more_keys) for part in parts)
    plan = _Plan(
        dataclasses.replace(cut, mask=masking.without_arrays(mask)),
        tuple(masking.without_arrays(part) for part in parts),
        call.softcap,
        call.dropout_rate,
    )
    row_counters, column_counters = dropout.counters(call)
    arrays = {
        "q": to_blocks(block.split_heads(call.query, call.groups) * call.scale, cut.rows),
        "k": to_blocks(block.heads_first(call.key), cut.columns),
        "v": to_blocks(block.heads_first(call.value), cut.columns),
        "sinks": block.by_head(call),
    }
    if row_counters is not None:
        arrays["row_counters"] = to_blocks(row_counters, cut.rows)
        arrays["column_counters"] = to_blocks(column_counters, cut.columns)
    bias_arrays = [masking.arrays_of(part) for part in parts]
    o = _attend_blocks(plan, arrays, masking.arrays_of(mask), bias_arrays)
    return block.merge_heads(from_blocks(o)[..., :queries, :], call.query.dtype)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """All that is known before the tensors are: what a compiled kernel depends on."""

    tiles: Tiles  # whose mask is without its arrays
    parts: tuple[Bias, ...]  # the biases, without their arrays
    softcap: float | None
    dropout_rate: float


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
        return o, (level,)

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
        self.plan, self.tiles = plan, plan.tiles
        self.q, self.k, self.v = arrays["q"], arrays["k"], arrays["v"]
        self.sinks = arrays.get("sinks")
        self.counters = arrays.get("row_counters"), arrays.get("column_counters")
        self.mask = masking.with_arrays(self.tiles.mask, mask_arrays)
        self.heads = self.q.shape[2], self.q.shape[3]
        self.biases = TiledBiases(self.tiles, plan.parts, bias_arrays, *self.heads)

    def forward(self):
        """Output, and the log-sum-exp of each row's scores."""
        shape = (*ops.shape(self.q)[1:-1], 1)
        zeros = functools.partial(ops.zeros, dtype="float32")
        level = zeros(shape) + (block.FLOOR if self.sinks is None else self.sinks)
        total = zeros(shape) if self.sinks is None else ops.ones(shape, "float32")
        mixed = zeros((*shape[:-1], ops.shape(self.v)[-1]))

        def row(i, outputs):
            q = backend.take(self.q, i)

            def column(j, state, masked):
                level, total, mixed = state
                z, _ = self._logits(q, backend.take(self.k, j), i, j, masked)
                top = ops.maximum(level, backend.highest(z))
                shrink, p = ops.exp(level - top), backend.exp_difference(z, top)
                total = total * shrink + ops.sum(p, axis=-1, keepdims=True)
                p = dropout.drop(self._draws(i, j), p)
                mixed = mixed * shrink + block.weights_by_values(p, backend.take(self.v, j))
                return top, total, mixed

            sums = self.tiles.over_columns(i, column, (level, total, mixed))
            done = block.finish(sums, self.plan.dropout_rate)
            return tuple(backend.put_at(x, i, y) for x, y in zip(outputs, done, strict=True))

        count = self.tiles.row_blocks
        outputs = (zeros((count, *ops.shape(mixed))), zeros((count, *shape)))
        return backend.loop(0, count, row, outputs)

    def backward(self, o, level, do):
        """A gradient for q, k, v and, where given, bias and sinks."""
        delta = ops.sum(do * o, axis=-1, keepdims=True)
        if self.plan.dropout_rate:
            do = do / dropout.kept(self.plan.dropout_rate)
        gradients = {"q": ops.zeros_like(self.q), "k": ops.zeros_like(self.k)}
        gradients["v"] = ops.zeros_like(self.v)
        gradients["bias"] = self.biases.zero_gradients()

        def column(j, gradients):
            k, v = backend.take(self.k, j), backend.take(self.v, j)

            def row(i, state, masked):
                dk, dv, rest = state
                q, do_i = backend.take(self.q, i), backend.take(do, i)
                z, slope = self._logits(q, k, i, j, masked)
                p = backend.exp_difference(z, backend.take(level, i))
                dp = block.queries_by_keys(do_i, v)
                dz, p = dropout.gradient(self._draws(i, j), p, dp, backend.take(delta, i))
                dv = dv + block.weights_by_queries(p, do_i)
                ds = dz if slope is None else dz * slope
                rest = {**rest, "q": backend.add_at(rest["q"], i, block.weights_by_values(ds, k))}
                rest["bias"] = self.biases.add(rest["bias"], dz, i, j)
                return dk + block.weights_by_queries(ds, q), dv, rest

            rest = {name: x for name, x in gradients.items() if name not in ("k", "v")}
            state = self.tiles.over_rows(j, row, (ops.zeros_like(k), ops.zeros_like(v), rest))
            put_k, put_v = (
                backend.put_at(gradients[n], j, x) for n, x in zip("kv", state, strict=False)
            )
            return {**state[2], "k": put_k, "v": put_v}

        gradients = backend.loop(0, self.tiles.column_blocks, column, gradients)
        gradients["bias"] = self.biases.join(gradients["bias"])
        if self.sinks is not None:
            gradients["sinks"] = block.gradient_of_sinks(self.sinks, level, delta)
        return gradients

    def _logits(self, q, k, i, j, masked):
        keep = None
        if masked and self.mask is not None:
            keep = self.mask.block(*self.tiles.steps(i, j), self.tiles.offset)
            keep = block.group_heads(keep, *self.heads)
        return block.logits(q, k, keep, self.biases.block(i, j), self.plan.softcap)

    def _draws(self, i, j):
        """The `Draws` of block (i, j), or None without dropout."""
        rows, columns = self.counters
        if rows is None:
            return None
        counters = backend.take(rows, i), backend.take(columns, j)
        return dropout.Draws(*counters, self.plan.dropout_rate)


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
