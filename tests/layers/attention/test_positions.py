"""Where steps stand for `position=`; what the layers do with it is in their own tests."""

import numpy as np
import pytest
from keras import ops

from kattn import masks
from kattn.layers import ALiBi, LearnedPositions, Position, RotaryEmbedding
from kattn.layers.attention.positions import (
    embed,
    new_positions,
    position_config,
    read_position,
    rotate,
    score_bias,
    step_positions,
)
from tests.compute import run

KEEP = np.array([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
FROM_THE_FIRST = [[0, 0, 0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
SEGMENTS = masks.Segments(np.array([[0, 0, 1, 1], [5, 6, 6, 6], [0, 0, 0, 0]]))
RESTARTED = [[0, 1, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3]]


def test_only_the_method_of_its_kind_is_used():
    x, q = ops.ones((1, 3, 8)), ops.ones((1, 3, 2, 4))
    for position in (None, ALiBi(), RotaryEmbedding()):
        assert embed(position, x, None) is x
    for position in (None, ALiBi(), LearnedPositions(4)):
        assert rotate(position, q, None) is q
    for position in (None, RotaryEmbedding(), LearnedPositions(4)):
        assert score_bias(position, q) is None
    assert score_bias(ALiBi(), q) is not None


def test_absolute_positions_count_from_the_first_real_step():
    keep, learned = ops.convert_to_tensor(KEEP), LearnedPositions(4)
    np.testing.assert_array_equal(run(step_positions, learned, None, keep), FROM_THE_FIRST)
    assert step_positions(learned, None, None) is None
    assert step_positions(None, None, keep) is None
    rotary = RotaryEmbedding()
    assert step_positions(rotary, None, keep) is None  # a shift changes nothing
    shifted = run(step_positions, rotary, None, keep, shifts_matter=True)
    np.testing.assert_array_equal(shifted, FROM_THE_FIRST)


def test_segments_begin_anew():
    keep, learned = ops.convert_to_tensor(KEEP), LearnedPositions(4)
    mask = masks.Causal() & SEGMENTS
    np.testing.assert_array_equal(run(step_positions, learned, None, keep, mask), RESTARTED)
    at = ops.convert_to_tensor(np.array([[3], [1], [0]], "int32"))
    np.testing.assert_array_equal(run(new_positions, learned, at, mask), [[1], [0], [0]])
    assert new_positions(learned, at, masks.Causal()) is at
    assert new_positions(RotaryEmbedding(), at, mask) is at
    assert new_positions(None, at, mask) is None


def test_given_positions_are_used_as_they_are():
    given = np.array([3, 1, 2, 0])
    assert step_positions(RotaryEmbedding(), given, None) is given
    for position in (None, ALiBi()):
        with pytest.raises(ValueError, match="`positions` can only be given if"):
            step_positions(position, given, None)


def test_reading_the_argument():
    position = RotaryEmbedding(base=50.0)
    assert read_position(position) is position
    again = read_position(position_config(position))
    assert isinstance(again, RotaryEmbedding)
    assert again.base == 50.0
    assert read_position(None) is None
    assert position_config(None) is None
    with pytest.raises(ValueError, match=r"`position` must be a position layer.*'rotary'"):
        read_position("rotary")
    with pytest.raises(ValueError, match="derives from InputPosition, HeadPosition or ScoreBias"):
        read_position(Position())
    with pytest.raises(ValueError, match=r"linear attention has no scores.*ALiBi"):
        read_position(ALiBi(), scores=False)
