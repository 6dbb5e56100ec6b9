"""What every mask must do, given what it means: the whole mask as an array."""

import keras
import numpy as np

from kattn import masks
from kattn.ops import masking
from kattn.spans import Places, Span
from tests.compute import run

# B = 2 items, N = 3 heads, T = 5 queries, S = 7 keys.
SHAPE = (2, 3, 5, 7)
OFFSET = 2
KEEP = np.array([[1, 1, 1, 0, 0, 1, 1], [0] * 7], bool)
ARRAY = np.random.default_rng(1).random(SHAPE) > 0.4
IDS = np.array([[0, 0, 1, 1, 1, 2, 2], [4, 4, 4, 4, 7, -1, -1]])
LENGTHS = np.array([3, 6])


def whole(mask):
    """The mask for all queries and keys, `(2, 3, T, S)`."""
    return np.broadcast_to(run(mask.block, Span(0, 5), Span(0, 7), OFFSET), SHAPE)


def visible(rule):
    """`(2, 1, T, S)` of a rule (item, position of the query, key)."""
    return np.array(
        [[[[rule(b, i + OFFSET, j) for j in range(7)] for i in range(5)]] for b in range(2)], bool
    )


def case(rules, name):
    """A mask of a dict, made by a function where it holds arrays, and what it means."""
    mask, expected = rules[name]
    return (mask if isinstance(mask, masks.Mask) else mask()), np.broadcast_to(expected, SHAPE)


def check_block_is_the_rule(mask, expected):
    mask.check(*SHAPE)
    np.testing.assert_array_equal(whole(mask), expected)


def check_block_of_a_block(mask, expected):
    found = run(mask.block, Span(1, 3), Span(2, 4), OFFSET)
    np.testing.assert_array_equal(np.broadcast_to(found, (2, 3, 3, 4)), expected[:, :, 1:4, 2:6])


def check_batches_of_blocks(mask, expected):
    if mask.holds_scores:
        return  # kernels that take all blocks at once serve no arrays of scores
    starts = keras.ops.convert_to_tensor(np.array([0, 2], "int32"))
    found = run(mask.block, Span(starts, 2), Span(starts, 3), OFFSET)
    wanted = np.stack([expected[:, :, 0:2, 0:3], expected[:, :, 2:4, 2:5]])
    np.testing.assert_array_equal(np.broadcast_to(found, wanted.shape), wanted)


def check_places_are_positions_item_by_item(mask, expected):
    rows, columns = np.array([[2, 0], [4, 1]]), np.array([[6, 0, 3], [2, 5, 1]])
    queries, keys = (Places(keras.ops.convert_to_tensor(x, "int32")) for x in (rows, columns))
    found = np.broadcast_to(run(mask.block, queries, keys, OFFSET), (2, 3, 2, 3))
    for b in range(2):
        np.testing.assert_array_equal(found[b], expected[b][:, rows[b]][:, :, columns[b]])


def check_nothing_is_visible_outside_the_reach(mask, expected):
    before, after = mask.reach
    distance = np.arange(5)[:, None] + OFFSET - np.arange(7)
    outside = (distance > before) | (-distance > after)
    assert not expected[:, :, outside].any()
    if mask.is_band:
        np.testing.assert_array_equal(expected, np.broadcast_to(~outside, SHAPE))


def check_coverage_is_what_blocks_show(mask, expected):
    """NONE and ALL are certain, whatever arrays hold."""
    for kind, shown in covered(mask, expected):
        assert kind != masks.NONE or not shown.any()
        assert kind != masks.ALL or shown.all()


def check_coverage_is_exact(mask, expected):
    """Masks without arrays that are not made of others miss no block that is empty or full."""
    for kind, shown in covered(mask, expected):
        assert (kind == masks.NONE) == (not shown.any())
        assert (kind == masks.ALL) == shown.all()


def covered(mask, expected):
    """Pairs of what the mask says of a block, and the block."""
    for rows in ((0, 1), (1, 3), (4, 4)):
        for columns in ((0, 0), (1, 2), (3, 6), (0, 6)):
            kind = mask.coverage((rows[0] + OFFSET, rows[1] + OFFSET), columns)
            yield kind, expected[:, :, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]


def check_padded_masks_show_no_more(mask, expected):
    padded = mask.padded(3, 2)
    assert type(padded) is type(mask)
    np.testing.assert_array_equal(whole(padded), expected)
    run(padded.block, Span(0, 8), Span(0, 9), OFFSET)


def check_saving_changes_nothing(mask, expected):
    config = keras.saving.serialize_keras_object(mask)
    again = keras.saving.deserialize_keras_object(config)
    assert again == mask
    np.testing.assert_array_equal(whole(again), expected)


def check_arrays_come_out_and_go_back(mask, expected):
    rule = masking.without_arrays(mask)
    assert hash(rule) == hash(masking.without_arrays(mask))
    assert rule == masking.without_arrays(mask)
    again = masking.with_arrays(rule, masking.arrays_of(mask))
    np.testing.assert_array_equal(whole(again), expected)


CHECKS = [
    check_block_is_the_rule,
    check_block_of_a_block,
    check_batches_of_blocks,
    check_places_are_positions_item_by_item,
    check_nothing_is_visible_outside_the_reach,
    check_coverage_is_what_blocks_show,
    check_padded_masks_show_no_more,
    check_saving_changes_nothing,
    check_arrays_come_out_and_go_back,
]
CHECK_NAMES = [check.__name__.removeprefix("check_") for check in CHECKS]
