"""A learned vector for each index of an axis, added to the inputs (Gehring et al., 2017)."""

import keras
from keras import ops

from kattn.arguments import check_integers, error, infers_shapes, is_integer
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.learned_table import read_initializer
from kattn.ops.sizes import known_shape, stands_for_any


@keras.saving.register_keras_serializable("kattn")
class LearnedPositions(InputPosition):
    """x + table[p], where p is the index along one axis of an input of any rank.

    Two such layers, on axes 1 and 2, serve the rows and columns of an image.

    Shapes: B batch, T size of the axis, C width.

    Args:
        length: Number of vectors in the table. Every index must be below it.
        axis: Axis of the input along which positions are counted. It may be negative, and must
            be neither the first axis nor the last.
        initializer: Initializer of the table. None gives a truncated normal of standard
            deviation 0.02, as in BERT.
        regularizer: Regularizer of the table, or None.
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        x: Input, float, shape `(B, ..., C)`.
        positions: Positions along the axis, integers in [0, length), shape `(T,)` or `(B, T)`.
            None stands for 0 to T - 1. What integers out of this range give is undefined.

    Returns:
        The same shape as `x`, with the Keras mask of `x`.

    Raises:
        ValueError: If `length` or `axis` is out of range; when built or called, if `x` has no
            such axis, or if the width is not that of the table; when called, if the axis is longer
            than the table, or if `positions` do not fit or are not integers; if the layer is shared
            with layers whose inputs have another width.

    Example:
        >>> rows = kattn.layers.LearnedPositions(32)
        >>> columns = kattn.layers.LearnedPositions(32, axis=2)
        >>> tuple(columns(rows(keras.random.normal((2, 8, 8, 16)))).shape)
        (2, 8, 8, 16)

    Reference:
        Gehring et al. 2017, sec. 3.1, https://arxiv.org/abs/1705.03122
        Devlin et al. 2018 (BERT), sec. 3, https://arxiv.org/abs/1810.04805
    """

    def __init__(self, length, *, axis=1, initializer=None, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        check_integers(1, length=length)
        if not is_integer(axis) or axis in (0, -1):
            raise error(
                "`axis` must be an integer, and neither 0 (the batch) nor -1 (the width)",
                axis=axis,
            )
        self.length = length
        self.axis = axis
        self.initializer = read_initializer(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.table = None

    def build(self, x_shape):
        self._check(x_shape)
        super().build(x_shape)

    def attach(self, *, width, num_heads, key_dim):
        if self.remember_sizes(width=width):
            self.table = self.add_weight(
                name="table",
                shape=(self.length, width),
                initializer=self.initializer,
                regularizer=self.regularizer,
            )

    def embed(self, x, positions=None):
        axis, shape = self._check(x.shape), known_shape(x)
        self._check_length(shape, axis)
        table, steps = ops.convert_to_tensor(self.table), ops.shape(x)[axis]
        if positions is not None:
            rows = ops.take(table, _indices(positions, shape, axis), axis=0)
        elif stands_for_any(x, axis):  # shapes are inferred; the length cannot be checked
            index = ops.minimum(ops.arange(steps, dtype="int32"), self.length - 1)
            rows = ops.take(table, ops.cast(index, "int32"), axis=0)
        else:
            rows = table[:steps]
        for _ in range(axis + 1, len(x.shape) - 1):
            rows = ops.expand_dims(rows, -2)
        if len(rows.shape) > len(x.shape) - axis:  # positions were (B, T)
            for _ in range(1, axis):
                rows = ops.expand_dims(rows, 1)
        return ops.convert_to_tensor(x) + ops.cast(rows, x.dtype)  # on the device of the layer

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        cache = super().init_cache(batch_size, length, context, context_mask)
        if self.axis not in (1, -2):
            raise error(
                "Steps lie on axis 1: positions along another axis cannot be decoded step by step",
                axis=self.axis,
            )
        if length > self.length:
            raise ValueError(
                "There must be a position for each step that is decoded; "
                f"received: length={length}, length of the table={self.length}"
            )
        return cache

    def compute_output_shape(self, x_shape):
        self._check_length(x_shape, self._check(x_shape))
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
        shape = tuple(shape)
        if not 1 <= axis <= len(shape) - 2:
            raise error(
                "`axis` must be an axis of `x` between the first and the last",
                **{"axis": self.axis, "x.shape": shape},
            )
        width = shape[-1]
        known = width if self.table is None else self.table.shape[-1]
        if width is None or width != known:
            raise ValueError(
                "The width of `x` must be known, and equal to the width of the table; "
                f"received: width={width}, width of the table={known}"
            )
        return axis

    def _check_length(self, shape, axis):
        # Not when built: Keras builds layers with lengths that it makes up.
        if shape[axis] is not None and shape[axis] > self.length:
            raise error(
                "`x` must not be longer than `length` on `axis`",
                **{"x.shape": tuple(shape), "axis": self.axis, "length": self.length},
            )


def _indices(positions, x_shape, axis):
    """`positions` as an integer tensor `(T,)` or `(B, T)`."""
    if not isinstance(positions, keras.KerasTensor):
        positions = ops.convert_to_tensor(positions)
    dtype = keras.backend.standardize_dtype(positions.dtype)
    if "int" not in dtype and infers_shapes():
        positions = ops.cast(positions, "int32")
    elif "int" not in dtype:
        raise error("`positions` must be integers", dtype=dtype)
    shape, batch, steps = known_shape(positions), x_shape[0], x_shape[axis]
    fits = len(shape) in (1, 2) and (None in (shape[-1], steps) or shape[-1] == steps)
    fits = fits and (len(shape) == 1 or None in (shape[0], batch) or shape[0] in (1, batch))
    if not fits:
        raise error(
            "`positions` must have shape (T,) or (B, T), where B may be 1",
            **{"positions": positions, "(B, T)": (batch, steps)},
        )
    return positions
