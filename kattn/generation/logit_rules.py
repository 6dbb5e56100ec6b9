"""Functions of logits that samplers are composed of: each removes tokens or changes their odds."""

import dataclasses
import math

from keras import ops

from kattn import arguments

NEVER = float("-inf")


@dataclasses.dataclass(frozen=True)
class Temperature:
    """logits / temperature: below 1 likely tokens become likelier, above 1 less so.

    Args:
        temperature: Number above 0.

    Example:
        >>> Temperature(0.5)(keras.ops.array([[1.0, 2.0]]), None)
        [[2.0, 4.0]]

    Reference:
        Ackley et al. 1985, https://doi.org/10.1016/S0364-0213(85)80012-4
    """

    temperature: float

    def __post_init__(self):
        arguments.check_positive(temperature=self.temperature)

    def __call__(self, logits, history):
        return logits / self.temperature


@dataclasses.dataclass(frozen=True)
class TopK:
    """Leaves the k most likely tokens, and those that are as likely as the last of them.

    Args:
        k: Number of tokens, an integer >= 1. A number above that of all tokens leaves all.

    Example:
        >>> TopK(2)(keras.ops.array([[1.0, 3.0, 2.0]]), None) > -1e9
        [[False, True, True]]

    Reference:
        Fan et al. 2018, sec. 5.4, https://arxiv.org/abs/1805.04833
    """

    k: int

    def __post_init__(self):
        arguments.check_integers(1, k=self.k)

    def __call__(self, logits, history):
        best = ops.top_k(logits, min(self.k, logits.shape[-1]))[0]
        return ops.where(logits < best[:, -1:], NEVER, logits)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Leaves the fewest most likely tokens whose probabilities add up to p (nucleus sampling).

    The most likely token always stays, and so do those that are as likely as the last that stays.

    Args:
        p: Sum of probabilities, in (0, 1].

    Example:
        >>> logits = keras.ops.log(keras.ops.array([[0.5, 0.3, 0.2]]))
        >>> TopP(0.7)(logits, None) > -1e9
        [[True, True, False]]

    Reference:
        Holtzman et al. 2019, sec. 3.1, https://arxiv.org/abs/1904.09751
    """

    p: float

    def __post_init__(self):
        arguments.check_factors(p=self.p)

    def __call__(self, logits, history):
        ordered = ops.top_k(logits, logits.shape[-1])[0]  # from the most likely
        probabilities = ops.softmax(ordered, axis=-1)
        before = ops.cumsum(probabilities, axis=-1) - probabilities
        least = ops.min(ops.where(before < self.p, ordered, float("inf")), axis=-1, keepdims=True)
        return ops.where(logits < least, NEVER, logits)


@dataclasses.dataclass(frozen=True)
class MinP:
    """Leaves the tokens that are at least p times as likely as the most likely one.

    Args:
        p: Share of the highest probability, in (0, 1].

    Example:
        >>> logits = keras.ops.log(keras.ops.array([[0.6, 0.3, 0.1]]))
        >>> MinP(0.4)(logits, None) > -1e9
        [[True, True, False]]

    Reference:
        Nguyen et al. 2024, sec. 3, https://arxiv.org/abs/2407.01082
    """

    p: float

    def __post_init__(self):
        arguments.check_factors(p=self.p)

    def __call__(self, logits, history):
        least = ops.max(logits, axis=-1, keepdims=True) + math.log(self.p)
        return ops.where(logits < least, NEVER, logits)


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Makes tokens less likely that a sequence has already: positive logits / c, others * c.

    Args:
        penalty: The number c, above 0. Numbers below 1 make such tokens likelier.

    Example:
        >>> tokens, length = [[0, 1]], [2]
        >>> history = kattn.generation.History(*map(keras.ops.array, (tokens, length)))
        >>> RepetitionPenalty(2.0)(keras.ops.array([[1.0, -1.0, 3.0]]), history)
        [[0.5, -2.0, 3.0]]

    Reference:
        Keskar et al. 2019, sec. 4.1, https://arxiv.org/abs/1909.05858
    """

    penalty: float

    def __post_init__(self):
        arguments.check_positive(penalty=self.penalty)

    def __call__(self, logits, history):
        seen = _occurs(history.tokens, history.is_token(), logits.shape)
        penalized = ops.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return ops.where(seen, penalized, logits)


@dataclasses.dataclass(frozen=True)
class NoRepeatNGram:
    """Removes the tokens that would repeat n tokens in a row which a sequence has already.

    Args:
        n: Number of tokens in a row, an integer >= 1. With 1 no token comes twice.

    Example:
        >>> tokens = keras.ops.array([[0, 1, 2, 0, 1]], "int32")
        >>> history = kattn.generation.History(tokens, keras.ops.array([5], "int32"))
        >>> NoRepeatNGram(3)(keras.ops.zeros((1, 4)), history) > -1e9
        [[True, True, False, True]]

    Reference:
        Paulus et al. 2017, sec. 2.5, https://arxiv.org/abs/1705.04304
    """

    n: int

    def __post_init__(self):
        arguments.check_integers(1, n=self.n)

    def __call__(self, logits, history):
        tokens, length = history
        before = self.n - 1
        begins = tokens.shape[1] - before  # number of places where n tokens can begin
        if begins < 1:
            return logits
        index = ops.arange(begins, dtype="int32")
        # Its last token must be there, and there must be n - 1 tokens to compare with.
        repeats = ops.logical_and(index + before < length[:, None], length[:, None] >= before)
        for i in range(before):
            at = ops.maximum(length - before + i, 0)[:, None]
            now = ops.take_along_axis(tokens, at, axis=1)  # (B, 1)
            repeats = ops.logical_and(repeats, tokens[:, i : i + begins] == now)
        removed = _occurs(tokens[:, before:], repeats, logits.shape)
        return ops.where(removed, NEVER, logits)


def _occurs(tokens, counts, shape):
    """Bool of `shape` `(B, V)`: which tokens stand in `tokens` `(B, L)` where it `counts`."""
    rows = ops.broadcast_to(ops.arange(shape[0], dtype="int32")[:, None], tokens.shape)
    places = ops.stack([ops.reshape(x, (-1,)) for x in (rows, tokens)], axis=-1)
    values = ops.reshape(ops.cast(counts, "float32"), (-1,))
    return ops.scatter(places, values, tuple(shape)) > 0
