"""Parameters, operations and bytes of layers, counted by hand."""

import doctest
import importlib

import keras
import pytest
from keras import ops

import kattn
from kattn.layers import (
    AdditiveScore,
    AttentionRNN,
    AttentionScore,
    LocationScore,
    MultiHeadScore,
    PredictedWindow,
    SelfAttention2D,
)
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
    for layer, count in ((keras.layers.MultiHeadAttention(1, 3), 2), (Doubled(), 1)):
        model = keras.Model(inputs, layer(*[inputs] * count))
        kind = type(layer).__name__
        message = f"a rule for every layer of the model; received: layer='.*', kind='{kind}'"
        with pytest.raises(ValueError, match=message):
            layer_costs(model)


# Queries and outputs of 7 steps, keys and values of 3; 10 channels of 2 heads; scores and sums.
ATTENTION = 2 * 7 * 4 * 10 + 2 * 3 * 4 * 10 + 2 * 7 * 3 * 10


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds"),
    [
        (keras.layers.Dense(5), (4, 3), 4 * 3 * 5),
        (keras.layers.Conv1D(5, 2), (7, 3), 6 * 5 * 2 * 3),
        (keras.layers.Conv2D(4, (3, 2), groups=2), (5, 6, 8), 3 * 5 * 4 * 3 * 2 * 4),
        (keras.layers.Conv3D(2, 2), (3, 4, 5, 3), 2 * 3 * 4 * 2 * 8 * 3),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 6, 4), 3 * 4 * 4 * 2 * 9),
        (keras.layers.LayerNormalization(), (4, 3), 0),
        (keras.layers.Embedding(9, 4), (6,), 0),
        (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 5)), (4, 3), 4 * 3 * 2 * 5),
        (keras.layers.EinsumDense("...bc,bcd->...bd", (3, 2)), (4, 3, 5), 4 * 3 * 5 * 2),
        (keras.layers.LSTM(2), (7, 3), 7 * (3 + 2) * 8),
        (keras.layers.Bidirectional(keras.layers.GRU(2)), (7, 3), 2 * 7 * (3 + 2) * 6),
        (kattn.layers.SqueezeExcite(2), (5, 4, 8), 2 * 8 * 4),
        (kattn.layers.EfficientChannelAttention(3), (5, 4, 8), 8 * 3),
        (kattn.layers.CBAM(2, 3), (5, 4, 8), 2 * 2 * 8 * 4 + 20 * 3 * 3 * 2),
        (kattn.layers.CoordinateAttention(2), (5, 4, 6), 2 * 9 * 6 * 8),
        (kattn.layers.GlobalContext(2), (5, 4, 8), 2 * 20 * 8 + 2 * 8 * 4),
        (
            kattn.layers.AttentionGate2D(3),
            [(5, 4, 8), (2, 2, 6)],
            20 * 8 * 3 + 4 * 6 * 3 + 20 * 3,
        ),
        (  # twice 2 heads of 4 by 4 channels, sums over 20 cells
            kattn.layers.CrossCovarianceAttention(2),
            (5, 4, 8),
            20 * 8 * 32 + 2 * 2 * 4 * 4 * 20,
        ),
        (  # 6 points, for which a kernel of 5 by 5 cells and a matrix of 8 by 2 are applied
            kattn.layers.DeformableAttention2D(2),
            (5, 4, 8),
            20 * 8 * 8 * 2 + 6 * (8 * 25 + 8 * 2 + 8 * 16) + 2 * 20 * 6 * 8,
        ),
        (
            kattn.layers.AttentionPooling(2, 3),
            (5, 4, 8),
            2 * 3 * 8 * 8 + 20 * 8 * 16 + 2 * 3 * 20 * 8,
        ),
        (  # 3 x 2 windows of 6 cells, padding included, which attends, too; 20 cells go out
            kattn.layers.WindowAttention2D(2, (2, 3), 5, value_dim=3, shift=1),
            (5, 4, 8),
            36 * 8 * (10 + 10 + 6) + 36 * 6 * 2 * (5 + 3) + 20 * 6 * 8,
        ),
        (  # 20 cells see 5 cells, and then 4
            kattn.layers.AxialAttention2D(2, 5, value_dim=3),
            (5, 4, 8),
            20 * (8 + 6) * (10 + 10 + 6) + 20 * (5 + 4) * 2 * (5 + 3) + 20 * 6 * 8,
        ),
        (kattn.layers.LinearAttention(2), (7, 4), 7 * 4 * 4 * 4 + 2 * 7 * 2 * 2 * 2),
        (
            kattn.layers.GatedDeltaNet(2),
            (7, 4),
            7 * 4 * (12 + 4 + 4 + 4) + 7 * 4 * 12 + 7 * 3 * 2 * 2 * 2,
        ),
        (kattn.layers.RGLRU(2), (7, 4), 7 * 2 * 2 * 4),
        (kattn.layers.CausalDepthwiseConv1D(3), (7, 4), 7 * 3 * 4),
        (
            kattn.layers.LSTMN(2),
            (7, 3),
            7 * 3 * (8 + 2) + 7 * (2 * 8 + 2 * 2 + 2 * 2) + 7 * 7 * (2 + 4),
        ),
        (kattn.layers.MultiHeadAttention(2, 5), [(7, 4), (3, 4)], ATTENTION),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_operations(layer, shape, multiply_adds):
    inputs = [keras.Input(each) for each in (shape if isinstance(shape, list) else [shape])]
    model = keras.Model(inputs, layer(*inputs))
    assert layer_costs(model)[-1].flops == 2 * multiply_adds
    assert type(layer).call is layer.call.__func__  # as before


