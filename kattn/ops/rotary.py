"""Rotary position embedding: its frequencies, and the rotation of queries and keys by them."""

import math

import keras
import numpy as np
from keras import ops

from kattn.arguments import check_choice, check_numbers, check_positive, error, is_integer
from kattn.ops.positions import angle_steps, angles, by_axis

SCALINGS = (None, "linear", "ntk", "yarn", "llama3")
BY_TURNS = ("yarn", "llama3")


def rotary_frequencies(
    width,
    *,
    base=10000.0,
    scaling=None,
    factor=1.0,
    original_length=None,
    beta_fast=32.0,
    beta_slow=1.0,
):
    """base^(-2i / width) for pair i, changed such that they serve `factor` times the length.

    Args:
        width: Number of channels that are rotated, an even integer.
        base: Number above 1. The longest wave has about 2 * pi * `base` steps.
        scaling: "linear" divides every frequency by `factor`. "ntk" replaces the base by base *
            factor^(width / (width - 2)), which divides the lowest frequency by `factor` and leaves
            the highest. "yarn" leaves pairs that turn `beta_fast` times or more in
            `original_length` steps, divides those that turn `beta_slow` times or less by `factor`,
            and mixes the two in between, linearly in the number of turns. "llama3" does the same;
            Llama 3.1 has `original_length=8192`, `beta_fast=4`, `beta_slow=1`. None leaves all as
            they are.
        factor: Number >= 1 by which the length grows; it must be 1 if `scaling` is None.
        original_length: Number of steps that the model was trained on. "yarn" and "llama3" need it;
            the others do not use it.
        beta_fast: Number of turns in `original_length` steps from which on "yarn" and "llama3"
            leave a frequency as it is. The others do not use it.
        beta_slow: Number of turns in `original_length` steps up to which "yarn" and "llama3" divide
            a frequency by `factor`; above 0 and below `beta_fast`. The others do not use it.

    Returns:
        Frequencies in radians per step, NumPy float64, shape `(width / 2,)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> rotary_frequencies(4, base=100.0)
        [1.0, 0.1]
        >>> rotary_frequencies(4, base=100.0, scaling="linear", factor=2.0)
        [0.5, 0.05]

    Reference:
        Su et al. 2021, sec. 3.2.2, https://arxiv.org/abs/2104.09864
        Linear: Chen et al. 2023, eq. 4, https://arxiv.org/abs/2306.15595
        NTK and YaRN: Peng et al. 2023, sec. 3.1 and 3.2, https://arxiv.org/abs/2309.00071. Their
        code, unlike their text, mixes linearly in the index of the pair.
        Llama 3: `apply_scaling` of
        https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py
    """
    check_scaling(base, scaling, factor, original_length, beta_fast, beta_slow)
    if not is_integer(width) or width < 2 or width % 2:
        raise error("`width` must be an even integer >= 2", width=width)
    if scaling == "ntk":
        if width == 2:
            raise error("scaling='ntk' needs a `width` of at least 4", width=width)
        base = base * factor ** (width / (width - 2))
    frequencies = base ** (-np.arange(0, width, 2) / width)
    if scaling == "linear":
        return frequencies / factor
    if scaling in BY_TURNS:
        turns = original_length * frequencies / (2 * math.pi)
        kept = np.clip((turns - beta_slow) / (beta_fast - beta_slow), 0.0, 1.0)
        return kept * frequencies + (1.0 - kept) * frequencies / factor
    return frequencies


def rotate(x, positions, frequencies, *, interleaved=False, scale=1.0):
    """Turns pair i of the channels at position p by the angle p * frequencies[i].

    Angles and rotation are computed in float32 at least, whatever the dtype of `x` is: float16 has
    no number 2049, so it has no such position.

    Shapes: B batch, T steps, N heads, D width, A axes, F frequencies. R = 2 * A * F channels are
    rotated, and the others stay as they are.

    Args:
        x: Queries or keys, float, shape `(B, T, N, D)`. D must be at least R.
        positions: Positions of the steps, integers or floats, shape `(T,)` or `(B, T)`; on A axes
            `(T, A)` or `(B, T, A)`.
        frequencies: Frequencies in radians per step, a NumPy array of shape `(F,)`, or `(A, F)` for
            A axes. Axis a rotates the 2 * F channels that begin at channel 2 * a * F.
        interleaved: If True, the pairs of an axis are its channels (2i, 2i + 1). If False, they are
            (i, i + F).
        scale: Factor that the rotated channels are multiplied by.

    Returns:
        The rotated queries or keys, shape `(B, T, N, D)`, in the dtype of `x`.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> x = keras.ops.array([1.0, 0.0]) * keras.ops.ones((1, 3, 1, 2))
        >>> rotate(x, keras.ops.arange(3), np.array([np.pi / 2]))[0, :, 0]  # a quarter turn a step
        [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]

    Reference:
        Su et al. 2021, eq. 15 and 34, https://arxiv.org/abs/2104.09864
    """
    _check(x.shape, np.asarray(frequencies))
    return turn(x, positions, channel_angle_steps(frequencies, interleaved), interleaved, scale)


