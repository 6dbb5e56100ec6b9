"""The projections of `MultiHeadAttention`, with kernels in the shapes that they have in Keras."""

import string

import keras

from kattn.layers.initializers import numbered


def einsum_projection(layer, name, shape, sizes, *, summed=1, activation=None):
    """A built EinsumDense with the initializers, regularizers and constraints of a layer.

    Args:
        layer: Layer with the arguments of `MultiHeadAttention` as attributes.
        name: Name of the projection.
        shape: Shape of its input, whose first axes it keeps.
        sizes: Sizes of the axes that take the place of the last ones.
        summed: Number of the last axes that it sums over.
        activation: Activation of its output, or None.

    Returns:
        A `keras.layers.EinsumDense`.
    """
    letters = iter(string.ascii_lowercase)
    free, inner, outer = (
        "".join(next(letters) for _ in range(count))
        for count in (len(shape) - summed, summed, len(sizes))
    )
    projection = keras.layers.EinsumDense(
        f"{free}{inner},{inner}{outer}->{free}{outer}",
        output_shape=(*(None for _ in free[1:]), *sizes),
        bias_axes=outer if layer.use_bias else None,
        activation=activation,
        kernel_initializer=numbered(layer.kernel_initializer, 0),
        bias_initializer=numbered(layer.bias_initializer, 0),
        kernel_regularizer=layer.kernel_regularizer,
        bias_regularizer=layer.bias_regularizer,
        activity_regularizer=layer._activity_regularizer,
        kernel_constraint=layer.kernel_constraint,
        bias_constraint=layer.bias_constraint,
        dtype=layer.dtype_policy,
        name=name,
    )
    projection.supports_masking = True  # or it warns that it drops the mask of what it is given
    projection.build(shape)
    return projection


def einsum_projection_config(layer):
    """What `einsum_projection` reads of a layer, as constructor arguments, for the layer's config.

    Args:
        layer: Layer with the arguments of `MultiHeadAttention` as attributes.
    """
    initializer, regularizer = keras.initializers.serialize, keras.regularizers.serialize
    constraint = keras.constraints.serialize
    return {
        "kernel_initializer": initializer(layer.kernel_initializer),
        "bias_initializer": initializer(layer.bias_initializer),
        "kernel_regularizer": regularizer(layer.kernel_regularizer),
        "bias_regularizer": regularizer(layer.bias_regularizer),
        "activity_regularizer": regularizer(layer._activity_regularizer),
        "kernel_constraint": constraint(layer.kernel_constraint),
        "bias_constraint": constraint(layer.bias_constraint),
    }
