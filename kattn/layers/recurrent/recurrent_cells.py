"""What layers know of a Keras cell that they wrap: its states, its output, its dropout."""

import inspect

import keras
from keras import ops

from kattn import arguments
from kattn.layers.transformer.transformer_block import read_part

# Keras's cells whose output is their hidden state. The output of any other cell may be another.
OUTPUT_IS_HIDDEN = (
    keras.layers.SimpleRNNCell,
    keras.layers.LSTMCell,
    keras.layers.GRUCell,
)


def read_cell(cell):
    """The argument `cell` of a layer, or its config.

    Args:
        cell: Keras layer with the protocol of cells: `state_size`, and `call(inputs, states)` that
            returns an output and the next states. Or the config of one.

    Returns:
        The cell.

    Raises:
        ValueError: If it is no layer, or has no `state_size`, or a state that is no vector.
    """
    if not isinstance(cell, (dict, keras.layers.Layer)):
        raise arguments.error(
            "`cell` must be a Keras layer with a `state_size`, such as keras.layers.LSTMCell(64)",
            cell=cell,
        )
    cell = read_part("cell", cell)
    if not hasattr(cell, "state_size") or isinstance(cell, keras.layers.RNN):
        raise arguments.error(
            "`cell` must be the cell of a recurrent layer with a `state_size`, as "
            "keras.layers.LSTMCell(64) is that of keras.layers.LSTM(64)",
            cell=type(cell).__name__,
        )
    sizes = keras.tree.flatten(cell.state_size)
    if not sizes or not all(map(arguments.is_integer, sizes)):
        raise arguments.error(
            "`cell` must have states that are vectors: each `state_size` must be an integer",
            state_size=cell.state_size,
        )
    return cell


def _as_it_is(layer_call, *args, **kwargs):
    """Stands for `rematerialized_call` of cells: the layer around them runs again, as a whole.

    A cell that was made under `keras.RematScope` would run again step by step, within the loop, and
    after its dropout is forgotten.
    """
    return layer_call


class Cell:
    """A Keras cell with its states as a flat list, and its dropout drawn before the loop.

    Args:
        cell: The cell, as `read_cell` returns it.
    """

    def __init__(self, cell):
        self.cell = cell
        size = cell.state_size
        for part in cell._flatten_layers():
            part.rematerialized_call = _as_it_is
        self.structure = [size] if arguments.is_integer(size) else list(size)
        self.sizes = keras.tree.flatten(self.structure)
        first = self.structure[-1] if isinstance(cell, keras.layers.StackedRNNCells) else size
        sizes = keras.tree.flatten(first)
        self.hidden = len(self.sizes) - len(sizes) if first is not size else 0
        self.units = self.sizes[self.hidden]
        self.output_size = getattr(cell, "output_size", None) or self.sizes[0]
        self.output_is_hidden = type(cell) in OUTPUT_IS_HIDDEN
        self._takes_training = "training" in inspect.signature(cell.call).parameters

    def initial_states(self, batch_size):
        """The states before the first step, as the cell wants them."""
        if not hasattr(self.cell, "get_initial_state"):
            return [ops.zeros((batch_size, n), self.cell.compute_dtype) for n in self.sizes]
        states = keras.tree.flatten(self.cell.get_initial_state(batch_size=batch_size))
        return [ops.cast(state, self.cell.compute_dtype) for state in states]

    def step(self, x, states, *, training):
        """The output and the next states of one step `(B, C)`."""
        options = {"training": training} if self._takes_training else {}
        given = keras.tree.pack_sequence_as(self.structure, list(states))
        output, states = self.cell(x, given, **options)
        return output, keras.tree.flatten(states)

    def draw_dropout(self, batch_size, width):
        """Draws what the cell drops in all steps, as nothing may be drawn in the loop."""
        self.forget_dropout()
        for cell, inputs in self._dropping(width):
            for draw, n in (
                (cell.get_dropout_mask, inputs),
                (cell.get_recurrent_dropout_mask, keras.tree.flatten(cell.state_size)[0]),
            ):
                draw(ops.ones((batch_size, n), cell.compute_dtype))

    def forget_dropout(self):
        """Lets the next call draw anew."""
        for cell, _ in self._dropping(0):
            cell.reset_dropout_mask()
            cell.reset_recurrent_dropout_mask()

    @property
    def drops(self):
        """Whether the cell drops anything in training."""
        return any(c.dropout or c.recurrent_dropout for c, _ in self._dropping(0))

    def _dropping(self, width):
        """The cells in the cell that keep masks of dropout, with the widths of their inputs."""
        for cell in getattr(self.cell, "cells", [self.cell]):
            if hasattr(cell, "get_dropout_mask"):
                yield cell, width
            width = getattr(cell, "output_size", None) or keras.tree.flatten(cell.state_size)[0]
