"""Step-by-step decoding of functional models, which need not be rewritten for it."""

import functools
import inspect
from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import arguments
from kattn.generation.each_step import acts_on_each_step
from kattn.layers.attention.mask_reader import read_padding, set_keras_mask

PADDINGS = ("mask", "query_mask", "value_mask", "key_mask")


def decodes(x):
    """Whether something has the two methods of what decodes step by step."""
    return hasattr(x, "init_cache") and hasattr(x, "decode")


def is_functional(model):
    """Whether it is a functional model, or a sequential one whose input shape is known."""
    return isinstance(model, keras.Model) and bool(getattr(model, "inputs", None))


class FunctionalDecoder:
    """A functional model that decodes step by step: `decode` for layers that have it, else a call.

    The layers that mix steps must have `init_cache` and `decode`, as kattn's causal layers have.
    All others must be known to act on each step alone: many of Keras's are, such as `Embedding`,
    `Dense`, norms, dropout, sums and activations. Layers of your own say so by an attribute
    `acts_on_each_step = True`. Models in the model are decoded in the same way.

    Args:
        model: Functional or sequential model of one input, `(B, T)` or `(B, T, C)`, and one output.
            Its layers are shared, and not changed.

    Raises:
        ValueError: If the model is not functional, or has a layer that mixes steps, as far as is
            known, and cannot decode; the message names it.

    Example:
        >>> tokens = keras.Input((None,), dtype="int32")
        >>> h = keras.layers.Embedding(11, 8)(tokens)
        >>> h = h + kattn.layers.SelfAttention(2, causal=True)(h)
        >>> model = keras.Model(tokens, keras.layers.Dense(11)(h))
        >>> decoder = FunctionalDecoder(model)
        >>> cache = decoder.init_cache(batch_size=1, length=16)
        >>> logits, cache = decoder.decode(np.array([[3, 1, 4]]), cache)
        >>> logits.shape
        (1, 3, 11)
    """

    def __init__(self, model):
        if not is_functional(model) or len(model.inputs) != 1 or len(model.outputs) != 1:
            raise arguments.error(
                "`model` must have `init_cache` and `decode`, or be a functional model of one "
                "input and one output",
                model=model,
            )
        self._input, self._output, places = _recorded(model)
        self._places = [_checked(place) for place in places]

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode`, without steps.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the model has one input.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of the caches of the layers that have one.

        Raises:
            ValueError: If a layer is not causal, if a size is not an integer >= 1, or if there is a
                context.
        """
        arguments.check_integers(1, batch_size=batch_size, length=length)
        if context is not None or context_mask is not None:
            raise arguments.error(
                "A functional model takes no `context` and no `context_mask`", context=context
            )
        mixers = [place.operation for place in self._places if decodes(place.operation)]
        return tuple(mixer.init_cache(batch_size, length) for mixer in mixers)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Args:
            x: New steps, shape `(B, t)` or `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`, True = real step; or None.

        Returns:
            `(y, cache)`: the output of the model for these steps, and the cache with them. The old
            cache must not be used any more.
        """
        old, new = iter(cache), []
        values = {id(self._input): ops.convert_to_tensor(x, self._input.dtype)}

        def value(x):
            return values[id(x)] if isinstance(x, keras.KerasTensor) else x

        for operation, args, kwargs, outputs in self._places:
            args, kwargs = keras.tree.map_structure(value, (args, kwargs))
            if decodes(operation):
                sequence, own = args
                paddings = [x for x in (mask, own) if x is not None]
                padding = functools.reduce(ops.logical_and, paddings) if paddings else None
                padding = read_padding(sequence, padding)
                y, cache = operation.decode(sequence, next(old), mask=padding)
                new.append(cache)
                y = set_keras_mask(y, padding)
            else:
                y = operation(*args, **kwargs)
            values |= zip(map(id, keras.tree.flatten(outputs)), keras.tree.flatten(y), strict=True)
        return values[id(self._output)], tuple(new)


class _Place(NamedTuple):
    """A call of an operation in the graph: with which arguments, and what symbols it gives."""

    operation: Any
    args: Any
    kwargs: Any
    outputs: Any


class _StandIn(keras.Operation):
    """Stands for an operation in a copy of the graph, so that its layers are not called anew."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def compute_output_spec(self, *args, **kwargs):
        return self.operation.compute_output_spec(*args, **kwargs)


def _recorded(model):
    """The symbols of input and output, and all places of the graph in the order of their calls."""
    places = []

    def record(operation, *args, **kwargs):
        outputs = _StandIn(operation)(*args, **kwargs)
        if not decodes(operation) and is_functional(operation):
            operation = FunctionalDecoder(operation)
        places.append(_Place(operation, args, kwargs, outputs))
        return outputs

    # Of a model without an optimizer and losses, which would be copied, too.
    graph = keras.Model(model.inputs[0], model.outputs[0])
    copy = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=record)
    return copy.inputs[0], copy.outputs[0], places


def _checked(place):
    """The place, with sequence and padding as its arguments if it decodes; or ValueError."""
    operation, args, kwargs, _ = place
    if decodes(operation):
        return place._replace(args=_sequence_and_padding(operation, args, kwargs), kwargs={})
    if not acts_on_each_step(operation, args, kwargs):
        raise ValueError(
            "Each layer of `model` must either decode step by step, as "
            "kattn.layers.SelfAttention(4, causal=True) does, or be known to act on each step "
            "alone, as keras.layers.Dense does. If a layer of your own acts on each step alone, "
            "set its attribute acts_on_each_step = True. For Keras's attention layers see "
            f"kattn.models.replace_attention; received: layer={operation.name!r}, of class "
            f"{type(operation).__name__}"
        )
    return place


def _sequence_and_padding(operation, args, kwargs):
    """What a layer that decodes is given; ValueError if `decode` would not know of some of it."""
    signature = inspect.signature(getattr(operation, "call", _call_of_models))
    given = signature.bind(*args, **kwargs).arguments
    (_, sequence), *others = given.items()
    is_causal = given.get("use_causal_mask", "use_causal_mask" not in signature.parameters)
    # The Keras mask of the sequence is among them: Keras hands it to the layer.
    paddings = [x for name, x in others if name in PADDINGS and x is not None]
    padding = paddings[0] if paddings else None
    is_one = all(x is padding for x in paddings) and _is_padding(padding)
    is_of_all = given.get("query_mask") is given.get("value_mask")
    knows_others = all(
        _says_nothing(name, x, sequence) for name, x in others if name not in PADDINGS
    )
    if not (is_causal and is_one and is_of_all and knows_others):
        raise arguments.error(
            "A layer that decodes step by step must be called with its sequence alone, or with a "
            "padding mask (B, T) that the model computes from its input; and "
            "kattn.layers.MultiHeadAttention with this sequence as query and value and "
            "use_causal_mask=True",
            layer=operation.name,
        )
    return sequence, padding


def _call_of_models(inputs, training=None, mask=None):
    """Has the arguments of the call of a model in the model."""


def _is_padding(mask):
    return mask is None or (isinstance(mask, keras.KerasTensor) and len(mask.shape) == 2)


def _says_nothing(name, value, sequence):
    """Whether an argument asks for nothing that `decode` would not do without it."""
    if name in ("value", "key"):
        return value is sequence
    return value is None or value is False or name in ("training", "use_causal_mask")
