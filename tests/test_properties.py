"""What holds for any masks, biases, options and sizes: hypothesis looks for counterexamples.

A default run tries some cases of each property, the same ones every time. `KATTN_EXAMPLES=5000`
tries as many of each, others every time. JAX compiles each case, which takes nearly all of its
time, and TensorFlow is slower than PyTorch, so that by default they get fewer of them.
"""

import os

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kattn import masks
from kattn.ops import KVCache, RingCache, attention, decode, empty_cache, explain
from kattn.ops.kernels import banded, frames, tiles
from kattn.spans import Places, Span
from tests import oracle, rules
from tests.compute import assert_close, run

BACKEND = keras.backend.backend()
EXAMPLES = os.environ.get("KATTN_EXAMPLES")
LESS = {"jax": 5, "tensorflow": 2}  # how many times fewer cases a backend gets by default


def examples(count):
    return settings(
        max_examples=int(EXAMPLES or count // LESS.get(BACKEND, 1)),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


B = 2
# (T, S, N, K, D, Dv): blocks of 5 and of 3 fill them up or do not; grouped heads or not; T < S,
# T > S and one query; and values as wide as keys, which some kernels want.
SIZES = [
    (14, 14, 4, 2, 4, 6),
    (6, 11, 4, 2, 4, 4),
    (11, 6, 3, 1, 5, 2),
    (1, 9, 2, 1, 4, 4),
    (14, 14, 4, 2, 4, 4),
]
GRID = (7, 2)  # 14 cells
KERNELS = ("dense", "chunked", "banded") + (() if BACKEND == "tensorflow" else ("fused",))
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few steps and parts of one head, so that small inputs have many."""
    monkeypatch.setattr(tiles, "BLOCK", 5)
    monkeypatch.setattr(frames, "NARROWEST", 3)
    monkeypatch.setattr(banded, "MANY", 1)


def evaluate(function, *inputs):
    """As NumPy."""
    return run(at_once(function), *inputs)


def at_once(function):
    """The function; on JAX compiled, which is quicker than to compile each of its operations."""
    if BACKEND != "jax":
        return function
    import jax

    return jax.jit(function)


# What is drawn.


generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
shares = st.sampled_from([0.5, 0.0, 0.15, 0.85, 1.0])


@st.composite
def booleans(draw, shape):
    """An array with a drawn share of True."""
    return draw(generators).random(shape) < draw(shares)


@st.composite
def numbers(draw, shape):
    """A float32 array, normal."""
    return draw(generators).normal(size=shape).astype("float32")


@st.composite
def broadcast_shapes(draw, sizes):
    """`sizes` `(B, N, T, S)` with some axes 1, or the last two of them."""
    shape = tuple(draw(st.sampled_from([size, 1])) for size in sizes)
    return shape[draw(st.sampled_from([0, 2])) :]


@st.composite
def segment_ids(draw, keys):
    """`(B, S)`: runs, which may repeat, and padding."""
    rng, count = draw(generators), draw(st.integers(1, 4))
    ids = np.sort(rng.integers(0, count, (B, keys)), axis=1)
    ids = rng.permuted(ids, axis=1) if draw(st.booleans()) else ids
    return np.where(draw(booleans((B, keys))), ids, -1).astype("int32")


def bands(keys):
    counts = st.integers(1, 4)
    sizes = st.sampled_from([3, 4, *range(1, keys + 2)])
    return st.one_of(sizes.map(rules.window), st.builds(rules.dilated, counts, counts))


def leaves(sizes, *, arrays_of_scores=True):
    """A mask of one kind."""
    _, _, queries, keys = sizes
    found = [
        st.builds(rules.causal),
        bands(keys),
        st.integers(1, keys).map(rules.prefix),
        generators.map(lambda rng: rules.prefix(rng.integers(0, keys + 1, B, "int32"))),
        st.lists(st.integers(0, keys), min_size=1, max_size=3).map(rules.global_tokens),
        booleans((B, keys)).map(rules.padding),
    ]
    if queries <= keys:
        found.append(segment_ids(keys).map(rules.segments))
    if arrays_of_scores:
        found.append(broadcast_shapes(sizes).flatmap(booleans).map(rules.dense))
    return st.one_of(found)


def expressions(sizes, **options):
    """Masks joined by &, | and ~."""

    def joined(parts):
        return st.one_of(
            st.builds(rules.both, parts, parts),
            st.builds(rules.either, parts, parts),
            parts.map(rules.opposite),
        )

    return st.recursive(leaves(sizes, **options), joined, max_leaves=5)


@st.composite
def native(draw, sizes):
    """Masks that a framework's kernel may know by their names."""
    keys = sizes[3]
    lengths = generators.map(lambda rng: rules.prefix(rng.integers(0, keys + 1, B, "int32")))
    known = st.one_of(st.builds(rules.causal), bands(keys), lengths)
    rule = draw(known)
    for other in draw(st.lists(known, max_size=2)):
        rule = rules.both(rule, other)
    return rule


@st.composite
def windows(draw, sizes):
    """Masks with a window on both sides and no T x S array: those that `banded` serves."""
    band = draw(bands(sizes[3]))
    if draw(st.booleans()):
        band = rules.either(draw(bands(sizes[3])), band)
    rest = draw(st.one_of(st.none(), expressions(sizes, arrays_of_scores=False)))
    if rest is None:
        return band
    return rules.both(rest, band) if draw(st.booleans()) else rules.both(band, rest)


@st.composite
def scores(draw, sizes, *, arrays_of_scores=True, by_query=True):
    """Sums of biases."""
    _, heads, queries, keys = sizes
    either_heads = st.sampled_from([heads, 1])
    odd, even = st.sampled_from([5, 29, 1, 9]), st.sampled_from([8, 4, 10])
    distances = st.sampled_from([6, 9, 20])
    tables = st.tuples(either_heads, odd)
    found = [
        numbers((heads,)).map(rules.alibi),
        numbers((heads,)).map(rules.fixed_alibi),
        tables.flatmap(numbers).map(rules.clipped),
        st.builds(
            rules.t5,
            st.tuples(st.just(heads), even).flatmap(numbers),
            distances,
            bidirectional=st.booleans(),
        ),
    ]
    if by_query:
        found.append(numbers((B, heads, queries, 5)).map(rules.clipped))
    if by_query and queries == keys == 14:
        ranges = {axes: np.prod([2 * GRID[a] - 1 for a in axes]) for axes in ((0, 1), (0,), (1,))}
        axes = draw(st.sampled_from(list(ranges)))
        shapes = st.sampled_from([(heads, ranges[axes]), (B, heads, 14, ranges[axes])])
        found.append(st.builds(rules.grid, shapes.flatmap(numbers), st.just(GRID), st.just(axes)))
    if arrays_of_scores:
        arrays = broadcast_shapes(sizes).flatmap(numbers)
        found += [arrays.map(rules.array), arrays.map(_often_infinite).map(rules.array)]
    parts = draw(st.lists(st.one_of(found), min_size=1, max_size=3))
    return rules.total(*parts)


def _often_infinite(values):
    return np.where(values < 0.5, values, np.float32(-np.inf))


class Case:
    """Arguments of one call of `attention`, and what they mean."""

    def __init__(self, sizes, rule, score, options, dtype, rng):
        queries, keys, heads, key_heads, width, value_width = sizes
        shapes = (queries, heads, width), (keys, key_heads, width), (keys, key_heads, value_width)
        self.inputs = [rounded(rng.normal(size=(B, *shape)), dtype) for shape in shapes]
        self.size = B, heads, queries, keys
        self.rule, self.score, self.options, self.dtype = rule, score, options, dtype
        self.bias = None if score is None else score.table(*self.size)
        self.keep = rule.table(*self.size)
        if score is not None:
            self.keep &= np.isfinite(self.bias)
            self.bias = np.where(self.keep, self.bias, 0.0)

    def __repr__(self):
        shapes = [x.shape for x in self.inputs]
        return f"{shapes} {self.dtype} {self.rule} {self.score} {self.options}"

    def arguments(self):
        bias = None if self.score is None else self.score.bias
        return {"mask": self.rule.mask, "bias": bias, **self.options}

    def attend(self, kernel, *others):
        """The output for the inputs, and for each of the others."""

        def call(*tensors):
            tensors = [keras.ops.cast(x, self.dtype) for x in tensors]
            found = attention(*tensors, implementation=kernel, **self.arguments())
            assert keras.backend.standardize_dtype(found.dtype) == self.dtype
            return keras.ops.cast(found, "float32")

        call = at_once(call)
        return [
            run(call, *map(keras.ops.convert_to_tensor, inputs))
            for inputs in (self.inputs, *others)
        ]

    def expected(self):
        return oracle.attention(*self.inputs, keep=self.keep, bias=self.bias, **self.options)[0]


def rounded(x, dtype):
    """float32 numbers that `dtype` holds."""
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return x.astype(dtype).astype("float32")


@st.composite
def cases(draw, kernel):
    """Calls that the kernel serves."""
    of_jax = kernel == "fused" and BACKEND == "jax"  # which wants values as wide as keys
    sizes = draw(st.sampled_from([n for n in SIZES if n[4] == n[5]] if of_jax else SIZES))
    queries, keys, heads = sizes[:3]
    whole = B, heads, queries, keys
    if kernel == "banded":
        rule = draw(windows(whole))
    else:
        kinds = expressions(whole), windows(whole), native(whole), st.builds(rules.everything)
        rule = draw(st.one_of(kinds))
    biases = scores(whole, arrays_of_scores=kernel != "banded")
    score = draw(st.one_of(st.none(), biases))
    options = {"scale": draw(st.sampled_from([None, 0.3, 1.0]))}
    if kernel != "fused":
        options["softcap"] = draw(st.sampled_from([None, 0.8, 5.0]))
        options["sinks"] = draw(st.one_of(st.none(), numbers((heads,))))
    # On CPU, XLA does not compile the product of float16 that this kernel asks for.
    dtypes = DTYPES[:2] if of_jax else DTYPES
    if kernel == "fused" and score is not None:
        dtypes = DTYPES[:1]  # it would round the bias to the dtype of the query
    case = Case(sizes, rule, score, options, draw(st.sampled_from(dtypes)), draw(generators))
    explain(
        *case.inputs, implementation=kernel, **case.arguments()
    )  # raises where it does not serve
    return case


@pytest.mark.parametrize("kernel", KERNELS)
@examples(40)
@given(data=st.data())
def test_the_output_is_the_oracles(kernel, data):
    case = data.draw(cases(kernel))
    (found,) = case.attend(kernel)
    assert_close(found, case.expected(), TOLERANCE[case.dtype])
    unseen = ~case.keep.any(-1).swapaxes(1, 2)  # (B, T, N)
    assert not found[unseen].any()


@pytest.mark.parametrize("kernel", KERNELS)
@examples(25)
@given(data=st.data())
def test_what_is_not_seen_changes_nothing(kernel, data):
    """Nothing at all: a masked key of any size leaves the output as it is, bit by bit."""
    case = data.draw(cases(kernel))
    b, j = data.draw(st.integers(0, B - 1)), data.draw(st.integers(0, case.size[3] - 1))
    size = data.draw(st.sampled_from([1.0, 100.0, 1e4]))
    rng = data.draw(generators)
    q, k, v = (x.copy() for x in case.inputs)
    for x in (k, v):
        x[b, j] = rounded(size * rng.choice([-1.0, 1.0], x[b, j].shape), case.dtype)
    before, after = case.attend(kernel, [q, k, v])
    sees = case.keep[..., j].swapaxes(1, 2) & (np.arange(B) == b)[:, None, None]  # (B, T, N)
    np.testing.assert_array_equal(after[~sees], before[~sees])


# Masks and biases by themselves.


@st.composite
def wholes(draw):
    """(B, N, T, S)."""
    queries, keys, heads = draw(st.sampled_from(SIZES))[:3]
    return B, heads, queries, keys


@st.composite
def blocks(draw, size, *, longest=4):
    """(start, length) of a run of `size` steps."""
    length = min(draw(st.sampled_from([1, longest])), size)
    return draw(st.integers(0, size - length)), length


def evaluate_blocks(functions):
    """The arrays that these give, computed together."""
    return evaluate(lambda: [function() for function in functions])


def over_all(thing, sizes):
    _, _, queries, keys = sizes
    return thing.block(Span(0, queries), Span(0, keys), keys - queries)


def cut(table, rows, columns):
    return table[:, :, rows[0] : sum(rows), columns[0] : sum(columns)]


@examples(60)
@given(data=st.data())
def test_a_block_is_that_of_the_rule(data):
    """The whole is what Python says, and a block is a part of it: rows, keys, runs, places."""
    sizes = data.draw(wholes())
    rule = data.draw(expressions(sizes))
    check_blocks(data, rule.mask, rule.table(*sizes), sizes, lambda queries: rule.mask)


@examples(60)
@given(data=st.data())
def test_a_block_is_that_of_the_bias(data):
    sizes = data.draw(wholes())
    score = data.draw(scores(sizes))
    bias = score.bias
    check_blocks(data, bias, score.table(*sizes), sizes, bias.at)


def check_blocks(data, thing, table, sizes, at):
    _, _, queries, keys = sizes
    offset, rng = keys - queries, data.draw(generators)
    rows, columns = data.draw(blocks(queries)), data.draw(blocks(keys, longest=5))
    starts = [np.array([steps[0], 0], "int32") for steps in (rows, columns)]
    at_places = [rng.integers(0, n, (B, m)).astype("int32") for n, m in ((queries, 2), (keys, 3))]

    def block():
        return at(Span(*rows)).block(Span(*rows), Span(*columns), offset)

    def runs():
        tensors = map(keras.ops.convert_to_tensor, starts)
        several = [Span(x, n) for x, (_, n) in zip(tensors, (rows, columns), strict=True)]
        return at(several[0]).block(*several, offset)

    def places():
        several = [Places(keras.ops.convert_to_tensor(x)) for x in at_places]
        return at(several[0]).block(*several, offset)

    functions = [lambda: over_all(thing, sizes), block, places]
    expected = [table, cut(table, rows, columns)]
    i, j = at_places
    expected.append(np.stack([table[b][:, i[b]][:, :, j[b]] for b in range(B)]))
    # Nobody takes several runs of a T x S array; and biases want runs that move alike.
    if not thing.holds_scores and (rows[0] == columns[0] or table.dtype == bool):
        functions.append(runs)
        first = cut(table, (0, rows[1]), (0, columns[1]))
        expected.append(np.stack([expected[1], first]))
    compare = np.testing.assert_array_equal if table.dtype == bool else _assert_near
    for found, wanted in zip(evaluate_blocks(functions), expected, strict=True):
        compare(np.broadcast_to(found, wanted.shape), wanted)


def _assert_near(actual, expected):
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    assert_close(np.where(finite, actual, 0.0), np.where(finite, expected, 0.0))


@examples(60)
@given(data=st.data())
def test_laws_of_the_algebra(data):
    """De Morgan's, the double negation, and the distributive law, for blocks and coverage."""
    sizes = data.draw(wholes())
    a, b, c = (data.draw(leaves(sizes)).mask for _ in range(3))
    rows, columns = data.draw(blocks(sizes[2])), data.draw(blocks(sizes[3], longest=5))
    shift = sizes[3] - sizes[2]
    ends = (rows[0] + shift, sum(rows) - 1 + shift), (columns[0], sum(columns) - 1)
    pairs = [(~(a & b), ~a | ~b), (~(a | b), ~a & ~b), (~~a, a), (a & (b | c), (a & b) | (a & c))]

    def block(mask):
        found = mask.block(Span(*rows), Span(*columns), shift)
        return keras.ops.broadcast_to(found, (*sizes[:2], rows[1], columns[1]))

    found = evaluate_blocks([lambda mask=mask: block(mask) for pair in pairs for mask in pair])
    np.testing.assert_array_equal(found[::2], found[1::2])
    for left, right in pairs:
        assert left.coverage(*ends) == right.coverage(*ends)


@examples(150)
@given(data=st.data())
def test_coverage_and_reach_never_lie(data):
    sizes = data.draw(wholes())
    rule = data.draw(expressions(sizes))
    _, _, queries, keys = sizes
    table, shift = rule.table(*sizes), keys - queries
    for _ in range(4):
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, queries - 1)] * 2)))
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, keys - 1)] * 2)))
        shown = table[:, :, first : last + 1, start : end + 1]
        kind = rule.mask.coverage((first + shift, last + shift), (start, end))
        assert kind != masks.NONE or not shown.any()
        assert kind != masks.ALL or shown.all()
    before, after = rule.mask.reach
    distance = np.arange(queries)[:, None] + shift - np.arange(keys)
    inside = (distance <= before) & (-distance <= after)
    assert not table[:, :, ~inside].any()
    if rule.mask.is_band:
        assert table[:, :, inside].all()


