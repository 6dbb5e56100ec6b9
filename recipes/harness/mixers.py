"""Networks that differ in what mixes the steps of a sequence, and have as many parameters each.

They need Keras, so import this only once the backend is chosen.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from kattn import layers
from kattn.profile import parameter_count


class Mixer(NamedTuple):
    """What mixes the steps.

    Args:
        title: Its name in a report.
        mix: Function of vectors `(B, T, C)`, a number of heads, and a window or None that returns
            vectors of the same shape. No step may see a later one.
        multiple: Number of which the channels of a head are a multiple: rotary positions turn them
            in pairs.
    """

    title: str
    mix: Callable[[Any, int, int | None], Any]
    multiple: int = 2


def _lstm(h: Any, num_heads: int, window: int | None) -> Any:
    rnn = keras.layers.LSTM(h.shape[-1], return_sequences=True, name="lstm")
    return layers.DecodingRNN(rnn, name="lstm_alone")(h)  # by PyTorch's own loop


def _lstm_attention(h: Any, num_heads: int, window: int | None) -> Any:
    rnn = keras.layers.LSTM(h.shape[-1], return_sequences=True, name="lstm")
    return layers.SelfAttentionRNN(rnn, num_heads, window=window, name="lstm_attention")(h)


def _transformer(blocks: int, h: Any, num_heads: int, window: int | None) -> Any:
    for number in range(blocks):
        position = layers.RotaryEmbedding()
        options = {"causal": True, "window": window, "position": position}
        attention = layers.SelfAttention(num_heads, **options)
        h = layers.TransformerDecoderBlock(attention, name=f"block{number}")(h)
    return h


def _gated_delta_net(h: Any, num_heads: int, window: int | None) -> Any:
    mixer = layers.GatedDeltaNet(num_heads)
    return layers.TransformerDecoderBlock(mixer, name="block0")(h)


def _griffin(h: Any, num_heads: int, window: int | None) -> Any:
    seen = window or max(h.shape[1] // 2, 1)  # else the recurrence would have nothing to keep
    pattern = ("recurrent", "attention")
    return layers.GriffinBlock(num_heads, window=seen, pattern=pattern, name="griffin")(h)


MIXERS = {
    "lstm": Mixer("LSTM", _lstm),
    "attention": Mixer("one attention layer", functools.partial(_transformer, 1)),
    "lstm-attention": Mixer("LSTM + attention", _lstm_attention),
    "rg-lru-window": Mixer("RG-LRU + window of half the steps", _griffin, 4),
    "gated-delta-net": Mixer("gated delta net", _gated_delta_net),
    "transformer": Mixer("Transformer of two layers", functools.partial(_transformer, 2)),
}


def network(
    mixer: str,
    vocabulary_size: int,
    length: int,
    width: int,
    *,
    num_heads: int = 1,
    window: int | None = None,
) -> Any:
    """A functional model of tokens: their vectors, a mixer, a norm, and logits at each step.

    Its layers "embedding" and "norm" stand before and behind the mixer.

    Args:
        mixer: One of `MIXERS`.
        vocabulary_size: Number of tokens.
        length: Number of steps of a sequence.
        width: Number of channels.
        num_heads: Number of heads of each attention layer.
        window: Number of steps that attention sees; None for all.
    """
    # With vectors as small as Keras draws them by itself, an LSTM learns nothing for long.
    spread = keras.initializers.RandomNormal(stddev=1.0)
    tokens = keras.Input((length,), dtype="int32")
    h = keras.layers.Embedding(vocabulary_size, width, spread, name="embedding")(tokens)
    h = MIXERS[mixer].mix(h, num_heads, window)
    h = keras.layers.LayerNormalization(name="norm")(h)
    return keras.Model(tokens, keras.layers.Dense(vocabulary_size, name="head")(h), name="network")


def width_of_size(parameters: int, make: Callable[[int], Any], step: int) -> int:
    """The width at which a model has as many parameters, as near as can be.

    Args:
        parameters: Number of parameters wanted.
        make: Function of the width that makes the model, which is built.
        step: The width is a multiple of this number.
    """

    def count(number: int) -> int:
        return parameter_count(lambda: make(number * step))

    low, high = 1, 2
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= parameters else (middle, high)
    return step * min((low, high), key=lambda number: abs(count(number) - parameters))
