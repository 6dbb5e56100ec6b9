"""What every layer must do, in one call: `check_layer`.

    check_layer(
        lambda **options: SelfAttention(2, causal=True, dropout=0.1, seed=1, **options),
        [rng.normal(size=(3, 5, 8))],
        fixture="self_attention",
    )

Each check raises AssertionError and says what failed. The fixture is a pair of small files for each
backend, `tests/fixtures/<name>-<backend>.keras` and `.npz`, that hold a model, an input and the
output it had there; they are read on all of them. To write those of the backend at hand:

    KERAS_BACKEND=jax python -m tests.write_fixtures
"""

import functools
import inspect
import pathlib
import tempfile

import keras
import numpy as np
from keras import ops
from keras.src.backend import get_keras_mask, set_keras_mask

import kattn
from kattn.layers import HeadPosition, InputPosition, Position
from tests.compute import as_input, assert_close, compiled, quick, result, run
from tests.decode_checks import check_decodes

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
BACKENDS = ("tensorflow", "jax", "torch")


def check_layer(
    make,
    inputs,
    *,
    fixture=None,
    sequence=True,
    causal=False,
    window=None,
    equivariant=False,
    masked=True,
    dropout=True,
    decodes=False,
):
    """Runs every check that fits the layer.

    Args:
        make: `make(**options)` gives a new layer, as far off its defaults as it goes; options
            are those of any Keras layer (`dtype`, `name`).
        inputs: NumPy arrays, one for each tensor argument; the first axis is the batch. Integers
            are tokens, of which each plus 1 must be one, too.
        fixture: Name of the files from other backends; None for none.
        sequence: Whether axis 1 is time and may have any length.
        causal: Whether a later step may not change an earlier output.
        window: If W, steps W or more away may not change an output.
        equivariant: Whether permuted steps give permuted outputs.
        masked: Whether the layer takes masks.
        dropout: Whether `make` asks for dropout.
        decodes: Whether the layer decodes step by step: see `tests.decode_checks`.
    """
    inputs = list(map(as_input, inputs))
    check_config(make, inputs)
    check_sublayers(make, inputs)
    check_precision(make, inputs)
    check_training(make, inputs)
    check_compiled(make, inputs)
    check_saving(make, inputs)
    optional = {
        check_dropout: dropout,
        check_unknown_sizes: sequence,
        check_masks: masked,
        check_ways_in: masked,
        check_padding: masked,
        check_future: causal,
        check_permutation: equivariant,
        check_decoding: decodes,
    }
    for check, fits in optional.items():
        if fits:
            check(make, inputs)
    if window is not None:
        check_window(make, inputs, window)
    if fixture is not None:
        check_fixture(make, fixture)


def check_config(make, inputs):
    """The config holds every constructor argument, and makes an equal layer."""
    layer = ready(make, inputs)
    config = layer.get_config()
    for name, parameter in inspect.signature(type(layer).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        assert name in config, f"get_config() of {type(layer).__name__} lacks {name!r}"
    expected = result(layer, *inputs)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer)
    assert plain(again.get_config()) == plain(config), "the config does not survive a round trip"
    build(again, inputs)
    again.set_weights(layer.get_weights())
    assert_close(result(again, *inputs), expected)


def check_sublayers(make, inputs):
    """Every sub-layer has the layer's dtype policy."""
    layer = ready(make, inputs, dtype="mixed_bfloat16")
    for part in layer._flatten_layers():
        if (
            isinstance(part, Position) and part is not layer
        ):  # which is given, and takes the dtype of what it changes
            continue
        name = part.dtype_policy.name
        assert name == "mixed_bfloat16", f"sub-layer {part.name!r} has dtype policy {name!r}"


def check_precision(make, inputs):
    """Under half-precision policies the output is half, finite, and near that of float32."""
    reference = ready(make, inputs)
    expected = result(reference, *inputs)
    for policy, dtype, tolerance in (
        ("mixed_float16", "float16", 1e-2),
        ("mixed_bfloat16", "bfloat16", 6e-2),
    ):
        layer = ready(make, inputs, dtype=policy)
        layer.set_weights(reference.get_weights())
        output = quick(layer)(*inputs)
        assert keras.backend.standardize_dtype(output.dtype) == dtype, f"{policy}: {output.dtype}"
        weights = {keras.backend.standardize_dtype(w.dtype) for w in layer.trainable_weights}
        assert weights <= {"float32"}, f"{policy}: weights of {weights}"
        assert_close(run(ops.cast, output, "float32"), expected, tolerance)


