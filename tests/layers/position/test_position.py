"""What the three kinds share, and a layer that holds one of the library's own."""

import keras
import numpy as np
import pytest

from kattn.layers.position.head_position import HeadPosition
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.learned_positions import LearnedPositions
from kattn.layers.position.position import Position
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from kattn.layers.position.score_bias import ScoreBias
from kattn.layers.position.sinusoidal_positions import SinusoidalPositions
from tests.checks import shake
from tests.compute import assert_close, run


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
        if isinstance(self.position, InputPosition):
            return self.position.embed(x, positions)
        heads = keras.ops.reshape(x, (-1, x.shape[1], 2, x.shape[-1] // 2))
        return keras.ops.reshape(self.position.rotate(heads, positions), (-1, *x.shape[1:]))

    def get_config(self):
        position = keras.saving.serialize_keras_object(self.position)
        return {**super().get_config(), "position": position}

    @classmethod
    def from_config(cls, config):
        position = keras.saving.deserialize_keras_object(config.pop("position"))
        return cls(position, **config)


def test_the_base_does_nothing():
    position = Position(name="where")
    assert position.attach(width=4, num_heads=2, key_dim=2) is None
    assert not position.weights
    assert not position.built
    assert position.supports_masking
    assert Position.from_config(position.get_config()).name == "where"


def test_the_kinds_are_apart():
    kinds = (InputPosition, HeadPosition, ScoreBias)
    for kind in kinds:
        assert [issubclass(kind, other) for other in kinds].count(True) == 1
        assert issubclass(kind, Position)


def test_sizes_are_remembered():
    position = Position()
    assert position.remember_sizes(num_heads=4, key_dim=8)
    assert position.built
    assert not position.remember_sizes(num_heads=4, key_dim=8)
    message = "This position layer was built for num_heads=4; it cannot be shared with num_heads=8."
    with pytest.raises(ValueError, match=f"^{message}$"):
        position.remember_sizes(num_heads=8, key_dim=8)
    with pytest.raises(ValueError, match=r"built for key_dim=8; .* shared with key_dim=3\."):
        position.remember_sizes(num_heads=4, key_dim=3)
    assert not position.remember_sizes(num_heads=4, key_dim=8)


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
