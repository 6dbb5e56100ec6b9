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
from tests import oracle
from tests.masks.battery import ARRAY, CHECK_NAMES, CHECKS, IDS, KEEP, case, visible

RULES = {
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
    "and": (lambda: Causal() & Padding(KEEP), oracle.causal(5, 7) & KEEP[:, None, None]),
    "band and band": (Causal() & Window(3), oracle.causal(5, 7) & oracle.window(5, 7, 3)),
    "or": (lambda: Window(1) | Padding(KEEP), oracle.window(5, 7, 1) | KEEP[:, None, None]),
    "not": (lambda: ~Causal(), ~oracle.causal(5, 7)),
    "all": (
        lambda: ~(Causal() & Dense(ARRAY)) | Padding(KEEP),
        ~(oracle.causal(5, 7) & ARRAY) | KEEP[:, None, None],
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=CHECK_NAMES)
@pytest.mark.parametrize("name", RULES)
def test_masks_of_masks(name, check):
    check(*case(RULES, name))


def test_reach():
    unbounded = (masks.UNBOUNDED, masks.UNBOUNDED)
    assert (Causal() & Window(4)).reach == (3, 0)
    assert (Window(4) | Window(2)).reach == (3, 3)
    assert (Window(4) | Causal()).reach == (masks.UNBOUNDED, 3)
    assert (Window(4) & Padding(KEEP)).reach == (3, 3)
    assert (~Window(4)).reach == unbounded
    assert (Causal() & Window(4)).is_band
    assert not (Causal() & Padding(KEEP)).is_band
    assert not (Causal() | Window(4)).is_band


def test_scores_inside():
    assert (Causal() & Dense(ARRAY)).holds_scores
    assert (~(Causal() | Dense(ARRAY))).holds_scores
    assert not (Causal() & ~Padding(KEEP)).holds_scores


def test_pairs_can_be_named():
    causal, window = Causal(), Window(2)
    assert And(causal, window) == causal & window
    assert Or(causal, window) == causal | window
    assert Not(causal) == ~causal
    assert causal & window != window & causal
    assert causal & window != causal | window


def test_parts_are_checked():
    for mask in (Causal() & Padding(KEEP), Padding(KEEP) | Causal(), ~Padding(KEEP)):
        with pytest.raises(ValueError, match=r"`keys` of a mask must broadcast to \(B, S\)=\(2, 8"):
            mask.check(2, 3, 5, 8)


def test_a_missing_mask_allows_everything():
    causal, window = masks.Causal(), masks.Window(2)
    assert masks.intersect(None, None) is None
    assert masks.intersect(causal, None) is causal
    assert masks.intersect(None, window) is window
    assert masks.intersect(causal, window) == causal & window


@pytest.mark.parametrize(
    "join",
    [
        lambda: Causal() and Window(3),
        lambda: Causal() or Window(3),
        lambda: not Causal(),
        lambda: bool(Padding(KEEP)),
    ],
    ids=["and", "or", "not", "bool"],
)
def test_a_mask_has_no_truth_value(join):
    """Python's own words would give one of the masks, or False."""
    with pytest.raises(TypeError, match=r"no truth value: join masks by `&`.*`\|`.*by `~`"):
        join()
