"""Random numbers by counter: hashes of integers, the same on every backend and in any compiler.

Reference: Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405 (random numbers by counter);
the hash is `lowbias32` of Wellons 2018, https://nullprogram.com/blog/2018/07/31/
"""

import math

from keras import ops


def mix(x):
    """`lowbias32`: each bit of an int32 number changes each bit of the result half of the time.

    Args:
        x: Integers, int32, of any shape.

    Returns:
        Their hashes, int32, of the same shape. Each has one number of its own.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        x = ops.bitwise_xor(x, _shift_right(x, shift)) * factor
    return ops.bitwise_xor(x, _shift_right(x, 16))


def mix_indices(index, start):
    """Hashes of the indices of a sequence that a hash stands for.

    They are mixed twice: else two sequences could have the same numbers a few indices apart.

    Args:
        index: Integers >= 0, int32.
        start: Hash of the sequence, int32, of a shape that broadcasts with that of `index`.

    Returns:
        Hashes, int32.
    """
    return mix(mix(index + start) + start)


def uniform(seed, step, shape):
    """Numbers in [0, 1) that two integers determine.

    Args:
        seed: Integer, int32 scalar.
        step: Integer, int32 scalar: other steps have other numbers.
        shape: Tuple of integers.

    Returns:
        Multiples of 2^-24, float32, of this shape.

    Example:
        >>> numbers = uniform(keras.ops.array(1), keras.ops.array(0), (2, 3))
        >>> bool(keras.ops.all((numbers >= 0) & (numbers < 1)))
        True
    """
    index = ops.arange(math.prod(shape), dtype="int32")
    numbers = mix_indices(index, mix(mix(ops.cast(seed, "int32")) + ops.cast(step, "int32")))
    return ops.reshape(ops.cast(_shift_right(numbers, 8), "float32") * 2.0**-24, shape)


def _shift_right(x, bits):
    """A logical shift: the sign bit of an int32 number is moved like the others."""
    return ops.bitwise_and(ops.right_shift(x, bits), 2 ** (32 - bits) - 1)
