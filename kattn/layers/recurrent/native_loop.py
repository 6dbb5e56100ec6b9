"""Keras's LSTM and GRU with PyTorch's own loop over the steps, where Keras's is one in Python.

Keras's recurrent layers ask their method `inner_loop` for outputs and states, and do all else
around it: initial states, dropout masks, states that are kept, dtypes, the two directions of
`Bidirectional`. So it is this method that a layer gets anew when a layer of kattn takes it in.
"""

import functools
from typing import NamedTuple

import keras
from keras import ops

from kattn import arguments
from kattn.ops.native_rnn import native_rnn, native_rnn_unsupported

KINDS = {keras.layers.LSTMCell: "lstm", keras.layers.GRUCell: "gru"}
REASONS = {
    "activation is not tanh": lambda x: x.cell.activation is not keras.activations.tanh,
    "recurrent_activation is not sigmoid": (
        lambda x: x.cell.recurrent_activation is not keras.activations.sigmoid
    ),
    "reset_after is False": lambda x: not getattr(x.cell, "reset_after", True),
    "there is recurrent_dropout": lambda x: x.cell.recurrent_dropout,
    "with implementation=1 there is dropout for each gate": (
        lambda x: x.cell.dropout and x.cell.implementation == 1
    ),
    "unroll=True asks for Keras's own": lambda x: x.unroll,
    "use_cudnn=False asks for Keras's own": lambda x: getattr(x, "use_cudnn", "auto") is False,
}
LOOPS = tuple(x.inner_loop for x in (keras.layers.RNN, keras.layers.LSTM, keras.layers.GRU))


class LoopExplanation(NamedTuple):
    """Which loop a recurrent layer runs, and why.

    Args:
        layer: Path of the layer; a `Bidirectional` has two.
        loop: Name of the loop: "torch.lstm", "torch.gru", or "keras" for Keras's own.
        reason: Reason why it is Keras's own, or None.
    """

    layer: str
    loop: str
    reason: str | None


def explain_loops(layer):
    """Which loop over the steps Keras's recurrent layers in a layer run, and why.

    Layers of kattn that hold an LSTM or a GRU of Keras have PyTorch's own kernel run it, with masks
    too. On TensorFlow and JAX, which compile Keras's loop, nothing is changed.

    Args:
        layer: Recurrent layer of Keras, `Bidirectional`, or any layer or model that holds some.

    Returns:
        List of a `LoopExplanation` for each recurrent layer, in the order in which Keras lists
        them. Inside `torch.vmap`, and for derivatives in forward mode, Keras's own loop runs
        whatever is said here, as PyTorch's has no rule for them. On a GPU Keras itself runs both
        directions of a `Bidirectional` by one call of cuDNN, if there is no mask. cuDNN has no
        second derivatives; layers made with `use_cudnn=False` have them, and so has what is
        computed inside `with torch.backends.cudnn.flags(enabled=False)`.

    Raises:
        ValueError: If `layer` is no Keras layer.

    Example:
        >>> rnn = keras.layers.LSTM(16, return_sequences=True, activation="relu")
        >>> layer = kattn.layers.SelfAttentionRNN(rnn, 4)
        >>> [each.loop for each in kattn.layers.explain_loops(layer)]
        ['keras']
    """
    if not isinstance(layer, keras.layers.Layer):
        raise arguments.error("`layer` must be a Keras layer", layer=layer)
    found = [x for x in layer._flatten_layers() if isinstance(x, keras.layers.RNN)]
    return [_explanation(each) for each in found]


def use_native_loops(layer):
    """Has all of Keras's LSTM and GRU layers in a layer run the framework's own loop, if there is.

    Args:
        layer: Layer that a layer of kattn was given. All that it does otherwise stays the same.
    """
    if native_rnn_unsupported() is not None:
        return
    for each in layer._flatten_layers():
        if isinstance(each, keras.layers.RNN) and _unsupported(each) is None:
            each.inner_loop = functools.partial(_inner_loop, each)


def _explanation(layer):
    reason = native_rnn_unsupported() or _unsupported(layer)
    if reason is None and "inner_loop" not in vars(layer):
        reason = "no layer of kattn holds it"
    loop = "keras" if reason else f"torch.{KINDS[type(layer.cell)]}"
    return LoopExplanation(layer.path or layer.name, loop, reason)


def _unsupported(layer):
    """Why PyTorch's loop does not compute what the layer does, or None."""
    if type(layer.cell) not in KINDS:
        return f"there is no loop for {type(layer.cell).__name__}"
    if type(layer).inner_loop not in LOOPS:
        return f"{type(layer).__name__} has an inner loop of its own"
    return next((reason for reason, holds in REASONS.items() if holds(layer)), None)


def native_outputs(layer, sequences, states, mask, *, training=False):
    """All outputs of a recurrent layer and its last states, by the framework's own loop.

    Args:
        layer: Recurrent layer of Keras.
        sequences: Inputs, float, shape `(B, T, C)`.
        states: Its states before the first step, in any structure.
        mask: `(B, T)` or `(B, T, 1)`, True = real step; or None.
        training: Whether dropout is applied to the inputs.

    Returns:
        `(outputs, states)`, `(B, T, U)` and a list; at padding the output is that of the last real
        step, or 0. None if there is no such loop, or if the layer is none that uses it.
    """
    states = tuple(keras.tree.flatten(states))
    if "inner_loop" not in vars(layer) or _unsupported(layer):
        return None
    if native_rnn_unsupported(sequences, *states):
        return None
    cell = layer.cell
    sequences = _tensor(sequences, cell)
    if training and cell.dropout:
        sequences = sequences * cell.get_dropout_mask(sequences[:, 0])[:, None]
    tensors = (cell.kernel, cell.recurrent_kernel, cell.bias)
    weights = tuple(None if x is None else _tensor(x, cell) for x in tensors)
    states = tuple(_tensor(x, cell) for x in states)
    kind = KINDS[type(cell)]
    outputs, states = native_rnn(kind, sequences, mask, states, weights)
    return outputs, list(states)


def _inner_loop(layer, sequences, initial_state, mask, training=False):  # noqa: FBT002, Keras's
    """What `RNN.inner_loop` gives: the last output, all outputs, and the states."""
    given = sequences, mask
    if mask is not None:
        mask = ops.cast(keras.tree.flatten(mask)[0], "bool")
        mask = mask[..., 0] if len(mask.shape) == 3 else mask
    if layer.go_backwards:
        sequences = ops.flip(sequences, axis=1)
        mask = None if mask is None else ops.flip(mask, axis=1)
    # Attributes may have changed since, and what a call is inside of is known only now.
    found = native_outputs(layer, sequences, initial_state, mask, training=training)
    if found is None:
        sequences, mask = given
        return type(layer).inner_loop(layer, sequences, initial_state, mask, training)
    outputs, states = found
    if mask is not None and layer.zero_output_for_mask:
        outputs = ops.where(mask[..., None], outputs, ops.zeros_like(outputs))
    return outputs[:, -1], outputs, states


def _tensor(x, cell):
    return ops.convert_to_tensor(x, dtype=cell.compute_dtype)
