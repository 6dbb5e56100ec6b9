"""Generated tasks of memory: associative recall with many queries, and copying after a delay."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

COPIED = 10  # symbols that are to be copied
SYMBOLS = 8  # different ones, numbered from 1; 0 is the blank
SIGNAL = SYMBOLS + 1  # the token that asks for them


class Examples(NamedTuple):
    """Sequences `(count, T)`: tokens, int32; labels, int32; which labels count, bool.

    A label of something that is to be remembered is not 0.
    """

    tokens: np.ndarray
    labels: np.ndarray
    is_counted: np.ndarray


class MemoryTask(Protocol):
    """What `AssociativeRecall` and `CopyMemory` have in common."""

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens."""

    @property
    def length(self) -> int:
        """Number of tokens in a sequence."""

    @property
    def levels(self) -> tuple[int, ...]:
        """How much, or for how long, there is to remember: different numbers in rising order."""

    @property
    def unit(self) -> str:
        """What a level counts."""

    @property
    def guess(self) -> str:
        """What can be said without a memory, in words."""

    def guessed(self, level: int) -> tuple[float, float]:
        """The loss and the accuracy of this guess."""

    def draw(self, rng: np.random.Generator, count: int, level: int) -> Examples:
        """Draw new sequences of one level."""


@dataclass(frozen=True)
class AssociativeRecall:
    """MQAR: pairs of a key and a value; then keys, at each of which its value is to be said.

    A sequence of K pairs begins with k1 v1 k2 v2 ... kK vK. Keys are drawn from 1 to V/2 - 1 and
    values from V/2 to V - 1, each without replacement. Behind the pairs, each key comes once more:
    of the (T - 2K) / 2 places that are every second step, the i-th from 1 is chosen with a weight
    of i^(power - 1), without replacement. At these steps the label is the value of the key.

    Args:
        vocabulary_size: Number of tokens V, an even integer.
        length: Number of steps T, an even integer.
        levels: Numbers of pairs K, each at most T / 4, and less than V / 2. They are sorted, and
            one that is given twice counts once.
        power: The smaller, the sooner most keys come again.
        is_filled: Whether steps without a pair or a query hold random tokens; else they hold 0.

    Raises:
        ValueError: If a size is out of range.

    Reference:
        Arora et al. 2023 (Zoology), sec. 3 and app. C, https://arxiv.org/abs/2312.04927, as its
        code draws it: https://github.com/HazyResearch/zoology, zoology/data/multiquery_ar.py
    """

    vocabulary_size: int = 64
    length: int = 32
    levels: tuple[int, ...] = (2, 4, 8)
    power: float = 0.01
    is_filled: bool = False

    def __post_init__(self) -> None:
        from kattn import arguments

        sizes = {"vocabulary_size": self.vocabulary_size, "length": self.length}
        arguments.check_integers(4, **sizes)
        for name, size in sizes.items():
            if size % 2:
                raise arguments.error(f"`{name}` must be even", **{name: size})
        if not self.levels:
            raise arguments.error("`pairs` must name at least one number", pairs=self.levels)
        arguments.check_rates(power=self.power)
        for pairs in self.levels:
            arguments.check_integers(1, pairs=pairs)
            if 4 * pairs > self.length or 2 * pairs >= self.vocabulary_size:
                raise arguments.error(
                    "`pairs` must be at most a quarter of `length`, as each takes two steps and "
                    "its query two more, and less than half of `vocabulary_size`",
                    pairs=pairs,
                    **sizes,
                )
        object.__setattr__(self, "levels", tuple(sorted(set(self.levels))))

    @property
    def unit(self) -> str:
        """What a level counts."""
        return "pairs"

    @property
    def guess(self) -> str:
        """What can be said without a memory of what belongs together, in words."""
        return "one of the values, at random"

    def guessed(self, level: int) -> tuple[float, float]:
        """The loss and the accuracy of this guess."""
        return math.log(level), 1 / level

    def draw(self, rng: np.random.Generator, count: int, level: int) -> Examples:
        """Draw new sequences of `level` pairs.

        Args:
            rng: Generator of the random numbers.
            count: Number of sequences.
            level: Number of pairs, K.
        """
        half, slots = self.vocabulary_size // 2, (self.length - 2 * level) // 2
        keys: np.ndarray = 1 + _choose(rng, count, np.ones(half - 1), level)  # (count, K)
        values: np.ndarray = half + _choose(rng, count, np.ones(half), level)
        weights = np.arange(1, slots + 1) ** (self.power - 1.0)
        places: np.ndarray = 2 * level + 2 * _choose(rng, count, weights, level)
        tokens: np.ndarray = np.zeros((count, self.length), "int32")
        if self.is_filled:
            tokens[:] = rng.integers(0, self.vocabulary_size, tokens.shape)
        labels, is_counted = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
        tokens[:, : 2 * level : 2], tokens[:, 1 : 2 * level : 2] = keys, values
        np.put_along_axis(tokens, places, keys, axis=1)
        np.put_along_axis(labels, places, values, axis=1)
        np.put_along_axis(is_counted, places, values=True, axis=1)
        return Examples(tokens, labels, is_counted)


