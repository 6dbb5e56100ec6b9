"""How the numbers of a tensor lie in a weight of ours."""

import dataclasses

import numpy as np


class Layout:
    """The tensor lies as the weight does. Base of the others."""

    def shape(self, piece):
        """The shape of the tensor, by that of its piece of the weight."""
        return tuple(piece)

    def read(self, tensor):
        """The piece of the weight that a tensor makes."""
        return tensor

    def write(self, piece):
        """The tensor that a piece of the weight makes."""
        return piece


class Transposed(Layout):
    """The tensor is a matrix `(out, in)`, as PyTorch's are. Ours are `(in, out)`."""

    def shape(self, piece):
        return tuple(piece)[::-1]

    def read(self, tensor):
        return tensor.T

    def write(self, piece):
        return piece.T


class OneItem(Layout):
    """The tensor has an axis of size 1 in front, for the batch."""

    def shape(self, piece):
        return (1, *piece)

    def read(self, tensor):
        return tensor[0]

    def write(self, piece):
        return piece[None]


@dataclasses.dataclass(frozen=True)
class Patches(Layout):
    """The tensor is the kernel `(out, channels, height, width)` of a convolution over patches.

    Ours is a matrix, whose rows are the pixels of a patch, row by row, with the channels of each.

    Args:
        height: Height of a patch.
        width: Width of a patch.
    """

    height: int
    width: int

    def shape(self, piece):
        rows, out = piece
        return out, rows // (self.height * self.width), self.height, self.width

    def read(self, tensor):
        return np.transpose(tensor, (2, 3, 1, 0)).reshape(-1, len(tensor))

    def write(self, piece):
        out, channels, height, width = self.shape(piece.shape)
        return np.transpose(piece.reshape(height, width, channels, out), (3, 2, 0, 1))


AS_IT_IS, TRANSPOSED, ONE_ITEM = Layout(), Transposed(), OneItem()
