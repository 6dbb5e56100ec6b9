"""Biases that are arrays."""

from typing import Any

import keras
from keras import ops

from kattn.arguments import error, is_integer
from kattn.biases.bias import Bias
from kattn.block_rule import registered_rule
from kattn.spans import cut_block, pad_block


@registered_rule("kattn.biases")
class Dense(Bias):
    """An array that is added to the scores.

    Args:
        array: Float array, `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. A key with
            -inf is masked. It is kept as `(B, N, T, S)`.

    Raises:
        ValueError: If `array` is not float, or not of rank 2 or 4.

    Example:
        >>> bias = kattn.biases.Dense(np.array([[0.0, 1.0], [2.0, 3.0]], "float32"))
        >>> bias[0:2, 1:2]
        [[[[1.0], [3.0]]]]
    """

    array: Any

    array_fields = ("array",)

    def __post_init__(self):
        array = _float_tensor(self.array)
        if len(array.shape) not in (2, 4):
            raise error("`bias` must have rank 2, (T, S), or rank 4, (B, N, T, S)", bias=array)
        array = array if len(array.shape) == 4 else ops.reshape(array, (1, 1, *array.shape))
        object.__setattr__(self, "array", array)

    @property
    def holds_scores(self):
        return True

    def block(self, queries, keys, offset=0):
        return ops.cast(cut_block(self.array, queries, keys), "float32")

    def padded(self, queries, keys):
        return self.unchecked(array=pad_block(self.array, queries, keys))

    def check(self, batch, heads, queries, keys):
        sizes = (batch, heads, queries, keys)
        for have, need in zip(self.array.shape, sizes, strict=True):
            if is_integer(have) and is_integer(need) and have not in (1, need):
                rule = f"`bias` must broadcast to (B, N, T, S)={sizes}"
                raise error(rule, bias=self.array)


def _float_tensor(array):
    if not isinstance(array, keras.KerasTensor):
        array = ops.convert_to_tensor(array)
    dtype = keras.backend.standardize_dtype(array.dtype)
    if "float" not in dtype:
        rule = "`bias` must be float; a boolean array is a mask: pass it as `mask`"
        raise error(rule, bias=array, dtype=dtype)
    return array
