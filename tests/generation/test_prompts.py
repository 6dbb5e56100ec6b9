import keras
import numpy as np
import pytest

from kattn.generation.prompts import read_prompts


def test_lists_of_different_lengths():
    read = read_prompts([[3, 1, 4], [1]], None, 9)
    np.testing.assert_array_equal(read.tokens, [[3, 1, 4], [1, 9, 9]])
    np.testing.assert_array_equal(read.real, [[1, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(read.counts, [3, 1])
    assert read.tokens.dtype == "int32"


def test_padding_at_any_place_comes_behind():
    tokens = keras.ops.convert_to_tensor(np.array([[7, 3, 7, 1], [5, 7, 7, 7], [1, 2, 3, 4]]))
    mask = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    read = read_prompts(tokens, keras.ops.convert_to_tensor(mask), 0)
    np.testing.assert_array_equal(read.tokens, [[3, 1, 0, 0], [5, 0, 0, 0], [1, 2, 3, 4]])
    np.testing.assert_array_equal(read.counts, [2, 1, 4])


@pytest.mark.parametrize("prompts", [[[3, 1], [4, 1]], np.array([[3, 1], [4, 1]])])
def test_no_mask_where_all_are_tokens(prompts):
    read = read_prompts(prompts, None, 0)
    assert read.real is None
    np.testing.assert_array_equal(read.counts, [2, 2])


BAD = {
    "rank": (np.array([3, 1]), None, r"must be an array of integers \(B, T\).*prompts\[None\]"),
    "dtype": (np.array([[3.0, 1.0]]), None, r"array of integers.*dtype=float64"),
    "no prompt": ([], None, r"`prompts` must hold at least one prompt"),
    "no token": ([[3], []], None, r"at least one token.*prompt=\[1, 0\]"),
    "all padded": (np.array([[3, 1]]), np.zeros((1, 2), bool), r"at least one token.*=\[0\]"),
    "mask shape": (np.array([[3, 1]]), np.ones((1, 3), bool), r"`mask` must be a bool array"),
    "mask dtype": (np.array([[3, 1]]), np.ones((1, 2)), r"`mask` must be a bool array"),
    "mask of lists": ([[3], [1, 2]], np.ones((2, 2), bool), r"lists of different lengths need"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_prompts(name):
    prompts, mask, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        read_prompts(prompts, mask, 0)