def channel_angle_steps(frequencies, interleaved):
    """What `turn` needs of the frequencies.

    Args:
        frequencies: Frequencies in radians per step, a NumPy array of shape `(F,)`, or `(A, F)` for
            A axes.
        interleaved: If True, the pairs of an axis are its channels (2i, 2i + 1). If False, they are
            (i, i + F).

    Returns:
        Tuple of what `kattn.ops.positions.angle_steps` makes of the frequencies of each axis.
    """
    frequencies = np.atleast_2d(np.asarray(frequencies, "float64"))  # (A, F)
    return tuple(angle_steps(signed) for signed in _signed(frequencies, interleaved))


def turn(x, positions, steps_by_axis, interleaved, scale):
    """`rotate`, with what `channel_angle_steps` made of the frequencies, and without checks.

    Args:
        x: Queries or keys, float, shape `(B, T, N, D)`.
        positions: Positions of the steps, integers or floats, shape `(T,)` or `(B, T)`; on A axes
            `(T, A)` or `(B, T, A)`.
        steps_by_axis: The result of `channel_angle_steps`.
        interleaved: If True, the pairs of an axis are its channels (2i, 2i + 1). If False, they are
            (i, i + F).
        scale: Factor that the rotated channels are multiplied by.

    Returns:
        The rotated queries or keys, shape `(B, T, N, D)`, in the dtype of `x`.
    """
    axes, width = len(steps_by_axis), sum(len(of_step) for _, of_step in steps_by_axis)
    pairs = zip(by_axis(positions, x, axes), steps_by_axis, strict=True)
    angle = ops.concatenate([angles(place, steps) for place, steps in pairs], axis=-1)
    angle = ops.expand_dims(angle, -2)  # (T, 1, R) or (B, T, 1, R)
    whole = x if isinstance(x, keras.KerasTensor) else ops.convert_to_tensor(x)
    dtype = keras.backend.result_type(whole.dtype, "float32")
    part = ops.cast(whole[..., :width], dtype)
    cos, sin = (ops.cast(scale * f(angle), dtype) for f in (ops.cos, ops.sin))
    turned = part * cos + _partners(part, axes, interleaved) * sin
    turned = ops.cast(turned, whole.dtype)
    if width == x.shape[-1]:
        return turned
    return ops.concatenate([turned, whole[..., width:]], axis=-1)


def check_scaling(base, scaling, factor, original_length, beta_fast, beta_slow):
    """Raises ValueError for arguments of `rotary_frequencies` that are out of range.

    Args:
        base: Number above 1.
        scaling: One of "linear", "ntk", "yarn", "llama3" and None.
        factor: Number >= 1; it must be 1 if `scaling` is None.
        original_length: Number of steps that the model was trained on, which "yarn" and "llama3"
            need.
        beta_fast: Number of turns, above `beta_slow`, which "yarn" and "llama3" need.
        beta_slow: Number of turns, above 0, which "yarn" and "llama3" need.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_numbers("a finite number above 1", lambda x: x > 1, base=base)
    check_choice(SCALINGS, scaling=scaling)
    check_numbers("a finite number >= 1", lambda x: x >= 1, factor=factor)
    if scaling is None and factor != 1.0:
        raise error("A `factor` needs a `scaling`", factor=factor, scaling=scaling)
    if scaling in BY_TURNS:
        _check_turns(scaling, original_length, beta_fast, beta_slow)


def _check_turns(scaling, original_length, beta_fast, beta_slow):
    if original_length is None:
        raise error(f"scaling={scaling!r} needs an `original_length`", original_length=None)
    check_numbers("a finite number >= 1", lambda x: x >= 1, original_length=original_length)
    check_positive(beta_fast=beta_fast, beta_slow=beta_slow)
    if not beta_fast > beta_slow:
        raise error(
            "`beta_fast` must be above `beta_slow`", beta_fast=beta_fast, beta_slow=beta_slow
        )


def _check(shape, frequencies):
    if len(shape) != 4 or shape[-1] is None:
        rule = "`x` must have rank 4, (batch, steps, heads, width), and a known width"
        raise error(rule, **{"x.shape": tuple(shape)})
    if frequencies.ndim not in (1, 2) or not 2 <= 2 * frequencies.size <= shape[-1]:
        raise error(
            "`frequencies` must have shape (F,) or (A, F) and serve pairs of the channels of `x`",
            **{"frequencies.shape": frequencies.shape, "x.shape": tuple(shape)},
        )


def _signed(frequencies, interleaved):
    """`(A, 2F)`: one for each channel, negative for the first of a pair.

    With these signs x cos(a) + partner sin(a) is the rotation for either channel of a pair.
    """
    signed = np.stack([-frequencies, frequencies], axis=-1 if interleaved else -2)
    return signed.reshape(len(frequencies), -1)


def _partners(x, axes, interleaved):
    """`x` with the channels of each pair exchanged."""
    if interleaved:
        # Not a reshape to pairs, for which a functional model must know B or T.
        is_first = np.arange(x.shape[-1]) % 2 == 0
        first, second = (ops.repeat(x[..., start::2], 2, axis=-1) for start in (0, 1))
        return ops.where(is_first, second, first)
    half = x.shape[-1] // axes // 2
    blocks = [x[..., i * half : (i + 1) * half] for i in range(2 * axes)]
    return ops.concatenate([blocks[i ^ 1] for i in range(2 * axes)], axis=-1)
