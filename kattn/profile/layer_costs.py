"""Parameters, floating-point operations and bytes of each layer of a model."""

import contextlib
import math
from dataclasses import dataclass

import keras
from keras import ops

from kattn import arguments
from kattn.layers import (
    LSTMN,
    RGLRU,
    AdditiveScore,
    AttentionRNN,
    CausalDepthwiseConv1D,
    GatedDeltaNet,
    GatedLinearAttention,
    LinearAttention,
    PredictedWindow,
)
from kattn.ops.attention import observed

FREE = {  # a few operations per number at most, which are not counted
    "Activation",
    "Add",
    "AveragePooling1D",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "InputLayer",
    "LayerNormalization",
    "MaxPooling1D",
    "MaxPooling2D",
    "RMSNormalization",
    "ReLU",
    "Reshape",
}


@dataclass(frozen=True)
class LayerCost:
    """What one layer of a model costs for one example.

    Args:
        layer: Name of the layer.
        kind: Name of the class of the layer.
        output_shape: Shape of the output, or of the first one, without the batch axis.
        parameters: Number of weights, whether they are trained or not.
        flops: Floating-point operations of the forward pass, 2 per multiply-add.
        weight_bytes: Bytes of the weights, in the types in which they are kept.
        output_bytes: Bytes of the output, in the type in which the layer computes.

    Example:
        >>> from kattn.profile import layer_costs
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> layer_costs(model)[-1].output_shape
        (4,)
    """

    layer: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int
    weight_bytes: int
    output_bytes: int


def layer_costs(model):
    """Counts what each layer of a model costs for one example.

    The model is run once, on zeros, and what its layers and the layers inside of them do is
    counted: 2 operations per multiply-add of convolutions, dense and recurrent layers, of the
    scores against a table of embeddings, and of attention. Linear attention counts as the
    recurrence that it is. Biases, positions and layers that need only a few operations per number
    (activations, normalisation, pooling, dropout, embedding) count as 0. A training step takes
    about three times the operations of the forward pass.

    Args:
        model: A Keras model: a functional or sequential one, or one that is built with shapes, such
            as `model.build((None, 64))`. All sizes but that of the batch must be known.

    Returns:
        A list with one `LayerCost` for each layer that is called, in the order of `model.layers`. A
        weight that several layers share counts in the first of them.

    Raises:
        ValueError: If there is no rule for the operations of a layer, if the model is not built, or
            if the size of an axis other than the batch is unknown.

    Example:
        >>> x = inputs = keras.Input((8, 8, 3))
        >>> x = keras.layers.Conv2D(16, 3, padding="same", name="conv")(x)
        >>> x = keras.layers.Dense(10, name="head")(keras.layers.Flatten()(x))
        >>> for cost in kattn.profile.layer_costs(keras.Model(inputs, x)):
        ...     print(cost.kind, cost.parameters, cost.flops, cost.weight_bytes)
        InputLayer 0 0 0
        Conv2D 448 55296 1792
        Flatten 0 0 0
        Dense 10250 20480 41000
    """
    inputs = _zeros(model)
    outputs: dict = {}  # by id of the layer, for those of `model.layers`
    flops = dict.fromkeys(map(id, model.layers), 0)
    running: list = []  # those of these layers whose call has begun, the innermost last

    def count(number):
        if running:
            flops[running[-1]] += number

    with contextlib.ExitStack() as stack:
        for layer, rule in _rules(model):
            stack.enter_context(_counted(layer, rule, count))
        for layer in model.layers:
            stack.enter_context(_followed(layer, running, outputs))
        stack.enter_context(observed(lambda call: count(_attention(call))))
        model(*inputs, training=False)
    costs, seen = [], set[int]()
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            outputs[id(layer)] = layer.output
        if id(layer) not in outputs:
            continue  # it serves other layers, as the positions of attention layers do
        weights = [w for w in layer.weights if id(w) not in seen]
        seen.update(map(id, weights))
        output = keras.tree.flatten(outputs[id(layer)])[0]  # behind which there may be states
        shape = tuple(output.shape[1:])
        costs.append(
            LayerCost(
                layer=layer.name,
                kind=type(layer).__name__,
                output_shape=shape,
                parameters=sum(math.prod(w.shape) for w in weights),
                flops=flops[id(layer)],
                weight_bytes=sum(math.prod(w.shape) * _width(w.dtype) for w in weights),
                output_bytes=math.prod(shape) * _width(output.dtype),
            )
        )
    return costs


