"""HeadPosition: a subclass of one's own, alone and in attention layers."""

import keras
import numpy as np
import pytest

from kattn.layers import CrossAttention, GatedLinearAttention, SelfAttention
from kattn.layers.position.head_position import HeadPosition
from kattn.layers.position.input_position import InputPosition
from tests import position_checks
from tests.checks import shake
from tests.compute import assert_close, run
from tests.decode_checks import in_pieces


@keras.saving.register_keras_serializable("tests")
class Growth(HeadPosition):
    """x * (1 + p * rate), with a rate for each channel, which is learned."""

    def attach(self, *, width, num_heads, key_dim):
        if self.remember_sizes(key_dim=key_dim):
            self.rate = self.add_weight(shape=(key_dim,), initializer="zeros", name="rate")

    def rotate(self, x, positions=None):
        if positions is None:
            positions = keras.ops.arange(x.shape[1])
        steps = keras.ops.cast(positions, x.dtype)[..., None, None]
        return x * (1.0 + steps * keras.ops.cast(self.rate, x.dtype))


def changes(position):
    rate = run(keras.ops.convert_to_tensor, position.rate).astype(float)
    return {"rotate": lambda x: x * (1.0 + np.arange(5)[:, None, None] * rate)}


def test_alone(rng):
    position, x = Growth(), rng.normal(size=(3, 5, 2, 4)).astype("float32")
    shake(position, [x])
    rate = run(keras.ops.convert_to_tensor, position.rate).astype(float)
    assert rate.shape == (4,)
    assert_close(run(position, x), x * (1.0 + np.arange(5)[:, None, None] * rate))
    places = np.array([3, 0, 2, 9, 4])
    expected = x * (1.0 + places[:, None, None] * rate)
    assert_close(run(position, x, positions=places), expected)


def test_in_a_model(tmp_path):
    position_checks.check_in_a_model(Growth, changes, tmp_path)


def test_sharing():
    position_checks.check_sharing(Growth, "key_dim")


def test_decoding_equals_the_call(rng):
    layer = SelfAttention(2, causal=True, position=Growth())
    x = rng.normal(size=(2, 6, 8)).astype("float32")
    shake(layer, [x])
    assert_close(run(in_pieces, layer, x, [0, 3, 4, 6], 6), run(layer, x))


def test_each_sequence_of_cross_attention_has_its_own_positions(rng):
    layer = CrossAttention(2, position=Growth())
    x = rng.normal(size=(2, 4, 8)).astype("float32")
    context = rng.normal(size=(2, 3, 8)).astype("float32")
    shake(layer, [x, context])
    expected = run(layer, x, context)
    places = {"positions": np.arange(4), "context_positions": np.arange(3)}
    assert_close(run(layer, x, context, **places), expected)
    moved = run(layer, x, context, **{**places, "context_positions": np.array([2, 0, 1])})
    assert np.abs(moved - expected).max() > 1e-3


def test_linear_attention_takes_it(rng):
    layer = GatedLinearAttention(2, position=Growth())
    x = rng.normal(size=(2, 5, 8)).astype("float32")
    shake(layer, [x])
    found = run(layer, x)
    layer.position = None
    assert np.abs(found - run(layer, x)).max() > 1e-3


def test_it_is_no_input_position():
    assert not issubclass(HeadPosition, InputPosition)


def test_rotate_must_be_overridden():
    with pytest.raises(NotImplementedError, match="HeadPosition must override `rotate`"):
        HeadPosition().rotate(np.zeros((1, 2, 3, 4)))
