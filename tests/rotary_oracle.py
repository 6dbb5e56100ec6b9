"""RoFormer and its scalings in NumPy float64, pair by pair."""

import math

import numpy as np


def frequencies(
    width, base=10000.0, scaling=None, factor=1.0, original_length=None, beta_fast=32, beta_slow=1
):
    """`(width / 2,)`: Peng et al. 2023, sec. 3.1 and 3.2, one pair d at a time."""
    found = []
    for d in range(width // 2):
        theta = base ** (-2.0 * d / width)
        if scaling == "linear":
            theta = theta / factor
        elif scaling == "ntk":
            theta = (base * factor ** (width / (width - 2.0))) ** (-2.0 * d / width)
        elif scaling == "llama3":
            theta = llama3(theta, factor, beta_slow, beta_fast, original_length)
        elif scaling == "yarn":
            wavelength = 2.0 * math.pi / theta
            ratio = original_length / wavelength
            if ratio < beta_slow:
                gamma = 0.0
            elif ratio > beta_fast:
                gamma = 1.0
            else:
                gamma = (ratio - beta_slow) / (beta_fast - beta_slow)
            theta = (1.0 - gamma) * theta / factor + gamma * theta
        found.append(theta)
    return np.array(found)


def llama3(freq, scale_factor, low_freq_factor, high_freq_factor, old_context_len):
    """`apply_scaling` of Meta's code, by wavelengths."""
    low_freq_wavelen = old_context_len / low_freq_factor
    high_freq_wavelen = old_context_len / high_freq_factor
    wavelen = 2 * math.pi / freq
    if wavelen < high_freq_wavelen:
        return freq
    if wavelen > low_freq_wavelen:
        return freq / scale_factor
    smooth = (old_context_len / wavelen - low_freq_factor) / (high_freq_factor - low_freq_factor)
    return (1 - smooth) * freq / scale_factor + smooth * freq


def rotate(x, positions, frequencies, interleaved=False, scale=1.0):
    """Su et al. 2021, eq. 15: each pair times its own 2 x 2 matrix.

    `x` is `(B, T, N, D)`, `positions` `(T, A)` or `(B, T, A)`, `frequencies` `(A, F)`.
    """
    y = np.array(x, np.float64)
    axes, count = frequencies.shape
    positions = np.broadcast_to(np.float64(positions), (*y.shape[:2], axes))
    for b, t, n, a, i in np.ndindex(*y.shape[:3], axes, count):
        first = 2 * a * count
        pair = [first + 2 * i, first + 2 * i + 1] if interleaved else [first + i, first + i + count]
        angle = positions[b, t, a] * frequencies[a, i]
        matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        y[b, t, n, pair] = scale * np.array(matrix) @ y[b, t, n, pair]
    return y
