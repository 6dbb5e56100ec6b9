"""A short causal convolution over the real steps of a sequence, channel by channel."""

import keras
from keras import ops

from kattn.arguments import error
from kattn.ops.cache import real_first
from kattn.ops.recurrence import read_steps
from kattn.ops.sizes import has_shape, known_shape
from kattn.spans import Places


def causal_convolution(x, kernel, *, before=None, mask=None):
    """y_t = sum_j w_j x_{t - K + j} for j = 1 to K: each channel sees its own last K real steps.

    Shapes: B batch, T steps, C channels, K width of the kernel.

    Args:
        x: Input sequence, float, shape `(B, T, C)`.
        kernel: Weights w, float, shape `(K, C)`; the last row is that of the step itself.
        before: The last K - 1 real steps before `x`, float, shape `(B, K - 1, C)`. None for zeros.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which is passed over: the
            steps around it are neighbours. None if all steps are real.

    Returns:
        `(B, T, C)`, in the dtype of `x`; 0 at padding.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit.

    Example:
        >>> causal_convolution(keras.ops.ones((1, 3, 1)), keras.ops.array([[0.5], [1.0]]))
        [[[1.0], [1.5], [1.5]]]
    """
    if before is None:
        _check_sizes(x, kernel)
        width = kernel.shape[0] - 1
        before = ops.zeros((ops.shape(x)[0], width, x.shape[2]), x.dtype)
    return decode_causal_convolution(x, kernel, before, mask=mask)[0]


def decode_causal_convolution(x, kernel, before, *, mask=None):
    """`causal_convolution` of any number of new steps, and what later steps need of these.

    Shapes: B batch, T new steps, C channels, K width of the kernel.

    Args:
        x: New steps, float, shape `(B, T, C)`.
        kernel: Weights w, float, shape `(K, C)`; the last row is that of the step itself.
        before: The last K - 1 real steps before `x`, float, shape `(B, K - 1, C)`.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which is passed over: the
            steps around it are neighbours. None if all steps are real.

    Returns:
        `(y, before)`: the output, shape `(B, T, C)`, in the dtype of `x`, 0 at padding; and the
        last K - 1 real steps so far, in the shape and dtype of `before`.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit.

    Example:
        >>> kernel, before = keras.ops.array([[0.5], [1.0]]), keras.ops.zeros((1, 1, 1))
        >>> y, before = decode_causal_convolution(keras.ops.ones((1, 1, 1)), kernel, before)
        >>> y, _ = decode_causal_convolution(keras.ops.ones((1, 1, 1)), kernel, before)
        >>> y
        [[[1.5]]]
    """
    _check_sizes(x, kernel, before)
    width, steps = kernel.shape[0], ops.shape(x)[1]
    kernel = ops.cast(kernel, x.dtype)
    if mask is not None:
        mask = read_steps(mask, "mask", x)[..., 0]
        x = real_first(mask).cut(x, -2)
    seen = ops.concatenate([ops.cast(before, x.dtype), x], axis=1)  # (B, K - 1 + T, C)
    y = seen[:, :steps] * kernel[0]
    for j in range(1, width):
        y = y + seen[:, j : j + steps] * kernel[j]
    if mask is None:
        return y, ops.cast(ops.copy(seen[:, steps:]), before.dtype)  # a view would keep all steps
    real = ops.cumsum(ops.cast(mask, "int32"), axis=1)  # (B, T)
    y = ops.where(mask[..., None], Places(real - 1).cut(y, -2), ops.convert_to_tensor(0, y.dtype))
    count = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
    last = Places(count + ops.arange(width - 1, dtype="int32"))
    return y, ops.cast(last.cut(seen, -2), before.dtype)


def _check_sizes(x, kernel, before=None):
    if isinstance(x, keras.KerasTensor):
        rule = "A convolution takes no symbolic tensors; call it in a layer of a functional model"
        raise error(rule, x=x)
    if len(x.shape) != 3:
        raise error("`x` must have rank 3, (B, T, C)", x=x)
    batch, _, channels = known_shape(x)
    if len(kernel.shape) != 2 or kernel.shape[0] < 1 or channels not in (None, kernel.shape[1]):
        raise error("`kernel` must have shape (K, C), with the channels of `x`", kernel=kernel, x=x)
    if before is None:
        return
    if not has_shape(before, (batch, kernel.shape[0] - 1, channels)):
        rule = "`before` must have shape (B, K - 1, C), with the sizes of `x` and `kernel`"
        raise error(rule, before=before, x=x, kernel=kernel)
