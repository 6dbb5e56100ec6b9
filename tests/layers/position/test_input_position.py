"""InputPosition: a subclass of one's own, alone and in attention layers."""

import keras
import numpy as np
import pytest

from kattn import masks
from kattn.layers import (
    CrossAttention,
    LinearAttention,
    MultiHeadAttention,
    SelfAttention,
    SelfAttention2D,
)
from kattn.layers.position.input_position import InputPosition
from kattn.ops import PositionCache
from tests import position_checks
from tests.checks import shake
from tests.compute import assert_close, run


@keras.saving.register_keras_serializable("tests")
class Slope(InputPosition):
    """x + p * direction, which is learned."""

    def attach(self, *, width, num_heads, key_dim):
        if self.remember_sizes(width=width):
            self.direction = self.add_weight(shape=(width,), initializer="ones", name="direction")

    def embed(self, x, positions=None):
        if positions is None:
            positions = keras.ops.arange(x.shape[1])
        steps = keras.ops.cast(positions, x.dtype)[..., None]
        return x + steps * keras.ops.cast(self.direction, x.dtype)


class Alternating(InputPosition):
    """Adds (-1)^p; a shift by two steps changes nothing."""

    is_absolute = False

    def embed(self, x, positions=None):
        if positions is None:
            positions = keras.ops.arange(x.shape[1])
        return x + 1.0 - 2.0 * keras.ops.cast(positions % 2, x.dtype)[..., None]


def changes(position):
    direction = run(keras.ops.convert_to_tensor, position.direction).astype(float)
    return {"embed": lambda x: x + np.arange(5)[:, None] * direction}


def test_alone(rng):
    position, x = Slope(), rng.normal(size=(3, 5, 8)).astype("float32")
    shake(position, [x])
    direction = run(keras.ops.convert_to_tensor, position.direction).astype(float)
    assert direction.shape == (8,)
    assert_close(run(position, x), x + np.arange(5)[:, None] * direction)
    places = np.array([3, 0, 2, 9, 4])
    assert_close(run(position, x, positions=places), x + places[:, None] * direction)


def test_in_a_model(tmp_path):
    position_checks.check_in_a_model(Slope, changes, tmp_path)


def test_sharing():
    position_checks.check_sharing(Slope, "width")


@pytest.mark.parametrize("kind", [SelfAttention, LinearAttention])
@pytest.mark.parametrize("position", [Slope, Alternating])
def test_padding_at_the_left(rng, kind, position):
    """Positions are counted from the first real step if they are absolute, else from 0."""
    layer = kind(2, position=position())
    x = rng.normal(size=(2, 4, 8)).astype("float32")
    shake(layer, [x])
    padded = np.concatenate([np.ones((2, 1, 8), "float32"), x], axis=1)
    keep = np.array([[False, True, True, True, True]] * 2)
    found = run(layer, padded, mask=keras.ops.convert_to_tensor(keep))[:, 1:]
    difference = np.abs(found - run(layer, x)).max()
    assert position is Slope or difference > 1e-2
    assert position is Alternating or difference < 1e-4
    if position is Alternating:
        shifted = run(layer, x, positions=np.arange(1, 5))
        assert_close(found, shifted)


def test_it_changes_both_sequences_of_cross_attention(rng):
    layer = CrossAttention(2, position=Slope())
    x = rng.normal(size=(2, 4, 8)).astype("float32")
    context = rng.normal(size=(2, 3, 8)).astype("float32")
    shake(layer, [x, context])
    found, position = run(layer, x, context), layer.position
    moved = [run(position, part) for part in (x, context)]
    layer.position = None
    assert_close(found, run(layer, *moved))


def test_it_gets_the_cells_of_a_map(rng):
    class Rows(InputPosition):
        def embed(self, x, positions=None):
            return x + keras.ops.cast(positions[..., :1] * 10 + positions[..., 1:], x.dtype)

    layer = SelfAttention2D(2, position=Rows())
    x = rng.normal(size=(2, 3, 4, 8)).astype("float32")
    shake(layer, [x])
    found = run(layer, x) - x
    layer.position = None
    moved = x + (np.arange(3)[:, None, None] * 10 + np.arange(4)[:, None])
    assert_close(found, run(layer, moved.astype("float32")) - moved)


def test_the_drop_in_refuses_it():
    with pytest.raises(ValueError, match="add positions of the inputs before the layer"):
        MultiHeadAttention(2, 4, position=Alternating())


def test_packed_sequences_are_decoded_as_those_apart(rng):
    """Positions begin again in each segment, unless a shift changes nothing."""
    x = rng.normal(size=(2, 5, 8)).astype("float32")
    packed = masks.Segments(np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]))
    counts = np.array([[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]], "int32")
    for position, places in ((Slope(), counts), (Alternating(), np.arange(5))):
        shake(position, [x])
        first, cache = position.decode(x[:, :3], position.init_cache(2, 5), mask=packed)
        second, cache = position.decode(x[:, 3:], cache, mask=packed)
        found = np.concatenate([run(keras.ops.copy, y) for y in (first, second)], axis=1)
        assert_close(found, run(position, x, positions=places))
        assert isinstance(cache, PositionCache)
        assert run(keras.ops.copy, cache.length).tolist() == [5, 5]


def test_it_is_absolute_by_default():
    assert InputPosition.is_absolute
    assert Slope().is_absolute


def test_embed_must_be_overridden():
    with pytest.raises(NotImplementedError, match="InputPosition must override `embed`"):
        InputPosition().embed(np.zeros((1, 2, 3)))
