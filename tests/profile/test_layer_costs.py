"""Parameters, operations and bytes of layers, counted by hand."""

import doctest
import importlib

import keras
import pytest

import kattn
from kattn.layers import SelfAttention2D
from kattn.profile import LayerCost, layer_costs


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_layer_costs(data_format):
    shape = (7, 5, 3) if data_format == "channels_last" else (3, 7, 5)
    x = inputs = keras.Input(shape)
    x = keras.layers.Conv2D(6, (3, 2), 2, padding="same", data_format=data_format, name="conv")(x)
    x = SelfAttention2D(
        2, key_dim=5, value_dim=4, key_stride=3, data_format=data_format, name="attention"
    )(x)
    x = keras.layers.GlobalAveragePooling2D(data_format=data_format)(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="dense")(x))
    costs = {cost.layer: cost for cost in layer_costs(model)}
    multiply_adds = {  # 4 x 3 positions of 6 channels, pooled to 2 x 1 keys
        "conv": 12 * 6 * (3 * 2 * 3),
        "attention": 12 * 6 * (10 + 10 + 8) + 12 * 2 * 10 + 12 * 2 * 8 + 12 * 8 * 6,
        "dense": 6 * 10,
    }
    assert {n: c.flops for n, c in costs.items() if c.flops} == {
        n: 2 * v for n, v in multiply_adds.items()
    }
    assert sum(cost.parameters for cost in costs.values()) == model.count_params()
    assert costs["attention"].kind == "SelfAttention2D"
    sides = (4, 3, 6) if data_format == "channels_last" else (6, 4, 3)
    assert costs["conv"].output_shape == costs["attention"].output_shape == sides


def test_layer_costs_does_not_guess():
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, keras.layers.LSTM(2, name="memory")(inputs))
    with pytest.raises(
        ValueError,
        match="a rule for every layer of the model; received: layer='memory', kind='LSTM'",
    ):
        layer_costs(model)


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds"),
    [
        (keras.layers.Dense(5), (4, 3), 4 * 3 * 5),
        (keras.layers.Conv1D(5, 2), (7, 3), 6 * 5 * 2 * 3),
        (keras.layers.Conv2D(4, (3, 2), groups=2), (5, 6, 8), 3 * 5 * 4 * 3 * 2 * 4),
        (keras.layers.Conv3D(2, 2), (3, 4, 5, 3), 2 * 3 * 4 * 2 * 8 * 3),
        (keras.layers.LayerNormalization(), (4, 3), 0),
        (keras.layers.Embedding(9, 4), (6,), 0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_operations(layer, shape, multiply_adds):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    assert layer_costs(model)[-1].flops == 2 * multiply_adds


def test_bytes():
    inputs = keras.Input((6,), name="x")
    x = keras.layers.Dense(5, dtype="mixed_float16", name="half")(inputs)
    x = keras.layers.Dense(4, dtype="float16", name="all_half")(x)
    costs = layer_costs(keras.Model(inputs, x))
    assert costs == [
        LayerCost("x", "InputLayer", (6,), 0, 0, 0, 24),
        LayerCost("half", "Dense", (5,), 35, 60, 140, 10),  # weights in float32
        LayerCost("all_half", "Dense", (4,), 24, 40, 48, 8),
    ]


def test_unknown_shapes():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(inputs))
    message = r"must have a known size; received: layer='.*', output_shape=\(None, 3\)"
    with pytest.raises(ValueError, match=message):
        layer_costs(model)


def test_examples():
    module = importlib.import_module("kattn.profile.layer_costs")
    outcome = doctest.testmod(module, extraglobs={"kattn": kattn})
    assert outcome.attempted > 0
    assert outcome.failed == 0
