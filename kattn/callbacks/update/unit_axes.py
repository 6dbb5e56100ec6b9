"""The axes of a weight along which the numbers of one output unit lie."""

from collections.abc import Iterator

import keras


def unit_axes(model):
    """Return axes by the id of each weight, for norms unit by unit (Brock et al. 2021, sec. 4.1).

    A unit is what feeds one output: a column of a Dense kernel, a filter of a convolution, or the
    feature of a head in the kernels of attention. In an embedding the row of a token is a unit. A
    bias or a scale is one unit as a whole.

    Args:
        model: A model that has been built.

    Returns:
        A dict from ids to tuples of axes.
    """
    axes_of = {id(weight): _plain_axes(weight) for weight in model.weights}
    for layer in model._flatten_layers():
        axes_of.update({id(weight): axes for weight, axes in _special(layer)})
    return axes_of


def _plain_axes(weight):
    """Axes of a unit in a weight whose last axis is that of the outputs."""
    return tuple(range(max(len(weight.shape) - 1, 1))) if len(weight.shape) else ()


def _special(layer) -> Iterator:
    """Weights whose outputs lie along other axes, each with the axes of a unit."""
    layers = keras.layers
    if isinstance(layer, layers.EinsumDense):
        inputs, kernel = layer.equation.split("->")[0].replace(" ", "").split(",")
        yield _kernel(layer), tuple(i for i, letter in enumerate(kernel) if letter in inputs)
        if layer.bias is not None:
            yield layer.bias, tuple(range(len(layer.bias.shape)))
    elif isinstance(layer, layers.Embedding):
        yield layer._embeddings, (1,)
    elif isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)):
        yield layer.kernel, tuple(range(len(layer.kernel.shape) - 2))
    elif isinstance(layer, (layers.SeparableConv1D, layers.SeparableConv2D)):
        yield layer.depthwise_kernel, tuple(range(len(layer.depthwise_kernel.shape) - 2))
    elif isinstance(
        layer, (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
    ):
        rank = len(layer.kernel.shape)
        yield layer.kernel, (*range(rank - 2), rank - 1)


def _kernel(layer):
    return layer._kernel if layer.__dict__.get("_kernel") is not None else layer.kernel