def _zeros(model):
    """One example of zeros for each input of a model."""
    if getattr(model, "inputs", None):
        known = [(x.shape, x.dtype) for x in model.inputs]
    elif model.built:
        config = model.get_build_config()
        shapes = config["shapes_dict"].values() if "shapes_dict" in config else config.values()
        known = [(shape, None) for shape in shapes]
    else:
        raise arguments.error("`model` must be built: call its `build` first", model=model.name)
    shapes = [each for shape, _ in known for each in (shape if _is_several(shape) else [shape])]
    for shape in shapes:
        if None in shape[1:]:
            raise arguments.error(
                "all axes of the inputs of the model but the batch must have a known size",
                model=model.name,
                input_shape=tuple(shape),
            )
    zeros = [_zeros_of(shape, dtype) for shape, dtype in known]
    return [zeros] if getattr(model, "inputs", None) and len(zeros) > 1 else zeros


def _zeros_of(shape, dtype):
    """One example of zeros, or a tuple of them for a model that reads several sequences."""
    if _is_several(shape):
        return tuple(_zeros_of(each, dtype) for each in shape)
    return ops.zeros((1, *shape[1:]), dtype)


def _is_several(shape):
    return all(isinstance(each, tuple | list) for each in shape)


def _rules(model):
    """The layers with operations of their own, at any depth, with the rule that counts them."""
    layers = model._flatten_layers(include_self=False)
    inner = {
        id(part)
        for layer in layers
        if isinstance(layer, keras.layers.RNN | AttentionRNN) or _is_of_two_rnns(layer)
        for part in layer._flatten_layers(include_self=False)
    }
    for layer in layers:
        rule = next((rule for kind, rule in RULES.items() if isinstance(layer, kind)), None)
        if id(layer) in inner:
            continue  # the layer around it counts for it
        if rule is not None:
            yield layer, rule
        elif not _is_free(layer):
            raise arguments.error(
                "`layer_costs` must have a rule for every layer of the model",
                layer=layer.name,
                kind=type(layer).__name__,
            )


def _is_free(layer):
    """Whether all that a layer computes is done by the layers in it, or not worth counting."""
    module = type(layer).__module__
    if module.startswith("kattn.") or isinstance(layer, keras.Model):
        return True
    if module.startswith("keras."):
        return type(layer).__name__ in FREE
    return bool(layer._flatten_layers(include_self=False))


@contextlib.contextmanager
def _counted(layer, rule, count):
    """Count what each call of a layer does, for the length of a block."""

    def counting(call, x, *args, **kwargs):
        y = call(x, *args, **kwargs)
        if isinstance(layer, AttentionRNN):
            x = x, kwargs.get("memory", args[0] if args else None)
        count(rule(layer, x, y))
        return y

    with _replaced(layer, counting):
        yield


@contextlib.contextmanager
def _followed(layer, running, outputs):
    """Note when a layer is running and what it gives, for the length of a block."""

    def following(call, *args, **kwargs):
        running.append(id(layer))
        try:
            outputs[id(layer)] = call(*args, **kwargs)
        finally:
            running.pop()
        return outputs[id(layer)]

    with _replaced(layer, following):
        yield


@contextlib.contextmanager
def _replaced(layer, function):
    """Call function(call, ...) in place of the `call` of a layer, for the length of a block."""
    call, own = layer.call, vars(layer).get("call")

    def replacement(*args, **kwargs):
        return function(call, *args, **kwargs)

    object.__setattr__(layer, "call", replacement)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(layer, "call")
        else:
            object.__setattr__(layer, "call", own)


def _steps(x):
    """The number of steps of all sequences: one example may be read as many, as its windows are."""
    return math.prod(x.shape[:-1])


def _is_of_two_rnns(layer):
    """Whether it is a `Bidirectional` of Keras's layers, which on a GPU need not be called."""
    is_pair = isinstance(layer, keras.layers.Bidirectional)
    return is_pair and isinstance(layer.forward_layer, keras.layers.RNN)


def _both_directions(layer, x, y):
    # Layers of another kind are called, and count for themselves.
    return _recurrence(layer, x, y) if _is_of_two_rnns(layer) else 0


def _dense(layer, x, y):
    return 2 * math.prod(x.shape) * layer.units


def _einsum_dense(layer, x, y):
    read, weights = layer.equation.split("->")[0].split(",")
    sizes = zip(weights, layer.kernel.shape, strict=True)
    return 2 * math.prod(x.shape) * math.prod(n for axis, n in sizes if axis not in read)


def _convolution(layer, x, y):
    # Each output number is a product over the window and the channels in it.
    return 2 * math.prod(y.shape) * math.prod(layer.kernel.shape[:-1])


def _depthwise_convolution(layer, x, y):
    # Each output number is a product over the window in one channel.
    return 2 * math.prod(y.shape) * math.prod(layer.kernel.shape[:-2])


def _recurrence(layer, x, y):
    # A step multiplies input and state with the matrices of the cell.
    matrices = [w for w in layer.weights if w.name.endswith("kernel")]
    return 2 * _steps(x) * sum(math.prod(w.shape) for w in matrices)


def _attending_recurrence(layer, inputs, y):
    x, memory = inputs
    return len(x) * _attending_steps(layer, x, memory)


