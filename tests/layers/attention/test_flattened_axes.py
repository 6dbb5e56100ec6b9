"""Axes of inputs as steps and batch, against loops over their indices."""

import numpy as np
import pytest
from keras import ops

from kattn import masks
from kattn.layers.attention.flattened_axes import FlattenedAxes, check_axes, with_rank
from tests.compute import run

QUERY, VALUE = (2, 3, 4, 5, 8), (2, 3, 6, 5, 7)  # attends over axis 2; 1 and 3 are batch


def numbers(shape):
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


@pytest.mark.parametrize("axes", [(2,), (-3,)])
def test_one_axis_becomes_the_steps(axes):
    flat = FlattenedAxes(axes, QUERY, VALUE)
    x = numbers((2, 3, 4, 5, 2, 3))
    y = run(flat.flatten, ops.convert_to_tensor(x), 2)
    assert y.shape == (2 * 3 * 5, 4, 2, 3)
    for b, i, t, j in np.ndindex(2, 3, 4, 5):
        np.testing.assert_array_equal(y[(b * 3 + i) * 5 + j, t], x[b, i, t, j])
    np.testing.assert_array_equal(run(flat.unflatten, ops.convert_to_tensor(y), flat.queries), x)


def test_several_axes_become_steps_the_last_running_fastest():
    flat = FlattenedAxes((1, 3), QUERY, QUERY)
    x = numbers(QUERY)
    y = run(flat.flatten, ops.convert_to_tensor(x), 1)
    assert y.shape == (2 * 4, 3 * 5, 8)
    for b, i, t, j in np.ndindex(2, 3, 4, 5):
        np.testing.assert_array_equal(y[b * 4 + t, i * 5 + j], x[b, i, t, j])


def test_none_stands_for_all_axes():
    assert FlattenedAxes(None, QUERY, QUERY).axes == (1, 2, 3)
    assert FlattenedAxes(None, QUERY, QUERY).others == (0,)


def test_scores_get_their_axes_back():
    flat = FlattenedAxes((2,), QUERY, VALUE)
    scores = numbers((30, 2, 4, 6))
    found = run(flat.unflatten_scores, ops.convert_to_tensor(scores))
    assert found.shape == (2, 3, 5, 2, 4, 6)
    np.testing.assert_array_equal(found[1, 2, 4], scores[29])
    np.testing.assert_array_equal(run(flat.flatten_scores, ops.convert_to_tensor(found)), scores)


def test_heads_of_keys_get_their_axes_back():
    flat = FlattenedAxes((2,), QUERY, VALUE)
    x = numbers((2, 3, 6, 5, 2, 3))
    y = flat.flatten(ops.convert_to_tensor(x), 2)
    np.testing.assert_array_equal(run(flat.unflatten, y, flat.keys), x)


def test_a_sequence_stays_as_it_is():
    flat = FlattenedAxes(None, (2, 4, 8), (2, 6, 8))
    x = ops.ones((2, 4, 3, 5))
    assert flat.flatten(x, 2) is x
    assert flat.unflatten(x, flat.queries) is x
    assert flat.flatten_scores(x) is flat.unflatten_scores(x) is x


def test_mask_objects_become_arrays_over_axes():
    keep = np.random.default_rng(0).random((30, 6)) > 0.5
    mask = masks.Causal() & masks.Padding(ops.convert_to_tensor(keep))
    found = run(FlattenedAxes((2,), QUERY, VALUE).mask_array, mask)
    assert found.shape == (2, 3, 5, 1, 4, 6)
    causal = np.tri(4, 6, 2, dtype=bool)
    np.testing.assert_array_equal(found.reshape(30, 4, 6), causal & keep[:, None])
    sequence = FlattenedAxes(None, (30, 4, 8), (30, 6, 8))
    np.testing.assert_array_equal(run(sequence.mask_array, mask), causal & keep[:, None])
    by_head = np.random.default_rng(1).random((1, 2, 4, 6)) > 0.5
    dense = masks.Dense(ops.convert_to_tensor(by_head))
    np.testing.assert_array_equal(run(sequence.mask_array, dense), by_head)


def test_a_mask_is_stretched_over_batch_and_heads():
    flat = FlattenedAxes((2,), QUERY, VALUE)
    mask = np.random.default_rng(0).random((4, 6)) > 0.5
    found = run(flat.flatten_mask, ops.convert_to_tensor(mask))
    np.testing.assert_array_equal(found, np.broadcast_to(mask, (30, 1, 4, 6)))
    by_head = np.random.default_rng(1).random((2, 3, 5, 2, 4, 6)) > 0.5
    found = run(flat.flatten_mask, ops.convert_to_tensor(by_head))
    np.testing.assert_array_equal(found, by_head.reshape(30, 2, 4, 6))
    with pytest.raises(ValueError, match=r"`attention_mask` must have rank 2 to 6.*\(4,\)"):
        flat.flatten_mask(ops.ones((4,), "bool"))


def test_padding_of_the_first_axes_holds_for_the_rest():
    flat = FlattenedAxes((2,), QUERY, VALUE)
    x, keep = ops.ones(QUERY), np.random.default_rng(0).random((2, 3)) > 0.5
    found = run(flat.flatten_padding, ops.convert_to_tensor(keep), x)
    for b, i, j in np.ndindex(2, 3, 5):
        np.testing.assert_array_equal(found[(b * 3 + i) * 5 + j], [keep[b, i]] * 4)
    for shape in ((2,), (2, 4)):
        with pytest.raises(ValueError, match="A padding mask must have the first axes of its"):
            flat.flatten_padding(ops.ones(shape, "bool"), x)


def test_axes_of_size_one_are_put_at_the_end():
    assert tuple(with_rank(ops.ones((2, 3)), 4).shape) == (2, 3, 1, 1)


BAD = {
    "ranks": (None, [(2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5)], "same rank, 3 or more"),
    "no steps": (None, [(2, 4), (2, 4), (2, 4)], "same rank, 3 or more"),
    "steps of the key": (
        None,
        [(2, 3, 4), (2, 3, 4), (2, 5, 4)],
        "`value` and `key` must be equal",
    ),
    "rank of the key": (None, [(2, 3, 4), (2, 3, 4), (2, 4)], "All axes of `value` and `key`"),
    "batch sizes": (None, [(2, 3, 4), (3, 3, 4), (3, 3, 4)], "the same batch size"),
    "the batch": ((0,), [QUERY] * 3, "must lie between the batch and the width"),
    "the width": ((-1,), [QUERY] * 3, "must lie between the batch and the width"),
    "twice": ((1, -4), [QUERY] * 3, "each once"),
    "unlike axes": ((1,), [QUERY, VALUE, VALUE], "axis 2 is not.*value.shape"),
}


@pytest.mark.parametrize(("axes", "shapes", "message"), BAD.values(), ids=BAD)
def test_shapes_that_do_not_fit(axes, shapes, message):
    with pytest.raises(ValueError, match=message):
        check_axes(axes, *shapes)


def test_shapes_that_fit():
    check_axes(None, QUERY, QUERY, QUERY)
    check_axes((2,), QUERY, VALUE, VALUE)
    check_axes((1,), (None, 3, None, 4), (None, 5, None, 4), (None, 5, None, 4))
    check_axes(None, [2, 3, 4], [None, None, 4], [2, 5, 4])
