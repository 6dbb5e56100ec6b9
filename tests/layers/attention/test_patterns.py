"""`causal`, `window` and `pattern` as one mask."""

import keras
import numpy as np
import pytest

from kattn import masks
from kattn.layers.attention.patterns import is_causal, join_patterns, pattern_config, read_pattern


@pytest.mark.parametrize(
    ("causal", "window", "pattern", "expected"),
    [
        (False, None, None, None),
        (True, None, None, masks.Causal()),
        (False, 3, None, masks.Window(3)),
        (True, 3, masks.Global([0]), masks.Causal() & masks.Window(3) & masks.Global([0])),
    ],
)
def test_all_three_limit(causal, window, pattern, expected):
    assert join_patterns(causal, window, pattern) == expected


def test_a_window_is_a_count():
    with pytest.raises(ValueError, match=r"`window` must be an integer >= 1; received: window=0"):
        join_patterns(False, 0, None)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, False),
        (masks.Causal(), True),
        (masks.Causal() & masks.Window(3), True),
        (masks.Window(3), False),
        (masks.Dilated(3, 2), False),
        (masks.Causal() | masks.Prefix(2), True),
    ],
)
def test_what_a_decoder_can_follow(pattern, expected):
    assert is_causal(pattern) is expected


def test_a_config_comes_back():
    pattern = masks.Window(3) | masks.Global([0, 2])
    assert read_pattern(pattern_config(pattern)) == pattern
    assert read_pattern(keras.saving.serialize_keras_object(pattern)) == pattern
    assert pattern_config(None) is None
    assert read_pattern(None) is None


def test_bad_patterns():
    with pytest.raises(ValueError, match=r"`pattern` must be a kattn.masks.Mask.*pattern='causal'"):
        read_pattern("causal")
    with pytest.raises(ValueError, match=r"`pattern` must be a mask without arrays.*Prefix"):
        read_pattern(masks.Prefix(np.array([1, 2])))
