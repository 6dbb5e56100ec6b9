"""Rotary position embedding: its frequencies, and the rotation of queries and keys by them."""

import math

import keras
import numpy as np
from keras import ops

from kattn.ops.positions import angle_steps, angles, by_axis

SCALINGS = (None, "linear", "ntk", "yarn")


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
    """base^(-2i / width) for pair i, stretched to serve `factor` times the length.

    Args:
        width: Number of channels that are rotated. Even.
        base: Above 1; the longest wave has some 2 * pi * `base` steps.
        scaling: "linear": every frequency is divided by `factor`. "ntk": the base becomes
            base * factor^(width / (width - 2)), which divides the lowest by `factor` and leaves
            the highest. "yarn": pairs that turn `beta_fast` times or more in `original_length`
            steps stay, those that turn `beta_slow` times or less are divided by `factor`, and
            what is between is mixed, linear in the number of turns. None: none of these.
        factor: s >= 1, by which the length grows; 1 without `scaling`.
        original_length: Span that the model was trained on; needed by "yarn", unused by others.
        beta_fast: Turns; see "yarn".
        beta_slow: Turns, below `beta_fast`; see "yarn".

    Returns:
        `(width / 2,)` NumPy float64, radians a step.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> rotary_frequencies(4, base=100.0)
        array([1. , 0.1])

    Reference:
        Su et al. 2021, sec. 3.2.2, https://arxiv.org/abs/2104.09864
        Linear: Chen et al. 2023, eq. 4, https://arxiv.org/abs/2306.15595
        NTK and YaRN: Peng et al. 2023, sec. 3.1 and 3.2, https://arxiv.org/abs/2309.00071. Their
        code, unlike their text, mixes linearly in the index of the pair.
    """
    check_scaling(base, scaling, factor, original_length, beta_fast, beta_slow)
    if width < 2 or width % 2:
        raise ValueError(f"`width` must be even and at least 2; received: width={width}")
    if scaling == "ntk":
        if width == 2:
            raise ValueError(
                f"scaling='ntk' needs a `width` of at least 4; received: width={width}"
            )
        base = base * factor ** (width / (width - 2))
    frequencies = base ** (-np.arange(0, width, 2) / width)
    if scaling == "linear":
        return frequencies / factor
    if scaling == "yarn":
        turns = original_length * frequencies / (2 * math.pi)
        kept = np.clip((turns - beta_slow) / (beta_fast - beta_slow), 0.0, 1.0)
        return kept * frequencies + (1.0 - kept) * frequencies / factor
    return frequencies


def rotate(x, positions, frequencies, *, interleaved=False, scale=1.0):
    """Turns pair i of the channels at position p by the angle p * frequencies[i].

    Angles and rotation are in float32 whatever `x` is: in float16 there is no position 2049.

    Shapes: B batch, T steps, N heads, D width, A axes, F frequencies; R = 2 * A * F channels are
    rotated, and the others come back as they are.

    Args:
        x: `(B, T, N, D)` float. D must be at least R.
        positions: `(T,)` or `(B, T)`, integers or floats; on A axes `(T, A)` or `(B, T, A)`.
        frequencies: `(F,)`, or `(A, F)` for A axes; a NumPy array, radians a step. Axis a
            rotates the channels from 2 * a * F on.
        interleaved: If True, pairs are channels (2i, 2i + 1) of those of an axis; if False,
            (i, i + F).
        scale: Factor of the rotated channels.

    Returns:
        `(B, T, N, D)` of x's dtype.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> x = keras.random.normal((2, 16, 4, 8))
        >>> rotate(x, keras.ops.arange(16), rotary_frequencies(8)).shape
        (2, 16, 4, 8)

    Reference:
        Su et al. 2021, eq. 15 and 34, https://arxiv.org/abs/2104.09864
    """
    _check(x.shape, np.asarray(frequencies))
    return turn(x, positions, channel_angle_steps(frequencies, interleaved), interleaved, scale)


def channel_angle_steps(frequencies, interleaved):
    """What `turn` needs of the frequencies, for each axis."""
    frequencies = np.atleast_2d(np.asarray(frequencies, "float64"))  # (A, F)
    return tuple(angle_steps(signed) for signed in _signed(frequencies, interleaved))


def turn(x, positions, turns, interleaved, scale):
    """`rotate` with what `channel_angle_steps` made of the frequencies."""
    axes, width = len(turns), sum(len(of_step) for _, of_step in turns)
    pairs = zip(by_axis(positions, x, axes), turns, strict=True)
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
    """Raises ValueError for arguments of `rotary_frequencies` out of range."""
    if not base > 1.0:
        raise ValueError(f"`base` must be above 1; received: base={base}")
    if scaling not in SCALINGS:
        raise ValueError(
            f"`scaling` must be one of None, 'linear', 'ntk', 'yarn'; received: scaling={scaling!r}"
        )
    if not factor >= 1.0:
        raise ValueError(f"`factor` must be at least 1; received: factor={factor}")
    if scaling is None and factor != 1.0:
        raise ValueError(
            f"A `factor` needs a `scaling`; received: factor={factor}, scaling={scaling}"
        )
    if scaling == "yarn":
        _check_yarn(original_length, beta_fast, beta_slow)


def _check_yarn(original_length, beta_fast, beta_slow):
    if original_length is None or not original_length >= 1:
        raise ValueError(
            "scaling='yarn' needs an `original_length` of at least 1; "
            f"received: original_length={original_length}"
        )
    if not beta_fast > beta_slow > 0.0:
        raise ValueError(
            "`beta_fast` must be above `beta_slow`, and that above 0; "
            f"received: beta_fast={beta_fast}, beta_slow={beta_slow}"
        )


def _check(shape, frequencies):
    if len(shape) != 4 or shape[-1] is None:
        raise ValueError(
            "`x` must have rank 4, (batch, steps, heads, width), and a known width; "
            f"received: x.shape={tuple(shape)}"
        )
    if frequencies.ndim not in (1, 2) or not 2 <= 2 * frequencies.size <= shape[-1]:
        raise ValueError(
            "`frequencies` must have shape (F,) or (A, F) and serve pairs of the channels of `x`; "
            f"received: frequencies.shape={frequencies.shape}, x.shape={tuple(shape)}"
        )


def _signed(frequencies, interleaved):
    """`(A, 2F)`: one for each channel, negative for the first of a pair.

    So x cos(a) + partner sin(a) is the rotation for both.
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
