import numpy as np
import pytest

from kattn import masks
from kattn.block_rule import registered_rule
from kattn.masks import Causal, Mask, Padding, Window
from kattn.masks.mask import summarized
from tests import oracle
from tests.compute import run
from tests.masks.battery import KEEP, whole


def test_slices():
    found = run(lambda: Window(2)[1:4, 0:5])
    np.testing.assert_array_equal(found[0, 0], oracle.window(5, 5, 2)[1:4])
    np.testing.assert_array_equal(run(lambda: Window(2)[:4, :5])[0, 0], oracle.window(5, 5, 2)[:4])


SLICES = {
    "a step": (np.s_[0:4:2, 0:4], r"no step; received: queries=slice\(0, 4, 2\), keys=slice"),
    "no end": (np.s_[0:4, 1:], r"an end and no step.*keys=slice\(1, None, None\)"),
    "one slice": (np.s_[0:4], r"two slices.*queries=slice\(0, 4, None\), keys=None"),
    "a number": (np.s_[0, 0:4], "two slices.*queries=0, keys=slice"),
}


@pytest.mark.parametrize(("block", "message"), SLICES.values(), ids=SLICES)
def test_bad_slices(block, message):
    with pytest.raises(ValueError, match=message):
        Causal()[block]


def test_masks_combine_with_masks_only():
    with pytest.raises(ValueError, match=r"Both sides of `&` must be masks.*type='ndarray'"):
        Causal() & KEEP
    with pytest.raises(ValueError, match=r"Both sides of `\|` must be masks.*type='ndarray'"):
        Causal() | KEEP


@registered_rule("tests")
class EvenKeys(Mask):
    """A mask as a user would write it, which says nothing of its reach and its blocks."""

    def block(self, queries, keys, offset=0):
        return keys.along(-1) % 2 == 0


def test_a_mask_of_ones_own():
    mask = EvenKeys()
    assert mask.reach == (masks.UNBOUNDED, masks.UNBOUNDED)
    assert not mask.is_band
    assert not mask.holds_scores
    assert mask.coverage((2, 3), (1, 1)) == masks.SOME
    expected = np.broadcast_to(np.arange(7) % 2 == 0, (2, 3, 5, 7))
    np.testing.assert_array_equal(whole(mask), expected)
    np.testing.assert_array_equal(whole(~mask & Padding(KEEP)), ~expected & KEEP[:, None, None])


def test_a_mask_must_say_what_it_shows():
    with pytest.raises(NotImplementedError):
        Mask()[0:1, 0:1]


def test_what_a_block_shows_in_one_word():
    assert summarized(nothing=True, everything=False) == masks.NONE
    assert summarized(nothing=False, everything=True) == masks.ALL
    assert summarized(nothing=False, everything=False) == masks.SOME
