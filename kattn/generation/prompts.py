"""Prompts as users give them: arrays, padded at either side, or lists of different lengths."""

from typing import Any, NamedTuple

import keras
import numpy as np

from kattn import arguments


class Prompts(NamedTuple):
    """Prompts that were read, as NumPy arrays.

    Args:
        tokens: Tokens, int32, shape `(B, T)`; those of a row come first, and padding behind.
        real: Bool, shape `(B, T)`, True = token, False = padding; None if there is no padding.
    """

    tokens: Any
    real: Any

    @property
    def counts(self):
        """`(B,)` int32: the number of tokens of each prompt."""
        if self.real is None:
            return np.full(len(self.tokens), self.tokens.shape[1], "int32")
        return self.real.sum(axis=1).astype("int32")


def read_prompts(prompts, mask, pad_token):
    """The prompts, in which padding stands behind the tokens of each.

    Args:
        prompts: Array of integers `(B, T)`, or a list of B lists of integers.
        mask: Bool, shape `(B, T)`, True = token, False = padding, at either side; or None.
        pad_token: The token that stands where there is none.

    Returns:
        `Prompts`.

    Raises:
        ValueError: If prompts or mask are of another kind, or a prompt has no token.
    """
    if isinstance(prompts, list | tuple) and all(isinstance(row, list | tuple) for row in prompts):
        tokens, real = _joined(prompts, pad_token)
        if real is not None and mask is not None:
            raise arguments.error(
                "`mask` belongs to an array of prompts; lists of different lengths need none",
                mask=mask,
            )
    else:
        tokens, real = _array(prompts), None
    if mask is not None:
        real = keras.ops.convert_to_numpy(mask)
        if real.dtype != bool or real.shape != tokens.shape:
            raise arguments.error(
                "`mask` must be a bool array of the shape of `prompts`, True = token",
                mask=mask,
                prompts=tokens,
            )
    if real is not None:
        order = np.argsort(~real, axis=1, kind="stable")  # tokens first, in their order
        tokens, real = (np.take_along_axis(x, order, axis=1) for x in (tokens, real))
        tokens = np.where(real, tokens, pad_token)
    read = Prompts(tokens.astype("int32"), real)
    if not read.counts.all():
        raise ValueError(
            "Each prompt must have at least one token, such as a token that begins a text; "
            f"received: number of tokens of each prompt={read.counts.tolist()}"
        )
    return read


def _joined(rows, pad_token):
    """Lists as an array, padded behind to the longest; and its mask, if lengths differ."""
    lengths = [len(row) for row in rows]
    if not lengths:
        raise arguments.error("`prompts` must hold at least one prompt", prompts=rows)
    longest = max(lengths)
    tokens = _array([[*row, *[pad_token] * (longest - len(row))] for row in rows])
    if min(lengths) == longest:
        return tokens, None
    return tokens, np.arange(longest) < np.array(lengths)[:, None]


def _array(prompts):
    tokens = np.asarray(keras.ops.convert_to_numpy(prompts))
    if tokens.ndim == 2 and tokens.size == 0:
        return tokens.astype("int32")
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            "`prompts` must be an array of integers (B, T), or a list of B lists of integers; for "
            "one prompt write prompts[None]; "
            f"received: prompts.shape={tokens.shape}, dtype={tokens.dtype}"
        )
    return tokens
