"""The tokens of each sequence so far."""

from typing import Any, NamedTuple

from keras import ops


class History(NamedTuple):
    """The tokens that each sequence has so far: those of its prompt and those that were generated.

    A function that changes logits is given it, see `kattn.generation.RandomSampler`.

    Args:
        tokens: Tokens of each sequence in their order and without padding between them, int32,
            shape `(B, L)`. What stands at `length` and behind means nothing.
        length: Number of tokens that each sequence has so far, int32, shape `(B,)`.

    Example:
        >>> tokens = keras.ops.array([[5, 3, 0], [7, 0, 0]], "int32")
        >>> History(tokens, keras.ops.array([2, 1], "int32")).is_token()
        [[True, True, False], [True, False, False]]
    """

    tokens: Any
    length: Any

    def is_token(self):
        """Which entries of `tokens` are tokens.

        Returns:
            bool, `(B, L)`.
        """
        return ops.arange(self.tokens.shape[1], dtype="int32") < self.length[:, None]

    def extend(self, tokens, count):
        """The history with more tokens.

        Args:
            tokens: New tokens, int32, shape `(B, t)`; those of a sequence come first in its row.
            count: How many of them each sequence takes, int32, shape `(B,)`.

        Returns:
            A `History`.
        """
        index = ops.arange(self.tokens.shape[1], dtype="int32") - self.length[:, None]  # (B, L)
        new, last = tokens, tokens.shape[1] - 1
        if last:
            new = ops.take_along_axis(tokens, ops.clip(index, 0, last), axis=1)
        is_new = ops.logical_and(index >= 0, index < count[:, None])
        return History(ops.where(is_new, new, self.tokens), self.length + count)


def empty_history(batch_size, length, pad_token):
    """A history without tokens, with room for `length` of each sequence."""
    tokens = ops.full((batch_size, length), pad_token, "int32")
    return History(tokens, ops.zeros((batch_size,), "int32"))
