"""What every bias must do, given what it adds: the whole bias as an array."""

import keras
import numpy as np

from kattn import biases
from kattn.ops import masking
from kattn.spans import Places, Span
from tests.compute import assert_close, run

# B = 2 items, N = 3 heads, T = 6 queries, S = 8 keys (grids have their own number of keys).
T, S = 6, 8
RNG = np.random.default_rng(0)
SLOPES = (0.5, 0.25, 0.125)
TABLE = RNG.normal(size=(3, 9)).astype("float32")
BY_QUERY = RNG.normal(size=(2, 3, T, 7)).astype("float32")
BUCKETS = RNG.normal(size=(3, 10)).astype("float32")
ARRAY = RNG.normal(size=(2, 3, T, S)).astype("float32")


def each(rule, keys=S):
    """`(2, 3, T, S)` of a rule (item, head, query, key), the query at position i + S - T."""
    numbers = [
        [[[rule(b, n, i, j) for j in range(keys)] for i in range(T)] for n in range(3)]
        for b in range(2)
    ]
    return np.array(numbers, np.float64)


def case(cases, name):
    """A bias of a dict, made by a function where it holds tensors, and what it adds."""
    bias, expected = cases[name]
    return (bias if isinstance(bias, biases.Bias) else bias()), expected


def offset_of(bias, expected):
    """S - T, which a grid does not go by."""
    return 0 if isinstance(bias, biases.GridTable) else expected.shape[-1] - T


def check_block_is_the_rule(bias, expected):
    keys = expected.shape[-1]
    bias.check(2, 3, T, keys)
    found = run(bias.block, Span(0, T), Span(0, keys), offset_of(bias, expected))
    assert found.dtype == "float32"
    assert_close(np.broadcast_to(found, expected.shape), expected)


def check_block_of_a_block(bias, expected):
    for rows in (1, 3):
        for columns in (1, 2):
            spans = Span(2, rows), Span(0, columns)
            found = run(bias.at(spans[0]).block, *spans, offset_of(bias, expected))
            wanted = expected[:, :, 2 : 2 + rows, :columns]
            assert_close(np.broadcast_to(found, wanted.shape), wanted)


def check_several_runs_at_once(bias, expected):
    if bias.holds_scores:
        return  # kernels that take all blocks at once serve no arrays of scores
    starts = np.array([0, 1, 3], "int32")
    few = expected.shape[-1] == 2  # keys of a strided grid: their starts do not move alike
    size = 1 if few else 2
    rows, columns = Span(starts, 3), Span(starts // 3 if few else starts, size)
    found = run(lambda: bias.at(rows).block(rows, columns, offset_of(bias, expected)))
    pairs = zip(starts, columns.start, strict=True)
    wanted = np.stack([expected[:, :, i : i + 3, j : j + size] for i, j in pairs])
    assert_close(np.broadcast_to(found, wanted.shape), wanted)


def check_places_are_positions_item_by_item(bias, expected):
    if bias.holds_scores:
        return
    rows, columns = np.array([[2, 0], [4, 1]]), np.array([[1, 0], [0, 1]])
    queries, keys = (Places(keras.ops.convert_to_tensor(x, "int32")) for x in (rows, columns))
    found = run(lambda: bias.at(queries).block(queries, keys, offset_of(bias, expected)))
    found = np.broadcast_to(found, (2, 3, 2, 2))
    for b in range(2):
        assert_close(found[b], expected[b][:, rows[b]][:, :, columns[b]])


def check_padded_biases_add_the_same(bias, expected):
    keys = expected.shape[-1]
    padded = bias.padded(3, 2)
    assert type(padded) is type(bias)
    rows, columns = Span(0, T), Span(0, keys)
    found = run(padded.at(rows).block, rows, columns, offset_of(bias, expected))
    assert_close(np.broadcast_to(found, expected.shape), expected)
    rows, columns = Span(0, T + 3), Span(0, keys + 2)
    run(padded.at(rows).block, rows, columns, offset_of(bias, expected))


def check_saving_changes_nothing(bias, expected):
    config = keras.saving.serialize_keras_object(bias)
    again = keras.saving.deserialize_keras_object(config)
    assert again == bias
    check_block_is_the_rule(again, expected)


def check_arrays_come_out_and_go_back(bias, expected):
    rule = masking.without_arrays(bias)
    assert hash(rule) == hash(masking.without_arrays(bias))
    assert rule == masking.without_arrays(bias)
    check_block_is_the_rule(masking.with_arrays(rule, masking.arrays_of(bias)), expected)


CHECKS = [
    check_block_is_the_rule,
    check_block_of_a_block,
    check_several_runs_at_once,
    check_places_are_positions_item_by_item,
    check_padded_biases_add_the_same,
    check_saving_changes_nothing,
    check_arrays_come_out_and_go_back,
]
CHECK_NAMES = [check.__name__.removeprefix("check_") for check in CHECKS]
