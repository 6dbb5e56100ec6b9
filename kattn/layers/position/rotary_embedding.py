"""Rotary position embedding of queries and keys (RoFormer; Su et al., 2021)."""

import math

import keras
from keras import ops

from kattn.layers.position.position import Position
from kattn.ops.positions import check_axes, default_positions
from kattn.ops.rotary import check_scaling, rotary_frequencies, turn, turns_of


@keras.saving.register_keras_serializable("kattn")
class RotaryEmbedding(Position):
    """Turns pair i of the channels at position p by the angle p / base^(2i / R).

    A query and a key so turned have a dot product that depends on where they stand only by the
    difference of their positions. Nothing depends on the length of the sequence at hand, so keys
    in a cache stay valid: there is no "dynamic" scaling, which would change them as it grows.

    Shapes: B batch, T steps, N heads, D head width, A axes; R is the rotated width of one axis,
    `fraction` * D / A.

    Args:
        base: Above 1; the longest wave has some 2 * pi * `base` steps.
        fraction: Share of the channels, the first ones, that are rotated, in (0, 1].
            `fraction` * D, rounded, must be a multiple of 2 * A.
        axes: A: 1 for a sequence, 2 for the rows and columns of an image, 3 for video. The
            rotated channels are split in A equal parts, and part a is rotated by axis a.
        grid: Sides, one for each axis, of the grid whose cells, in row-major order, are the
            positions where none are given; None for 0 to T - 1 on one axis.
        scaling: How a model serves `factor` times the length that it was trained on, per axis:
            "linear" (position interpolation), "ntk" (a larger base), "yarn" (by the wavelength,
            with a factor of the scores), or None. See `kattn.ops.rotary_frequencies`.
        factor: s >= 1, by which the length grows; 1 without `scaling`.
        original_length: Span that the model was trained on; needed by "yarn", unused by others.
        beta_fast: "yarn" keeps pairs that turn so often or more in `original_length` steps.
        beta_slow: "yarn" slows pairs that turn so often or less by `factor`.
        interleaved: If True, a pair is channels (2i, 2i + 1) of an axis, as in RoFormer; if
            False, (i, i + R / 2), as in GPT-NeoX and most checkpoints since. The two differ by an
            order of the channels that the projections learn; halves need no strided copies.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        x: `(B, T, N, D)` float, queries or keys.
        positions: `(T,)` or `(B, T)`, or `(T, A)` or `(B, T, A)` on A > 1 axes; integers or
            floats, negative ones too. None for the default; see `grid`.

    Returns:
        `(B, T, N, D)`, with the Keras mask of `x`. Angles and rotation are in float32 and the
        result is rounded once, whatever the dtype policy. "yarn" multiplies the rotated channels
        by 0.1 ln(s) + 1.

    Raises:
        ValueError: For arguments out of range; when called, or attached to an attention layer,
            if the rotated width cannot be split in pairs for each axis; when called, if `x` has
            another rank, if the positions do not fit it, or there are none on several axes.

    Example:
        >>> layer = RotaryEmbedding(scaling="yarn", factor=4.0, original_length=2048)
        >>> layer(keras.random.normal((2, 8192, 4, 64))).shape
        (2, 8192, 4, 64)

    Reference:
        Su et al. 2021, eq. 15 and 34, https://arxiv.org/abs/2104.09864
        Halves, and a fraction: Black et al. 2022, sec. 2.1, https://arxiv.org/abs/2204.06745
        Linear: Chen et al. 2023, eq. 4, https://arxiv.org/abs/2306.15595
        NTK and YaRN: Peng et al. 2023, sec. 3, https://arxiv.org/abs/2309.00071. Their code,
        unlike their text, mixes frequencies linearly in the index of the pair.
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
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"`fraction` must be in (0, 1]; received: fraction={fraction}")
        check_axes(axes, grid)
        check_scaling(base, scaling, factor, original_length, beta_fast, beta_slow)
        self.supports_masking = True
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
        self._turns(x_shape[-1])

    def attach(self, *, width, num_heads, key_dim):
        self._turns(key_dim)

    def call(self, x, positions=None):
        return self.rotate(ops.cast(x, self.compute_dtype), positions)

    def rotate(self, x, positions=None):
        _check_rank(x.shape)
        if positions is None:
            positions = default_positions(x, self.axes, self.grid)
        scale = 0.1 * math.log(self.factor) + 1.0 if self.scaling == "yarn" else 1.0
        return turn(x, positions, self._turns(x.shape[-1]), self.interleaved, scale)

    def compute_output_shape(self, x_shape):
        return x_shape

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

    def _turns(self, width):
        """Those of `_frequencies`, made when the width is first seen."""
        if self._known_width != width:
            self._known = turns_of(self._frequencies(width), self.interleaved)
            self._known_width = width
        return self._known

    def _frequencies(self, width):
        """`(F,)`, or `(A, F)` on A axes, for heads of this width."""
        rotated = round(self.fraction * width)
        if rotated < 1 or rotated % (2 * self.axes):
            raise ValueError(
                "The rotated width, `fraction` times the width, must be a multiple of 2 * `axes`; "
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
        raise ValueError(
            "`x` must have rank 4, (batch, steps, heads, width), and a known width; "
            f"received: x.shape={tuple(shape)}"
        )
