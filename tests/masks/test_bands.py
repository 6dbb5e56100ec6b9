import pytest

from kattn import masks
from kattn.masks import Causal, Dilated, Window
from tests import oracle
from tests.masks.battery import CHECK_NAMES, CHECKS, case, check_coverage_is_exact, visible

RULES = {
    "causal": (Causal(), oracle.causal(5, 7)),
    "window": (Window(2), oracle.window(5, 7, 2)),
    "dilated": (Dilated(3, 2), visible(lambda b, i, j: abs(i - j) in (0, 2, 4))),
    "dilated by one": (Dilated(3, 1), oracle.window(5, 7, 3)),
}


@pytest.mark.parametrize(
    "check", [*CHECKS, check_coverage_is_exact], ids=[*CHECK_NAMES, "coverage_is_exact"]
)
@pytest.mark.parametrize("name", RULES)
def test_bands(name, check):
    check(*case(RULES, name))


def test_reach():
    assert Causal().reach == (masks.UNBOUNDED, 0)
    assert Window(4).reach == (3, 3)
    assert Dilated(3, 2).reach == (4, 4)
    assert Causal().is_band
    assert Window(4).is_band
    assert Dilated(3, 1).is_band
    assert not Dilated(3, 2).is_band


@pytest.mark.parametrize("size", [0, -3, 2.0, True, None])
def test_window_sizes(size):
    with pytest.raises(ValueError, match=f"`size` must be an integer >= 1; received: size={size}"):
        Window(size)


def test_dilated_sizes():
    with pytest.raises(ValueError, match="`window` must be an integer >= 1; received: window=0"):
        Dilated(0, 2)
    with pytest.raises(ValueError, match=r"`step` must be an integer >= 1; received: step=1\.5"):
        Dilated(2, 1.5)