@examples(100)
@given(data=st.data())
def test_coverage_of_one_static_rule_is_exact(data):
    """Else a kernel would visit blocks for nothing; blocks lie within the positions there are."""
    sizes = data.draw(wholes())
    rule = data.draw(leaves(sizes, arrays_of_scores=False))
    assume(not _holds_arrays(rule.mask))
    _, _, queries, keys = sizes
    table, shift = rule.table(*sizes), keys - queries
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, queries - 1)] * 2)))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, keys - 1)] * 2)))
    shown = table[:, :, first : last + 1, start : end + 1]
    kind = rule.mask.coverage((first + shift, last + shift), (start, end))
    assert (kind == masks.NONE) == (not shown.any())
    if not isinstance(rule.mask, masks.Global):  # several of which may cover a block together
        assert (kind == masks.ALL) == shown.all()


def _holds_arrays(mask):
    found = []
    mask.map_arrays(found.append)
    return bool(found)


@examples(40)
@given(data=st.data())
def test_padding_a_mask_and_saving_it_change_nothing(data):
    sizes = data.draw(wholes())
    rule = data.draw(expressions(sizes))
    table = rule.table(*sizes)
    more = data.draw(st.sampled_from([(0, 0), (3, 2), (0, 4), (4, 0)]))
    config = keras.saving.serialize_keras_object(rule.mask)
    again = keras.saving.deserialize_keras_object(config)
    functions = [
        lambda: over_all(rule.mask.padded(*more), sizes),
        lambda: over_all(again, sizes),
    ]
    for found in evaluate_blocks(functions):
        np.testing.assert_array_equal(np.broadcast_to(found, table.shape), table)