def test_one_example_that_is_read_as_many():
    """Windows of a sequence, and channels of series, each of which a recurrent layer reads."""
    gru = keras.layers.GRU(2)
    parts = kattn.layers.SelfAttention(1, causal=True), kattn.layers.FeedForward(5)
    local = kattn.layers.RTransformerBlock(gru, *parts, window=3)
    model = keras.Model(x := keras.Input((7, 2)), local(x))
    windows, attention = 7 * 3 * (2 + 2) * 6, 4 * 7 * 2 * 2 + 2 * 7 * 7 * 2
    assert layer_costs(model)[-1].flops == 2 * (windows + attention + 2 * 7 * 2 * 5)
    options = {"input_width": 4, "input_length": 6, "horizon": 5, "segment_length": 2}
    model = kattn.models.sa_rnn(**options, units=2, num_heads=None, rnn="gru")
    costs = {cost.layer: cost.flops for cost in layer_costs(model)}
    assert costs["rnn0"] == 2 * (4 * 3 * (2 + 2) * 6)


def test_two_directions_that_attend():
    def cost(layer):
        return layer_costs(keras.Model(x := keras.Input((7, 3)), layer(x)))[-1].flops

    def one_direction():
        return AttentionRNN(keras.layers.GRUCell(2), "general")

    assert cost(keras.layers.Bidirectional(one_direction())) == 2 * cost(one_direction()) > 0


def test_two_directions_that_one_kernel_runs(monkeypatch):
    """On a GPU, Keras calls neither of the two layers of a Bidirectional."""
    layer = keras.layers.Bidirectional(keras.layers.GRU(2))
    model = keras.Model(x := keras.Input((7, 3)), layer(x))
    monkeypatch.setattr(type(layer), "call", lambda self, x, **options: x[:, 0, :1] * ops.ones(4))
    assert layer_costs(model)[-1].flops == 2 * (2 * 7 * (3 + 2) * 6)


class Doubled(keras.layers.Layer):
    """A layer without a rule and without layers in it."""

    def call(self, x):
        return 2 * x


