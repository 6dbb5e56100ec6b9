"""A learned vector for each index of an axis, added to the inputs (Gehring et al., 2017)."""

import keras
from keras import ops

from kattn.layers.position.position import Position


@keras.saving.register_keras_serializable("kattn")
class LearnedPositions(Position):
    """x + table[p], p being the index along one axis of an input of any rank.

    Two of them, on axes 1 and 2, serve the rows and columns of an image.

    Shapes: B batch, T size of the axis, C width.

    Args:
        length: Number of vectors; no index may reach it.
        axis: The axis that is counted, neither the first nor the last; may be negative.
        initializer: Of the table; None for a truncated normal of deviation 0.02, as in BERT.
        regularizer: Of the table.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        x: `(B, ..., C)` float.
        positions: `(T,)` or `(B, T)` integers in [0, length); what others give is undefined.
            None for 0 to T - 1.

    Returns:
        As `x`, with its Keras mask.

    Raises:
        ValueError: For arguments out of range; when built or called, if `x` has no such axis,
            its axis is longer than the table, or its width is another than the table's; when
            called, if `positions` do not fit or are not integers.

    Example:
        >>> rows, columns = LearnedPositions(32), LearnedPositions(32, axis=2)
        >>> columns(rows(keras.random.normal((2, 8, 8, 16)))).shape
        (2, 8, 8, 16)

    Reference:
        Gehring et al. 2017, sec. 3.1, https://arxiv.org/abs/1705.03122
        Devlin et al. 2018 (BERT), sec. 3, https://arxiv.org/abs/1810.04805
    """

    is_absolute = True

    def __init__(self, length, *, axis=1, initializer=None, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ValueError(f"`length` must be an integer >= 1; received: length={length!r}")
        if not isinstance(axis, int) or isinstance(axis, bool) or axis in (0, -1):
            raise ValueError(
                "`axis` must be an integer, and neither 0, the batch, nor -1, the width; "
                f"received: axis={axis!r}"
            )
        if initializer is None:
            initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        self.supports_masking = True
        self.length = length
        self.axis = axis
        self.initializer = keras.initializers.get(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.table = None

    def build(self, x_shape):
        self._check(x_shape)
        self.attach(width=x_shape[-1])

    def attach(self, *, width, num_heads=None, key_dim=None):
        if self.table is not None:
            self._check_width(width)
            return
        self.table = self.add_weight(
            name="table",
            shape=(self.length, width),
            initializer=self.initializer,
            regularizer=self.regularizer,
        )
        self.built = True

    def call(self, x, positions=None):
        return self.embed(x, positions)

    def embed(self, x, positions=None):
        axis = self._check(x.shape)
        table = ops.convert_to_tensor(self.table)
        if positions is None:
            rows = table[: ops.shape(x)[axis]]
        else:
            rows = ops.take(table, _indices(positions, x.shape, axis), axis=0)
        for _ in range(axis + 1, len(x.shape) - 1):
            rows = ops.expand_dims(rows, -2)
        if len(rows.shape) > len(x.shape) - axis:  # positions were (B, T)
            for _ in range(1, axis):
                rows = ops.expand_dims(rows, 1)
        return x + ops.cast(rows, x.dtype)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "length": self.length,
            "axis": self.axis,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }

    def _check(self, shape):
        """The axis, counted from the first."""
        axis = self.axis + len(shape) if self.axis < 0 else self.axis
        if not 1 <= axis <= len(shape) - 2:
            raise ValueError(
                "`axis` must be one of `x` between the first and the last; "
                f"received: axis={self.axis}, x.shape={tuple(shape)}"
            )
        if shape[axis] is not None and shape[axis] > self.length:
            raise ValueError(
                "`x` must not be longer than `length` on `axis`; received: "
                f"x.shape={tuple(shape)}, axis={self.axis}, length={self.length}"
            )
        self._check_width(shape[-1])
        return axis

    def _check_width(self, width):
        known = width if self.table is None else self.table.shape[-1]
        if width is None or width != known:
            raise ValueError(
                "The width must be known, and that of the table; "
                f"received: width={width}, width of the table={known}"
            )


def _indices(positions, x_shape, axis):
    """`positions` as an integer tensor `(T,)` or `(B, T)`."""
    if not isinstance(positions, keras.KerasTensor):
        positions = ops.convert_to_tensor(positions)
    if "int" not in keras.backend.standardize_dtype(positions.dtype):
        raise ValueError(
            "`positions` must be integers; "
            f"received: dtype={keras.backend.standardize_dtype(positions.dtype)}"
        )
    found, batch, steps = tuple(positions.shape), x_shape[0], x_shape[axis]
    fits = len(found) in (1, 2) and (None in (found[-1], steps) or found[-1] == steps)
    fits = fits and (len(found) == 1 or None in (found[0], batch) or found[0] in (1, batch))
    if not fits:
        raise ValueError(
            "`positions` must have shape (T,) or (B, T), where B may be 1; "
            f"received: positions.shape={found}, (B, T)={(batch, steps)}"
        )
    return positions