# Decoding.

HEADS, KEY_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 4, 6
POSITIONS = 12  # of the arrays of masks and biases


@st.composite
def pieces(draw, room, most):
    """Lengths of pieces, and which of their steps are real, `(B, t)`: at most `room` an item."""
    lengths = draw(st.lists(st.sampled_from([1, 3, 2, 5]), min_size=1, max_size=most))
    steps = sum(lengths)
    real = np.ones((B, steps), bool) if draw(st.booleans()) else draw(booleans((B, steps)))
    real &= np.cumsum(real, axis=1) <= room
    return lengths, real


class Decoding:
    """Steps that come in pieces, and attention over all of them."""

    def __init__(self, lengths, real, rule, score, by_query, options, dtype, rng):
        self.lengths, self.real, self.options, self.dtype = lengths, real, options, dtype
        self.rule, self.score, self.by_query = rule, score, by_query
        shapes = (HEADS, WIDTH), (KEY_HEADS, WIDTH), (KEY_HEADS, VALUE_WIDTH)
        self.inputs = [
            rounded(rng.normal(size=(B, real.shape[1], *shape)), dtype) for shape in shapes
        ]

    def __repr__(self):
        return (
            f"{self.lengths} {self.real.astype(int)} {self.dtype} {self.rule} {self.score} "
            f"by_query={self.by_query is not None} {self.options}"
        )

    def decode(self, kind, size):
        """The output, and the length of the cache after the last piece."""
        starts = np.cumsum([0, *self.lengths[:-1]])
        widths = {"key_dim": WIDTH, "value_dim": VALUE_WIDTH}

        def call(*tensors):
            cache = empty_cache(kind, B, size, heads=KEY_HEADS, dtype=self.dtype, **widths)
            tensors = [keras.ops.cast(x, self.dtype) for x in tensors]
            found = []
            for start, length in zip(starts, self.lengths, strict=True):
                here = slice(start, start + length)
                y, cache = decode(*(x[:, here] for x in tensors), cache, **self.arguments(here))
                found.append(keras.ops.cast(y, "float32"))
            return keras.ops.concatenate(found, axis=1), cache.length

        return evaluate(call, *map(keras.ops.convert_to_tensor, self.inputs))

    def arguments(self, here):
        bias = None if self.score is None else self.score.bias
        if self.by_query is not None:
            position = np.maximum(np.cumsum(self.real, axis=1) - 1, 0)[:, None, here, None]
            own = rules.clipped(np.take_along_axis(self.by_query, position, axis=2)).bias
            bias = own if bias is None else bias + own
        real = None if self.real.all() else keras.ops.convert_to_tensor(self.real[:, here])
        return {"real": real, "mask": self.rule.mask, "bias": bias, **self.options}

    def expected(self):
        """Each item's real steps, put together, then back at their places; 0 at padding."""
        shape = B, HEADS, POSITIONS, POSITIONS
        keep, bias = self.rule.table(*shape), np.zeros(shape)
        if self.score is not None:
            bias = self.score.table(*shape)
        if self.by_query is not None:
            bias = bias + rules.clipped(self.by_query).table(*shape)
        keep &= np.isfinite(bias)
        bias = np.where(keep, bias, 0.0)
        output = np.zeros((*self.inputs[0].shape[:3], VALUE_WIDTH))
        for b, real in enumerate(self.real):
            n = real.sum()
            tensors = [x[b : b + 1, real] for x in self.inputs]
            rest = {"keep": keep[b : b + 1, :, :n, :n], "bias": bias[b : b + 1, :, :n, :n]}
            output[b, real] = oracle.attention(*tensors, **rest, **self.options)[0][0]
        return output


