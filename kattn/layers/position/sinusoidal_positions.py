"""Sines and cosines of the positions, added to the inputs (Vaswani et al., 2017)."""

import keras
import numpy as np
from keras import ops

from kattn.arguments import check_numbers, error
from kattn.layers.position.input_position import InputPosition
from kattn.ops.positions import angle_steps, angles, by_axis, check_axes, default_positions


@keras.saving.register_keras_serializable("kattn")
class SinusoidalPositions(InputPosition):
    """x + P, where P[p, 2i] = sin(p / base^(2i / C)) and P[p, 2i + 1] is the cosine of the same.

    On several axes each axis has a part of the channels, which holds a P of that width. The parts
    are as equal as whole pairs allow; the larger parts come first, and an odd channel belongs to
    the last.

    Shapes: B batch, T steps, C width, A axes.

    Args:
        base: Number above 1 that sets the wavelengths, in steps: the longest wave has some
            2 * pi * `base` steps.
        axes: Number of axes A: 1 for a sequence, 2 for the rows and columns of an image.
        grid: Sides of the grid, one for each axis, whose cells in row-major order are the
            positions where none are given. None stands for 0 to T - 1 on one axis.
        scale: Factor of P. Vaswani et al. multiply x by sqrt(C) before the sum; a `scale` of
            1 / sqrt(C) has the same effect, except that the whole sum is smaller by sqrt(C).
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`. C may be odd, and must be at least 2 * A.
        positions: Positions of the steps, shape `(T,)` or `(B, T)`; on A > 1 axes `(T, A)` or
            `(B, T, A)`. They may be integers or floats, and negative. None stands for the cells
            of `grid`, or without it for 0 to T - 1.

    Returns:
        `(B, T, C)`, with the Keras mask of `x`.

    Raises:
        ValueError: If an argument is out of range; when called, if `x` has another rank or too
            small a width, if the positions do not fit it, or if positions on several axes are
            neither given nor known from `grid`.

    Example:
        >>> layer = kattn.layers.SinusoidalPositions()
        >>> y = layer(keras.ops.zeros((1, 2, 4)))
        >>> keras.ops.convert_to_numpy(y).round(3).tolist()[0][0]
        [0.0, 1.0, 0.0, 1.0]

    Reference:
        Vaswani et al. 2017, sec. 3.5, https://arxiv.org/abs/1706.03762. They have one axis;
        several axes are ours.
    """

    def __init__(self, base=10000.0, *, axes=1, grid=None, scale=1.0, **kwargs):
        # Keras would round float positions to half precision.
        super().__init__(autocast=False, **kwargs)
        check_numbers("a number above 1", lambda x: x > 1, base=base)
        check_axes(axes, grid)
        self.base = base
        self.axes = axes
        self.grid = None if grid is None else tuple(grid)
        self.scale = scale
        self._known_width = None

    def build(self, x_shape):
        self._check(x_shape)
        super().build(x_shape)

    def attach(self, *, width, num_heads, key_dim):
        self._check((None, None, width))

    def call(self, x, positions=None):
        return self.embed(ops.cast(x, self.compute_dtype), positions)

    def embed(self, x, positions=None):
        self._check(x.shape)
        if positions is None:
            positions = default_positions(x, self.axes, self.grid)
        positions = by_axis(positions, x, self.axes)
        waves = []
        for place, steps, is_sine in zip(positions, *self._waves(x.shape[-1]), strict=True):
            angle = angles(place, steps)  # (T, F) or (B, T, F)
            is_sine = ops.convert_to_tensor(is_sine)  # (F,)
            waves.append(ops.where(is_sine, ops.sin(angle), ops.cos(angle)))
        waves = self.scale * ops.concatenate(waves, axis=-1)
        return ops.convert_to_tensor(x) + ops.cast(waves, x.dtype)  # on the device of the layer

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        if self.axes > 1:
            raise error(
                "Steps that are decoded one by one have positions on one axis only", axes=self.axes
            )
        return super().init_cache(batch_size, length, context, context_mask)

    def get_config(self):
        return {
            **super().get_config(),
            "base": self.base,
            "axes": self.axes,
            "grid": self.grid,
            "scale": self.scale,
        }

    def _waves(self, width):
        """What `angles` needs of each axis, and which channels are sines: the even ones."""
        if self._known_width != width:
            channels = [np.arange(size) for size in _sizes(width, self.axes)]
            frequencies = [self.base ** (-2.0 * (c // 2) / len(c)) for c in channels]
            self._known = (
                tuple(map(angle_steps, frequencies)),
                tuple(tuple((c % 2 == 0).tolist()) for c in channels),
            )
            self._known_width = width
        return self._known

    def _check(self, shape):
        if len(shape) != 3 or shape[-1] is None:
            raise error(
                "`x` must have rank 3, (batch, steps, width), and a known width",
                **{"x.shape": tuple(shape)},
            )
        if shape[-1] < 2 * self.axes:
            raise error(
                "The width must be at least twice the number of axes",
                width=shape[-1],
                axes=self.axes,
            )


def _sizes(width, axes):
    """The number of channels of each axis."""
    pairs = width // 2
    sizes = [2 * (pairs // axes + (axis < pairs % axes)) for axis in range(axes)]
    sizes[-1] += width % 2
    return sizes
