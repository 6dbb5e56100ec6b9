"""A long text read by a batch of readers, each of which goes on where it ended."""

import numpy as np

from kattn import arguments
from kattn.text.windows import windows


def streams(tokens, length, batch_size):
    """Windows of a long text in such an order that each batch goes on where the last one ended.

    The text is cut into as many parts as a batch has items. The first batch holds the first window
    of each part, the next batch the windows behind them, and so on. Train on them with
    `shuffle=False`. This is for models that remember the batch before, such as a `TransformerLM`
    with `memory_length`, or recurrent layers with `stateful=True`.

    Args:
        tokens: Tokens of the text, integers, shape `(T,)`.
        length: Number of tokens in a window, an integer >= 1.
        batch_size: Number of items of a batch, B, an integer >= 1.

    Returns:
        `(inputs, targets)`, each of shape `(batches * B, length)`; a target is the token behind the
        input. What does not fill the last batch is left out.

    Raises:
        ValueError: If a number is out of range, if `tokens` is not of rank 1, or if it is too short
            for one batch.

    Example:
        >>> x, y = kattn.text.streams(np.arange(13), length=3, batch_size=2)
        >>> x
        [[0, 1, 2], [6, 7, 8], [3, 4, 5], [9, 10, 11]]
        >>> y[:2]
        [[1, 2, 3], [7, 8, 9]]
    """
    arguments.check_integers(1, length=length, batch_size=batch_size)
    x, y = windows(tokens, length)
    batches = len(x) // batch_size
    if not batches:
        raise arguments.error(
            "`tokens` must have at least length * batch_size + 1 tokens",
            tokens=tokens,
            length=length,
            batch_size=batch_size,
        )
    order = np.arange(batches * batch_size).reshape(batch_size, batches).T.ravel()
    return x[order], y[order]