def _choose(rng: np.random.Generator, count: int, weights: np.ndarray, size: int) -> np.ndarray:
    """Draw `size` different numbers in [0, len(weights)) one after another: `(count, size)`.

    Each draw is in proportion to the weights of what is left: the first events of independent
    Poisson processes with these rates come in that order (Efraimidis and Spirakis 2006).
    """
    times = rng.standard_exponential((count, len(weights))) / weights
    return times.argsort(axis=1)[:, :size]


@dataclass(frozen=True)
class CopyMemory:
    """Ten symbols, a delay, and a signal behind which they are to be said again.

    A sequence with a delay of D has 10 symbols drawn from 1 to 8, D - 1 blanks, which are 0, and 11
    signals, which are 9: D + 20 steps. The labels are 0 but at the last ten steps, where they are
    the symbols.

    Args:
        delay: The delay D, an integer >= 1.

    Raises:
        ValueError: If the delay is out of range.

    Reference:
        Hochreiter and Schmidhuber 1997; in this form: Arjovsky et al. 2015, sec. 5.1,
        https://arxiv.org/abs/1511.06464, and https://github.com/locuslab/TCN, whose losses are
        means over all steps, as here
    """

    delay: int = 100

    def __post_init__(self) -> None:
        from kattn import arguments

        arguments.check_integers(1, delay=self.delay)

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens."""
        return SIGNAL + 1

    @property
    def length(self) -> int:
        """Number of tokens in a sequence."""
        return self.delay + 2 * COPIED

    @property
    def levels(self) -> tuple[int, ...]:
        """The delay alone."""
        return (self.delay,)

    @property
    def unit(self) -> str:
        """What a level counts."""
        return "steps of delay"

    @property
    def guess(self) -> str:
        """What can be said without a memory, in words."""
        return "one of the symbols, at random"

    def guessed(self, level: int) -> tuple[float, float]:
        """The loss, a mean over all steps, and the accuracy of this guess."""
        return COPIED * math.log(SYMBOLS) / (level + 2 * COPIED), 1 / SYMBOLS

    def draw(self, rng: np.random.Generator, count: int, level: int) -> Examples:
        """Draw new sequences; `level` is the delay."""
        symbols = rng.integers(1, SYMBOLS + 1, (count, COPIED))
        tokens: np.ndarray = np.zeros((count, level + 2 * COPIED), "int32")
        labels = np.zeros_like(tokens)
        tokens[:, :COPIED], tokens[:, -COPIED - 1 :] = symbols, SIGNAL
        labels[:, -COPIED:] = symbols
        return Examples(tokens, labels, np.ones(tokens.shape, bool))


def batches(task: MemoryTask, batch_size: int, steps: int, seed: int) -> Any:
    """Batches of new sequences, without an end: an epoch is a number of steps.

    Args:
        task: The task. Each batch has sequences of all its levels, of each about as many.
        batch_size: Number of sequences in a batch, at least one for each level.
        steps: Number of batches in an epoch.
        seed: Seed of the sequences, which depend on epoch and place, too.

    Returns:
        A `kattn.data.EpochShuffled` of tokens, labels and weights, `(batch_size, T)` each. Weights
        are 1 where a label counts, else 0.

    Raises:
        ValueError: If `batch_size` is less than the number of levels.
    """
    from kattn import arguments
    from kattn.data import EpochShuffled

    if batch_size < len(task.levels):
        raise arguments.error(
            f"`batch_size` must be at least the number of levels, which count {task.unit}",
            batch_size=batch_size,
            levels=task.levels,
        )
    counts = np.bincount(np.arange(batch_size) % len(task.levels), minlength=len(task.levels))

    def draw(batch: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        parts = [task.draw(rng, n, level) for n, level in zip(counts, task.levels, strict=True)]
        tokens, labels, is_counted = map(np.concatenate, zip(*parts, strict=True))
        return tokens, labels, is_counted.astype("float32")

    numbers: np.ndarray = np.zeros(steps * batch_size, "int8")  # no data: each batch is drawn
    return EpochShuffled(numbers, batch_size=batch_size, seed=seed, transform=draw)


def to_test(task: MemoryTask, count: int, seed: int) -> dict[int, Examples]:
    """Sequences by level, `count` of each, from generators that no batch is drawn from.

    Those of batches have a list of three numbers as their seed, and these are spawned from `seed`,
    whatever it is. Still, as few different sequences as short ones have may come in both.
    """
    rngs = np.random.default_rng(seed).spawn(len(task.levels))
    return {
        level: task.draw(rng, count, level) for rng, level in zip(rngs, task.levels, strict=True)
    }


def scores(
    tests: Mapping[int, Examples], found: Mapping[int, tuple[float, float]]
) -> dict[str, float]:
    """The mean loss over all labels that count, and the accuracy of each level, by name.

    Args:
        tests: Sequences by level.
        found: Loss and accuracy by level.
    """
    counts = [tests[level].is_counted.sum() for level in found]
    losses = [loss for loss, _ in found.values()]
    return {
        "loss": float(np.average(losses, weights=counts)),
        **{f"accuracy_{level}": accuracy for level, (_, accuracy) in found.items()},
    }
