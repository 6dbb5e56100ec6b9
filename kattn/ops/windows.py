"""Windows of a map of any rank: from the map to its windows and back (Swin, MaxViT)."""

import dataclasses
import math
from typing import Any

from keras import ops

from kattn import backend, masks
from kattn.arguments import is_integer
from kattn.ops.sizes import ceil_divide

PARTITIONS = ("windows", "grid")


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """The windows of maps: which cells each holds, and which of these see each other.

    A side that `window` does not divide is filled up with padding at its end. With the partition
    "windows", a window holds neighbours: along a side it begins at cell `shift`, or `window` cells
    farther, and so on. The cells before `shift` and those at the end of the side, which fill no
    window, are in one; `mask` keeps them apart. With the partition "grid", a window holds cells
    that are ceil(side / window) apart, from end to end of the map.

    Windows are counted in row-major order, and so are the cells of a window.

    Args:
        batch: Number of maps, B: an integer, a scalar tensor or a symbol.
        sides: Sides of the maps: integers; or scalar tensors or symbols, where they are known only
            when the model runs.
        window: Number of cells of a window along each side, integers >= 1.
        shift: Number of cells by which the windows are displaced along each side, integers from 0
            to window - 1, all 0 for "grid". A side that is in one window is not shifted.
        partition: "windows" or "grid".

    Example:
        >>> steps = keras.ops.reshape(keras.ops.arange(5), (1, 5, 1))
        >>> windows = Windows.of_map(steps, (2,), (1,), "windows")
        >>> windows.split(steps)[..., 0]  # step 0 and padding were wrapped around
        [[1, 2], [3, 4], [0, 0]]
        >>> windows.merge(windows.split(steps))[..., 0]
        [[0, 1, 2, 3, 4]]

    Reference:
        Liu et al. 2021 (Swin), sec. 3.2, https://arxiv.org/abs/2103.14030
        Tu et al. 2022 (MaxViT), sec. 3.2, https://arxiv.org/abs/2204.01697
    """

    batch: Any
    sides: tuple[Any, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]
    partition: str

    @classmethod
    def of_map(cls, x, window, shift, partition):
        """The windows of maps `(B, *sides, C)`."""
        batch, *sides, _ = ops.shape(x)
        return cls(batch, tuple(sides), window, shift, partition)

    @property
    def counts(self):
        """Number of windows along each side."""
        return tuple(map(ceil_divide, self.sides, self.window))

    @property
    def padded(self):
        """The sides, filled up to whole windows."""
        return tuple(n * cells for n, cells in zip(self.counts, self.window, strict=True))

    @property
    def is_exact(self):
        """Whether it is known that the windows divide all sides."""
        return all(map(is_integer, self.sides)) and self.sides == self.padded

    @property
    def shifts(self):
        """By how many cells each side is rolled, by its axis; sides that stay are left out."""
        pairs = zip(self.shift, self.counts, strict=True)
        found = {axis: _shift(*pair) for axis, pair in enumerate(pairs, start=1)}
        return {axis: n for axis, n in found.items() if not is_integer(n) or n}

    def split(self, x):
        """`(B, *sides, C)` to `(B * windows, cells of a window, C)`, with zeros at padding."""
        if not self.is_exact:
            pairs = zip(self.sides, self.padded, strict=True)
            x = backend.pad(x, ((0, 0), *((0, whole - side) for side, whole in pairs), (0, 0)))
        return self._cut(self._roll(x))

    def merge(self, x):
        """`(B * windows, cells of a window, C)` to `(B, *sides, C)`: the inverse of `split`."""
        order = self._order()
        x = ops.reshape(x, (self.batch, *self.counts, *self.window, ops.shape(x)[-1]))
        x = ops.transpose(x, [order.index(axis) for axis in range(len(order))])
        x = self._roll(ops.reshape(x, (self.batch, *self.padded, ops.shape(x)[-1])), back=True)
        return x if self.is_exact else x[:, *(slice(side) for side in self.sides)]

    def real(self, padding):
        """Which cells of the windows are real.

        Args:
            padding: `(B, *sides)` bool, True = real cell; or None.

        Returns:
            `(B * windows, cells of a window)` bool, or None if it is known that all are real.
        """
        if padding is None and self.is_exact:
            return None
        if padding is None:
            padding = ops.ones((self.batch, *self.sides), "bool")
        return self.split(ops.cast(padding, "float32")[..., None])[..., 0] > 0

    def mask(self, padding):
        """Which cells of its window each cell sees: a `kattn.masks.Mask`, or None for all.

        Args:
            padding: `(B, *sides)` bool, True = real cell; or None.
        """
        real = self.real(padding)
        if not self.shifts:
            return None if real is None else masks.Padding(real)
        regions = self._regions()
        count, cells = ops.shape(regions)
        regions = ops.broadcast_to(regions[None], (self.batch, count, cells))
        regions = ops.reshape(regions, (self.batch * count, cells))
        return masks.Segments(regions if real is None else ops.where(real, regions, -1))

    def _cut(self, x):
        """`(B, *padded, C)` to `(B * windows, cells of a window, C)`."""
        batch, *_, channels = ops.shape(x)
        pairs = zip(self.counts, self.window, strict=True)
        if self.partition == "grid":
            pairs = zip(self.window, self.counts, strict=True)
        x = ops.reshape(x, (batch, *(n for pair in pairs for n in pair), channels))
        x = ops.transpose(x, self._order())  # (B, *counts, *window, C)
        return ops.reshape(x, (batch * math.prod(self.counts), math.prod(self.window), channels))

    def _order(self):
        """The axes of windows, then those of their cells, where each side is cut into two axes."""
        last = 2 * len(self.sides) + 1
        outer, inner = range(1, last, 2), range(2, last, 2)
        if self.partition == "grid":
            outer, inner = inner, outer
        return [0, *outer, *inner, last]

    def _roll(self, x, *, back=False):
        """Cell `shift` becomes the first of its side, or, if `back`, the first cell that again."""
        known = {axis: n for axis, n in self.shifts.items() if is_integer(n)}
        if known:
            by = tuple(n if back else -n for n in known.values())
            x = ops.roll(x, by, tuple(known))
        for axis in self.shifts.keys() - known.keys():
            side, shift = self.padded[axis - 1], self.shifts[axis]
            index = ops.arange(side, dtype="int32") + (side - shift if back else shift)
            x = backend.gather(x, ops.where(index < side, index, index - side), axis)
        return x

    def _regions(self):
        """Numbers that are equal for cells of a window between which nothing was wrapped around.

        Returns:
            int32, `(windows of a map, cells of a window)`.
        """
        regions = ops.zeros((1, *self.padded, 1), "int32")
        for axis, shift in self.shifts.items():
            side = self.padded[axis - 1]
            is_wrapped = ops.arange(side, dtype="int32") >= side - shift
            shape = [side if i == axis else 1 for i in range(len(self.sides) + 2)]
            regions = regions + 2**axis * ops.reshape(ops.cast(is_wrapped, "int32"), shape)
        return self._cut(regions)[..., 0]


def _shift(shift, count):
    """The shift of a side with `count` windows: 0 if there is one only."""
    if shift == 0 or is_integer(count):
        return shift if shift and count > 1 else 0
    # Added, as PyTorch would make a constant of a symbol that becomes a tensor by itself.
    return shift * ops.cast(ops.zeros((), "int32") + count > 1, "int32")
