"""The cells of a feature map of any rank."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of a map, which are the steps of a sequence in row-major order.

    Args:
        sides: Number of cells of the queries' grid along each axis, for example `(H, W)`.
        stride: How many cells of the queries' grid a cell of the keys' grid is wide.
    """

    sides: tuple[Any, ...]
    stride: int = 1
