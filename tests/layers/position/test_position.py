"""The protocol: its defaults, and a layer that holds a scheme."""

import keras
import numpy as np
import pytest

from kattn.layers.position.learned_positions import LearnedPositions
from kattn.layers.position.position import Position
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from kattn.layers.position.sinusoidal_positions import SinusoidalPositions
from tests.checks import shake
from tests.compute import assert_close, run


class Reversed(Position):
    """That of the docstring of `Position`."""

    def embed(self, x, positions=None):
        steps = keras.ops.arange(x.shape[1]) if positions is None else positions
        return x + keras.ops.cast(511 - steps, x.dtype)[..., None] / 512


@keras.saving.register_keras_serializable("tests")
class Host(keras.layers.Layer):
    """Uses a scheme as an attention layer does, but for the attention; N = 2."""

    def __init__(self, position, **kwargs):
        super().__init__(**kwargs)
        self.position = position

    def build(self, x_shape):
        sizes = {"width": x_shape[-1], "num_heads": 2, "key_dim": x_shape[-1] // 2}
        self.position.attach(**sizes)
        self.position.attach(**sizes)
        self.built = True

    def call(self, x, positions=None):
        x = self.position.embed(x, positions)
        heads = keras.ops.reshape(x, (-1, x.shape[1], 2, x.shape[-1] // 2))
        return keras.ops.reshape(self.position.rotate(heads, positions), (-1, *x.shape[1:]))

    def get_config(self):
        position = keras.saving.serialize_keras_object(self.position)
        return {**super().get_config(), "position": position}

    @classmethod
    def from_config(cls, config):
        position = keras.saving.deserialize_keras_object(config.pop("position"))
        return cls(position, **config)


def test_defaults_change_nothing(rng):
    position = Position()
    x, heads = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 2, 2))
    assert position.attach(width=4, num_heads=2, key_dim=2) is None
    assert position.embed(x) is x
    assert position.embed(x, np.arange(3)) is x
    assert position.rotate(heads) is heads
    assert position.rotate(heads, np.arange(3)) is heads
    assert position.bias(heads) is None
    assert not position.is_absolute
    assert not position.weights


def test_a_subclass_defines_what_it_needs(rng):
    position, x = Reversed(), rng.normal(size=(2, 3, 4)).astype("float32")
    expected = x + np.array([511, 510, 509])[:, None] / 512
    assert_close(run(position.embed, keras.ops.convert_to_tensor(x)), expected)
    assert position.rotate(x) is x


SCHEMES = {
    "learned": lambda: LearnedPositions(6),
    "rotary": lambda: RotaryEmbedding(base=30.0),
    "sinusoidal": lambda: SinusoidalPositions(base=30.0),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_host_saves_and_loads_it(rng, tmp_path, scheme):
    node = keras.Input((5, 8))
    host = Host(SCHEMES[scheme]())
    model = keras.Model(node, host(node))
    shake(host)
    assert [w.path for w in host.weights] == (
        [f"{host.name}/{host.position.name}/table"] if scheme == "learned" else []
    )
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    expected = model.predict(x, verbose=0)
    assert np.abs(expected - x).max() > 0.1
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(again.predict(x, verbose=0), expected)
    assert [w.path for w in again.weights] == [w.path for w in model.weights]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_host_gets_its_own_dtype_back(rng, scheme, policy):
    host = Host(SCHEMES[scheme](), dtype=policy)
    y = host(rng.normal(size=(3, 5, 8)).astype("float32"))
    assert keras.backend.standardize_dtype(y.dtype) == host.compute_dtype
    assert all(keras.backend.standardize_dtype(w.dtype) == "float32" for w in host.weights)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_step_by_step_is_all_at_once(rng, scheme):
    host, x = Host(SCHEMES[scheme]()), rng.normal(size=(3, 5, 8)).astype("float32")
    shake(host, [x])
    expected = run(host, x)
    steps = [run(host, x[:, t : t + 1], positions=np.array([t])) for t in range(5)]
    assert_close(np.concatenate(steps, axis=1), expected)