@st.composite
def decodings(draw, room, rule, most=4 if BACKEND == "jax" else 7):
    """`room` real steps at most, in `most` pieces at most, under `rule`."""
    lengths, real = draw(pieces(room, most))
    sizes = B, HEADS, POSITIONS, POSITIONS
    score = draw(st.one_of(st.none(), scores(sizes, by_query=False)))
    by_query = draw(st.one_of(st.none(), numbers((B, HEADS, POSITIONS, 5))))
    options = {
        "scale": draw(st.sampled_from([None, 0.3])),
        "softcap": draw(st.sampled_from([None, 0.8])),
        "sinks": draw(st.one_of(st.none(), numbers((HEADS,)))),
    }
    dtype = draw(st.sampled_from(DTYPES))
    return Decoding(lengths, real, rule, score, by_query, options, dtype, draw(generators))


def check_decoding(case, kind, size):
    found, length = case.decode(kind, size)
    assert_close(found, case.expected(), TOLERANCE[case.dtype])
    assert not found[~case.real].any()
    np.testing.assert_array_equal(length, case.real.sum(axis=1))


@examples(40)
@given(data=st.data())
def test_decoding_in_pieces_is_attention(data):
    room = data.draw(st.sampled_from([POSITIONS, 5]))
    sizes = B, HEADS, POSITIONS, POSITIONS
    rest = data.draw(st.one_of(st.builds(rules.everything), expressions(sizes)))
    rule = rules.causal() if rest.mask is None else rules.both(rules.causal(), rest)
    case = data.draw(decodings(room, rule))
    check_decoding(case, KVCache, room)


@examples(20)
@given(data=st.data())
def test_steps_of_one_piece_may_see_each_other(data):
    """And never the places of the cache that hold nothing, which no causal mask hides here."""
    rule = data.draw(expressions((B, HEADS, POSITIONS, POSITIONS)))
    check_decoding(data.draw(decodings(POSITIONS, rule, most=1)), KVCache, POSITIONS)


@examples(40)
@given(data=st.data())
def test_decoding_with_a_ring_is_attention_in_a_window(data):
    size = data.draw(st.sampled_from([3, 4]))
    seen = rules.window(data.draw(st.integers(1, size)))
    sizes = B, HEADS, POSITIONS, POSITIONS
    rest = data.draw(st.one_of(st.builds(rules.everything), expressions(sizes)))
    rule = rules.both(rules.causal(), seen)
    rule = rule if rest.mask is None else rules.both(rule, rest)
    case = data.draw(decodings(POSITIONS, rule))
    check_decoding(case, RingCache, size)
