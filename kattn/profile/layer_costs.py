"""Parameters, floating-point operations and bytes of each layer of a model."""

import math
from dataclasses import dataclass

import keras

from kattn import arguments

FREE = {  # a few operations per number at most, which are not counted
    "Activation",
    "Add",
    "AveragePooling1D",
    "AveragePooling2D",
    "BatchNormalization",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "InputLayer",
    "LayerNormalization",
    "MaxPooling1D",
    "MaxPooling2D",
    "ReLU",
    "Reshape",
}


@dataclass(frozen=True)
class LayerCost:
    """What one layer of a model costs for one example.

    Args:
        layer: Name of the layer.
        kind: Name of the class of the layer.
        output_shape: Shape of the output without the batch axis.
        parameters: Number of weights, whether they are trained or not.
        flops: Floating-point operations of the forward pass, 2 per multiply-add.
        weight_bytes: Bytes of the weights, in the types in which they are kept.
        output_bytes: Bytes of the output, in the type in which the layer computes.

    Example:
        >>> from kattn.profile import layer_costs
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> layer_costs(model)[-1].output_shape
        (4,)
    """

    layer: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int
    weight_bytes: int
    output_bytes: int


def layer_costs(model):
    """Counts what each layer of a model costs for one example.

    Convolutions, dense layers and `SelfAttention2D` are counted: 2 operations per multiply-add.
    Their biases are not, and layers that need only a few operations per number (activations,
    normalisation, pooling, dropout, embedding) count as 0. A training step takes about three times
    the operations of the forward pass.

    Args:
        model: A built functional or sequential Keras model with one output per layer. All shapes
            must be known, except for the size of the batch.

    Returns:
        A list with one `LayerCost` for each layer, in the order of `model.layers`.

    Raises:
        ValueError: If there is no rule for the operations of a layer, or if the size of an axis
            other than the batch is unknown.

    Example:
        >>> x = inputs = keras.Input((8, 8, 3))
        >>> x = keras.layers.Conv2D(16, 3, padding="same", name="conv")(x)
        >>> x = keras.layers.Dense(10, name="head")(keras.layers.Flatten()(x))
        >>> for cost in kattn.profile.layer_costs(keras.Model(inputs, x)):
        ...     print(cost.kind, cost.parameters, cost.flops, cost.weight_bytes)
        InputLayer 0 0 0
        Conv2D 448 55296 1792
        Flatten 0 0 0
        Dense 10250 20480 41000
    """
    return [_cost(layer) for layer in model.layers]


def _cost(layer):
    shape = tuple(layer.output.shape[1:])
    if None in shape:
        raise arguments.error(
            "all axes of the output of a layer but the batch must have a known size",
            layer=layer.name,
            output_shape=shape,
        )
    return LayerCost(
        layer=layer.name,
        kind=type(layer).__name__,
        output_shape=shape,
        parameters=layer.count_params(),
        flops=_flops(layer),
        weight_bytes=sum(math.prod(w.shape) * _width(w.dtype) for w in layer.weights),
        output_bytes=math.prod(shape) * _width(layer.output.dtype),
    )


def _flops(layer):
    kind = type(layer).__name__
    if kind in FREE:
        return 0
    if kind == "Dense":
        return 2 * math.prod(layer.input.shape[1:]) * layer.units
    if kind in ("Conv1D", "Conv2D", "Conv3D"):
        # Each output number is a product over the window and the channels in it.
        return 2 * math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:-1])
    if kind == "SelfAttention2D":
        return _self_attention_2d(layer)
    raise arguments.error(
        "`layer_costs` must have a rule for every layer of the model", layer=layer.name, kind=kind
    )


def _self_attention_2d(layer):
    shape = layer.input.shape
    last = layer.data_format == "channels_last"
    height, width, channels = shape[1:] if last else (*shape[2:], shape[1])
    queries = height * width
    keys = math.ceil(height / layer.key_stride) * math.ceil(width / layer.key_stride)
    key_width, value_width = layer.head_sizes.query_width, layer.head_sizes.output_width
    projections = queries * channels * 2 * (key_width + value_width)  # Q, K; V, output
    products = queries * keys * (key_width + value_width)  # Q K^T; weights times V
    return 2 * (projections + products)


def _width(dtype):
    """Bytes of one number."""
    name = keras.backend.standardize_dtype(dtype)
    digits = "".join(character for character in name if character.isdigit())
    return int(digits) // 8 if digits else 1  # bool has none
