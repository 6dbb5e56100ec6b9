"""A long text cut into windows, for a model that predicts the next token."""

import numpy as np

from kattn import arguments


def windows(tokens, length, *, stride=None):
    """Windows of a long text, and for each of their tokens the next one.

    Nothing is copied: both arrays are views of `tokens`. `kattn.data.EpochShuffled` makes batches
    of them on any backend, each epoch in another order.

    Args:
        tokens: Tokens of the text, integers, shape `(T,)`.
        length: Number of tokens in a window, an integer >= 1.
        stride: Number of tokens from the start of a window to the start of the next, an integer
            >= 1. None for `length`: windows side by side. 1 gives a window from each place on.

    Returns:
        `(inputs, targets)`, each of shape `(windows, length)`. What does not fill the last window
        is left out.

    Raises:
        ValueError: If a number is out of range, if `tokens` is not of rank 1, or if it is too short
            for one window.

    Example:
        >>> x, y = kattn.text.windows(np.arange(8), 3)
        >>> x
        [[0, 1, 2], [3, 4, 5]]
        >>> y
        [[1, 2, 3], [4, 5, 6]]
        >>> data = kattn.data.EpochShuffled((x, y), batch_size=2, seed=1)
    """
    arguments.check_integers(1, length=length)
    arguments.check_optional_integers(1, stride=stride)
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or len(tokens) <= length:
        raise arguments.error(
            "`tokens` must have shape (T,) with more tokens than a window",
            tokens=tokens,
            length=length,
        )
    both = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[:: stride or length]
    return both[:, :-1], both[:, 1:]
