"""Which layers act on each step alone, so that a plain call on new steps is all it takes.

That must be known, as a layer that mixes steps would give other outputs for a part of a sequence
than for the whole. Known are

- the layers of Keras in `LAYERS`, under the conditions that stand there, and subclasses of them
  that do not override `call`;
- the operations of Keras (`x + y`, `keras.ops.tanh(x)` ...) in `kattn.generation.operations`;
- layers with an attribute `acts_on_each_step` that is True, such as `kattn.layers.FeedForward`. It
  is the way for layers of your own: set it on the class, or on one layer (a `Lambda`, say).

Steps are axis 1 of all tensors, `(B, T)` or `(B, T, ...)`.
"""

import math
from typing import Any

import keras
from keras import layers

from kattn.generation.operations import axes_spare_steps, einsum_spares_steps, operation_is_known


def acts_on_each_step(operation, args, kwargs):
    """Whether an operation of a functional model is known to act on each step alone.

    Args:
        operation: Layer or other operation of the model.
        args: Its positional arguments there, with a `keras.KerasTensor` for each tensor.
        kwargs: Its arguments by name, likewise.

    Returns:
        A bool.

    Example:
        >>> steps = keras.KerasTensor((None, None, 8))
        >>> acts_on_each_step(keras.layers.LayerNormalization(), (steps,), {})
        True
        >>> acts_on_each_step(keras.layers.LayerNormalization(axis=1), (steps,), {})
        False
    """
    said = getattr(operation, "acts_on_each_step", None)
    if said is not None:
        return bool(said)
    if not isinstance(operation, layers.Layer):
        return operation_is_known(operation, args, kwargs)
    if kwargs.get("training"):  # which draws at random, or takes means over the batch
        return False
    known: Any = next((c for c in type(operation).__mro__ if c in LAYERS), None)
    if known is None or type(operation).call is not known.call:
        return False
    tensors = keras.tree.flatten((args, kwargs))
    shapes = [x.shape for x in tensors if isinstance(x, keras.KerasTensor)]
    return LAYERS[known](operation, shapes)


def _always(layer, shapes):
    return True


def _has_width(layer, shapes):
    """The layer acts along the last axis, or on each number, by a function that Keras has."""
    activation = getattr(layer, "activation", None)
    is_known = activation is None or activation in vars(keras.activations).values()
    return is_known and len(shapes[0]) > 2


def _along_axis(layer, shapes):
    return axes_spare_steps(layer.axis, len(shapes[0]))


def _merges(layer, shapes):
    return len({len(shape) for shape in shapes}) == 1


def _concatenates(layer, shapes):
    return _merges(layer, shapes) and _along_axis(layer, shapes)


def _has_shared_slopes(layer, shapes):
    return 1 in (layer.shared_axes or ())


def _einsum(layer, shapes):
    output = layer.equation.split("->")[1].strip()
    of_steps = set() if "..." in output else set(output[:2])
    spares = einsum_spares_steps(layer.equation, len(shapes[0]))
    return spares and _has_width(layer, shapes) and not of_steps & set(layer.bias_axes or "")


def _has_kernel_of_one(layer, shapes):
    sizes = (*layer.kernel_size, *layer.strides)
    return set(sizes) == {1} and layer.data_format == "channels_last" and _has_width(layer, shapes)


def _permutes_behind(layer, shapes):
    return layer.dims[0] == 1


def _reshapes_behind(layer, shapes):
    widths = shapes[0][2:]
    first, *rest = layer.target_shape
    return first == -1 and None not in widths and math.prod(rest) == math.prod(widths)


# A class of Keras, and when a layer of it acts on each step alone, by the shapes of its inputs.
LAYERS = {
    **dict.fromkeys(
        (
            layers.Embedding,
            layers.Identity,
            layers.Dropout,  # none of these drops anything unless it trains
            layers.SpatialDropout1D,
            layers.AlphaDropout,
            layers.GaussianDropout,
            layers.GaussianNoise,
            layers.ActivityRegularization,
            layers.ReLU,
            layers.LeakyReLU,
            layers.ELU,
            layers.TimeDistributed,
            layers.ReversibleEmbedding,  # backwards it is a product along the width
        ),
        _always,
    ),
    **dict.fromkeys((layers.Dense, layers.Activation, layers.Masking), _has_width),
    **dict.fromkeys(
        (
            layers.LayerNormalization,
            layers.RMSNormalization,
            layers.UnitNormalization,
            layers.BatchNormalization,
            layers.Softmax,
        ),
        _along_axis,
    ),
    **dict.fromkeys(
        (
            layers.Add,
            layers.Subtract,
            layers.Multiply,
            layers.Average,
            layers.Maximum,
            layers.Minimum,
        ),
        _merges,
    ),
    layers.Concatenate: _concatenates,
    layers.PReLU: _has_shared_slopes,
    layers.EinsumDense: _einsum,
    layers.Conv1D: _has_kernel_of_one,
    layers.Permute: _permutes_behind,
    layers.Reshape: _reshapes_behind,
}
