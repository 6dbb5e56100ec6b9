"""Short texts side by side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kattn.text import Packed, pack

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def texts_of(lengths):
    """Texts whose tokens all differ."""
    ends = np.cumsum(lengths)
    return [np.arange(end - n, end) + 1 for n, end in zip(lengths, ends, strict=True)]


def read(packed):
    """The texts in the rows, by their segments."""
    found = []
    for tokens, segments in zip(*packed, strict=True):
        filled = int((segments > 0).sum())
        assert segments[filled:].tolist() == [0] * (len(segments) - filled)
        for n in range(1, segments.max() + 1):
            found.append(tokens[segments == n].tolist())
    return found


@settings(max_examples=50, deadline=None)
@given(LENGTHS.filter(any), st.integers(3, 9))
def test_each_text_stands_whole_in_one_row(lengths, length):
    texts = texts_of(lengths)
    pieces = [t[i : i + length].tolist() for t in texts for i in range(0, len(t), length)]
    packed = pack(texts, length, pad_token=-1)
    assert sorted(read(packed)) == sorted(pieces)
    assert (packed.tokens[packed.segments == 0] == -1).all()
    assert len(packed.tokens) <= np.ceil(11 / 9 * np.ceil(sum(lengths) / length)) + 1


def test_best_fit():
    packed = pack([[1] * 3, [2] * 4, [3] * 2, [4]], 5)
    assert isinstance(packed, Packed)
    assert packed.tokens.tolist() == [[2, 2, 2, 2, 4], [1, 1, 1, 3, 3]]
    assert packed.segments.tolist() == [[1, 1, 1, 1, 2], [1, 1, 1, 2, 2]]


def test_targets_never_cross_texts():
    inputs, segments, targets, weights = pack([[5, 6, 7], [8, 9]], 6).next_tokens()
    assert inputs.tolist() == [[5, 6, 7, 8, 9]]
    assert segments.tolist() == [[1, 1, 1, 2, 2]]
    assert targets.tolist() == [[6, 7, 8, 9, 0]]
    assert weights.tolist() == [[1, 1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "at least one token"), ([[]], "at least one token"), ([[0.5]], "integers"),
     ([[[1]]], "integers"), (["ab"], "integers")],
)  # fmt: skip
def test_what_is_no_text(texts, message):
    with pytest.raises(ValueError, match=message):
        pack(texts, 4)
