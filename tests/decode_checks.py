"""The conformance test of whatever decodes step by step: layers, blocks and models.

    check_decodes(lambda: layer, [x])            # reads its own sequence
    check_decodes(lambda: layer, [x, context])   # attends to a context, too

`make` gives something built with

    cache = layer.init_cache(batch_size, length, context=None, context_mask=None)
    y, cache = layer.decode(x, cache, mask=None)

and a call on the whole sequence, which decoding must equal. The sequence may be one of vectors or,
for models, of tokens.
"""

import functools
import inspect
import itertools

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend import set_keras_mask

from kattn import backend
from tests.compute import as_input, assert_close, compiled, no_gradients, quick, result, run


def check_decodes(make, inputs, call=None):
    """Runs every check.

    Args:
        make: Function without arguments that gives a built layer, its weights off their initial
            values.
        inputs: NumPy arrays: the sequence `(B, T, C)`, or tokens `(B, T)`, with B >= 3 and T >= 5;
            and the context `(B, S, E)` or `(B, S)` if there is one.
        call: Function of the layer, the sequence, the context and masks that calls the layer on
            the whole, if it is not called with these arguments.
    """
    layer, inputs = make(), list(map(as_input, inputs))
    if call is not None:
        layer = CalledOtherwise(layer, call)
    full, decode = result(layer, *inputs), quick(layer.decode)
    check_signatures(layer)
    check_bad_sizes(layer, inputs)
    check_leaves(layer, inputs)
    check_pieces(layer, decode, inputs, full)
    for left in (True, False):
        check_padded_prompts(layer, decode, inputs, full, left=left)
    check_implicit_mask(layer, inputs)
    check_reordering(layer, inputs, full)
    check_one_trace(layer, inputs, full)
    check_loop(layer, inputs, full)
    if len(inputs) > 1:
        check_context_masks(layer, inputs)


class CalledOtherwise:
    """A model that decodes as layers do, and takes the whole in another form."""

    def __init__(self, layer, call):
        self.layer, self.variables = layer, layer.variables
        self.init_cache, self.decode = layer.init_cache, layer.decode
        self._call = call

    def __call__(self, *inputs, **masks):
        return self._call(self.layer, *inputs, **masks)


def start(layer, inputs, length=None, **options):
    """The cache before the first step."""
    x, *context = inputs
    if context:
        options["context"] = context[0]
    return layer.init_cache(len(x), length or x.shape[1], **options)


def in_pieces(layer, x, cuts, length, *context, decode=None, **options):
    """The outputs of `decode`, that of the layer if it is not given, for x cut into pieces."""
    decode = decode or quick(functools.partial(layer.decode, **options))
    cache, outputs = start(layer, [x, *context], length), []
    for begin, end in itertools.pairwise(cuts):
        y, cache = decode(x[:, begin:end], cache)
        outputs.append(y)
    return ops.concatenate(outputs, axis=1)


def check_signatures(layer):
    """All that decodes has the same two methods."""
    wanted = {
        "init_cache": ["batch_size", "length", "context", "context_mask"],
        "decode": ["x", "cache", "mask"],
    }
    for name, parameters in wanted.items():
        found = list(inspect.signature(getattr(layer, name)).parameters)
        assert [word.replace("tokens", "x") for word in found] == parameters


def check_bad_sizes(layer, inputs):
    """Sizes that are no integers >= 1 are refused, and contexts where there are none."""
    x, *context = inputs
    options = {"context": context[0]} if context else {}
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer >= 1.*batch_size=0"):
        layer.init_cache(0, 5, **options)
    with pytest.raises(ValueError, match=r"`length` must be an integer >= 1.*length=2\.5"):
        layer.init_cache(len(x), 2.5, **options)
    if context:
        with pytest.raises(ValueError, match=r"`context` must be .*context=None"):
            layer.init_cache(len(x), 5)
        with pytest.raises(ValueError, match=r"`context` must be .*batch_size=1"):
            layer.init_cache(1, 5, **options)
    else:
        with pytest.raises(ValueError, match="takes no `context`"):
            layer.init_cache(len(x), 5, context=x)
        with pytest.raises(ValueError, match="no `context_mask`"):
            layer.init_cache(len(x), 5, context_mask=np.ones(x.shape[:2], bool))
    layer = getattr(layer, "layer", layer)
    unbuilt = type(layer).from_config(layer.get_config())
    with pytest.raises(ValueError, match="must be built before it can make a cache"):
        unbuilt.init_cache(len(x), 5, **options)


def check_leaves(layer, inputs):
    """A cache is made of tensors, each with the batch axis first."""
    leaves = keras.tree.flatten(start(layer, inputs))
    assert leaves
    for leaf in leaves:
        assert keras.ops.is_tensor(leaf)
        assert leaf.shape[0] == len(inputs[0])


def check_pieces(layer, decode, inputs, full):
    """Step by step, and in pieces: what the call gives for the whole."""
    x, *context = inputs
    steps = x.shape[1]
    for cuts in (range(steps + 1), (0, 3, *range(4, steps + 1)), (0, steps)):
        assert_close(run(in_pieces, layer, x, list(cuts), steps, *context, decode=decode), full)


