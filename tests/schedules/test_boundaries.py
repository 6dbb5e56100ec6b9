import pytest

from kattn.schedules.boundaries import check_boundaries


@pytest.mark.parametrize("boundaries", [(), (1,), (1, 2, 9)])
def test_steps_in_order_pass(boundaries):
    check_boundaries(boundaries)


@pytest.mark.parametrize("boundaries", [3, [1, 2], (0, 1), (2, 2), (3, 1), (1, 2.0), (True, 2)])
def test_others_do_not(boundaries):
    with pytest.raises(ValueError, match=r"`boundaries` must be integers >= 1, .*; received: b"):
        check_boundaries(boundaries)
