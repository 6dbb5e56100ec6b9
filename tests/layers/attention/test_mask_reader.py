"""What the one reader makes of implicit and explicit masks."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend import get_keras_mask, set_keras_mask

from kattn import masks
from kattn.layers.attention.mask_reader import (
    keras_mask,
    read_map,
    read_map_padding,
    read_masks,
    read_new_masks,
    read_padded,
    read_padding,
    silence,
    silence_weights,
)
from kattn.layers.attention.mask_reader import set_keras_mask as write_mask
from kattn.spans import Span
from tests.compute import run

KEEP = np.array([[1, 1, 0], [0, 1, 1]], bool)
OTHER = np.array([[0, 1, 1], [1, 1, 1]], bool)
SQUARE = np.random.default_rng(0).random((2, 3, 3)) > 0.4


def sequence(mask=None):
    """`(2, 3, 4)`, for which Keras keeps the mask."""
    x = ops.ones((2, 3, 4))
    if mask is not None:
        set_keras_mask(x, ops.convert_to_tensor(mask))
    return x


def table(mask):
    """A mask object as `(2, 1, 3, 3)`."""
    return np.broadcast_to(run(mask.block, Span(0, 3), Span(0, 3), 0), (2, 1, 3, 3))


def test_the_mask_that_keras_keeps():
    assert keras_mask(sequence()) is None
    np.testing.assert_array_equal(run(keras_mask, sequence(KEEP)), KEEP)
    node = keras.layers.Masking()(keras.Input((3, 4)))
    assert keras_mask(node) is node._keras_mask
    assert keras_mask(keras.Input((3, 4))) is None


def test_a_mask_is_set_without_a_change_of_the_input():
    x = sequence()
    assert write_mask(x, None) is x
    y = write_mask(ops.copy(x), ops.convert_to_tensor(KEEP))
    np.testing.assert_array_equal(run(get_keras_mask, y), KEEP)
    np.testing.assert_array_equal(run(ops.copy, y), 1.0)


@pytest.mark.parametrize(
    ("implicit", "explicit", "expected"),
    [
        (None, None, None),
        (KEEP, None, KEEP),
        (None, OTHER, OTHER),
        (KEEP, OTHER, KEEP & OTHER),
    ],
)
def test_padding_is_what_either_says(implicit, explicit, expected):
    padding = read_padding(sequence(implicit), explicit)
    allowed = read_masks(sequence(implicit), explicit)
    if expected is None:
        assert padding is None
        assert allowed[1:] == (None, None)
        return
    np.testing.assert_array_equal(run(ops.copy, padding), expected)
    np.testing.assert_array_equal(run(ops.copy, allowed.padding), expected)
    columns = np.broadcast_to(expected[:, None, None], (2, 1, 3, 3))
    np.testing.assert_array_equal(table(allowed.allowed), columns)


@pytest.mark.parametrize("implicit", [None, KEEP])
@pytest.mark.parametrize(
    ("explicit", "expected"),
    [
        (SQUARE, SQUARE[:, None]),
        (SQUARE[:, None], SQUARE[:, None]),
        (masks.Causal(), np.tril(np.ones((2, 1, 3, 3), bool))),
    ],
    ids=["rank 3", "rank 4", "object"],
)
def test_query_by_key_says_nothing_of_padding(implicit, explicit, expected):
    _, padding, allowed = read_masks(sequence(implicit), explicit)
    if implicit is None:
        assert padding is None
    else:
        np.testing.assert_array_equal(run(ops.copy, padding), implicit)
        expected = expected & implicit[:, None, None]
    np.testing.assert_array_equal(table(allowed), expected)


def test_new_steps_take_padding_or_an_object():
    causal = masks.Causal()
    assert read_new_masks(sequence(), causal)[1:] == (None, causal)
    _, padding, allowed = read_new_masks(sequence(KEEP), causal)
    np.testing.assert_array_equal(run(ops.copy, padding), KEEP)
    assert allowed is causal
    _, padding, allowed = read_new_masks(sequence(KEEP), OTHER)
    np.testing.assert_array_equal(run(ops.copy, padding), KEEP & OTHER)
    assert allowed is None


@pytest.mark.parametrize("reader", [read_masks, read_padded, read_new_masks])
@pytest.mark.parametrize(
    ("implicit", "explicit", "expected"),
    [(KEEP, None, KEEP), (None, OTHER, OTHER), (KEEP, OTHER, KEEP & OTHER)],
)
def test_padding_of_what_is_read_is_silent(reader, implicit, explicit, expected):
    x = run(reader, sequence(implicit), explicit)[0]
    np.testing.assert_array_equal(x, np.broadcast_to(expected[..., None], x.shape))


def test_an_input_without_masks_is_read_as_it_is():
    x = sequence()
    assert all(reader(x, None)[0] is x for reader in (read_masks, read_padded, read_new_masks))


def test_padding_is_silent():
    y = ops.full((2, 3, 4), float("nan"))
    silent = run(silence, y, ops.convert_to_tensor(KEEP))
    np.testing.assert_array_equal(silent[~KEEP], 0.0)
    assert np.isnan(silent[KEEP]).all()
    assert silence(y, None) is y
    weights = run(silence_weights, ops.ones((2, 5, 3, 7)), ops.convert_to_tensor(KEEP))
    np.testing.assert_array_equal(weights, np.broadcast_to(KEEP[:, None, :, None], (2, 5, 3, 7)))


BAD = {
    "a list": (KEEP.tolist(), r"`mask` must be boolean.*wrap a list as np.array\(mask, bool\)"),
    "rank 1": (KEEP[0], r"`mask` must have rank 2, \(B, T\) or .*mask.shape=\(3,\)"),
    "a number": (True, r"`mask` must have rank 2, .*mask.shape=\(\)"),
    "numbers": (KEEP.astype("float32"), "`mask` must be boolean.*float32"),
    "additive": (np.where(SQUARE, 0.0, -np.inf).astype("float32"), "are a bias: pass them as"),
}


@pytest.mark.parametrize(("mask", "message"), BAD.values(), ids=BAD)
def test_bad_masks(mask, message):
    with pytest.raises(ValueError, match=message):
        read_masks(sequence(), mask)


def test_rank_2_means_padding():
    """Of a wrong shape it may be a mask of query by key; the message says how to write that."""
    triangle = np.tril(np.ones((3, 3), bool))
    message = r"`mask` must have shape \(B, T\)=\(2, 3\).*means padding; write mask\[None\] for"
    with pytest.raises(ValueError, match=message):
        read_masks(sequence(), triangle)
    of_all_items = read_masks(sequence(), triangle[None]).allowed
    np.testing.assert_array_equal(table(of_all_items), np.broadcast_to(triangle, (2, 1, 3, 3)))
    with pytest.raises(ValueError, match="means padding") as raised:
        read_padding(sequence(), triangle)
    assert "[None]" not in str(raised.value)


@pytest.mark.parametrize("mask", [SQUARE, masks.Causal()], ids=["rank 3", "object"])
def test_padding_alone_is_asked_for(mask):
    with pytest.raises(ValueError, match=r"`rows` must .*\(B, T\).*True = real"):
        read_padding(sequence(), mask, "rows")
    if mask is SQUARE:
        with pytest.raises(ValueError, match="`mask` of new steps must be a bool array"):
            read_new_masks(sequence(), mask)


@pytest.mark.parametrize("channel_axis", [-1, 1])
def test_padding_of_maps(channel_axis):
    """Of both masks; what stands there is gone."""
    shape = (2, 3, 4, 5) if channel_axis == -1 else (2, 5, 3, 4)
    keep, other = np.random.default_rng(0).random((2, 2, 3, 4)) > 0.4
    x = np.moveaxis(np.where((keep & other)[..., None], np.ones((2, 3, 4, 5)), np.nan), -1, 1)
    x = x if channel_axis == 1 else np.moveaxis(x, 1, -1)
    assert x.shape == shape
    map_ = ops.convert_to_tensor(x, "float32")
    assert read_map(map_, None, channel_axis)[1] is None
    set_keras_mask(map_, ops.convert_to_tensor(keep))
    silent, padding = run(read_map, map_, ops.convert_to_tensor(other), channel_axis)
    np.testing.assert_array_equal(padding, keep & other)
    np.testing.assert_array_equal(silent, np.nan_to_num(x))
    np.testing.assert_array_equal(run(read_map_padding, map_, None, channel_axis), keep)


MAP_MASKS = {
    "object": (masks.Causal(), r"`rows` must be a bool array \(B, H, W\).* no mask object"),
    "rank": (np.ones((2, 3), bool), r"`rows` must have rank 3, \(B, H, W\); True = real"),
    "dtype": (np.ones((2, 3, 4)), "`rows` must be boolean"),
    "sides": (np.ones((2, 4, 3), bool), r"`rows` must have the sides of the map.*=\(2, 3, 4\);"),
    "side of 1": (np.ones((2, 1, 4), bool), r"the sides of the map.*rows.shape=\(2, 1, 4\)"),
}


@pytest.mark.parametrize("case", MAP_MASKS)
def test_bad_masks_of_maps(case):
    mask, message = MAP_MASKS[case]
    with pytest.raises(ValueError, match=message):
        read_map_padding(ops.ones((2, 3, 4, 5)), mask, -1, "rows")


def test_a_keras_mask_of_other_sides_is_an_error():
    x = ops.ones((2, 3, 4, 5))
    set_keras_mask(x, ops.convert_to_tensor(KEEP))
    with pytest.raises(ValueError, match=r"`mask` must have rank 3, \(B, H, W\)"):
        read_map_padding(x, None, -1)
    one = run(read_map_padding, ops.ones((2, 3, 4, 5)), np.ones((1, 3, 4), bool), -1)
    assert one.shape == (1, 3, 4)  # one mask for all items
