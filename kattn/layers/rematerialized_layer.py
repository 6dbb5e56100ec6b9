"""Layers whose call can be run again for the gradient, under `keras.RematScope`."""

import contextlib
import functools
import threading
from typing import Any

import keras
from keras import ops, tree

from kattn.layers.attention.mask_reader import keras_mask, set_keras_mask
from kattn.ops import recomputation


class RematerializedLayer(keras.layers.Layer):
    """Base of layers that `keras.RematScope` can serve on every backend, with dropout.

    Keras hands the call of a layer to the framework as it is. That fails for a call that looks at
    its arguments (`training`) on JAX, and for keyword arguments on TensorFlow; and what draws
    random numbers draws others when it runs again. Here the call becomes a function of tensors
    alone: its weights and those of its arguments that have a gradient. All else it closes over,
    the states of its random generators included.

    What is inside of a layer runs again with it, and not once more on its own.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "build" in cls.__dict__:
            cls.build = _without_remat(cls.build)

    def rematerialized_call(self, layer_call, *args, **kwargs):
        if _RUNNING.is_inside:
            return layer_call
        if super().rematerialized_call(layer_call, *args, **kwargs) is layer_call:
            return layer_call  # the scope does not want this layer
        return lambda *args, **kwargs: _rematerialized(self, layer_call, args, kwargs)


class _Running(threading.local):
    """Whether the call of a layer that runs again is on its way."""

    is_inside = False

    @contextlib.contextmanager
    def inside(self):
        self.is_inside = True
        try:
            yield
        finally:
            self.is_inside = False


_RUNNING = _Running()


def _without_remat(build):
    @functools.wraps(build)
    def build_parts(*args, **kwargs):
        with keras.RematScope(mode=None):
            build(*args, **kwargs)

    return build_parts


def _rematerialized(layer, layer_call, args, kwargs):
    """The output of `layer_call`, of which nothing but its inputs is kept for the gradient."""
    flat = tree.flatten((args, kwargs))
    places = [i for i, x in enumerate(flat) if _is_float(x)]
    masks = {i: keras_mask(flat[i]) for i in places}  # which Keras keeps for these tensors alone
    weights, states = layer.trainable_variables, layer.non_trainable_variables
    # PyTorch changes states in place, and the second run begins with the first one's.
    fixed = [(state, ops.copy(state)) for state in states]
    structure: list[Any] = []
    drawn_from: list[Any] = []  # the states that the call has changed

    def pure(*tensors):
        values, inputs = tensors[: len(weights)], tensors[len(weights) :]
        given = {i: set_keras_mask(x, masks[i]) for i, x in zip(places, inputs, strict=True)}
        again = [given.get(i, x) for i, x in enumerate(flat)]
        again_args, again_kwargs = tree.pack_sequence_as((args, kwargs), again)
        mapping = [*zip(weights, values, strict=True), *fixed]
        with _RUNNING.inside(), keras.StatelessScope(state_mapping=mapping) as scope:
            before = [scope.get_current_value(state) for state in states]
            outputs = layer_call(*again_args, **again_kwargs)
        after = [scope.get_current_value(state) for state in states]
        structure[:] = [tree.map_structure(lambda _: None, outputs)]
        changed = [i for i, value in enumerate(after) if value is not before[i]]
        drawn_from[:] = [states[i] for i in changed]
        return *(after[i] for i in changed), *tree.flatten(outputs)

    values = [ops.convert_to_tensor(weight) for weight in weights]
    found = recomputation.recomputed(pure)(*values, *(flat[i] for i in places))
    for state, update in zip(drawn_from, found, strict=False):
        state.assign(update)
    return tree.pack_sequence_as(structure[0], found[len(drawn_from) :])


def _is_float(x):
    return ops.is_tensor(x) and "float" in keras.backend.standardize_dtype(x.dtype)
