"""Recurrent layers that are arguments of other layers: which ones, how they run, how they decode.

The state of any recurrent layer of Keras is a cache: a tree of tensors with the batch axis first.

    cache = rnn_cache(rnn, batch_size, length)
    y, cache = decode_rnn(rnn, x, cache, mask)   # any number of new steps
"""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import silence
from kattn.layers.recurrent.native_loop import native_outputs, use_native_loops


def read_rnn(rnn, name="rnn", *, sequences=True, state=False):
    """A recurrent layer that a layer was given, or its config.

    An LSTM or a GRU of Keras runs PyTorch's own kernel from now on, on that backend.

    Args:
        rnn: `keras.layers.RNN` or a subclass, `keras.layers.Bidirectional`, or a layer that decodes
            by itself; or the config of one.
        name: Name of the argument; the layer gets it, unless it is built.
        sequences: Whether it must return the outputs of all steps, or only the last.
        state: Whether it must return its states, too, and so be one of Keras's, and in one
            direction.

    Returns:
        The layer.

    Raises:
        ValueError: If it is something else, returns something else, or goes backwards.
    """
    if isinstance(rnn, dict):
        rnn = keras.saving.deserialize_keras_object(rnn)
    kinds = (keras.layers.RNN,) if state else (keras.layers.RNN, keras.layers.Bidirectional)
    is_own = sequences and not state and decodes_itself(rnn)
    if not isinstance(rnn, kinds) and not is_own:
        options = f"return_sequences={sequences}, return_state={state}"
        raise arguments.error(
            f"`{name}` must be a recurrent layer, such as keras.layers.LSTM(64, {options})",
            **{name: rnn},
        )
    if isinstance(rnn, kinds):
        _check_options(rnn, name, sequences, state)
    if not rnn.built:
        rnn.name = name
    use_native_loops(rnn)
    return rnn


def decodes_itself(layer):
    """Whether a layer has the two methods of what decodes step by step."""
    is_layer = isinstance(layer, keras.layers.Layer)
    return is_layer and hasattr(layer, "init_cache") and hasattr(layer, "decode")


def is_causal_rnn(rnn):
    """Whether no output depends on later steps, as far as the kind of the layer says."""
    return not isinstance(rnn, keras.layers.Bidirectional)


def run_rnn(rnn, x, padding, *, training=None):
    """The outputs of a recurrent layer for a whole sequence.

    Args:
        rnn: What `read_rnn` returned.
        x: Inputs, float, shape `(B, T, C)`, with zeros at padding.
        padding: Bool, shape `(B, T)`, True = real step, given to the layer as its mask; or None.
        training: Whether dropout is applied.
    """
    if 0 in x.shape[:2]:  # Keras looks at the first step, and TensorFlow at the first item
        width = rnn.compute_output_shape(tuple(x.shape))[-1]
        return ops.repeat(0 * x[..., :1], width, axis=-1)
    options = {} if padding is None else {"mask": padding}
    return rnn(x, training=training, **options)


def rnn_cache(rnn, batch_size, length):
    """The state of a recurrent layer before the first step, for `decode_rnn`.

    Args:
        rnn: What `read_rnn` returned, built.
        batch_size: Number of sequences that are decoded, B.
        length: Number of steps that are decoded at most.

    Returns:
        A tree of tensors, with the batch axis first in each.

    Raises:
        ValueError: If the layer reads the sequence from its end, or is not built, or if a size is
            not an integer >= 1.
    """
    if decodes_itself(rnn):
        return rnn.init_cache(batch_size, length)
    check_decodes(rnn, batch_size, length, None, None)
    if not is_causal_rnn(rnn) or rnn.go_backwards:
        raise arguments.error(
            "A recurrent layer that decodes step by step must read the sequence from its start "
            "only: be neither Bidirectional nor go backwards",
            rnn=rnn,
        )
    dtype = rnn.cell.compute_dtype
    states = rnn.get_initial_state(batch_size)
    return keras.tree.map_structure(lambda x: ops.cast(x, dtype), states)


def decode_rnn(rnn, x, cache, mask=None):
    """The outputs of a recurrent layer for new steps of a sequence, and the state after them.

    Args:
        rnn: Layer whose `rnn_cache` it is.
        x: New steps, float, shape `(B, t, C)`, for any t.
        cache: What `rnn_cache` or the last `decode_rnn` returned.
        mask: Bool, shape `(B, t)`: True = real step, False = padding, at which the state stays as
            it is. None if all steps are real.

    Returns:
        `(y, cache)`: the outputs of all new steps, shape `(B, t, U)`, which are 0 at padding; and
        the state after them.
    """
    if decodes_itself(rnn):
        y, cache = rnn.decode(x, cache, mask=mask)
        return silence(y, mask), cache
    if x.shape[1] == 0:
        return run_rnn(rnn, x, None), cache
    x = ops.convert_to_tensor(x, dtype=rnn.cell.compute_dtype)
    found = None if x.shape[1] == 1 else native_outputs(rnn, x, cache, mask)
    y, states = _step_by_step(rnn.cell, x, cache, mask) if found is None else found
    y = ops.cast(silence(y, mask), rnn.compute_dtype)
    return y, keras.tree.pack_sequence_as(cache, keras.tree.flatten(states))


def _check_options(rnn, name, sequences, state):
    """Raises ValueError unless a layer returns what it must, its outputs in their order."""
    if rnn.return_sequences != sequences or rnn.return_state != state:
        hint = "" if state else "; `init_cache` and `decode` give states"
        raise arguments.error(
            f"`{name}` must be made with return_sequences={sequences} and return_state={state}"
            f"{hint}",
            return_sequences=rnn.return_sequences,
            return_state=rnn.return_state,
        )
    if getattr(rnn, "go_backwards", False):
        raise arguments.error(
            f"`{name}` must not go backwards, in which case the outputs of Keras's layer are in "
            "reverse order; use keras.layers.Bidirectional",
            go_backwards=True,
        )
    if getattr(rnn, "merge_mode", "") is None:
        raise arguments.error(
            f"`{name}` must merge both directions into one output", merge_mode=None
        )


def _step_by_step(cell, x, states, mask):
    """The outputs `(B, t, U)` of a cell, and its states after the last step."""
    if x.shape[1] != 1:
        loop = keras.layers.RNN(cell, return_sequences=True, name="steps")
        # Not its call, which draws dropout masks in inference, too.
        _, y, states = loop.inner_loop(x, states, mask, training=False)
        return y, states
    y, new = cell(x[:, 0], states)
    if mask is not None:
        old, new = keras.tree.flatten(states), keras.tree.flatten(new)
        new = [_held(*pair, mask[:, 0]) for pair in zip(old, new, strict=True)]
    return y[:, None], new


def _held(old, new, is_real):
    """The new state, but at padding the old one."""
    return ops.where(ops.reshape(is_real, (-1, *(1 for _ in old.shape[1:]))), new, old)
