"""Every layer that kattn exports, off its defaults, with the shapes of its inputs.

    make, shapes = LAYERS["SelfAttention"]
    make(dtype="float32")(*arrays(shapes, batch=2, steps=5))

The name of an entry begins with that of its class.
"""

import functools

import keras
import numpy as np

from kattn import layers

# Base classes, which compute nothing.
BASES = {"Position", "InputPosition", "HeadPosition", "ScoreBias", "AttentionScore"}
# Parts of recurrent layers, which give them scores, places or one step, and no sequence.
PARTS = {
    "AdditiveScore",
    "AttentionCell",
    "DotScore",
    "GeneralScore",
    "LocationScore",
    "MultiHeadScore",
    "PredictedWindow",
}
HEADS, WIDTH, HOPS = 2, 8, 5


def sequence(batch, steps):
    return [(batch, steps, WIDTH)]


def two_sequences(batch, steps):
    return [(batch, steps, WIDTH)] * 2


def image(batch, steps):
    return [(batch, steps, steps, WIDTH)]


def two_images(batch, steps):
    return image(batch, steps) * 2


def two_volumes(batch, steps):
    return [(batch, steps, 3, steps, WIDTH)] * 2


def volume(batch, steps):
    return [(batch, 2, steps, 3, WIDTH)]


def heads(batch, steps):
    return [(batch, steps, HEADS, 4)]


def scores(batch, steps):
    return [(batch, HEADS, steps, steps)]


def scores_and_queries(batch, steps):
    return scores(batch, steps) + heads(batch, steps)


def attention(name, shapes=sequence, *, position=None, **options):
    """An entry for an attention layer, which gets a new position layer each time."""

    def make(**more):
        made = None if position is None else position()
        return getattr(layers, name)(HEADS, position=made, **options, **more)

    return make, shapes


def position(name, shapes, *args, **options):
    return functools.partial(getattr(layers, name), *args, **options), shapes


def block(name, shapes, *, norm, **parts):
    """An entry for a block of new layers of causal attention."""

    def make(**options):
        made = {role: getattr(layers, kind)(HEADS, **options) for role, kind in parts.items()}
        causal = layers.SelfAttention(HEADS, causal=True, **options)
        feed_forward = layers.FeedForward(6, **options)
        return getattr(layers, name)(causal, feed_forward, norm=norm, **made, **options)

    return make, shapes


def recurrent(name, *args, rnn, return_state=False, **options):
    """An entry for a layer that holds a recurrent layer of Keras, of the width of the input."""

    def make(**more):
        policy = {"dtype": more["dtype"]} if "dtype" in more else {}
        # Keras's own initializer knows no half precision.
        policy["recurrent_initializer"] = "glorot_uniform"
        policy["return_state"] = return_state
        held = getattr(keras.layers, rnn)(WIDTH, return_sequences=True, **policy)
        return getattr(layers, name)(held, *args, **options, **more)

    return make, sequence


def attending(cell, score, **options):
    """An entry for a layer around a new cell."""

    def make(**more):
        given = {"dtype": more["dtype"]} if "dtype" in more else {}
        # Keras's own initializer of these has no bfloat16.
        made = cell(WIDTH, recurrent_initializer="he_normal", **given)
        return layers.AttentionRNN(made, score, **options, **more)

    return make, sequence


def _r_transformer_block(**options):
    policy = {"dtype": options["dtype"]} if "dtype" in options else {}
    rnn = keras.layers.GRU(WIDTH, recurrent_initializer="glorot_uniform", **policy)
    attention = layers.SelfAttention(HEADS, causal=True, **policy)
    parts = attention, layers.FeedForward(6, **policy)
    return layers.RTransformerBlock(rnn, *parts, window=3, norm="rms", **options)


