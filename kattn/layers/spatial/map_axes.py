"""Where the axes of a feature map are, and what is taken over its real cells."""

import dataclasses

from keras import ops

from kattn import arguments
from kattn.grid import Grid
from kattn.layers.attention.mask_reader import read_map

LAYOUTS = ("channels_last", "channels_first")
RANKS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class MapAxes:
    """The axes of maps of one rank, one number of channels and one data format.

    Args:
        rank: Number of sides, 1 to 3.
        channels: Number of channels, C.
        data_format: "channels_last" for maps `(B, *sides, C)`, "channels_first" for
            `(B, C, *sides)`.
        name: Name of the argument that the maps come in, for messages.
    """

    rank: int
    channels: int
    data_format: str
    name: str = "x"

    @classmethod
    def of_shape(cls, shape, data_format, name="x", *, rank=None):
        """The axes of a map of this shape.

        Args:
            shape: Shape of a batch of maps.
            data_format: "channels_last" or "channels_first".
            name: Name of the argument that the maps come in, for messages.
            rank: Number of sides that the map must have. None for 1 to 3.

        Raises:
            ValueError: If the map has another number of sides, or unknown channels.
        """
        if len(shape) - 2 not in (RANKS if rank is None else (rank,)):
            wanted = "1 to 3 sides, of rank 3 to 5"
            if rank is not None:
                wanted = f"{_counted(rank)}, of rank {rank + 2}"
            raise arguments.error(
                f"`{name}` must be a batch of maps with {wanted}; for one map write {name}[None]",
                **{f"{name}.shape": tuple(shape)},
            )
        channels = shape[channel_axis(data_format)]
        if channels is None:
            raise arguments.error(
                f"`{name}` must have a known number of channels",
                **{f"{name}.shape": tuple(shape), "data_format": data_format},
            )
        return cls(len(shape) - 2, channels, data_format, name)

    @property
    def channel(self):
        """The axis of the channels."""
        return channel_axis(self.data_format)

    @property
    def sides(self):
        """The axes of the sides."""
        first = 1 if self.channel == -1 else 2
        return tuple(range(first, first + self.rank))

    def read(self, x, mask):
        """A map with zeros at padding; and `(B, *sides)` bool, True = real cell, or None.

        Raises:
            ValueError: If the map is of another rank or has other channels than those that the
                layer was built for, or if the mask does not fit.
        """
        if len(x.shape) != self.rank + 2 or x.shape[self.channel] not in (None, self.channels):
            raise arguments.error(
                f"`{self.name}` must be a map with the {_counted(self.rank)} and {self.channels} "
                "channels that the layer was built for",
                **{f"{self.name}.shape": tuple(x.shape), "data_format": self.data_format},
            )
        of_mask = "mask" if self.name == "x" else f"{self.name}_mask"
        return read_map(x, mask, self.channel, of_mask)

    def real(self, x, padding):
        """`(B, *sides)` bool: which cells are real. All are, where there is no padding."""
        if padding is None:
            first = x[..., 0] if self.channel == -1 else x[:, 0]
            return ops.ones_like(first, dtype="bool")
        return padding

    def has_cells(self, x):
        """Whether it is known that each item of the map has a cell."""
        sides = [x.shape[axis] for axis in self.sides]
        return all(arguments.is_integer(side) and side > 0 for side in sides)

    def mean(self, x, padding):
        """The mean of the real cells in float32, `(B, C)`; 0 where there is none."""
        x = ops.cast(x, "float32")
        if padding is None and self.has_cells(x):
            return ops.mean(x, axis=self.sides)
        cells = tuple(range(1, self.rank + 1))
        count = ops.sum(ops.cast(self.real(x, padding), "float32"), axis=cells)
        return ops.sum(x, axis=self.sides) / ops.maximum(count, 1.0)[:, None]

    def lines(self, x, padding, side):
        """Means over all sides but one.

        Args:
            x: Map with zeros at padding.
            padding: `(B, *sides)` bool, True = real cell, or None.
            side: Number of the side that is kept, from 0.

        Returns:
            The mean of the real cells at each coordinate, shape `(B, side, C)`, in float32; 0 where
            there is none.
        """
        others = [i for i in range(self.rank) if i != side]
        mean = ops.cast(x, "float32")
        if others:
            over = tuple(self.sides[i] for i in others)
            if padding is None and self.has_cells(x):
                mean = ops.mean(mean, axis=over)
            else:
                real = ops.cast(self.real(x, padding), "float32")
                count = ops.sum(real, axis=tuple(i + 1 for i in others))
                count = ops.expand_dims(ops.maximum(count, 1.0), self.channel)
                mean = ops.sum(mean, axis=over) / count
        return ops.swapaxes(mean, 1, 2) if self.channel == 1 else mean

    def real_lines(self, padding, side):
        """Where a line that `lines` takes the mean of has a real cell: bool `(B, side)`."""
        others = tuple(i + 1 for i in range(self.rank) if i != side)
        return ops.any(padding, axis=others) if others else padding

    def max(self, x, padding):
        """The maximum of the real cells, `(B, C)`, in the dtype of `x`; 0 where there is none."""
        if 0 in tuple(x.shape):
            return ops.sum(x, axis=self.sides)  # the maximum of nothing is an error
        if padding is None and self.has_cells(x):
            return ops.max(x, axis=self.sides)
        real = self.real(x, padding)
        lowest = ops.convert_to_tensor(-float("inf"), x.dtype)
        highest = ops.where(ops.expand_dims(real, self.channel), x, lowest)
        highest = ops.max(highest, axis=self.sides)
        has_cell = ops.any(real, axis=tuple(range(1, self.rank + 1)))
        return ops.where(has_cell[:, None], highest, ops.zeros_like(highest))

    def cells(self, x, padding):
        """The cells of a map as a sequence `(B, S, C)`, in row-major order; and their padding."""
        x = self.channels_last(x)
        grid = Grid.of_map(x)
        if padding is not None:
            padding = ops.reshape(padding, (ops.shape(padding)[0], grid.size))
        return grid.flatten(x), padding

    def channels_last(self, x):
        """A map with its channels on the last axis."""
        # A projection is a matmul then, and TensorFlow on CPU pools such maps only.
        return ops.moveaxis(x, 1, -1) if self.channel == 1 else x

    def as_given(self, x):
        """A map with the channels last, with its channels where `data_format` has them."""
        return ops.moveaxis(x, -1, 1) if self.channel == 1 else x

    def of_sequence(self, y, x):
        """A sequence `(B, S, C)` of the cells of `x` in row-major order, as a map as `x` is."""
        sides = ops.shape(x)
        return self.as_given(Grid(tuple(sides[axis] for axis in self.sides)).unflatten(y))

    def of_channels(self, gate):
        """A number for each channel, `(B, C)`, in the shape in which it multiplies a map."""
        return ops.expand_dims(gate, self.sides)

    def along(self, gate, side):
        """Numbers `(B, side, C)` for the coordinates of a side, as they multiply a map."""
        if self.channel == 1:
            gate = ops.swapaxes(gate, 1, 2)
        others = tuple(axis for i, axis in enumerate(self.sides) if i != side)
        return ops.expand_dims(gate, others) if others else gate

    def of_cells(self, gate):
        """A number for each cell, `(B, *sides)`, in the shape in which it multiplies a map."""
        return ops.expand_dims(gate, self.channel)


def channel_axis(data_format):
    """The axis of the channels of a map."""
    return -1 if data_format == "channels_last" else 1


def _counted(rank):
    return "1 side" if rank == 1 else f"{rank} sides"