def check_training(make, inputs):
    """One step of fit is finite and changes every trainable weight."""
    layer = make()
    model = functional(layer, inputs)
    shake(layer)
    # Every position has a target of its own, so that no gradient is 0 by symmetry.
    shape = (len(inputs[0]), *model.output_shape[1:])
    target = np.random.default_rng(0).normal(size=shape).astype("float32")
    before = [np.copy(w) for w in layer.get_weights()]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(inputs, target, batch_size=len(target), verbose=0)
    assert np.isfinite(history.history["loss"]).all(), "the loss is not finite"
    for weight, old in zip(layer.weights, before, strict=True):
        new = run(ops.convert_to_tensor, weight)
        assert np.isfinite(new).all(), f"{weight.path} is not finite after a step"
        assert not weight.trainable or np.abs(new - old).max() > 0, f"{weight.path} did not move"


def check_compiled(make, inputs):
    """XLA (torch: TorchDynamo and AOTAutograd) computes what the layer computes without.

    It is the one check that runs the layer operation by operation on JAX: see `quick`.
    """
    layer = ready(make, inputs)
    expected = run(layer, *inputs)
    tensors = [ops.convert_to_tensor(x) for x in inputs]
    assert_close(run(compiled(lambda *x: layer(*x)), *tensors), expected)


def check_saving(make, inputs):
    """A saved model comes back with its class, config, weights and output."""
    layer = make(name="checked")
    model = functional(layer, inputs)
    shake(layer)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        again = keras.saving.load_model(path)
    assert plain(again.get_layer("checked").get_config()) == plain(layer.get_config())
    assert_close(again.predict(inputs, verbose=0), model.predict(inputs, verbose=0))


def check_dropout(make, inputs):
    """Dropout acts in training, only there, and differs from call to call."""
    layer = ready(make, inputs)
    tensors = [ops.convert_to_tensor(x) for x in inputs]
    weights, states = layer.trainable_variables, layer.non_trainable_variables
    states = [state.value for state in states]

    def call(training, states):
        """The output, and the states of the generators after it."""
        stateless = functools.partial(layer.stateless_call, training=training)
        return run(quick(lambda states, *x: stateless(weights, states, *x)), states, *tensors)

    calm, states = call(False, states)
    np.testing.assert_array_equal(call(None, states)[0], calm)
    first, states = call(True, states)
    second, _ = call(True, states)
    assert np.abs(first - calm).max() > 0, "dropout is not applied in training"
    assert np.abs(first - second).max() > 0, "dropout repeats itself"


def check_unknown_sizes(make, inputs):
    """One model serves batches and lengths that were unknown when it was built."""
    layer = make()
    nodes = [keras.Input((None, *x.shape[2:]), dtype=as_input(x).dtype.name) for x in inputs]
    model = keras.Model(nodes, layer(*nodes))
    shake(layer)
    for batch, steps in ((len(inputs[0]), None), (1, -1)):
        some = [x[:batch, :steps] for x in inputs]
        assert_close(model.predict(some, verbose=0), result(layer, *some))


def check_masks(make, inputs):
    """A Keras mask is read, left where it was, set on the output, and means `mask=`."""
    layer = ready(make, inputs)
    keep = some_padding(inputs[0])
    tensor = ops.convert_to_tensor(inputs[0])
    explicit = result(layer, tensor, *inputs[1:], mask=ops.convert_to_tensor(keep))
    assert np.abs(explicit - result(layer, *inputs)).max() > 0, "the mask has no effect"

    values = inputs[0] + (inputs[0] == 0)  # Masking looks for zeros
    values[~keep] = 0.0
    nodes = [keras.Input(x.shape[1:]) for x in inputs]
    masked = keras.layers.Masking()(nodes[0])
    output = layer(masked, *nodes[1:])
    assert getattr(masked, "_keras_mask", None) is not None, "the input lost its mask"
    assert getattr(output, "_keras_mask", None) is not None, "the output has no mask"
    model = keras.Model(nodes, output)
    implicit = result(model, [values, *inputs[1:]])
    wanted = result(layer, values, *inputs[1:], mask=ops.convert_to_tensor(keep))
    assert_close(implicit[keep], wanted[keep])

    other = np.ones_like(keep)
    other[0, 0] = False
    mask_node = keras.Input(keep.shape[1:], dtype="bool")
    both = keras.Model([*nodes, mask_node], layer(masked, *nodes[1:], mask=mask_node))
    found = result(both, [values, *inputs[1:], other])
    wanted = result(layer, values, *inputs[1:], mask=ops.convert_to_tensor(keep & other))
    assert_close(found, wanted)
    found = result(both, [values, *inputs[1:], np.ones_like(keep)])
    assert_close(found[keep], implicit[keep])


