"""What the drop-in refuses, and in which words."""

import numpy as np
import pytest

from kattn.layers import MultiHeadAttention
from tests.multi_head_oracle import build

BAD = {
    # In the words by which code for Keras's layer knows them.
    "num_heads": ({"num_heads": 0}, "argument `num_heads` must be an integer >= 1.*num_heads=0"),
    "key_dim": ({"key_dim": 1.5}, "argument `key_dim` must be an integer >= 1.*key_dim=1.5"),
    "value_dim": ({"value_dim": 0}, "argument `value_dim` must be an integer >= 1.*value_dim=0"),
    "key heads": ({"num_key_value_heads": 3}, "must be a multiple of `num_key_value_heads`.*=3"),
    "window": ({"sliding_window": 0}, "`sliding_window` must be.*sliding_window=0"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be a fraction in \[0, 1\).*dropout=1\.0"),
    "flash": ({"flash_attention": "yes"}, "`flash_attention` must be.*flash_attention='yes'"),
    "axes": ({"attention_axes": "1"}, "`attention_axes` must be an integer.*attention_axes='1'"),
    "output": ({"output_shape": 2.5}, r"Invalid `output_shape`: it must be an .*output_shape=2\.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**{"num_heads": 2, "key_dim": 3, **options})


BAD_SHAPES = {
    "rank 2": ({}, [(3, 6), (3, 6)], r"same rank, 3 or more.*query.shape=\(3, 6\)"),
    "two ranks": ({}, [(3, 4, 6), (3, 4, 2, 6)], r"the same rank.*value.shape=\(3, 4, 2, 6\)"),
    "keys": ({}, [(3, 4, 6), (3, 5, 6), (3, 4, 6)], r"must be equal.*key.shape=\(3, 4, 6\)"),
    "rank of the key": ({}, [(3, 4, 6), (3, 5, 6), (6,)], r"must be equal.*key.shape=\(6,\)"),
    "batch": ({}, [(3, 4, 6), (2, 5, 6)], r"same batch size.*value.shape=\(2, 5, 6\)"),
    "batch axis": ({"attention_axes": 0}, [(3, 4, 6)] * 2, r"`attention_axes` must.*\(0,\)"),
    "last axis": ({"attention_axes": -1}, [(3, 4, 6)] * 2, r"`attention_axes` must.*\(-1,\)"),
    "far axis": ({"attention_axes": 2}, [(3, 4, 6)] * 2, r"`attention_axes` must.*\(2,\)"),
    "one axis twice": (
        {"attention_axes": (1, -3)},
        [(3, 4, 5, 6)] * 2,
        r"`attention_axes` must.*\(1, -3\)",
    ),
    "other axes": (
        {"attention_axes": 1},
        [(3, 4, 2, 6), (3, 4, 5, 6)],
        r"attention_axes=\(1,\)",
    ),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_bad_shapes(name):
    """The call and the shape of its output refuse the same."""
    options, shapes, message = BAD_SHAPES[name]
    layer = MultiHeadAttention(2, 3, **options)
    with pytest.raises(ValueError, match=message):
        layer.compute_output_shape(*shapes)
    with pytest.raises(ValueError, match=message):
        layer(*(np.zeros(shape, "float32") for shape in shapes))


@pytest.mark.parametrize("shapes", [[(3, 4, 5), (3, 5, 7)], [(3, 4, 2, 6), (3, 5, 2, 7)]])
def test_shapes_other_than_those_of_build(rng, shapes):
    layer, _ = build(rng, {})
    message = r"built for inputs of rank 3, and for widths \(6, 7, 7\) of `query`, .*\(3, 4, "
    for function, values in (
        (layer.compute_output_shape, shapes),
        (layer, [np.zeros(shape, "float32") for shape in shapes]),
    ):
        with pytest.raises(ValueError, match=message):
            function(*values)
