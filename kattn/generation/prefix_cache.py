"""What was computed of tokens, kept between calls."""

import copy

import keras

from kattn import arguments


class PrefixCache:
    """Keeps what a model computed of tokens, so that the next call begins behind them.

    `kattn.generate(..., cache=cache)` takes its prompts for what comes behind the tokens in the
    cache, and leaves the prompts and the new tokens in it, too. So a conversation goes on with each
    call. If many calls share a beginning, fill a cache with it once (`max_new_tokens=0`) and give a
    `copy()` to each.

    It holds arrays of one model and its weights: make a new one when these change.

    Args:
        length: Number of tokens of each sequence that there is room for, an integer >= 1.

    Example:
        >>> cache = PrefixCache(1024)
        >>> cache.lengths is None  # nothing in it yet
        True
    """

    def __init__(self, length):
        arguments.check_integers(1, length=length)
        self.length = length
        self.prefix = None
        self.policy = None

    @property
    def lengths(self):
        """The number of tokens of each sequence, int32 `(B,)`, or None if there are none yet."""
        if self.prefix is None:
            return None
        return keras.ops.convert_to_numpy(self.prefix.history.length)

    def fill(self, prefix, policy):
        """Takes what a generation has left.

        Args:
            prefix: Cache and history of all tokens, the `kattn.generation.prefill.Prefix`.
            policy: The cache policy that it was made with.
        """
        self.prefix, self.policy = prefix, policy

    def copy(self):
        """Another cache with the same tokens, which goes its own way; no array is copied.

        Returns:
            A `PrefixCache`.
        """
        return copy.copy(self)
