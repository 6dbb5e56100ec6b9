"""Numbers of each update, written in the compiled step and read now and then."""

import numpy as np
from keras import ops

ROWS = 512


def rows_needed(model):
    """Rows that hold what is written between two readings, of which an execution may be long."""
    return max(ROWS, 2 * getattr(model, "steps_per_execution", 1))


class Recorder:
    """The last `size` rows of numbers, kept with the optimizer's variables.

    Args:
        columns: Names of the numbers in a row.
        size: Rows. Older ones are written over: `read` in time.
    """

    def __init__(self, columns, size):
        self.columns = tuple(columns)
        self.size = size
        self.read_until = 0  # of all rows ever written

    def build(self, hook, name):
        """Make the variables it needs."""
        shape = (self.size, len(self.columns))
        self._rows = hook.add_variable(shape, f"{name}_rows", stays=True)
        self._count = hook.add_variable((), f"{name}_count", dtype="int32", stays=True)

    def write(self, numbers):
        """In the compiled step: one row, of scalars by column."""
        row = ops.stack([ops.cast(numbers[column], "float32") for column in self.columns])
        count = ops.convert_to_tensor(self._count)
        is_here = ops.arange(self.size, dtype="int32") == count % self.size
        self._rows.assign(ops.where(is_here[:, None], row, ops.convert_to_tensor(self._rows)))
        self._count.assign(count + 1)

    def start(self):
        """On the host: what has been written so far is not to be read."""
        self.read_until = int(ops.convert_to_numpy(self._count))

    def read(self):
        """On the host: rows since the last reading, by column."""
        count = int(ops.convert_to_numpy(self._count))
        first = max(self.read_until, count - self.size)
        rows = ops.convert_to_numpy(self._rows)[np.arange(first, count) % self.size]
        self.read_until = count
        return dict(zip(self.columns, rows.T.astype(float), strict=True))
