"""Batches in an order that depends on the seed and the epoch only."""

import threading
from typing import Any

import keras
import numpy as np

from kattn.arguments import check_integers, error


class EpochShuffled(keras.utils.PyDataset):
    """Read arrays in batches, in an order that depends on a seed and the epoch only.

    The order of an epoch does not depend on what else has drawn random numbers, nor on the backend.
    So a training that is resumed in an epoch sees the examples in the order in which it would have
    seen them. `ExactResume(..., data=this)` sets the epoch. Without it, the epoch is the number of
    passes over the data in which the last batch has been read, in all fits.

    Call `fit` with `shuffle=False`. Otherwise Keras would shuffle the batches once more, from
    Python's global random state. Reading batches out of their order within an epoch raises an
    error.

    Args:
        data: Arrays of equal length, as `fit` takes them: x, `(x, y)` or `(x, y, sample_weight)`,
            each of them an array, or a list, tuple or dict of arrays. The arrays are not copied.
        batch_size: Number of examples in a batch, an integer >= 1.
        seed: Seed of all orders, an integer >= 0.
        drop_remainder: Whether to leave out the last examples of an epoch if they do not fill a
            batch.
        transform: Function (batch, rng) -> batch, for augmentation. The batch has the structure of
            `data`, and `rng` is a `numpy.random.Generator` that depends on the seed, the epoch and
            the place of the batch only. None for no transform.

    Raises:
        ValueError: If an argument is out of range, if the arrays differ in length, or if they do
            not fill one batch. While `fit` reads: if it reads batches in another order.

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
        batch_size, seed = _plain(batch_size), _plain(seed)
        check_integers(1, batch_size=batch_size)
        check_integers(0, seed=seed)
        self.batch_size, self.seed, self.drop_remainder = batch_size, seed, bool(drop_remainder)
        if transform is not None and not callable(transform):
            raise error("`transform` must be a function (batch, rng) -> batch", transform=transform)
        self.transform = transform
        self._data = keras.tree.map_structure(np.asarray, data)
        self.examples = _common_length(keras.tree.flatten(self._data))
        if len(self) == 0:
            raise error(
                "`data` must fill at least one batch",
                examples=self.examples,
                batch_size=batch_size,
                drop_remainder=drop_remainder,
            )
        self._epoch = 0
        self._drawn: tuple[int, Any] = (-1, None)  # an epoch and the order of its examples
        self._is_read = False  # whether this pass has read the last batch
        self._is_passing = False
        self._readers: list[int] = []  # the next index of each of the newest readers
        self._lock = threading.Lock()

    @property
    def epoch(self):
        """The epoch whose order is used now, counted from 0."""
        return self._epoch

    def set_epoch(self, epoch):
        """Use the order of an epoch. To be called before the epoch begins.

        Args:
            epoch: The epoch, an integer >= 0.

        Raises:
            ValueError: If `epoch` is not an integer >= 0.
        """
        epoch = _plain(epoch)
        check_integers(0, epoch=epoch)
        self._epoch = epoch

    def order(self, epoch):
        """Return the order of the examples in an epoch.

        Args:
            epoch: The epoch, an integer >= 0.

        Returns:
            Indices of the examples, int64 array, shape `(examples,)`.

        Raises:
            ValueError: If `epoch` is not an integer >= 0.
        """
        epoch = _plain(epoch)
        check_integers(0, epoch=epoch)
        bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
        return np.random.Generator(bits).permutation(self.examples)

    def get_config(self):
        """Return what the order depends on."""
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
            raise IndexError(f"`index` must be in [0, {len(self)}); received: index={index}")
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
        # Keras also calls this when it has read only the first batch, or none.
        if self._is_passing and self._is_read:
            self._epoch += 1
        self._is_passing = False

    def _check_order(self, index):
        """Raise ValueError for a batch that is read out of order.

        There may be two readers: at the end of an epoch TensorFlow makes an iterator that it never
        uses, whose thread may still be reading ahead in the next epoch.
        """
        with self._lock:
            if index in self._readers:
                self._readers[self._readers.index(index)] += 1
            elif index == 0:
                unfinished = [reader for reader in self._readers if reader < len(self)]
                self._readers = [1, *unfinished[:1]]
            else:
                raise error(
                    "Batches must be read in the order of seed and epoch; call fit with "
                    "shuffle=False",
                    index=index,
                    expected=self._readers or [0],
                )
            self._is_read |= index == len(self) - 1


def _plain(value):
    """An integer of NumPy as one of Python."""
    return value.item() if isinstance(value, np.integer) else value


def _common_length(arrays):
    shapes = [array.shape for array in arrays]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        raise error("`data` must be arrays of one length", shapes=shapes)
    return lengths.pop()
