import keras
import numpy as np
import pytest

from kattn import masks
from kattn.masks import (
    And,
    Causal,
    Dense,
    Dilated,
    Global,
    Not,
    Or,
    Padding,
    Prefix,
    Segments,
    Window,
)
from kattn.ops import masking
from kattn.spans import Places, Span
from tests import oracle
from tests.compute import run

KEEP = np.array([[1, 1, 1, 0, 0, 1, 1], [0] * 7], bool)
ARRAY = np.random.default_rng(1).random((2, 3, 5, 7)) > 0.4


def whole(mask, queries=5, keys=7):
    """The mask for all queries and keys, `(2, 3, T, S)`."""
    found = run(mask.block, Span(0, queries), Span(0, keys), keys - queries)
    return np.broadcast_to(found, (2, 3, queries, keys))


IDS = np.array([[0, 0, 1, 1, 1, 2, 2], [4, 4, 4, 4, 7, -1, -1]])
LENGTHS = np.array([3, 6])


def visible(rule):
    """`(2, 1, T, S)` of a rule (item, position of the query, key)."""
    return np.array(
        [[[[rule(b, i + 2, j) for j in range(7)] for i in range(5)]] for b in range(2)], bool
    )


RULES = {
    "dilated": (Dilated(3, 2), visible(lambda b, i, j: abs(i - j) in (0, 2, 4))),
    "dilated by one": (Dilated(3, 1), oracle.window(5, 7, 3)),
    "prefix": (Prefix(3), visible(lambda b, i, j: j < 3)),
    "prefixes": (lambda: Prefix(LENGTHS), visible(lambda b, i, j: j < LENGTHS[b])),
    "global": (Global([3, 0]), visible(lambda b, i, j: i in (0, 3) or j in (0, 3))),
    "segments": (
        lambda: Segments(IDS),
        visible(lambda b, i, j: IDS[b, i] == IDS[b, j] and IDS[b, j] >= 0),
    ),
    "longformer": (
        Window(2) | Global([4]),
        visible(lambda b, i, j: abs(i - j) < 2 or i == 4 or j == 4),
    ),
    "streaming": (
        Causal() & (Window(2) | Prefix(1)),
        visible(lambda b, i, j: j <= i and (i - j < 2 or j < 1)),
    ),
    "not global nor dilated": (
        ~(Global([3]) | Dilated(2, 3)),
        visible(lambda b, i, j: not (i == 3 or j == 3 or abs(i - j) in (0, 3))),
    ),
    "packed": (
        lambda: Causal() & Segments(IDS) | Prefix(1),
        visible(lambda b, i, j: j < 1 or (j <= i and IDS[b, i] == IDS[b, j] >= 0)),
    ),
    "causal": (Causal(), oracle.causal(5, 7)),
    "window": (Window(2), oracle.window(5, 7, 2)),
    "padding": (lambda: Padding(KEEP), KEEP[:, None, None]),
    "dense": (lambda: Dense(ARRAY), ARRAY),
    "dense of rank 2": (lambda: Dense(ARRAY[0, 0]), ARRAY[0, 0]),
    "and": (lambda: Causal() & Padding(KEEP), oracle.causal(5, 7) & KEEP[:, None, None]),
    "or": (lambda: Window(1) | Padding(KEEP), oracle.window(5, 7, 1) | KEEP[:, None, None]),
    "not": (lambda: ~Causal(), ~oracle.causal(5, 7)),
    "all": (
        lambda: ~(Causal() & Dense(ARRAY)) | Padding(KEEP),
        ~(oracle.causal(5, 7) & ARRAY) | KEEP[:, None, None],
    ),
}


def rule(name):
    mask, expected = RULES[name]
    return (mask if isinstance(mask, masks.Mask) else mask()), np.broadcast_to(
        expected, (2, 3, 5, 7)
    )


@pytest.mark.parametrize("name", RULES)
def test_block_is_the_rule(name):
    mask, expected = rule(name)
    np.testing.assert_array_equal(whole(mask), expected)