def _attending_steps(layer, x, memory):
    """The operations of an `AttentionRNN` for one sequence."""
    score, is_own = layer.attention, memory is None
    memory = x if is_own else memory
    keys, values = score.project(ops.zeros((1, *memory.shape[1:])))
    steps, pairs = x.shape[1], x.shape[1] * memory.shape[1]
    window = None if isinstance(layer.window, PredictedWindow) else layer.window
    if is_own and window is not None and not score.reads_weights:  # cut into frames
        pairs = steps * min(memory.shape[1], window if layer.causal else 2 * window - 1)
    total = _products(layer, steps, memory.shape[1], pairs)
    is_free = layer.attend == "after" and not layer.input_feeding
    if is_free and score.is_product and (layer.window is None or window is not None):
        return 2 * total  # `ops.attention` counts the rest
    if not score.is_product and not isinstance(score, AdditiveScore):
        raise arguments.error(
            "`layer_costs` must have a rule for every score of the model",
            layer=layer.name,
            kind=type(score).__name__,
        )
    products = keys.shape[-1] if score.is_product else 0
    return 2 * (total + pairs * score.num_heads * (products + values.shape[-1]))


def _products(layer, steps, memory_steps, pairs):
    """The multiply-adds of the matrices of an `AttentionRNN`.

    Those of the cell multiply at each step, those of the memory at each step of that, and those of
    a network that scores the memory at each pair of steps.
    """
    score, states = layer.attention, {id(w) for w in layer.states or []}
    times = {"key": memory_steps, "key_value": memory_steps}
    times.update(dict.fromkeys(("energy", "location", "filter"), pairs))
    times_of = {id(w): times.get(w.name, steps) for w in score.weights}
    for part in score._flatten_layers(include_self=False):
        times_of.update({id(w): times.get(part.name, steps) for w in part.weights})
    return sum(
        times_of.get(id(w), steps) * math.prod(w.shape)
        for w in layer.weights
        if len(w.shape) > 1 and not w.name.endswith("bias") and id(w) not in states
    )


def _table(layer, x, y):
    scores = len(x.shape) == len(y.shape)  # against each vector; else tokens are looked up
    return 2 * math.prod(x.shape) * layer.input_dim if scores else 0


def _linear_attention(layer, x, y):
    sizes = layer.head_sizes
    features = getattr(layer, "_features", sizes.key_dim)
    # Each step adds a product of features and values to the state, and reads it.
    return 2 * _steps(x) * (sizes.key_heads + sizes.heads) * features * sizes.value_dim


def _delta_rule(layer, x, y):
    # Each step reads what the state holds under its key, corrects it, and reads by its query.
    sizes = layer.head_sizes
    return 2 * _steps(x) * 3 * sizes.heads * sizes.key_dim * sizes.value_dim


def _own_kernel(layer, x, y):
    # A weight of the layer itself, each number of which multiplies once at each step.
    return 2 * _steps(x) * math.prod(layer._kernel.shape)


def _state_tape(layer, x, y):
    # Each step multiplies its matrices, scores the states before it, and mixes both parts of them.
    *matrices, energy = layer._weights_of_steps
    steps = x.shape[1]
    rows = min(layer.memory_length or steps, steps)
    pairs = steps * rows * (energy.shape[0] + 2 * layer.units)
    return 2 * len(x) * (steps * sum(math.prod(w.shape) for w in matrices) + pairs)


def _attention(call):
    keys = call.key.shape[1]
    near = None if call.mask is None else call.mask.neighborhood
    if near is not None:  # each cell sees its window, and not the map
        keys = math.prod(min(side.size, side.side) for side in near.axes)
    scores = math.prod(call.query.shape[:3]) * keys  # B * T * N * S
    return 2 * scores * (call.query.shape[3] + call.value.shape[3])


RULES = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum_dense,
    keras.layers.Conv1D: _convolution,
    keras.layers.Conv2D: _convolution,
    keras.layers.Conv3D: _convolution,
    keras.layers.DepthwiseConv1D: _depthwise_convolution,
    keras.layers.DepthwiseConv2D: _depthwise_convolution,
    keras.layers.RNN: _recurrence,
    keras.layers.Bidirectional: _both_directions,
    AttentionRNN: _attending_recurrence,
    keras.layers.ReversibleEmbedding: _table,
    LinearAttention: _linear_attention,
    GatedLinearAttention: _linear_attention,
    GatedDeltaNet: _delta_rule,
    RGLRU: _own_kernel,
    CausalDepthwiseConv1D: _own_kernel,
    LSTMN: _state_tape,
}


def _width(dtype):
    """Bytes of one number."""
    name = keras.backend.standardize_dtype(dtype)
    digits = "".join(character for character in name if character.isdigit())
    return int(digits) // 8 if digits else 1  # bool has none
