import numpy as np
import pytest
from keras import layers as keras_layers
from keras import ops

from kattn.layers import (
    CrossAttention,
    FeedForward,
    SelfAttention,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    deep_norm,
    scale_projections,
)
from kattn.layers.transformer.initialization import DeepNorm
from tests.compute import run


def block(feed_forward=None):
    made = TransformerDecoderBlock(
        SelfAttention(2, causal=True, num_key_value_heads=1, value_dim=3),
        feed_forward,
        cross_attention=CrossAttention(2),
    )
    made.build((None, None, 8), (None, None, 6))
    return made


def kernels(blocks):
    return {w.path: run(ops.copy, w) for block in blocks for w in block.weights}


def changes(blocks, *args, **options):
    """By which factor each column of a weight is multiplied, for weights that change."""
    before = kernels(blocks)
    scale_projections(blocks, *args, **options)
    ratios = {}
    for path, weight in kernels(blocks).items():
        if (weight != before[path]).any():
            ratio = weight / before[path]
            np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-5)
            ratios[path.split("/", 1)[1]] = ratio[0]
    return ratios


def test_last_projections_shrink_with_the_number_of_connections():
    """Radford et al. 2019, sec. 2.3: by 1 / sqrt(N), N connections, three a block here."""
    found = changes([block(), block()])
    names = ("attention", "cross_attention", "feed_forward")
    assert set(found) == {f"{name}/output/kernel" for name in names}
    for ratio in found.values():
        np.testing.assert_allclose(ratio, 6**-0.5, rtol=1e-5)


def test_values_are_the_last_columns():
    found = changes([block()], 0.5, projections=("value", "hidden"))
    expected = {
        "attention/qkv/kernel": [1.0] * 12 + [0.5] * 3,
        "cross_attention/key_value/kernel": [1.0] * 8 + [0.5] * 8,
        "feed_forward/hidden/kernel": [0.5] * 32,
    }
    assert found.keys() == expected.keys()
    for name, ratio in found.items():
        np.testing.assert_allclose(ratio, expected[name], rtol=1e-5)


def test_what_is_shared_is_scaled_once():
    shared = FeedForward()
    found = changes([block(shared), block(shared)], 0.25)
    np.testing.assert_allclose(found["feed_forward/output/kernel"], 0.25, rtol=1e-5)


def test_variance_of_the_stream_does_not_grow_with_depth(rng):
    """Which it does without."""
    x = rng.normal(size=(2, 6, 32)).astype("float32")

    def growth(scaled):
        made = [TransformerEncoderBlock(SelfAttention(2), seed=i) for i in range(12)]
        for one in made:
            one.build(x.shape)
        if scaled:
            scale_projections(made)
        y = x
        for one in made:
            y = run(one, y)
        return y.var() / x.var()

    assert growth(scaled=True) < 0.5 * growth(scaled=False)


def test_deep_norm_matches_the_paper():
    """Wang et al. 2022, figure 2, and the numbers of its 18 layers each in the appendix."""
    np.testing.assert_allclose(deep_norm(100), (200**0.25, 800**-0.25))
    np.testing.assert_allclose(deep_norm(6, encoder_layers=12), (18**0.25, 72**-0.25))
    both = 12**4 * 6
    expected = 0.81 * both ** (1 / 16), 0.87 * both ** (-1 / 16)
    np.testing.assert_allclose(deep_norm(12, decoder_layers=6), expected)
    assert isinstance(deep_norm(1), DeepNorm)
    assert deep_norm(8).alpha == 2.0


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`blocks` must be built.*'block'"):
        scale_projections([TransformerEncoderBlock(SelfAttention(2), name="block")])
    with pytest.raises(ValueError, match=r"`projections` must be one of output, value, hidden"):
        scale_projections([], projections=["query"])
    with pytest.raises(ValueError, match=r"`factor` must be a finite number above 0.*factor=0"):
        scale_projections([block()], 0)
    dense = block(keras_layers.Dense(8))
    with pytest.raises(ValueError, match=r"`feed_forward` must be a layer of kattn.*'output'"):
        scale_projections([dense])
    with pytest.raises(ValueError, match=r"`num_layers` must be an integer >= 1.*num_layers=0"):
        deep_norm(0)
    with pytest.raises(ValueError, match=r"give the number of blocks of the other one only"):
        deep_norm(6, encoder_layers=6, decoder_layers=6)
