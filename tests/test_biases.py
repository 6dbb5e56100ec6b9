import keras
import numpy as np
import pytest

from kattn import biases
from kattn.biases import T5, ALiBi, Clipped, Dense, Grid, Sum
from kattn.spans import Places, Span
from tests import oracle
from tests.compute import assert_close, run

T, S = 6, 8  # N = 3 heads, B = 2
RNG = np.random.default_rng(0)
SLOPES = (0.5, 0.25, 0.125)
TABLE = RNG.normal(size=(3, 9)).astype("float32")
BY_QUERY = RNG.normal(size=(2, 3, T, 7)).astype("float32")
BUCKETS = RNG.normal(size=(3, 10)).astype("float32")
GRID = RNG.normal(size=(3, 5 * 3)).astype("float32")  # sides (3, 2)
GRID_BY_QUERY = RNG.normal(size=(2, 3, 6, 5)).astype("float32")
ARRAY = RNG.normal(size=(2, 3, T, S)).astype("float32")


def each(rule, keys=S):
    """`(2, 3, T, S)` of a rule (item, head, query, key), the query at position i + S - T."""
    found = [
        [[[rule(b, n, i, j) for j in range(keys)] for i in range(T)] for n in range(3)]
        for b in range(2)
    ]
    return np.array(found, np.float64)


def grid_place(i, j, stride=1):
    """Coordinates on a grid of 3 x 2 cells, keys on every `stride`-th."""
    columns = -(-2 // stride)
    return (j // columns * stride - i // 2, j % columns * stride - i % 2)


CASES = {  # bias, what it is, keys
    "alibi": (ALiBi(SLOPES), each(lambda b, n, i, j: -SLOPES[n] * abs(i + 2 - j)), S),
    "learned alibi": (
        lambda: ALiBi(keras.ops.convert_to_tensor(np.float32(SLOPES))),
        each(lambda b, n, i, j: -SLOPES[n] * abs(i + 2 - j)),
        S,
    ),
    "clipped": (
        lambda: Clipped(TABLE),
        each(lambda b, n, i, j: TABLE[n, np.clip(j - i - 2, -4, 4) + 4]),
        S,
    ),
    "clipped by query": (
        lambda: Clipped(BY_QUERY),
        each(lambda b, n, i, j: BY_QUERY[b, n, i, np.clip(j - i - 2, -3, 3) + 3]),
        S,
    ),
    "t5": (
        lambda: T5(BUCKETS, max_distance=6),
        each(lambda b, n, i, j: BUCKETS[n, oracle.t5_bucket(j - i - 2, 10, 6, True)]),
        S,
    ),
    "t5, one way": (
        lambda: T5(BUCKETS, max_distance=40, bidirectional=False),
        each(lambda b, n, i, j: BUCKETS[n, oracle.t5_bucket(j - i - 2, 10, 40, False)]),
        S,
    ),
    "grid": (
        lambda: Grid(GRID, sides=(3, 2), axes=(0, 1)),
        each(
            lambda b, n, i, j: GRID[n, (grid_place(i, j)[0] + 2) * 3 + grid_place(i, j)[1] + 1], 6
        ),
        6,
    ),
    "grid by query": (
        lambda: Grid(GRID_BY_QUERY, sides=(3, 2), axes=(0,)),
        each(lambda b, n, i, j: GRID_BY_QUERY[b, n, i, grid_place(i, j)[0] + 2], 6),
        6,
    ),
    "strided grid": (
        lambda: Grid(GRID, sides=(3, 2), axes=(0, 1), stride=2),
        each(
            lambda b, n, i, j: GRID[
                n, (grid_place(i, j, 2)[0] + 2) * 3 + grid_place(i, j, 2)[1] + 1
            ],
            2,
        ),
        2,
    ),
    "dense": (lambda: Dense(ARRAY), ARRAY, S),
    "sum": (
        lambda: ALiBi(SLOPES) + Clipped(BY_QUERY) + Dense(ARRAY[:1, :, :1]),
        each(
            lambda b, n, i, j: (
                -SLOPES[n] * abs(i + 2 - j)
                + BY_QUERY[b, n, i, np.clip(j - i - 2, -3, 3) + 3]
                + ARRAY[0, n, 0, j]
            )
        ),
        S,
    ),
}


def case(name):
    bias, expected, keys = CASES[name]
    return (bias if isinstance(bias, biases.Bias) else bias()), expected, keys


def offset_of(name, keys):
    return 0 if "grid" in name else keys - T


@pytest.mark.parametrize("name", CASES)
def test_block_is_the_rule(name):
    bias, expected, keys = case(name)
    bias.check(2, 3, T, keys)
    found = run(bias.block, Span(0, T), Span(0, keys), offset_of(name, keys))
    assert found.dtype == "float32"
    assert_close(np.broadcast_to(found, expected.shape), expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("columns", [1, 2])
def test_block_of_a_block(name, rows, columns):
    bias, expected, keys = case(name)
    queries = Span(2, rows)
    found = run(lambda: bias.at(queries).block(queries, Span(0, columns), offset_of(name, keys)))
    expected = expected[:, :, 2 : 2 + rows, :columns]
    assert_close(np.broadcast_to(found, expected.shape), expected)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("dense", "sum")])
def test_several_runs_at_once(name):
    bias, expected, keys = case(name)
    starts = np.array([0, 1, 3], "int32")
    size = 1 if keys == 2 else 2
    queries, columns = Span(starts, 3), Span(starts if keys > 2 else starts // 3, size)
    found = run(lambda: bias.at(queries).block(queries, columns, offset_of(name, keys)))
    if keys == 2:
        return  # its starts do not move alike
    wanted = np.stack([expected[:, :, s : s + 3, s : s + size] for s in starts])
    assert_close(np.broadcast_to(found, wanted.shape), wanted)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("dense", "sum")])
