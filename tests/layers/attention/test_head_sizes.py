"""Sizes of heads against sums done by hand, and the order in which channels are split."""

import keras
import numpy as np
import pytest

from kattn.layers import GatedLinearAttention, SelfAttention
from kattn.layers.attention.head_sizes import HeadSizes, check_heads, merge_heads
from tests.compute import run

GROUPED = HeadSizes(heads=4, key_heads=2, key_dim=3, value_dim=5)
TWO_MAPS = HeadSizes(heads=4, key_heads=2, key_dim=3, value_dim=5, maps=2)


def test_widths():
    widths = GROUPED.query_width, GROUPED.key_width, GROUPED.value_width, GROUPED.output_width
    assert widths == (12, 6, 10, 20)
    widths = TWO_MAPS.query_width, TWO_MAPS.key_width, TWO_MAPS.value_width, TWO_MAPS.output_width
    assert widths == (24, 12, 10, 20)


@pytest.mark.parametrize(
    ("layer", "maps", "expected"),
    [
        (SelfAttention(4), 1, HeadSizes(4, 4, 6, 6)),
        (SelfAttention(4, 5, num_key_value_heads=2), 1, HeadSizes(4, 2, 5, 5)),
        (SelfAttention(4, value_dim=7), 2, HeadSizes(4, 4, 3, 7, 2)),
        (SelfAttention(4), 2, HeadSizes(4, 4, 3, 6, 2)),
        (GatedLinearAttention(3, value_dim=2), 1, HeadSizes(3, 3, 8, 2)),
    ],
)
def test_of_a_layer_for_24_channels(layer, maps, expected):
    assert HeadSizes.of(layer, 24, maps=maps) == expected


@pytest.mark.parametrize(("maps", "divisor"), [(1, "`num_heads`"), (2, "2 \\* `num_heads`")])
def test_a_width_that_cannot_be_divided(maps, divisor):
    message = f"must be divisible by {divisor} where.*width=26, num_heads=4"
    with pytest.raises(ValueError, match=message):
        HeadSizes.of(SelfAttention(4), 26, maps=maps)


def test_channels_go_to_queries_keys_and_values_head_by_head():
    x = np.arange(2 * 3 * 28, dtype="float32").reshape(2, 3, 28)
    q, k, v = run(GROUPED.split_qkv, keras.ops.convert_to_tensor(x))
    assert (q.shape, k.shape, v.shape) == ((2, 3, 4, 3), (2, 3, 2, 3), (2, 3, 2, 5))
    np.testing.assert_array_equal(q[1, 2, 3], x[1, 2, 9:12])
    np.testing.assert_array_equal(k[1, 2, 1], x[1, 2, 15:18])
    np.testing.assert_array_equal(v[1, 2, 1], x[1, 2, 23:28])
    k, v = run(GROUPED.split_key_value, keras.ops.convert_to_tensor(x[..., 12:]))
    np.testing.assert_array_equal(k[0, 1, 1], x[0, 1, 15:18])
    np.testing.assert_array_equal(v[0, 1, 0], x[0, 1, 18:23])
    q = run(TWO_MAPS.split_query, keras.ops.convert_to_tensor(x[..., :24]))
    np.testing.assert_array_equal(q[1, 1, 7], x[1, 1, 21:24])
    np.testing.assert_array_equal(run(merge_heads, keras.ops.convert_to_tensor(q)), x[..., :24])


BAD = {
    "num_heads": ((0, None, None, None), "`num_heads` must be an integer >= 1.*num_heads=0"),
    "key_dim": ((2, 1.5, None, None), "`key_dim` must be an integer >= 1.*key_dim=1.5"),
    "value_dim": ((2, None, -1, None), "`value_dim` must be an integer >= 1.*value_dim=-1"),
    "key heads": ((4, None, None, 3), "multiple of .*num_heads=4, num_key_value_heads=3"),
    "no key heads": ((4, None, None, 0), "`num_key_value_heads` must be an integer >= 1"),
}


@pytest.mark.parametrize(("sizes", "message"), BAD.values(), ids=BAD)
def test_bad_heads(sizes, message):
    with pytest.raises(ValueError, match=message):
        check_heads(*sizes)