LAYERS = {
    "SelfAttention": attention("SelfAttention", position=layers.T5RelativeBias, causal=True),
    "SelfAttention, window": attention(
        "SelfAttention", position=lambda: layers.LearnedPositions(64), window=2, use_sinks=True
    ),
    "CrossAttention": attention("CrossAttention", two_sequences, position=layers.RotaryEmbedding),
    "MultiHeadAttention": attention("MultiHeadAttention", two_sequences, key_dim=4),
    "DifferentialAttention": attention(
        "DifferentialAttention", position=lambda: layers.ShawRelative(2), causal=True
    ),
    "LinearAttention": attention("LinearAttention", position=layers.RotaryEmbedding, causal=True),
    "LinearAttention, softmax": attention("LinearAttention", feature_map="softmax"),
    "LinearAttention, performer": attention("LinearAttention", feature_map="performer", seed=0),
    "GatedLinearAttention": attention("GatedLinearAttention"),
    "GatedLinearAttention, fixed": attention(
        "GatedLinearAttention", position=layers.SinusoidalPositions, decay="fixed"
    ),
    "SelfAttention2D": attention(
        "SelfAttention2D", image, position=lambda: layers.RelativeTable((4, 4)), key_stride=2
    ),
    "SelfAttention1D": attention("SelfAttention1D", sequence, form="dot_product", key_stride=2),
    "SelfAttention3D": attention("SelfAttention3D", volume, form="gaussian", use_residual=False),
    "NeighborhoodAttention1D": attention(
        "NeighborhoodAttention1D", sequence, kernel_size=3, causal=True
    ),
    "NeighborhoodAttention2D": attention(
        "NeighborhoodAttention2D",
        image,
        position=lambda: layers.RelativeTable((3, 2)),
        kernel_size=(3, 2),
    ),
    "NeighborhoodAttention3D": attention(
        "NeighborhoodAttention3D", volume, kernel_size=2, clamped=False
    ),
    "SelfAttention2D, rotary": attention(
        "SelfAttention2D", image, position=lambda: layers.RotaryEmbedding(axes=2), key_dim=4
    ),
    "WindowAttention1D": attention("WindowAttention1D", window_size=2, partition="grid"),
    "WindowAttention2D": attention(
        "WindowAttention2D",
        image,
        window_size=3,
        shift=(1, 2),
        position=lambda: layers.RelativeTable((3, 3)),
    ),
    "WindowAttention3D": attention("WindowAttention3D", volume, window_size=(2, 3, 2)),
    "AxialAttention2D": attention("AxialAttention2D", image, position=layers.RotaryEmbedding),
    "AxialAttention3D": attention(
        "AxialAttention3D", volume, position=layers.T5RelativeBias, combine="sum"
    ),
    "SqueezeExcite": (functools.partial(layers.SqueezeExcite, 2), image),
    "EfficientChannelAttention": (layers.EfficientChannelAttention, image),
    "CBAM": (functools.partial(layers.CBAM, 2, 3), image),
    "CoordinateAttention": (functools.partial(layers.CoordinateAttention, 2), image),
    "GlobalContext": (functools.partial(layers.GlobalContext, 2, fusion="both"), image),
    "AttentionGate1D": (layers.AttentionGate1D, two_sequences),
    "AttentionGate2D": (functools.partial(layers.AttentionGate2D, 3), two_images),
    "AttentionGate3D": (layers.AttentionGate3D, two_volumes),
    "CrossCovarianceAttention": (functools.partial(layers.CrossCovarianceAttention, HEADS), image),
    "DeformableAttention2D": (
        functools.partial(layers.DeformableAttention2D, HEADS, num_groups=2, bias_sides=(4, 4)),
        image,
    ),
    "AttentionPooling": (functools.partial(layers.AttentionPooling, HEADS, HOPS), sequence),
    "SelfAttentionRNN": recurrent("SelfAttentionRNN", HEADS, rnn="LSTM", combine="gate"),
    "SelfAttentionRNN, window": recurrent(
        "SelfAttentionRNN", HEADS, rnn="GRU", combine="concat", window=2
    ),
    "DecodingRNN": recurrent("DecodingRNN", rnn="GRU"),
    "SHARNNBlock": recurrent("SHARNNBlock", rnn="LSTM", return_state=True, norm="rms"),
    "RTransformerBlock": (_r_transformer_block, sequence),
    "StructuredSelfAttention": (
        functools.partial(layers.StructuredSelfAttention, HOPS, 6, penalty=0.1),
        sequence,
    ),
    "TransformerEncoderBlock": block("TransformerEncoderBlock", sequence, norm="rms"),
    "TransformerDecoderBlock": block(
        "TransformerDecoderBlock", two_sequences, norm="layer", cross_attention="CrossAttention"
    ),
    "MinGRU": (functools.partial(layers.MinGRU, 8), sequence),
    "MinLSTM": (functools.partial(layers.MinLSTM, 8, activation="tanh"), sequence),
    "RGLRU": (functools.partial(layers.RGLRU, HEADS), sequence),
    "SRU": (functools.partial(layers.SRU, 8, peephole=False), sequence),
    "SRU, peephole": (functools.partial(layers.SRU, 8), sequence),
    "SRUPlusPlus": (functools.partial(layers.SRUPlusPlus, 8, 4, peephole=False), sequence),
    "GatedDeltaNet": (functools.partial(layers.GatedDeltaNet, HEADS), sequence),
    "CausalDepthwiseConv1D": (functools.partial(layers.CausalDepthwiseConv1D, 3), sequence),
    "GriffinRecurrence": (functools.partial(layers.GriffinRecurrence, HEADS), sequence),
    "GriffinBlock": (
        functools.partial(layers.GriffinBlock, HEADS, window=2, pattern=("recurrent", "attention")),
        sequence,
    ),
    "AttentionRNN": attending(
        keras.layers.LSTMCell, "additive", attend="after", input_feeding=True, causal=True
    ),
    "AttentionRNN, window": attending(
        keras.layers.GRUCell, "general", causal=True, window=2, output="attentional"
    ),
    "LSTMN": (functools.partial(layers.LSTMN, WIDTH), sequence),
    "FeedForward": (functools.partial(layers.FeedForward, activation="swiglu"), sequence),
    "DropPath": (functools.partial(layers.DropPath, 0.5), sequence),
    "LayerScale": (layers.LayerScale, sequence),
    "ALiBi": position("ALiBi", scores, learned=True),
    "T5RelativeBias": position("T5RelativeBias", scores),
    "ShawRelative": position("ShawRelative", scores_and_queries, 2),
    "RelativeTable": position("RelativeTable", scores, (4,)),
    "RotaryEmbedding": position("RotaryEmbedding", heads),
    "LearnedPositions": position("LearnedPositions", sequence, 64),
    "SinusoidalPositions": position("SinusoidalPositions", sequence),
}


def exported():
    """The names of all layers that kattn exports, but for base classes and parts."""
    found = (name for name, value in vars(layers).items() if isinstance(value, type))
    return {n for n in found if issubclass(getattr(layers, n), keras.layers.Layer)} - BASES - PARTS


def arrays(shapes, *, batch, steps):
    """Inputs of a layer."""
    rng = np.random.default_rng(5)
    return [rng.normal(size=shape).astype("float32") for shape in shapes(batch, steps)]


def output_shape(name, shape):
    """The shape of the output, given that of the first input: the same, unless the layer pools."""
    pools = name in ("StructuredSelfAttention", "AttentionPooling")
    return (shape[0], HOPS, WIDTH) if pools else shape


def symbols(shapes, unknown):
    """The shapes of inputs with `unknown` for each number of steps, but a batch of 2."""
    return [tuple(unknown if n == 5 else n for n in shape) for shape in shapes(2, 5)]
