"""Steps of a cell whose input has two parts: one that is known for all steps, and one that is not.

The matrix of the cell has rows for both. For Keras's LSTM, GRU and simple cells the products of the
known part are computed for all steps at once, outside of the loop; what is left of a step is then
no more than the step of the cell without that part. Other cells, and dropout, which Keras's cells
apply to their whole input, get both parts side by side in each step.
"""

import keras
from keras import ops


class JoinedSteps:
    """Steps of any cell: what is known and what is not, side by side.

    Args:
        cell: `kattn.layers.recurrent.recurrent_cells.Cell`.
        training: Whether the cell drops anything.
    """

    def __init__(self, cell, *, training):
        self._cell = cell
        self._training = training

    def prepare(self, x):
        """What a step gets of the known part `(B, T, C)`."""
        return x

    def step(self, x, more, states):
        """The output and the next states, by the known part `(B, C)` and the other `(B, E)`."""
        inputs = x if more is None else ops.concatenate([x, more], axis=-1)
        return self._cell.step(inputs, states, training=self._training)


class _SplitSteps:
    """Steps of a Keras cell whose products with the known part are computed at once."""

    def __init__(self, cell, known):
        self._layer = layer = cell.cell
        self._dtype = layer.compute_dtype
        kernel = ops.convert_to_tensor(layer.kernel, self._dtype)
        self._recurrent = ops.convert_to_tensor(layer.recurrent_kernel, self._dtype)
        self._bias = None
        if layer.bias is not None:
            self._bias = ops.convert_to_tensor(layer.bias, self._dtype)
        self._known, self._rest = kernel[:known], kernel[known:]

    def prepare(self, x):
        z = ops.matmul(ops.cast(x, self._dtype), self._known)
        bias = self._input_bias()
        return z if bias is None else z + bias

    def _input_bias(self):
        return self._bias

    def _inputs(self, z, more):
        return z if more is None else z + ops.matmul(ops.cast(more, self._dtype), self._rest)


class _SimpleSteps(_SplitSteps):
    """h' = act(z + h U)."""

    def step(self, z, more, states):
        h = self._layer.activation(self._inputs(z, more) + ops.matmul(states[0], self._recurrent))
        return h, [h]


class _LSTMSteps(_SplitSteps):
    """i, f, g, o = z + h U; c' = f c + i g; h' = o act(c')."""

    def __init__(self, cell, known):
        super().__init__(cell, known)
        self._both = ops.concatenate([self._rest, self._recurrent], axis=0)

    def step(self, z, more, states):
        h, c = states
        both = self._recurrent if more is None else self._both
        if more is not None:
            h = ops.concatenate([ops.cast(more, self._dtype), h], axis=-1)
        gate, act = self._layer.recurrent_activation, self._layer.activation
        i, f, g, o = ops.split(z + ops.matmul(h, both), 4, axis=-1)
        c = gate(f) * c + gate(i) * act(g)
        h = gate(o) * act(c)
        return h, [h, c]


class _GRUSteps(_SplitSteps):
    """z, r = gates; h' = z h + (1 - z) act(x + r (h U)), or with (r h) U."""

    def _input_bias(self):
        if self._bias is None or not self._layer.reset_after:
            return self._bias
        return self._bias[0]

    def step(self, z, more, states):
        (h,), n = states, self._layer.units
        gate, act = self._layer.recurrent_activation, self._layer.activation
        x = self._inputs(z, more)
        if self._layer.reset_after:
            u = ops.matmul(h, self._recurrent)
            u = u if self._bias is None else u + self._bias[1]
        else:
            u = ops.matmul(h, self._recurrent[:, : 2 * n])
        gates = gate(x[:, : 2 * n] + u[:, : 2 * n])
        z, r = gates[:, :n], gates[:, n:]
        if self._layer.reset_after:
            new = r * u[:, 2 * n :]
        else:
            new = ops.matmul(r * h, self._recurrent[:, 2 * n :])
        new = act(x[:, 2 * n :] + new)
        h = z * h + (1 - z) * new
        return h, [h]


_SPLIT = {
    keras.layers.SimpleRNNCell: _SimpleSteps,
    keras.layers.LSTMCell: _LSTMSteps,
    keras.layers.GRUCell: _GRUSteps,
}


def cell_steps(cell, known, *, training):
    """How a loop calls a cell.

    Args:
        cell: `kattn.layers.recurrent.recurrent_cells.Cell`, built.
        known: Number of channels of the input that are known for all steps.
        training: Whether the cell drops anything.

    Returns:
        An object with `prepare` and `step`, as `JoinedSteps` has them.
    """
    kind = _SPLIT.get(type(cell.cell))  # of subclasses nothing is known
    if kind is None or (training and cell.drops):
        return JoinedSteps(cell, training=training)
    return kind(cell, known)
