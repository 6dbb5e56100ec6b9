"""Batches of pairs of about one length. It needs Keras: import it once the backend is chosen."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kattn.data import EpochShuffled

POOL = 50  # batches whose pairs are sorted by length together


def lengths(rows: np.ndarray) -> np.ndarray:
    """The number of tokens of each row `(count, T)`, behind which there are zeros."""
    return np.count_nonzero(rows, axis=1)


def rounded_up(length: int, multiple: int, most: int) -> int:
    """The next multiple, but at most `most`: the fewer widths, the fewer compilations."""
    return min(-(-length // multiple) * multiple, most)


class LengthBuckets(EpochShuffled):
    """Batches for teacher forcing: pairs of about one length, cut where the longest ends.

    An epoch draws the pairs in the order of `EpochShuffled`, sorts each `POOL` batches of them by
    length, and draws the order of the batches. The first batch is one of a mean width, so that the
    time of a step that is measured on it is that of most. What does not fill a batch is left out.

    A batch is `((source, read), wanted, weights)`, all of one width: what the decoder reads begins
    with the first token of the target, what is wanted is the token behind each, and weights are 0
    at padding and 1 elsewhere.

    Args:
        source: Tokens of the sources, int32, shape `(count, S)`, with zeros behind them.
        target: Tokens of the targets, likewise, shape `(count, S + 1)`. The first one of each means
            the beginning, the last one the end.
        batch_size: Number of pairs in a batch.
        seed: Seed of all orders.
        multiple: Widths are multiples of this number, or S.
    """

    def __init__(
        self,
        source: np.ndarray,
        target: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        multiple: int = 8,
    ):
        self.multiple, self.most = multiple, source.shape[1]
        self.lengths = np.maximum(lengths(source), lengths(target) - 1)
        super().__init__(
            (source, target),
            batch_size=batch_size,
            seed=seed,
            drop_remainder=True,
            transform=lambda batch, rng: teacher_forcing(batch, multiple),
        )

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the pairs in an epoch; see `EpochShuffled`."""
        drawn, size = super().order(epoch), self.batch_size
        used = drawn[: len(self) * size]
        pool = np.arange(len(used)) // (POOL * size)
        width = -(-self.lengths[used] // self.multiple)
        batches = used[np.lexsort((width, pool))].reshape(-1, size)
        np.random.default_rng([self.seed, epoch]).shuffle(batches)
        widths = self.lengths[batches].max(axis=1)
        typical = int(np.abs(widths - widths.mean()).argmin())
        batches[[0, typical]] = batches[[typical, 0]]
        return np.concatenate([batches.ravel(), drawn[len(used) :]])

    def get_config(self) -> dict[str, Any]:
        """What the order depends on."""
        return {**super().get_config(), "multiple": self.multiple}


def teacher_forcing(pairs: Sequence[np.ndarray], multiple: int) -> tuple[Any, ...]:
    """Sources and targets as `fit` takes them, see `LengthBuckets`."""
    source, target = pairs
    longest = int(np.maximum(lengths(source), lengths(target) - 1).max())
    width = rounded_up(longest, multiple, source.shape[1])
    wanted = target[:, 1 : width + 1]
    return (source[:, :width], target[:, :width]), wanted, (wanted != 0).astype("float32")
