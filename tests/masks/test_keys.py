import numpy as np
import pytest

from kattn.masks import Causal, Global, Padding, Prefix, Segments, Window
from kattn.ops import masking
from tests.compute import run
from tests.masks.battery import (
    CHECK_NAMES,
    CHECKS,
    IDS,
    KEEP,
    LENGTHS,
    case,
    check_coverage_is_exact,
    visible,
)

RULES = {
    "padding": (lambda: Padding(KEEP), KEEP[:, None, None]),
    "prefix": (Prefix(3), visible(lambda b, i, j: j < 3)),
    "prefixes": (lambda: Prefix(LENGTHS), visible(lambda b, i, j: j < LENGTHS[b])),
    "global": (Global([3, 0]), visible(lambda b, i, j: i in (0, 3) or j in (0, 3))),
    "segments": (
        lambda: Segments(IDS),
        visible(lambda b, i, j: IDS[b, i] == IDS[b, j] and IDS[b, j] >= 0),
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", RULES)
def test_masks_of_keys(name, check):
    check(*case(RULES, name))


@pytest.mark.parametrize("name", ["prefix", "global"])
def test_coverage_of_static_masks(name):
    check_coverage_is_exact(*case(RULES, name))


def test_positions_restart_with_each_segment():
    expected = [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 0, 0, 1]]
    np.testing.assert_array_equal(run(Segments(IDS).positions), expected)
    joined = Causal() & (Window(3) & Segments(IDS))
    np.testing.assert_array_equal(run(masking.restarts, joined), expected)
    assert masking.restarts(Causal() & Window(3)) is None
    assert masking.restarts(Causal() | Segments(IDS)) is None


def test_order_and_repetitions_of_tokens_do_not_matter():
    assert Global([3, 0, 3]) == Global((0, 3))


BAD = {
    "padding of floats": (
        lambda: Padding(np.ones((2, 7), "float32")),
        r"`keys` must be boolean, True = real step.*pass `~key_padding_mask`.*dtype='float32'",
    ),
    "padding of integers": (
        lambda: Padding(np.ones((2, 7), "int32")),
        r"`keys` must be boolean.*write `keys != 0`.*keys\.shape=\(2, 7\), dtype='int32'",
    ),
    "padding of another rank": (
        lambda: Padding(KEEP[:, None]),
        r"`keys` must have rank 2, \(B, S\); True = real step.*`~key_padding_mask`.*\(2, 1, 7\)",
    ),
    "a list": (
        lambda: Padding([[True, False]]),
        r"`keys` must be boolean.*np\.array\(keys, bool\); received: type='list'",
    ),
    "prefix": (lambda: Prefix(0), "`length` must be an integer >= 1; received: length=0"),
    "prefix of a bool": (lambda: Prefix(True), "`length` must be an integer >= 1.*length=True"),
    "prefixes": (
        lambda: Prefix(IDS),
        r"`length` of a mask must be integers of rank 1, \(B,\).*\(2, 7\)",
    ),
    "global": (lambda: Global([]), r"`tokens` must be one or more integers >= 0.*tokens=\[\]"),
    "global token": (lambda: Global([0, -2]), "integers >= 0.*-2"),
    "segments": (
        lambda: Segments(IDS.astype("float32")),
        r"`ids` of a mask must be integers of rank 2, \(B, S\).*float32",
    ),
    "segments of fewer keys": (
        lambda: Segments(IDS).check(2, 1, 9, 7),
        "as many keys as queries; received: T=9, S=7",
    ),
    "segments of another length": (
        lambda: Segments(IDS).check(2, 1, 5, 8),
        r"`ids` of a mask must broadcast to \(B, S\)=\(2, 8\).*\(2, 7\)",
    ),
    "padding of another length": (
        lambda: Padding(KEEP).check(2, 1, 5, 8),
        r"`keys` of a mask must broadcast to \(B, S\)=\(2, 8\).*\(2, 7\)",
    ),
    "lengths of another batch": (
        lambda: Prefix(LENGTHS).check(3, 1, 5, 7),
        r"`length` of a mask must broadcast to \(B,\)=\(3,\).*\(2,\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