def test_places_are_positions_item_by_item(name):
    bias, expected, keys = case(name)
    rows, columns = np.array([[2, 0], [4, 1]]), np.array([[1, 0], [0, 1]])
    queries, places = (Places(keras.ops.convert_to_tensor(x, "int32")) for x in (rows, columns))
    found = run(lambda: bias.at(queries).block(queries, places, offset_of(name, keys)))
    found = np.broadcast_to(found, (2, 3, 2, 2))
    for b in range(2):
        assert_close(found[b], expected[b][:, rows[b]][:, :, columns[b]])


def test_slices_of_equal_sequences():
    found = run(lambda: ALiBi(SLOPES)[1:3, 0:4])
    distance = np.abs(np.arange(1, 3)[:, None] - np.arange(4))
    assert_close(found[0, 1], -SLOPES[1] * distance)
    found = run(lambda: Clipped(BY_QUERY)[2:4, 1:3])
    assert_close(found[1, 2, 0, 1], BY_QUERY[1, 2, 2, 2 - 2 + 3])


def test_parts_of_a_sum():
    one, two, three = ALiBi(SLOPES), ALiBi(SLOPES[::-1]), Clipped(TABLE)
    total = Sum(one, two) + three
    assert total.parts() == (one, two, three)
    assert total.is_stationary
    assert not total.is_by_query
    assert not total.holds_scores


@pytest.mark.parametrize("name", ["alibi", "clipped", "t5", "grid"])
def test_serialisation(name):
    bias, expected, keys = case(name)
    config = keras.saving.serialize_keras_object(bias + bias)
    again = keras.saving.deserialize_keras_object(config)
    found = run(again.block, Span(0, T), Span(0, keys), offset_of(name, keys))
    assert_close(np.broadcast_to(found, expected.shape), 2 * expected)


BAD = {
    "sum": (lambda: ALiBi(SLOPES) + ARRAY, r"Both sides of `\+` must be biases.*ndarray"),
    "dense of integers": (lambda: Dense(np.ones((5, 7), bool)), "`bias` must be float.*bool"),
    "dense of rank 3": (lambda: Dense(ARRAY[0]), r"`bias` must have rank 2.*\(3, 6, 8\)"),
    "slopes": (lambda: ALiBi(0.5), r"`slopes` must be numbers \(N,\).*0\.5"),
    "heads of slopes": (
        lambda: ALiBi(SLOPES).check(2, 4, T, S),
        "`slopes` of a bias must have a row for each head, N=4.*3",
    ),
    "heads of a table": (lambda: Clipped(TABLE).check(2, 2, T, S), "`values`.*N=2.*3"),
    "heads by query": (lambda: Clipped(BY_QUERY).check(2, 2, T, S), "`values`.*N=2.*3"),
    "a grid of other sides": (
        lambda: Grid(GRID, sides=(3, 2), axes=(0, 1)).check(2, 3, 8, 6),
        r"A grid of \(3, 2\) with stride 1 has 6 steps; received: T=8",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
