"""Numbers of each update, written in the compiled step and read by the host from time to time."""

import numpy as np
from keras import ops

ROWS = 512


def rows_needed(model):
    """Return how many rows a recorder needs, given how many steps one execution joins."""
    return max(ROWS, 2 * getattr(model, "steps_per_execution", 1))


class Recorder:
    """Keeps the last rows of numbers in variables of the optimizer.

    Args:
        columns: Names of the numbers in a row.
        size: Number of rows. Older rows are overwritten, so `read` must be called in time.

    Attributes:
        read_until: How many of all rows ever written have been read.
    """

    def __init__(self, columns, size):
        self.columns = tuple(columns)
        self.size = size
        self.read_until = 0

    def build(self, hook, name):
        """Make the variables of the recorder. To be called in `Rule.build`."""
        shape = (self.size, len(self.columns))
        self._rows = hook.add_variable(shape, f"{name}_rows", stays=True)
        self._count = hook.add_variable((), f"{name}_count", dtype="int32", stays=True)

    def write(self, numbers):
        """Write one row, a dict of scalars by column, inside the compiled step."""
        row = ops.stack([ops.cast(numbers[column], "float32") for column in self.columns])
        count = ops.convert_to_tensor(self._count)
        is_here = ops.arange(self.size, dtype="int32") == count % self.size
        self._rows.assign(ops.where(is_here[:, None], row, ops.convert_to_tensor(self._rows)))
        self._count.assign(count + 1)

    def start(self):
        """Leave out what has been written so far, on the host."""
        self.read_until = int(ops.convert_to_numpy(self._count))

    def read(self):
        """Return the rows since the last reading, as a dict of arrays by column, on the host."""
        count = int(ops.convert_to_numpy(self._count))
        first = max(self.read_until, count - self.size)
        rows = ops.convert_to_numpy(self._rows)[np.arange(first, count) % self.size]
        self.read_until = count
        return dict(zip(self.columns, rows.T.astype(float), strict=True))