@pytest.mark.parametrize("name", RULES)
def test_block_of_a_block(name):
    mask, expected = rule(name)
    found = run(mask.block, Span(1, 3), Span(2, 4), 2)
    np.testing.assert_array_equal(np.broadcast_to(found, (2, 3, 3, 4)), expected[:, :, 1:4, 2:6])


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_visible_outside_the_reach(name):
    mask, expected = rule(name)
    before, after = mask.reach
    distance = np.arange(5)[:, None] + 2 - np.arange(7)
    outside = (distance > before) | (-distance > after)
    assert not expected[:, :, outside].any()


@pytest.mark.parametrize("name", RULES)
def test_a_band_is_all_that_is_within_its_reach(name):
    mask, expected = rule(name)
    if mask.is_band:
        before, after = mask.reach
        distance = np.arange(5)[:, None] + 2 - np.arange(7)
        np.testing.assert_array_equal(expected[0, 0], (distance <= before) & (-distance <= after))
    else:
        assert name not in ("causal", "window", "dilated by one")


def test_reach():
    assert (Causal() & Window(4)).reach == (3, 0)
    assert Window(4).reach == (3, 3)
    assert (Window(4) | Window(2)).reach == (3, 3)
    assert (Window(4) & Padding(KEEP)).reach == (3, 3)
    assert (~Window(4)).reach == (masks.UNBOUNDED, masks.UNBOUNDED)


@pytest.mark.parametrize("name", RULES)
def test_coverage_is_what_blocks_show(name):
    """NONE and ALL are certain, whatever arrays hold; and static rules find most of them."""
    mask, expected = rule(name)
    for rows in ((0, 1), (1, 3), (4, 4)):
        for columns in ((0, 0), (1, 2), (3, 6), (0, 6)):
            kind = mask.coverage((rows[0] + 2, rows[1] + 2), columns)
            shown = expected[:, :, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]
            assert kind != masks.NONE or not shown.any()
            assert kind != masks.ALL or shown.all()
            if name in ("causal", "window", "dilated", "sinks", "prefix", "global"):
                assert (kind == masks.NONE) == (not shown.any())
                assert (kind == masks.ALL) == shown.all()


@pytest.mark.parametrize("name", RULES)
def test_places_are_positions_item_by_item(name):
    mask, expected = rule(name)
    rows, columns = np.array([[2, 0], [4, 1]]), np.array([[6, 0, 3], [2, 5, 1]])
    queries, keys = (Places(keras.ops.convert_to_tensor(x, "int32")) for x in (rows, columns))
    found = run(mask.block, queries, keys, 2)
    found = np.broadcast_to(found, (2, 3, 2, 3))
    for b in range(2):
        np.testing.assert_array_equal(found[b], expected[b][:, rows[b]][:, :, columns[b]])


def test_positions_restart_with_each_segment():
    expected = [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 0, 0, 1]]
    np.testing.assert_array_equal(run(Segments(IDS).positions), expected)
    joined = Causal() & (Window(3) & Segments(IDS))
    np.testing.assert_array_equal(run(masking.restarts, joined), expected)
    assert masking.restarts(Causal() & Window(3)) is None
    assert masking.restarts(Causal() | Segments(IDS)) is None