class Cell(keras.layers.Layer):
    """A layer of one's own costs what the layers in it cost."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(self.dense(x))


def test_layers_within_layers_count_as_often_as_they_are_called():
    inputs = keras.Input((4, 3))
    inner = keras.Sequential([Cell()])
    model = keras.Model(inputs, inner(inner(inputs)))
    cost = layer_costs(model)[-1]
    assert (cost.parameters, cost.flops) == (12, 4 * 2 * 4 * 3 * 3)


def test_a_language_model():
    """Each layer of a model that is no functional one; the tied table counts once."""
    position = kattn.layers.RotaryEmbedding()
    model = kattn.models.TransformerLM(11, 3, 2, 8, position=position, padding_token=0)
    with pytest.raises(ValueError, match="`model` must be built"):
        layer_costs(model)
    model.build((None, 5))
    costs = {cost.layer: cost for cost in layer_costs(model)}
    blocks = 3 * (5 * (4 * 8**2 + 2 * 8 * 32) + 2 * 5 * 5 * 8)
    counted = {name: cost.flops for name, cost in costs.items() if cost.flops}
    assert counted == {"decoder": 2 * blocks, "tokens": 2 * 5 * 8 * 11}
    assert sum(cost.parameters for cost in costs.values()) == model.count_params()
    assert costs["decoder"].output_shape == (5, 8)


def test_the_first_of_several_outputs():
    inputs = keras.Input((5, 3))
    y, *states = keras.layers.LSTM(4, return_sequences=True, return_state=True)(inputs)
    cost = layer_costs(keras.Model(inputs, [y, *states]))[-1]
    assert (cost.output_shape, cost.output_bytes) == ((5, 4), 5 * 4 * 4)
    assert cost.flops == 2 * 5 * (3 + 4) * 4 * 4


def test_a_model_of_two_sequences():
    """Of 6 tokens to read and 5 to write, each with the shape that the model was built with."""
    sizes = {"position": kattn.layers.RotaryEmbedding(), "hidden_dim": 12, "padding_token": 0}
    model = kattn.models.TransformerSeq2Seq(11, 2, 2, 8, **sizes)
    model.build(((None, 6), (None, 5)))
    encoder = 2 * (6 * (4 * 8**2 + 2 * 8 * 12) + 2 * 6 * 6 * 8)
    cross = (5 + 6) * 2 * 8**2 + 2 * 5 * 6 * 8
    decoder = 2 * (5 * (4 * 8**2 + 2 * 8 * 12) + 2 * 5 * 5 * 8 + cross)
    counted = {cost.layer: cost.flops for cost in layer_costs(model) if cost.flops}
    assert counted == {"encoder": 2 * encoder, "decoder": 2 * decoder, "tokens": 2 * 5 * 8 * 11}
    model = kattn.models.TransformerSeq2Seq(11, 2, 2, 8)
    model.build(((None, 6), (None, None)))
    with pytest.raises(ValueError, match=r"must have a known size; .*input_shape=\(None, None\)"):
        layer_costs(model)


ATTENDING = {  # multiply-adds: the cell, the query, what joins state and context; keys; pairs
    "additive, before": (
        lambda: AttentionRNN(keras.layers.LSTMCell(3), AdditiveScore(5), output="attentional"),
        [(7, 4), (6, 2)],
        7 * ((4 + 2 + 3) * 12 + 3 * 5 + (2 + 3) * 3) + 6 * 2 * 5 + 7 * 6 * (5 + 2),
    ),
    "location, feeding": (
        lambda: AttentionRNN(
            keras.layers.SimpleRNNCell(3),
            LocationScore(5, filters=2, kernel_size=3),
            attend="after",
            output="both",
            input_feeding=True,
        ),
        [(7, 4), (6, 2)],
        7 * ((4 + 5 + 3) * 3 + 3 * 5) + 6 * 2 * 5 + 7 * 6 * (5 + 2 * 5 + 3 * 2 + 2),
    ),
    "heads, before": (
        lambda: AttentionRNN(keras.layers.GRUCell(3), MultiHeadScore(2, 5, value_dim=6)),
        [(7, 4), (6, 2)],
        7 * ((4 + 12 + 3) * 9 + 3 * 10) + 6 * 2 * (10 + 12) + 7 * 6 * 2 * (5 + 6),
    ),
    "local-p": (
        lambda: AttentionRNN(
            keras.layers.GRUCell(3),
            "general",
            attend="after",
            output="context",
            window=PredictedWindow(1, 5),
        ),
        [(7, 4), (6, 2)],
        7 * ((4 + 3) * 9 + 3 * 5 + 5) + 6 * 2 * 3 + 7 * 6 * (3 + 2),
    ),
    "window of its own, with states": (
        lambda: AttentionRNN(keras.layers.GRUCell(3), "general", window=2, stateful=True),
        [(7, 4)],
        7 * ((4 + 4 + 3) * 9 + 4 * 3) + 7 * 3 * (3 + 4),
    ),
}


@pytest.mark.parametrize("case", ATTENDING)
def test_attention_in_a_loop(case):
    make, shapes, multiply_adds = ATTENDING[case]
    inputs = [keras.Input(shape, batch_size=1) for shape in shapes]
    assert layer_costs(keras.Model(inputs, make()(*inputs)))[-1].flops == 2 * multiply_adds


class OwnScore(AttentionScore):
    """A score that costs nobody knows what."""

    def score(self, query, keys, weights=None):
        return keras.ops.sum(keys, axis=-1)[:, :, None]


def test_scores_without_a_rule():
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, AttentionRNN(keras.layers.GRUCell(3), OwnScore())(inputs))
    with pytest.raises(ValueError, match=r"a rule for every score of the model.*kind='OwnScore'"):
        layer_costs(model)


def test_a_recurrence_that_attends():
    """Matrices of its cell and of what joins state and context, those of 6 keys; and scores."""
    model = kattn.models.AttentionSeq2Seq(11, 1, 8, attention="general", attend="after")
    model.build(((None, 6), (None, 5)))
    costs = {cost.layer: cost for cost in layer_costs(model)}
    multiply_adds = 5 * (2 * 8 * 32 + 16 * 8) + 6 * 8 * 8 + 5 * 6 * (8 + 8)
    assert costs["attending"].flops == 2 * multiply_adds
    assert costs["encoder"].flops == 2 * 6 * 2 * (8 + 4) * 16
    assert sum(cost.parameters for cost in costs.values()) == model.count_params()


def test_each_channel_of_a_forecast_passes_the_blocks():
    sizes = {"input_length": 24, "num_layers": 2, "num_heads": 2, "width": 4, "hidden_dim": 6}
    model = kattn.models.TimeSeriesTransformer(5, patch_length=8, stride=4, **sizes)
    model.build((None, 24, 3))
    costs = {cost.layer: cost.flops for cost in layer_costs(model) if cost.flops}
    blocks = 2 * (6 * (4 * 4**2 + 2 * 4 * 6) + 2 * 6 * 6 * 4)
    assert costs == {
        "projection": 2 * 3 * 6 * 8 * 4,
        "encoder": 2 * 3 * blocks,
        "head": 2 * 3 * 6 * 4 * 5,
    }


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
    message = r"must have a known size; received: model='.*', input_shape=\(None, None, 3\)"
    with pytest.raises(ValueError, match=message):
        layer_costs(model)


def test_examples():
    module = importlib.import_module("kattn.profile.layer_costs")
    outcome = doctest.testmod(module, extraglobs={"kattn": kattn})
    assert outcome.attempted > 0
    assert outcome.failed == 0
