"""The attention weights that the layers of a model use, captured while it runs on a batch."""

import contextlib
import dataclasses
import inspect
from typing import Any

from keras import ops

from kattn.arguments import error
from kattn.ops.attention import observed
from kattn.ops.kernels import dense
from kattn.paths import layer_paths


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one call of an attention layer attended to. `capture_attention` returns these.

    Args:
        weights: Attention weights, float32 NumPy array, shape `(B, N, T, S)`: by example, head,
            query and key. If `capture_attention` was given a function `reduce`, its result.
        largest_logit: Largest score of a query and a key that it may attend to: scaled, capped and
            with the bias, before the softmax. None if the layer has no softmax, as layers of linear
            attention.

    Example:
        >>> model = keras.Sequential([keras.Input((5, 8)), kattn.layers.SelfAttention(2)])
        >>> x = np.ones((3, 5, 8), "float32")
        >>> [(call,)] = kattn.visualize.capture_attention(model, x).values()
        >>> round(float(call.weights[0, 0, 0, 0]), 6)  # all keys are alike
        0.2
    """

    weights: Any
    largest_logit: float | None


def attention_layers(model):
    """Return the layers of a model whose attention weights can be captured.

    Args:
        model: A Keras model.

    Returns:
        A list of the model's attention layers of kattn, those inside other layers included.

    Example:
        >>> model = keras.Sequential([keras.Input((5, 8)), kattn.layers.SelfAttention(2)])
        >>> len(kattn.visualize.attention_layers(model))
        1
    """
    return [layer for layer in model._flatten_layers() if hasattr(layer, "attention_weights")]


def capture_attention(model, inputs, *, reduce=None):
    """Run a model on a batch, in inference, and return what each attention layer attends to.

    The model is run without compilation, and is not changed.

    Args:
        model: A Keras model that has attention layers of kattn.
        inputs: One batch of inputs, as the model is called with.
        reduce: Function that takes the weights of one call, a NumPy array `(B, N, T, S)`. What it
            returns is kept in place of the weights, which saves memory. None keeps the weights.

    Returns:
        A dict from the path of each attention layer to a list of `AttentionCall`, one for each time
        that the model calls the layer, in order. A call of an axial layer has one for each side.

    Raises:
        ValueError: If the model has no attention layer of kattn.

    Example:
        >>> inputs = keras.Input((5, 8))
        >>> model = keras.Model(inputs, kattn.layers.SelfAttention(2, name="first")(inputs))
        >>> calls = kattn.visualize.capture_attention(model, np.ones((3, 5, 8), "float32"))
        >>> calls["first"][0].weights.shape
        (3, 2, 5, 5)
    """
    layers = attention_layers(model)
    if not layers:
        raise error("The model must have attention layers of kattn", model=model.name)
    paths = layer_paths(model)
    calls: dict[str, list[AttentionCall]] = {}
    running: list[list[float]] = []  # logits of the calls that have begun, the innermost last

    def note_logit(call):
        if running:
            running[-1].append(float(ops.convert_to_numpy(dense.largest_logit(call))))

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_captured(layer, paths[id(layer)], running, calls, reduce))
        stack.enter_context(observed(note_logit))
        model(inputs, training=False)
    return calls


@contextlib.contextmanager
def _captured(layer, path, running, calls, reduce):
    """Note each call of a layer, for the length of a block."""
    call = layer.call
    known = inspect.signature(layer.attention_weights).parameters

    def capturing(*args, **kwargs):
        options = {word: value for word, value in kwargs.items() if word in known}
        found = layer.attention_weights(*args, **options)
        found = map(ops.convert_to_numpy, found if isinstance(found, tuple) else (found,))
        logits: list[float] = []
        running.append(logits)
        try:
            outputs = call(*args, **kwargs)
        finally:
            running.pop()
        for weights in found:  # several, if the layer attends along one side after the other
            kept = weights if reduce is None else reduce(weights)
            entry = AttentionCall(kept, max(logits, default=None))
            calls.setdefault(path, []).append(entry)
        return outputs

    object.__setattr__(layer, "call", capturing)
    try:
        yield
    finally:
        object.__delattr__(layer, "call")
