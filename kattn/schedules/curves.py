"""What schedules are made of: functions of steps that are exact at both ends.

Each is written against a namespace `xp`, which is NumPy or `keras.ops`. On tensors steps are
float32, and whole up to 2^24. Compilers may take t * (1 / steps) for t / steps, which is not 1 at
t = steps, nor whole at whole multiples: no result here depends on that.
"""

import math


def fraction(t, steps, xp):
    """The share t / steps in [0, 1]: exactly 0 up to step 0 and exactly 1 from `steps` on."""
    return xp.where(t < steps, xp.maximum(t, 0.0) / steps, 1.0)


def between(start, end, share):
    """`start` at share 0, `end` at share 1, linear between; exact at both."""
    return start * (1.0 - share) + end * share


def half_wave(share, xp):
    """(1 - cos(pi share)) / 2: from 0 to 1, flat at both ends."""
    return 0.5 - 0.5 * xp.cos(math.pi * share)


def whole_cycles(t, length, xp):
    """floor(t / length), by a product of whole numbers, which is exact, where t is near a whole."""
    nearest = xp.floor(t / length + 0.5)
    return xp.where(nearest * length > t, nearest - 1.0, nearest)
