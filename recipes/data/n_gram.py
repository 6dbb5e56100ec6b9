"""What a table of counts predicts: an interpolated n-gram with Witten-Bell smoothing."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class _Counts(NamedTuple):
    """How often each sequence of one length was seen, and what was seen behind each context."""

    grams: np.ndarray  # numbers of the sequences that were seen, sorted
    counts: np.ndarray
    contexts: np.ndarray  # numbers of the contexts that were seen, sorted
    totals: np.ndarray  # how often something was seen behind a context
    kinds: np.ndarray  # how many different tokens were seen behind it


class NGram:
    """The probability of the next token by how often it was seen behind the last ones.

    With c(h w) the count of a sequence, c(h) that of its context, and d(h) the number of different
    tokens behind that context, each order is mixed with the next lower one, and the lowest with
    equal probabilities:

        p(w | h) = (c(h w) + d(h) p(w | h without its first token)) / (c(h) + d(h))

    Args:
        tokens: Tokens to count, integers in [0, `vocabulary_size`), shape `(T,)`.
        order: Largest length of a sequence, the next token included, so that there are `order` - 1
            tokens of context.
        vocabulary_size: Number of different tokens.

    Raises:
        ValueError: If there are more sequences of this length than a 64-bit integer can number.

    Reference:
        Witten and Bell 1991, method C, https://doi.org/10.1109/18.87000; in this recursive form:
        Chen and Goodman 1999, sec. 2.5, https://doi.org/10.1006/csla.1999.0128
    """

    def __init__(self, tokens: np.ndarray, order: int, vocabulary_size: int):
        if vocabulary_size**order >= 2**63:
            raise ValueError(
                "`order` must be small enough that all sequences can be numbered; "
                f"received: order={order}, vocabulary_size={vocabulary_size}"
            )
        self.order, self.vocabulary_size = order, vocabulary_size
        self._orders = [self._count(tokens, n) for n in range(1, order + 1)]

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """The probability of each token by those before it.

        Args:
            tokens: Tokens, integers, shape `(T,)`.

        Returns:
            float64 array, shape `(T - order + 1,)`: the first `order` - 1 tokens are context only.
        """
        return self._mix(
            len(tokens) - self.order + 1, lambda n: self._numbers(tokens, n)[self.order - n :]
        )

    def distribution(self, tokens: np.ndarray) -> np.ndarray:
        """The probabilities of all tokens behind the last `order` - 1 of `tokens`, `(V,)`."""
        every = np.arange(self.vocabulary_size)
        base = self.vocabulary_size

        def numbers(n: int) -> np.ndarray:
            context = tokens[len(tokens) - n + 1 :]
            return self._numbers(context, n - 1)[0] * base + every if n > 1 else every

        return self._mix(base, numbers)

    def sample(self, tokens: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Draw `count` new tokens behind `tokens`, which are at least `order` - 1."""
        rng, text = np.random.default_rng(seed), list(tokens)
        for _ in range(count):
            chances = self.distribution(np.array(text[len(text) - self.order + 1 :]))
            text.append(rng.choice(self.vocabulary_size, p=chances / chances.sum()))
        return np.array(text[len(tokens) :])

    def _numbers(self, tokens: np.ndarray, n: int) -> np.ndarray:
        """A number for each sequence of n tokens; divided by V it is that of the first n - 1."""
        numbers: np.ndarray = np.zeros(len(tokens) - n + 1, "int64")
        for i in range(n):
            numbers = numbers * self.vocabulary_size + tokens[i : len(tokens) - n + 1 + i]
        return numbers

    def _count(self, tokens: np.ndarray, n: int) -> _Counts:
        grams, counts = np.unique(self._numbers(tokens, n), return_counts=True)
        contexts, starts, kinds = np.unique(
            grams // self.vocabulary_size, return_index=True, return_counts=True
        )
        return _Counts(grams, counts, contexts, np.add.reduceat(counts, starts), kinds)

    def _mix(self, size: int, numbers_of_order: Callable[[int], np.ndarray]) -> np.ndarray:
        """Probabilities of `size` sequences, given the numbers of their last n tokens by n."""
        p = np.full(size, 1 / self.vocabulary_size)
        for n, seen in enumerate(self._orders, 1):
            numbers = numbers_of_order(n)
            count = _look_up(seen.grams, seen.counts, numbers)
            contexts: np.ndarray = numbers // self.vocabulary_size
            total = _look_up(seen.contexts, seen.totals, contexts)
            kinds = _look_up(seen.contexts, seen.kinds, contexts)
            mixed = (count + kinds * p) / np.maximum(total + kinds, 1)
            p = np.where(total > 0, mixed, p)  # nothing was seen behind this context
        return p


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where there is none; keys are sorted."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
