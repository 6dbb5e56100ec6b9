import keras
import numpy as np
import pytest

from kattn import masks
from kattn.masks import And, Causal, Dense, Not, Or, Padding, Steps, Window
from kattn.ops import masking
from tests import oracle
from tests.compute import run

KEEP = np.array([[1, 1, 1, 0, 0, 1, 1], [0] * 7], bool)
ARRAY = np.random.default_rng(1).random((2, 3, 5, 7)) > 0.4


def whole(mask, queries=5, keys=7):
    """The mask for all queries and keys, `(2, 3, T, S)`."""
    found = run(mask.block, Steps(0, queries), Steps(0, keys), keys - queries)
    return np.broadcast_to(found, (2, 3, queries, keys))


RULES = {
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
    found = run(mask.block, Steps(1, 3), Steps(2, 4), 2)
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
        assert name not in ("causal", "window")


def test_reach():
    assert (Causal() & Window(4)).reach == (3, 0)
    assert Window(4).reach == (3, 3)
    assert (Window(4) | Window(2)).reach == (3, 3)
    assert (Window(4) & Padding(KEEP)).reach == (3, 3)
    assert (~Window(4)).reach == (masks.UNBOUNDED, masks.UNBOUNDED)


def test_slices():
    found = run(lambda: Window(2)[1:4, 0:5])
    np.testing.assert_array_equal(found[0, 0], oracle.window(5, 5, 2)[1:4])
    with pytest.raises(ValueError, match=r"no step.*slice\(0, 4, 2\)"):
        Window(2)[0:4:2, 0:4]


def test_batches_of_blocks():
    starts = keras.ops.convert_to_tensor(np.array([0, 2], "int32"))
    mask = Causal() & Padding(KEEP)
    found = run(mask.block, Steps(starts, 2), Steps(starts, 3), 2)
    whole = oracle.causal(5, 7) & KEEP[:, None, None]
    expected = np.stack([whole[:, :, 0:2, 0:3], whole[:, :, 2:4, 2:5]])
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)


@pytest.mark.parametrize("name", RULES)
def test_padded_masks_show_no_more(name):
    mask, expected = rule(name)
    found = run(mask.padded(3, 2).block, Steps(0, 5), Steps(0, 7), 2)
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)
    run(mask.padded(3, 2).block, Steps(0, 8), Steps(0, 9), 2)


def test_skeletons_are_equal_and_hashable_for_equal_rules():
    one, two = Causal() & Padding(KEEP), Causal() & Padding(~KEEP)
    assert masking.skeleton(one) == masking.skeleton(two)
    assert hash(masking.skeleton(one)) == hash(masking.skeleton(two))
    assert masking.skeleton(one) != masking.skeleton(Padding(KEEP) & Causal())
    again = masking.with_arrays(masking.skeleton(one), masking.arrays_of(one))
    np.testing.assert_array_equal(whole(again), whole(one))


@pytest.mark.parametrize("mask", [Causal() & Window(3), ~Causal() | Window(2)])
def test_serialisation(mask):
    config = keras.saving.serialize_keras_object(mask)
    assert keras.saving.deserialize_keras_object(config) == mask


def test_pairs_can_be_named():
    causal, window = Causal(), Window(2)
    assert And(causal, window) == causal & window
    assert Or(causal, window) == causal | window
    assert Not(causal) == ~causal


@pytest.mark.parametrize("size", [0, -3, 2.0, True, None])
def test_window_sizes(size):
    with pytest.raises(ValueError, match=f"`size` of a window must be an integer >= 1.*{size}"):
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


def test_cut_block_and_pad_block():
    array = np.arange(2 * 5 * 7).reshape(2, 5, 7).astype("float32")
    found = run(masks.cut_block, array, Steps(1, 3), Steps(2, 4))
    np.testing.assert_array_equal(found, array[:, 1:4, 2:6])
    one = run(masks.cut_block, array[:, :1], Steps(1, 3), Steps(2, 4))
    np.testing.assert_array_equal(one, array[:, :1, 2:6])
    padded = run(masks.pad_block, array, 2, 3)
    np.testing.assert_array_equal(padded, np.pad(array, ((0, 0), (0, 2), (0, 3))))
    assert run(masks.pad_block, array[:, :1], 2, 3).shape == (2, 1, 10)
