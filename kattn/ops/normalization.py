"""Normalization by the root mean square."""

from keras import ops

from kattn import backend


def rms_normalization(x, scale, epsilon):
    """`keras.ops.rms_normalization` over the last axis, which can be exported to ONNX.

    x / sqrt(mean(x^2) + epsilon) * scale. On PyTorch Keras has a kernel for it that
    `torch.onnx.export` does not know; while a model is exported, plain operations take its place.

    Args:
        x: Float tensor.
        scale: Float tensor, as long as the last axis.
        epsilon: What is added to the mean of the squares, a number > 0.

    Returns:
        A tensor of the shape and dtype of `x`.

    Example:
        >>> rms_normalization(keras.ops.array([[3.0, -4.0]]), keras.ops.ones((2,)), 1e-6)
        [[0.8485, -1.1314]]

    Reference:
        Zhang and Sennrich 2019, eq. 4, https://arxiv.org/abs/1910.07467
    """
    if not backend.is_exported_to_onnx():
        return ops.rms_normalization(x, scale=scale, epsilon=epsilon)
    wide = ops.cast(x, "float32")
    wide = wide * ops.rsqrt(ops.mean(ops.square(wide), axis=-1, keepdims=True) + epsilon)
    return ops.cast(wide * ops.cast(scale, "float32"), x.dtype)
