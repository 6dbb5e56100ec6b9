"""Curves that schedules consist of: functions of steps that are exact at both ends.

Each takes a namespace `xp`, which is NumPy or `keras.ops`. In tensors steps are float32, and exact
up to 2^24. Compilers may compute t / steps as t * (1 / steps), which may differ from 1 at t =
steps, and from a whole number at multiples of `steps`. No result here depends on that.
"""

import math


def fraction(t, steps, xp):
    """Return t / steps, clipped to [0, 1]: exactly 0 up to step 0, exactly 1 from `steps` on."""
    return xp.where(t < steps, xp.maximum(t, 0.0) / steps, 1.0)


def between(start, end, share):
    """Return `start` at share 0, `end` at share 1, both exactly, and linear values between."""
    return start * (1.0 - share) + end * share


def half_wave(share, xp):
    """Return (1 - cos(pi share)) / 2, which rises from 0 to 1 and is flat at both ends."""
    return 0.5 - 0.5 * xp.cos(math.pi * share)


def whole_cycles(t, length, xp):
    """Return floor(t / length).

    Near multiples of `length` it is decided by a product of whole numbers, which is exact.
    """
    nearest = xp.floor(t / length + 0.5)
    return xp.where(nearest * length > t, nearest - 1.0, nearest)
