"""What a decoder attends to in its source, as numbers and as a figure.

It needs Keras, so import this only once the backend is chosen.
"""

from collections.abc import Sequence
from typing import Any

import keras
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

from kattn import arguments, visualize

UNDRAWABLE = "\N{WHITE SQUARE}"  # in the place of characters that the font does not have


def alignments(model: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The weights with which a model attends to a source at each step of a target.

    Args:
        model: Model of pairs of tokens: one with a method `attention_weights`, or one of attention
            layers of kattn, of which those look at the source whose weights have a row for each
            step of the target and a column for each of the source.
        source: Tokens of the sources, shape `(B, S)`.
        target: Tokens that the decoder reads, shape `(B, T)`, where T must differ from
            S unless the model has `attention_weights`.

    Returns:
        float array, shape `(B, T, S)`: the mean over heads, and over all such layers.

    Raises:
        ValueError: If the model has no `attention_weights`, and S equals T or none of its attention
            layers looks at the source.
    """
    if hasattr(model, "attention_weights"):
        weights = keras.ops.convert_to_numpy(model.attention_weights((source, target)))
        return weights.mean(1)
    shape = target.shape[1], source.shape[1]
    if shape[0] == shape[1]:
        raise arguments.error("`source` and `target` must differ in length", lengths=shape)
    calls = visualize.capture_attention(model, (source, target))
    found = [
        call.weights.mean(1)
        for each in calls.values()
        for call in each
        if call.weights.shape[2:] == shape
    ]
    if not found:
        raise arguments.error(
            "`model` must have an attention layer that looks at the source, or a method "
            "`attention_weights`",
            model=model.name,
        )
    return np.mean(found, axis=0)


def alignment_figure(
    weights: np.ndarray, words: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> Figure:
    """A panel for each pair of texts: rows are what was written, columns what was read.

    Args:
        weights: Attention weights, shape `(B, T, S)`.
        words: For each pair, the words of the target, at most T, and those of the source.
    """
    columns = min(len(words), 2)
    longest = max(len(side) for pair in words for side in pair)
    side = 1.0 + 0.17 * longest
    rows = -(-len(words) // columns)
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(words) :]:
        panel.set_axis_off()
    for panel, each, (target, source) in zip(panels, weights, words, strict=False):
        panel.imshow(each[: len(target), : len(source)], cmap="Greys", vmin=0)
        panel.set_xticks(range(len(source)), [_drawable(word) for word in source], rotation=90)
        panel.set_yticks(range(len(target)), [_drawable(word) for word in target])
        panel.tick_params(labelsize=7, top=True, labeltop=True, bottom=False, labelbottom=False)
    return figure


def _drawable(text: str) -> str:
    """The text with a sign in the place of each character that the font does not have."""
    family = matplotlib.rcParams["font.family"]
    known = FT2Font(findfont(FontProperties(family=family))).get_charmap()
    return "".join(char if ord(char) in known else UNDRAWABLE for char in text)