BAD = {
    "dilated window": (lambda: Dilated(0, 2), "`window` of a mask must be an integer >= 1.*0"),
    "dilated step": (lambda: Dilated(2, 1.5), r"`step` of a mask must be an integer >= 1.*1\.5"),
    "prefix": (lambda: Prefix(0), "`length` of a mask must be an integer >= 1.*0"),
    "prefixes": (lambda: Prefix(IDS), r"`length` of a mask must be integers of rank 1.*\(2, 7\)"),
    "global": (lambda: Global([]), "`tokens` of a global mask must be one or more.*\\[\\]"),
    "global token": (lambda: Global([0, -2]), "integers >= 0.*-2"),
    "segments": (
        lambda: Segments(IDS.astype("float32")),
        "`ids` of a mask must be integers of rank 2.*float32",
    ),
    "segments of fewer keys": (
        lambda: Segments(IDS).check(2, 1, 9, 7),
        "as many keys as queries; received: T=9, S=7",
    ),
    "segments of another length": (
        lambda: Segments(IDS).check(2, 1, 5, 8),
        r"`ids` of a mask must broadcast to \(B, S\)=\(2, 8\).*\(2, 7\)",
    ),
    "lengths of another batch": (
        lambda: Prefix(LENGTHS).check(3, 1, 5, 7),
        r"`length` of a mask must broadcast to \(B,\)=\(3,\).*\(2,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_patterns(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_slices():
    found = run(lambda: Window(2)[1:4, 0:5])
    np.testing.assert_array_equal(found[0, 0], oracle.window(5, 5, 2)[1:4])
    with pytest.raises(ValueError, match=r"no step.*slice\(0, 4, 2\)"):
        Window(2)[0:4:2, 0:4]


def test_batches_of_blocks():
    starts = keras.ops.convert_to_tensor(np.array([0, 2], "int32"))
    mask = Causal() & Padding(KEEP)
    found = run(mask.block, Span(starts, 2), Span(starts, 3), 2)
    whole = oracle.causal(5, 7) & KEEP[:, None, None]
    expected = np.stack([whole[:, :, 0:2, 0:3], whole[:, :, 2:4, 2:5]])
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)


@pytest.mark.parametrize("name", RULES)
def test_padded_masks_show_no_more(name):
    mask, expected = rule(name)
    found = run(mask.padded(3, 2).block, Span(0, 5), Span(0, 7), 2)
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)
    run(mask.padded(3, 2).block, Span(0, 8), Span(0, 9), 2)


def test_skeletons_are_equal_and_hashable_for_equal_rules():
    one, two = Causal() & Padding(KEEP), Causal() & Padding(~KEEP)
    assert masking.without_arrays(one) == masking.without_arrays(two)
    assert hash(masking.without_arrays(one)) == hash(masking.without_arrays(two))
    assert masking.without_arrays(one) != masking.without_arrays(Padding(KEEP) & Causal())
    again = masking.with_arrays(masking.without_arrays(one), masking.arrays_of(one))
    np.testing.assert_array_equal(whole(again), whole(one))


@pytest.mark.parametrize(
    "mask",
    [
        Causal() & Window(3),
        ~Causal() | Window(2),
        Dilated(3, 2) | Global([5, 0]),
        Causal() & (Global([0]) | Prefix(4)),
    ],
)
def test_serialisation(mask):
    config = keras.saving.serialize_keras_object(mask)
    assert keras.saving.deserialize_keras_object(config) == mask


@pytest.mark.parametrize("name", ["padding", "dense", "segments", "prefixes", "packed"])
def test_serialisation_of_arrays(name):
    mask, expected = rule(name)
    config = keras.saving.serialize_keras_object(mask)
    again = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(whole(again), expected)


def test_pairs_can_be_named():
    causal, window = Causal(), Window(2)
    assert And(causal, window) == causal & window
    assert Or(causal, window) == causal | window
    assert Not(causal) == ~causal


@pytest.mark.parametrize("size", [0, -3, 2.0, True, None])
def test_window_sizes(size):
    with pytest.raises(ValueError, match=f"`size` of a mask must be an integer >= 1.*{size}"):
        Window(size)


def test_arrays_must_be_boolean():
    with pytest.raises(ValueError, match=r"`keys` of a mask must be boolean.*float32"):
        Padding(np.ones((2, 7), "float32"))
    with pytest.raises(ValueError, match=r"`array` of a mask must be boolean.*int32"):
        Dense(np.ones((5, 7), "int32"))


def test_arrays_must_have_their_rank():
    with pytest.raises(ValueError, match=r"`keys` of a mask must have rank 2.*\(2, 1, 7\)"):
        Padding(KEEP[:, None])
    with pytest.raises(ValueError, match=r"`array` of a mask must have rank 2 or 4.*\(3, 5, 7\)"):
        Dense(ARRAY[0])


def test_masks_combine_with_masks_only():
    with pytest.raises(ValueError, match=r"Both sides of `&` must be masks.*ndarray"):
        Causal() & KEEP
    with pytest.raises(ValueError, match=r"Both sides of `\|` must be masks.*ndarray"):
        Causal() | KEEP
