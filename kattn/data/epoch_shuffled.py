"""Batches in an order that is a function of seed and epoch."""

import threading
from typing import Any

import keras
import numpy as np


class EpochShuffled(keras.utils.PyDataset):
    """Arrays in batches; the order in epoch e is a permutation drawn from (seed, e) alone.

    So it does not depend on what else has drawn random numbers, nor on the backend, and a training
    that is taken up in epoch e sees what it would have seen. `ExactResume(..., data=this)` tells it
    the epoch; without, it counts the passes in which the last batch has been read, of all fits.

    Give it to `fit` with `shuffle=False`: Keras would shuffle the batches once more, from Python's
    global random state. That, and anything else that reads batches out of their order within an
    epoch, is refused.

    Args:
        data: Arrays of one length, as `fit` takes them: x, `(x, y)` or `(x, y, sample_weight)`,
            each an array or a list, tuple or dict of arrays. They are not copied.
        batch_size: Examples in a batch, 1 or more.
        seed: A whole number, 0 or more.
        drop_remainder: Whether to leave out the examples of an epoch that do not fill a batch.
        transform: A function (batch, rng) -> batch, to augment with: a batch has the structure of
            `data`, and `rng` is a `numpy.random.Generator` drawn from (seed, e, place of the batch)
            alone. None for none.

    Raises:
        ValueError: If an argument is out of its range, if arrays differ in length, or if there is
            not one batch. While `fit` reads it: if it reads batches in another order.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.zeros((100, 3)), np.zeros((100, 1))
        >>> data = kattn.data.EpochShuffled((x, y), batch_size=32, seed=1)
        >>> history = model.fit(data, shuffle=False, epochs=3, verbose=0)
        >>> data.epoch, len(data[3][0])
        (3, 4)
    """

    def __init__(self, data, *, batch_size, seed=0, drop_remainder=False, transform=None):
        super().__init__()
        _check_whole("batch_size", batch_size, 1)
        _check_whole("seed", seed, 0)
        self.batch_size, self.seed, self.drop_remainder = batch_size, seed, bool(drop_remainder)
        if transform is not None and not callable(transform):
            raise ValueError(
                f"transform must be a function (batch, rng) -> batch: transform={transform!r}"
            )
        self.transform = transform
        self._data = keras.tree.map_structure(np.asarray, data)
        self.examples = _common_length(keras.tree.flatten(self._data))
        if len(self) == 0:
            raise ValueError(
                "data must fill a batch: "
                f"examples={self.examples}, {batch_size=}, {drop_remainder=}"
            )
        self._epoch = 0
        self._drawn: tuple[int, Any] = (-1, None)  # an epoch and its order
        self._is_read = False  # the last batch, in this pass
        self._is_passing = False
        self._readers: list[int] = []  # what the newest ones come to next
        self._lock = threading.Lock()

    @property
    def epoch(self):
        """The epoch whose order is in force, from 0."""
        return self._epoch

    def set_epoch(self, epoch):
        """Take the order of an epoch, from 0. To be called before the epoch begins."""
        _check_whole("epoch", epoch, 0)
        self._epoch = epoch

    def order(self, epoch):
        """The indices of the examples in an epoch: `(examples,)` int64."""
        _check_whole("epoch", epoch, 0)
        bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
        return np.random.Generator(bits).permutation(self.examples)

    def get_config(self):
        """What the order depends on."""
        return {
            "examples": self.examples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "drop_remainder": self.drop_remainder,
        }

    def __len__(self):
        full, rest = divmod(self.examples, self.batch_size)
        return full + (rest > 0 and not self.drop_remainder)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}): index={index}")
        if self._is_passing:
            self._check_order(index)
        epoch, order = self._drawn
        if epoch != self._epoch:
            epoch = self._epoch
            order = self.order(epoch)
            self._drawn = (epoch, order)
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        batch = keras.tree.map_structure(lambda array: array[rows], self._data)
        if self.transform is None:
            return batch
        return self.transform(batch, np.random.default_rng([self.seed, epoch, index]))

    def on_epoch_begin(self):
        self._is_passing, self._is_read = True, False

    def on_epoch_end(self):
        # Keras also calls this when it has but looked at the first batch, or at none.
        if self._is_passing and self._is_read:
            self._epoch += 1
        self._is_passing = False

    def _check_order(self, index):
        """Refuse batches out of order.

        At the end of an epoch TensorFlow makes an iterator that it never uses, whose thread may
        still be reading ahead in the next epoch: so there may be two readers.
        """
        with self._lock:
            if index in self._readers:
                self._readers[self._readers.index(index)] += 1
            elif index == 0:
                unfinished = [reader for reader in self._readers if reader < len(self)]
                self._readers = [1, *unfinished[:1]]
            else:
                raise ValueError(
                    "Batches must be read in their order, which is that of seed and epoch: give "
                    f"fit shuffle=False: index={index}, expected={self._readers or [0]}"
                )
            self._is_read |= index == len(self) - 1


def _check_whole(name, value, least):
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more: {name}={value!r}")


def _common_length(arrays):
    shapes = [array.shape for array in arrays]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"data must be arrays of one length: shapes={shapes}")
    return lengths.pop()
