"""Masks that compare the coordinates of cells on a grid."""

import dataclasses
from typing import Any

from keras import ops

from kattn.arguments import error, is_integer
from kattn.block_rule import registered_rule
from kattn.grid import Grid
from kattn.masks.mask import Mask
from kattn.spans import coordinates


@registered_rule("kattn")
class Neighborhood(Mask):
    """A query sees the `size` cells around it along each axis of a grid.

    Along each axis a query sees `size` // 2 cells before it, itself, and the rest of the `size`
    cells after it. Where the grid ends there are fewer; or, if `clamped`, the window is moved back
    into the grid, so that each query sees `size` cells, or all where the axis has fewer.

    The layers for maps say which grid they attend over, by `on_grid`. As the argument `mask` of
    `kattn.ops.attention` the mask needs `sides`.

    Args:
        size: Number of cells that a query sees along each axis: an integer >= 1, or a tuple with
            one for each axis.
        dilation: Distance of neighbouring cells of the window: an integer >= 1, or a tuple with one
            for each axis. With dilation 2 a query sees every second cell of twice as many.
        causal: If True, the window ends at the query, whose cell is the last that it sees, along
            each axis; or a tuple with one such bool for each axis.
        clamped: Whether windows are moved back into the grid at its edges. Those of a causal axis
            are not: a query never sees what comes after it.
        sides: Sides of the grid, a tuple of integers. None for a pattern of layers, which know the
            sides when they are called.

    Raises:
        ValueError: If an argument is out of range, or if two tuples have unlike lengths; when used,
            if `sides` is None, if a tuple has not one entry for each side, or if `dilation` leaves
            a query no other cell to see on a side that has several.

    Example:
        >>> kattn.masks.Neighborhood(3, clamped=False, sides=(4,))[0:2, 0:4]
        [[[[True, True, False, False], [True, True, True, False]]]]
        >>> kattn.masks.Neighborhood(3, sides=(4,))[0:2, 0:4]
        [[[[True, True, True, False], [True, True, True, False]]]]

    Reference:
        Ramachandran et al. 2019 (stand-alone self-attention), sec. 3.1,
        https://arxiv.org/abs/1906.05909; Hassani et al. 2023 (NAT), sec. 3.1, `clamped`,
        https://arxiv.org/abs/2204.07143; Hassani and Shi 2022 (DiNAT), sec. 3.1, `dilation`,
        https://arxiv.org/abs/2209.15001
    """

    size: Any
    dilation: Any = 1
    causal: Any = False
    clamped: bool = True
    sides: Any = None

    def __post_init__(self):
        for name in ("size", "dilation"):
            values = self._each(name, 1)
            if not values or not all(is_integer(n) and n >= 1 for n in values):
                rule = f"`{name}` must be an integer >= 1, or a tuple of one for each axis"
                raise error(rule, **{name: getattr(self, name)})
        if not all(isinstance(flag, bool) for flag in self._each("causal", 1)):
            raise error(
                "`causal` must be a bool, or a tuple of one for each axis", causal=self.causal
            )
        given = {"size": self.size, "dilation": self.dilation, "causal": self.causal}
        tuples = {name: value for name, value in given.items() if isinstance(value, tuple)}
        if len({len(value) for value in tuples.values()}) > 1:
            raise error("The tuples must have one entry for each axis of the grid", **tuples)
        if self.sides is not None:
            self._check_sides()

    def on_grid(self, grid):
        if grid.key_stride != 1:
            raise error(
                "`key_stride` must be 1 for a mask that compares the coordinates of cells",
                key_stride=grid.key_stride,
            )
        return dataclasses.replace(self, sides=grid.sides)

    def check(self, batch, heads, queries, keys):
        if self.sides is None:
            raise error(
                "A Neighborhood must know the sides of its grid; write Neighborhood(size, "
                "sides=(H, W)), or give it to a layer for maps as `pattern`",
                sides=None,
            )
        size = Grid(self.sides).size
        for name, steps in (("T", queries), ("S", keys)):
            if is_integer(steps) and is_integer(size) and steps != size:
                raise error(f"A grid of {self.sides} has {size} cells", **{name: steps})

    def block(self, queries, keys, offset=0):
        del offset  # queries and keys are cells of the same grid
        grid = Grid(self.sides)
        rows, columns = coordinates(queries, grid, -2), coordinates(keys, grid, -1)
        seen = True
        for axis, (row, column) in enumerate(zip(rows, columns, strict=True)):
            seen = ops.logical_and(seen, self.axes[axis].sees(row, column))
        return seen

    @property
    def axes(self):
        """What the mask says along each side: a tuple of `Neighbors`."""
        rank = len(self.sides)
        parts = (self._each(name, rank) for name in ("size", "dilation", "causal"))
        return tuple(
            Neighbors(side, size, dilation, causal, self.clamped)
            for side, size, dilation, causal in zip(self.sides, *parts, strict=True)
        )

    @property
    def neighborhood(self):
        known = self.sides is not None and Grid(self.sides).is_static
        return self if known else None

    def _each(self, name, rank):
        """The argument as a tuple of `rank` entries, or as many as are given."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * rank

    def _check_sides(self):
        rank = Grid(self.sides).rank
        for name in ("size", "dilation", "causal"):
            if len(self._each(name, rank)) != rank:
                raise error(
                    f"`{name}` must have one entry for each side of the grid",
                    **{name: getattr(self, name)},
                    sides=self.sides,
                )
        for axis in self.axes:
            far = is_integer(axis.side) and axis.side > 1 and axis.dilation >= axis.side
            if axis.size > 1 and far:
                raise error(
                    "`dilation` must be smaller than each side that has several cells, or a query "
                    "sees none but itself",
                    dilation=self.dilation,
                    sides=self.sides,
                )


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """What a cell sees along one axis of a grid.

    Args:
        side: Number of cells on the axis: an integer or a scalar tensor.
        size: Number of cells of a window.
        dilation: Distance of neighbouring cells of a window.
        causal: Whether a window ends at the query.
        clamped: Whether windows are moved back into the grid at its edges.
    """

    side: Any
    size: int
    dilation: int
    causal: bool
    clamped: bool

    @property
    def before(self):
        """Number of cells of a window before its query."""
        return self.size - 1 if self.causal else self.size // 2

    @property
    def after(self):
        """Number of cells of a window after its query."""
        return self.size - 1 - self.before

    @property
    def moves(self):
        """Whether windows are moved at the edges."""
        return self.clamped and not self.causal

    def sees(self, query, key):
        """Whether a query sees a key, given the two coordinates."""
        step = self.dilation
        # Cells of one class are `step` apart: they are counted by themselves.
        phase, place = query % step, query // step
        first = place - self.before
        if self.moves:
            count = (self.side - phase + step - 1) // step  # cells of the class
            first = ops.maximum(ops.minimum(first, count - self.size), 0)
        ahead = key // step - first
        near = ops.logical_and(ahead >= 0, ahead < self.size)
        return near if step == 1 else ops.logical_and(near, key % step == phase)