def check_ways_in(make, inputs):
    """An implicit mask means an explicit one in every way into the layer, and for every input."""
    layer = ready(make, inputs)
    masks = [ops.convert_to_tensor(some_padding(x)) for x in inputs]
    names = mask_names(layer, inputs)
    ways = {"call": layer, "attention_weights": getattr(layer, "attention_weights", None)}
    for way, function in ways.items():
        if function is None:
            continue
        free = result(function, *inputs)
        for i, (name, mask) in enumerate(zip(names, masks, strict=True)):
            wanted = result(function, *inputs, **{name: mask})
            assert np.abs(wanted - free).max() > 0, f"{name} has no effect in {way}"
            implicit = with_mask(function, mask, i)
            assert_close(result(implicit, *inputs), wanted)
            everything = ops.ones(mask.shape, "bool")
            assert_close(result(implicit, *inputs, **{name: everything}), wanted)
    if uses_positions(layer):  # a second tensor, with which Keras hands on no mask
        options = {"positions": ops.arange(inputs[0].shape[1], dtype="int32")}
        wanted = result(layer, *inputs, **options, **{names[0]: masks[0]})
        assert_close(result(with_mask(layer, masks[0]), *inputs, **options), wanted)
    _check_output_mask(layer, inputs, masks[0], names[0])


def _check_output_mask(layer, inputs, mask, name):
    """Padding of the first input is padding of the output, whatever else is given."""
    keep = run(ops.copy, mask)
    other = np.ones_like(keep)
    other[0, 0] = False
    implicit = with_mask(layer, mask)
    assert_output_mask(implicit, inputs, keep)
    assert_output_mask(layer, inputs, keep, **{name: mask})
    assert_output_mask(implicit, inputs, keep & other, **{name: ops.convert_to_tensor(other)})
    if len(inputs) == 1 and hasattr(layer, "softcap"):  # which takes masks of query by key
        square = ops.ones((*keep.shape, keep.shape[1]), "bool")
        assert_output_mask(implicit, inputs, keep, **{name: square})
        assert_output_mask(implicit, inputs, keep, **{name: kattn.masks.Causal()})


def assert_output_mask(function, inputs, expected, **options):
    """The mask that Keras keeps for the output is this one."""

    def output_mask(*tensors):
        mask = get_keras_mask(function(*tensors, **options))
        assert mask is not None, "the output has no mask"
        return mask

    np.testing.assert_array_equal(result(output_mask, *inputs), expected)


def mask_names(layer, inputs):
    """The names of the mask arguments of the inputs."""
    parameters = list(inspect.signature(layer.call).parameters)
    first = "mask" if "mask" in parameters else f"{parameters[0]}_mask"
    return [first, *(f"{name}_mask" for name in parameters[1 : len(inputs)])]


def with_mask(function, mask, index=0):
    """The function, for an argument of which Keras keeps a mask."""

    def call(*arrays, **options):
        tensors = [ops.copy(ops.convert_to_tensor(x)) for x in arrays]
        set_keras_mask(tensors[index], mask)
        return function(*tensors, **options)

    return call


def uses_positions(layer):
    """Whether the layer's `position` looks at positions that are given."""
    takes = "positions" in inspect.signature(layer.call).parameters
    position = takes and getattr(layer, "attention", layer).position  # a block has attention
    return isinstance(position, InputPosition | HeadPosition)


def check_decoding(make, inputs):
    """What decodes passes the conformance test."""
    check_decodes(lambda: ready(make, inputs), inputs)


def check_padding(make, inputs):
    """What stands at padding steps, and how many there are, changes nothing."""
    layer = ready(make, inputs)
    x, keep = inputs[0], np.ones(inputs[0].shape[:2], bool)
    expected = result(layer, *inputs)
    for fill in (0.0, 100.0):
        longer = np.concatenate([x, np.full_like(x[:, :2], fill)], axis=1)
        mask = np.concatenate([keep, np.zeros_like(keep[:, :2])], axis=1)
        found = result(layer, longer, *inputs[1:], mask=ops.convert_to_tensor(mask))
        assert_close(found[:, : x.shape[1]], expected)