def check_padded_prompts(layer, decode, inputs, full, *, left):
    """Prompts of one and two steps in pieces of three, padded at a side, then two steps more."""
    x, size, lengths = inputs[0], 3, 1 + np.arange(len(inputs[0])) % 2
    prompt, real = padded(x, lengths, size, left=left)
    y, cache = decode(prompt, start(layer, inputs), mask=ops.convert_to_tensor(real))
    y = run(ops.stop_gradient, y)
    for b, count in enumerate(lengths):
        assert_close(y[b, real[b]], full[b, :count])
    for t in range(2):
        step = np.stack([x[b, n + t] for b, n in enumerate(lengths)])[:, None]
        y, cache = decode(step, cache)
        wanted = np.stack([full[b, n + t] for b, n in enumerate(lengths)])
        assert_close(run(ops.stop_gradient, y)[:, 0], wanted)


def padded(x, lengths, size, *, left):
    """The first steps of each item among padding, and which steps are real."""
    prompt, real = np.full((len(x), size, *x.shape[2:]), 9, x.dtype), np.zeros((len(x), size))
    for b, count in enumerate(lengths):
        at = slice(size - count, size) if left else slice(0, count)
        prompt[b, at], real[b, at] = x[b, :count], 1
    return prompt, real.astype(bool)


def check_implicit_mask(layer, inputs):
    """The Keras mask of new steps means `mask=`, also together with one, for output and cache."""
    x, size = inputs[0], 4
    prompt, real = padded(x, 1 + np.arange(len(x)) % 3, size, left=True)
    real = ops.convert_to_tensor(real)

    def implicitly(prompt, cache, real, **more):
        tensor = ops.copy(ops.convert_to_tensor(prompt))
        set_keras_mask(tensor, real)
        return layer.decode(tensor, cache, **more)

    # Each with a cache of its own, which a layer may change in place.
    explicit = result(layer.decode, prompt, start(layer, inputs), mask=real)
    for more in ({}, {"mask": ops.ones(real.shape, "bool")}):
        implicit = result(implicitly, prompt, start(layer, inputs), real, **more)
        pairs = zip(keras.tree.flatten(implicit), keras.tree.flatten(explicit), strict=True)
        for left, right in pairs:
            assert_close(left, right)


def check_reordering(layer, inputs, full):
    """Any cache is reordered by one `tree.map`, as beam search needs it."""
    x, order = inputs[0], np.array([2, 0, 0, *range(3, len(inputs[0]))])
    _, cache = layer.decode(x[:, :2], start(layer, inputs))
    cache = keras.tree.map_structure(lambda leaf: ops.take(leaf, order, axis=0), cache)
    y, _ = layer.decode(x[order, 2:4], cache)
    assert_close(run(ops.stop_gradient, y), full[order, 2:4])


def check_one_trace(layer, inputs, full):
    """One compilation serves all steps."""
    x, traces, outputs, cache = inputs[0], [], [], start(layer, inputs)

    def step(x, cache):
        if keras.backend.backend() != "torch":  # whose tracer would compile anew for a longer list
            traces.append(1)
        return layer.decode(x, cache)

    step = compiled(step)
    with no_gradients():
        for t in range(x.shape[1]):
            y, cache = step(ops.convert_to_tensor(x[:, t : t + 1]), cache)
            outputs.append(run(ops.copy, y))
    assert_close(np.concatenate(outputs, axis=1), full)
    assert len(traces) <= 1, f"{len(traces)} traces"


def check_loop(layer, inputs, full):
    """Inside `keras.ops.while_loop`, as generation has it: PyTorch traces one step."""
    x, calls = inputs[0], []
    batch, steps, *width = x.shape

    def decode(x, cache):
        calls.append(1)
        return layer.decode(x, cache)

    step = backend.step_maker(decode, layer.variables)()

    def body(t, cache, output):
        start = (0, t, *(0 for _ in width))
        now = ops.slice(ops.convert_to_tensor(x), start, (batch, 1, *width))
        y, cache = step(now, cache)
        return t + 1, cache, ops.slice_update(output, (0, t, 0), y)

    first = ops.convert_to_tensor(0), start(layer, inputs), ops.zeros(full.shape)
    with no_gradients():
        looped = ops.while_loop(lambda t, *_: t < steps, body, first)
    assert_close(run(ops.stop_gradient, looped[2]), full)
    if keras.backend.backend() == "torch":
        assert len(calls) == 1, f"{len(calls)} traces, or none that was possible"


def check_context_masks(layer, inputs):
    """Padding of the context, implicit or explicit, is never attended to."""
    x, context = inputs
    keep = np.ones(context.shape[:2], bool)
    keep[0, -2:] = False
    keep[1, :2] = False  # at the left
    keep[2] = False
    wanted = result(layer, x, context, context_mask=ops.convert_to_tensor(keep))
    cache = start(layer, inputs, context_mask=ops.convert_to_tensor(keep))
    y, _ = layer.decode(x, cache)
    assert_close(run(ops.stop_gradient, y), wanted)
    tensor = ops.convert_to_tensor(context)
    set_keras_mask(tensor, ops.convert_to_tensor(keep))
    y, _ = layer.decode(x, start(layer, [x, tensor]))
    assert_close(run(ops.stop_gradient, y), wanted)
