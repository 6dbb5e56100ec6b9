"""Sines and cosines of the positions, added to the inputs (Vaswani et al., 2017)."""

import keras
import numpy as np
from keras import ops

from kattn.layers.position.position import Position
from kattn.ops.positions import angles, by_axis, check_axes, default_positions, turns


@keras.saving.register_keras_serializable("kattn")
class SinusoidalPositions(Position):
    """x + P, where P[p, 2i] = sin(p / base^(2i / C)) and P[p, 2i + 1] the cosine of the same.

    On several axes each axis has a part of the channels, and in it a P of that width: as equal
    parts as whole pairs allow, the larger ones first, an odd channel to the last.

    Shapes: B batch, T steps, C width, A axes.

    Args:
        base: Above 1; the longest wave has some 2 * pi * `base` steps.
        axes: A: 1 for a sequence, 2 for the rows and columns of an image.
        grid: Sides, one for each axis, of the grid whose cells, in row-major order, are the
            positions where none are given; None for 0 to T - 1 on one axis.
        scale: Factor of P. Vaswani et al. multiply x by sqrt(C) before: 1 / sqrt(C) here is
            that, but for the size of the sum.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        x: `(B, T, C)` float. C may be odd, and must be at least 2 * A.
        positions: `(T,)` or `(B, T)`, or `(T, A)` or `(B, T, A)` on A > 1 axes; integers or
            floats, negative ones too. None for the default; see `grid`.

    Returns:
        `(B, T, C)`, with the Keras mask of `x`.

    Raises:
        ValueError: For arguments out of range; when called, if `x` has another rank or too small
            a width, if the positions do not fit it, or there are none on several axes.

    Example:
        >>> layer = SinusoidalPositions()
        >>> layer(keras.ops.zeros((1, 2, 4)))
        [[[0., 1., 0., 1.], [0.8415, 0.5403, 0.01, 0.99995]]]

    Reference:
        Vaswani et al. 2017, sec. 3.5, https://arxiv.org/abs/1706.03762; several axes are ours.
    """

    is_absolute = True

    def __init__(self, base=10000.0, *, axes=1, grid=None, scale=1.0, **kwargs):
        # Keras would round float positions to half precision.
        super().__init__(autocast=False, **kwargs)
        if not base > 1.0:
            raise ValueError(f"`base` must be above 1; received: base={base}")
        check_axes(axes, grid)
        self.supports_masking = True
        self.base = base
        self.axes = axes
        self.grid = None if grid is None else tuple(grid)
        self.scale = scale
        self._known_width = None

    def build(self, x_shape):
        self._check(x_shape)

    def attach(self, *, width, num_heads, key_dim):
        self._check((None, None, width))

    def call(self, x, positions=None):
        return self.embed(ops.cast(x, self.compute_dtype), positions)

    def embed(self, x, positions=None):
        self._check(x.shape)
        if positions is None:
            positions = default_positions(x, self.axes, self.grid)
        turns, is_sine = self._waves(x.shape[-1])
        parts = zip(by_axis(positions, x, self.axes), turns, is_sine, strict=True)
        waves = [ops.where(ops.convert_to_tensor(sine), ops.sin(a), ops.cos(a))
                 for sine, a in ((sine, angles(p, its)) for p, its, sine in parts)]  # fmt: skip
        return x + ops.cast(self.scale * ops.concatenate(waves, axis=-1), x.dtype)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "base": self.base,
            "axes": self.axes,
            "grid": self.grid,
            "scale": self.scale,
        }

    def _waves(self, width):
        """What `angles` needs of each axis, and which channels are sines: even ones."""
        if self._known_width != width:
            channels = [np.arange(size) for size in _sizes(width, self.axes)]
            frequencies = [self.base ** (-2.0 * (c // 2) / len(c)) for c in channels]
            self._known = (
                tuple(map(turns, frequencies)),
                tuple(tuple((c % 2 == 0).tolist()) for c in channels),
            )
            self._known_width = width
        return self._known

    def _check(self, shape):
        if len(shape) != 3 or shape[-1] is None:
            raise ValueError(
                "`x` must have rank 3, (batch, steps, width), and a known width; "
                f"received: x.shape={tuple(shape)}"
            )
        if shape[-1] < 2 * self.axes:
            raise ValueError(
                "The width must be at least twice the number of axes; "
                f"received: width={shape[-1]}, axes={self.axes}"
            )


def _sizes(width, axes):
    """The number of channels of each axis."""
    pairs = width // 2
    sizes = [2 * (pairs // axes + (axis < pairs % axes)) for axis in range(axes)]
    sizes[-1] += width % 2
    return sizes
