"""Rotary position embedding of queries and keys (RoFormer; Su et al., 2021)."""

import math

import keras
from keras import ops

from kattn.arguments import check_numbers, error
from kattn.layers.position.head_position import HeadPosition
from kattn.ops.positions import check_axes, default_positions
from kattn.ops.rotary import channel_angle_steps, check_scaling, rotary_frequencies, turn


@keras.saving.register_keras_serializable("kattn")
class RotaryEmbedding(HeadPosition):
    """Turns pair i of the channels at position p by the angle p / base^(2i / R).

    The dot product of a query and a key that were turned in this way depends on their positions
    only by the difference of the two. Nothing depends on the length of the sequence at hand, so
    keys in a cache stay valid. For that reason there is no "dynamic" scaling, which would change
    the keys as the sequence grows.

    Shapes: B batch, T steps, N heads, D head width, A axes; R is the rotated width of one axis,
    `fraction` * D / A.

    Args:
        base: Number above 1 that sets the wavelengths, in steps: the longest wave has some
            2 * pi * `base` steps.
        fraction: Share of the channels that are rotated, in (0, 1]; they are the first ones.
            `fraction` * D, rounded, must be a multiple of 2 * A.
        axes: Number of axes A: 1 for a sequence, 2 for the rows and columns of an image, 3 for
            video. The rotated channels are split into A equal parts, and part a is rotated by
            the position on axis a.
        grid: Sides of the grid, one for each axis, whose cells in row-major order are the
            positions where none are given. None stands for 0 to T - 1 on one axis.
        scaling: How a model serves `factor` times the length that it was trained on, on each
            axis: "linear" (position interpolation), "ntk" (a larger base), "yarn" (by the
            wavelength, with a factor of the scores), "llama3" (the same without that factor), or
            None. `kattn.ops.rotary_frequencies` gives the equations.
        factor: Factor s >= 1 by which the length grows. It must be 1 without `scaling`.
        original_length: Length in steps that the model was trained on. "yarn" and "llama3" need it;
            the other scalings do not use it.
        beta_fast: Number of turns in `original_length` steps from which on "yarn" and "llama3"
            keep a pair as it is. Llama 3.1 has 4.
        beta_slow: Number of turns in `original_length` steps up to which "yarn" and "llama3" slow
            a pair by the whole `factor`.
        interleaved: If True, a pair is the channels (2i, 2i + 1) of an axis, as in RoFormer. If
            False, it is (i, i + R / 2), as in GPT-NeoX and most checkpoints since. The two
            differ by an order of the channels that the projections learn; halves need no
            strided copies.
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        x: Queries or keys, float, shape `(B, T, N, D)`.
        positions: Positions of the steps, shape `(T,)` or `(B, T)`; on A > 1 axes `(T, A)` or
            `(B, T, A)`. They may be integers or floats, and negative. None stands for the cells
            of `grid`, or without it for 0 to T - 1.

    Returns:
        `(B, T, N, D)`, with the Keras mask of `x`. Angles and rotation are computed in float32
        and the result is rounded once, whatever the dtype policy. "yarn" multiplies the rotated
        channels by 0.1 ln(s) + 1.

    Raises:
        ValueError: If an argument is out of range; when called, or attached to an attention
            layer, if the rotated width cannot be split into pairs for each axis; when called, if
            `x` has another rank, if the positions do not fit it, or if positions on several axes
            are neither given nor known from `grid`.

    Example:
        >>> layer = kattn.layers.RotaryEmbedding(scaling="yarn", factor=4.0, original_length=2048)
        >>> tuple(layer(keras.random.normal((2, 8192, 4, 64))).shape)
        (2, 8192, 4, 64)

    Reference:
        Su et al. 2021, eq. 15 and 34, https://arxiv.org/abs/2104.09864
        Halves, and a fraction: Black et al. 2022, sec. 2.1, https://arxiv.org/abs/2204.06745
        Linear: Chen et al. 2023, eq. 4, https://arxiv.org/abs/2306.15595
        NTK and YaRN: Peng et al. 2023, sec. 3, https://arxiv.org/abs/2309.00071. Their code,
        unlike their text, mixes frequencies linearly in the index of the pair.
        Llama 3: Grattafiori et al. 2024, sec. 3.4.2, https://arxiv.org/abs/2407.21783, and
        `apply_scaling` of the code that came with the weights.
    """

    def __init__(
        self,
        base=10000.0,
        *,
        fraction=1.0,
        axes=1,
        grid=None,
        scaling=None,
        factor=1.0,
        original_length=None,
        beta_fast=32.0,
        beta_slow=1.0,
        interleaved=False,
        **kwargs,
    ):
        # Keras would round float positions to half precision.
        super().__init__(autocast=False, **kwargs)
        check_numbers("a fraction in (0, 1]", lambda x: 0 < x <= 1, fraction=fraction)
        check_axes(axes, grid)
        check_scaling(base, scaling, factor, original_length, beta_fast, beta_slow)
        self.base = base
        self.fraction = fraction
        self.axes = axes
        self.grid = None if grid is None else tuple(grid)
        self.scaling = scaling
        self.factor = factor
        self.original_length = original_length
        self.beta_fast = beta_fast
        self.beta_slow = beta_slow
        self.interleaved = interleaved
        self._known_width = None

    def build(self, x_shape):
        _check_rank(x_shape)
        super().build(x_shape)

    def attach(self, *, width, num_heads, key_dim):
        self._angle_steps(key_dim)

    def call(self, x, positions=None):
        return self.rotate(ops.cast(x, self.compute_dtype), positions)

    def rotate(self, x, positions=None):
        _check_rank(x.shape)
        if positions is None:
            positions = default_positions(x, self.axes, self.grid)
        scale = 0.1 * math.log(self.factor) + 1.0 if self.scaling == "yarn" else 1.0
        return turn(x, positions, self._angle_steps(x.shape[-1]), self.interleaved, scale)

    def get_config(self):
        return {
            **super().get_config(),
            "base": self.base,
            "fraction": self.fraction,
            "axes": self.axes,
            "grid": self.grid,
            "scaling": self.scaling,
            "factor": self.factor,
            "original_length": self.original_length,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "interleaved": self.interleaved,
        }

    def _angle_steps(self, width):
        """What `turn` needs for heads of this width; kept until another width comes."""
        if self._known_width != width:
            self._known = channel_angle_steps(self._frequencies(width), self.interleaved)
            self._known_width = width
        return self._known

    def _frequencies(self, width):
        """The frequencies for heads of this width, `(F,)`, or `(A, F)` on A axes."""
        rotated = round(self.fraction * width)
        if rotated < 1 or rotated % (2 * self.axes):
            raise ValueError(
                "`fraction` times the width, rounded, must be a multiple of 2 * `axes`; "
                f"received: rotated width={rotated}, fraction={self.fraction}, width={width}, "
                f"axes={self.axes}"
            )
        frequencies = rotary_frequencies(
            rotated // self.axes,
            base=self.base,
            scaling=self.scaling,
            factor=self.factor,
            original_length=self.original_length,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
        )
        return frequencies if self.axes == 1 else [frequencies] * self.axes


def _check_rank(shape):
    if len(shape) != 4 or shape[-1] is None:
        raise error(
            "`x` must have rank 4, (batch, steps, heads, width), and a known width",
            **{"x.shape": tuple(shape)},
        )