def check_future(make, inputs):
    """A step changes no earlier output, and its own."""
    layer = ready(make, inputs)
    before, x = result(layer, *inputs), inputs[0]
    for step in range(x.shape[1]):
        moved = x.copy()
        moved[:, step] += 1
        after = result(layer, moved, *inputs[1:])
        assert_close(after[:, :step], before[:, :step])
        assert np.abs(after[:, step] - before[:, step]).max() > 1e-4, f"step {step} is not seen"


def check_window(make, inputs, window):
    """A step changes outputs less than `window` steps away only, and that of the farthest."""
    layer = ready(make, inputs)
    before, x = result(layer, *inputs), inputs[0]
    for step in range(x.shape[1]):
        moved = x.copy()
        moved[:, step] += 1.0
        changed = np.abs(result(layer, moved, *inputs[1:]) - before).max(axis=(0, 2)) > 1e-5
        distance = np.arange(x.shape[1]) - step
        assert not changed[np.abs(distance) >= window].any(), f"step {step} is seen too far"
        assert changed[distance == window - 1].all(), f"step {step} is not seen far enough"


def check_permutation(make, inputs):
    """Permuted steps give permuted outputs."""
    layer = ready(make, inputs)
    order = np.random.default_rng(2).permutation(inputs[0].shape[1])
    found = result(layer, inputs[0][:, order], *inputs[1:])
    assert_close(found, result(layer, *inputs)[:, order])


def check_fixture(make, name):
    """Models that the other backends saved give here what they gave there."""
    for backend in BACKENDS:
        path = FIXTURES / f"{name}-{backend}.keras"
        assert path.exists(), f"{path.name} is missing: see the head of tests/checks.py"
        model = keras.saving.load_model(path)
        stored = np.load(path.with_suffix(".npz"))
        inputs = [stored[f"input_{i}"] for i in range(len(model.inputs))]
        assert_close(result(model, inputs), stored["output"])
        now, then = make(name="checked").get_config(), model.get_layer("checked").get_config()
        assert plain(now) == plain(then), f"{path.name} is stale: see the head of tests/checks.py"


def write_fixture(make, inputs, name):
    """Writes the fixture of the backend at hand."""
    inputs = list(map(as_input, inputs))
    layer = make(name="checked")
    model = functional(layer, inputs)
    shake(layer)
    FIXTURES.mkdir(exist_ok=True)
    path = FIXTURES / f"{name}-{keras.backend.backend()}.keras"
    model.save(path)
    stored = {f"input_{i}": x for i, x in enumerate(inputs)}
    np.savez(path.with_suffix(".npz"), output=model.predict(inputs, verbose=0), **stored)


def plain(config):
    """A config without the numbers by which Keras tells shared objects."""
    if isinstance(config, dict):
        return {name: plain(x) for name, x in config.items() if name != "shared_object_id"}
    return [plain(x) for x in config] if isinstance(config, list | tuple) else config


def functional(layer, inputs):
    """The layer as a model."""
    nodes = [keras.Input(x.shape[1:], dtype=as_input(x).dtype.name) for x in inputs]
    return keras.Model(nodes, called(layer, nodes))


def called(layer, nodes):
    """The layer on tensors: each is an argument of its own, or `inputs` is all of them."""
    takes_all = next(iter(inspect.signature(layer.call).parameters)) == "inputs"
    return layer(nodes) if takes_all and len(nodes) > 1 else layer(*nodes)


def ready(make, inputs, **options):
    """A built layer, its weights off their initial values."""
    layer = make(**options)
    shake(layer, inputs)
    return layer


def build(layer, inputs):
    """Builds the layer for such inputs, without a computation."""
    nodes = [keras.KerasTensor(x.shape, keras.backend.standardize_dtype(x.dtype)) for x in inputs]
    called(layer, nodes)


def shake(layer, inputs=()):
    """Moves every weight off its initial value: zeros and ones hide faults.

    A layer that is not built is built for `inputs` first.
    """
    if not layer.built:
        build(layer, inputs)
    rng = np.random.default_rng(9)
    for weight in layer.trainable_weights:
        weight.assign_add(0.3 * rng.normal(size=weight.shape))


def some_padding(x):
    """`(B, T)`: none, the end, and all of an item padded."""
    keep = np.ones(x.shape[:2], bool)
    keep[1, x.shape[1] // 2 :] = False
    keep[2] = False
    return keep
