"""What the names of splits say."""

import pytest

from recipes.data import sources


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "validation", "test", "unsupervised"), "test"),
        (("train", "validation"), "validation"),
        (("train", "Eval"), "Eval"),
        (("train", "unsupervised"), None),
    ],
)
def test_the_split_to_test_on(splits, expected):
    assert sources.held_out_split(splits) == expected
