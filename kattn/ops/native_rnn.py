"""The framework's own loop over the steps of an LSTM or a GRU, where it has one that pays."""

from kattn import backend


def native_rnn_unsupported(*tensors):
    """Why no loop of the framework's own takes these tensors, or None.

    Args:
        *tensors: Inputs and states. None at all to ask about the framework.

    Returns:
        A string, or None.
    """
    return backend.native_rnn_unsupported(*tensors)


def native_rnn(kind, x, mask, states, weights):
    """The outputs of an LSTM or a GRU, and its states after the last step.

    Shapes: B batch, T steps, C channels, U units.

    Args:
        kind: "lstm", or "gru" for one that resets after the product of state and matrix.
        x: Inputs, float, shape `(B, T, C)`.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the states as
            they are. None if all steps are real.
        states: Tuple of the states before the first step, `(B, U)` each: h and c, or h.
        weights: Tuple of kernel, recurrent kernel and bias (or None), as Keras's cell has them.

    Returns:
        `(y, states)`: outputs `(B, T, U)`, at padding that of the last real step, or 0 if there is
        none before; and the tuple of states after the last step.
    """
    return backend.native_rnn(kind, x, mask, states, weights)
