"""What every exported layer does inside a model, whatever the layer computes.

A new layer gets an entry in `LAYERS`, and is then held to all that is below.
"""

import gc
import inspect
import itertools

import keras
import numpy as np
import pytest
from keras import ops

from kattn import layers, masks
from tests.checks import shake
from tests.compute import assert_close, differentiate, quick, run
from tests.decode_checks import in_pieces
from tests.every_layer import BASES, PARTS

X, CONTEXT, SCORES, MAP = (3, 5, 8), (3, 6, 8), (3, 2, 5, 5), (3, 5, 4, 8)


def block(name, **parts):
    """A function that gives a new block of causal attention, with its options and of its dtype."""

    def make(**options):
        attention = layers.SelfAttention(2, causal=True, **options)
        made = {role: kind(2) for role, kind in parts.items()}
        return getattr(layers, name)(attention, layers.FeedForward(6), **made)

    return make


def recurrent(name, *args, rnn, **arguments):
    """A function that gives a new layer that holds a recurrent layer of Keras."""

    def make(**options):
        return getattr(layers, name)(rnn(), *args, **arguments, **options)

    return make


def lstm(**options):
    return keras.layers.LSTM(8, return_sequences=True, **options)


# Name: function that gives a new layer, shapes of its inputs.
LAYERS = {
    "SelfAttention": (
        lambda **options: layers.SelfAttention(
            2, causal=True, use_qk_norm=True, use_gate=True, **options
        ),
        [X],
    ),
    "CrossAttention": (lambda **options: layers.CrossAttention(2, **options), [X, CONTEXT]),
    "DifferentialAttention": (
        lambda **options: layers.DifferentialAttention(2, causal=True, **options),
        [X],
    ),
    "LinearAttention": (lambda **options: layers.LinearAttention(2, causal=True, **options), [X]),
    "GatedLinearAttention": (lambda **options: layers.GatedLinearAttention(2, **options), [X]),
    "MultiHeadAttention": (
        lambda **options: layers.MultiHeadAttention(2, 4, use_gate=True, **options),
        [X, CONTEXT],
    ),
    "SelfAttention2D": (
        lambda **options: layers.SelfAttention2D(2, key_dim=4, **options),
        [(3, 2, 4, 8)],
    ),
    "WindowAttention1D": (
        lambda **options: layers.WindowAttention1D(2, 3, shift=1, **options),
        [X],
    ),
    "WindowAttention2D": (
        lambda **options: layers.WindowAttention2D(2, (2, 3), shift=1, **options),
        [(3, 5, 4, 8)],
    ),
    "WindowAttention3D": (
        lambda **options: layers.WindowAttention3D(2, 2, partition="grid", **options),
        [(3, 2, 4, 3, 8)],
    ),
    "AxialAttention2D": (
        lambda **options: layers.AxialAttention2D(2, combine="sum", **options),
        [(3, 5, 4, 8)],
    ),
    "AxialAttention3D": (
        lambda **options: layers.AxialAttention3D(2, value_dim=3, **options),
        [(3, 2, 4, 3, 8)],
    ),
    "SelfAttention1D": (
        lambda **options: layers.SelfAttention1D(2, form="gaussian", **options),
        [X],
    ),
    "SelfAttention3D": (
        lambda **options: layers.SelfAttention3D(2, form="dot_product", **options),
        [(3, 2, 2, 3, 8)],
    ),
    "NeighborhoodAttention1D": (
        lambda **options: layers.NeighborhoodAttention1D(2, 3, **options),
        [X],
    ),
    "NeighborhoodAttention2D": (
        lambda **options: layers.NeighborhoodAttention2D(2, 2, clamped=False, **options),
        [(3, 2, 4, 8)],
    ),
    "NeighborhoodAttention3D": (
        lambda **options: layers.NeighborhoodAttention3D(2, 2, **options),
        [(3, 2, 2, 3, 8)],
    ),
    "SqueezeExcite": (lambda **options: layers.SqueezeExcite(2, **options), [X]),
    "EfficientChannelAttention": (layers.EfficientChannelAttention, [X]),
    "CBAM": (lambda **options: layers.CBAM(2, 3, **options), [X]),
    "CoordinateAttention": (lambda **options: layers.CoordinateAttention(2, **options), [X]),
    "GlobalContext": (lambda **options: layers.GlobalContext(2, fusion="both", **options), [X]),
    "AttentionGate1D": (layers.AttentionGate1D, [X, CONTEXT]),
    "AttentionGate2D": (layers.AttentionGate2D, [MAP, (3, 4, 2, 6)]),
    "AttentionGate3D": (layers.AttentionGate3D, [(3, 5, 2, 3, 4), (3, 4, 1, 2, 8)]),
    "CrossCovarianceAttention": (
        lambda **options: layers.CrossCovarianceAttention(2, **options),
        [MAP],
    ),
    "DeformableAttention2D": (
        lambda **options: layers.DeformableAttention2D(
            2, num_groups=2, bias_sides=(4, 4), **options
        ),
        [MAP],
    ),
    "AttentionPooling": (lambda **options: layers.AttentionPooling(2, 3, **options), [X]),
    "TransformerEncoderBlock": (block("TransformerEncoderBlock"), [X]),
    "TransformerDecoderBlock": (
        block("TransformerDecoderBlock", cross_attention=layers.CrossAttention),
        [X, CONTEXT],
    ),
    "SelfAttentionRNN": (recurrent("SelfAttentionRNN", 2, rnn=lstm, combine="gate"), [X]),
    "StructuredSelfAttention": (
        lambda **options: layers.StructuredSelfAttention(2, 6, **options),
        [X],
    ),
    "RTransformerBlock": (
        lambda **options: layers.RTransformerBlock(
            keras.layers.GRU(8),
            layers.SelfAttention(2, causal=True, **options),
            layers.FeedForward(6),
            window=3,
        ),
        [X],
    ),
    "SHARNNBlock": (recurrent("SHARNNBlock", rnn=lambda: lstm(return_state=True)), [X]),
    "DecodingRNN": (recurrent("DecodingRNN", rnn=lstm), [X]),
    "AttentionRNN": (
        lambda **options: layers.AttentionRNN(
            keras.layers.GRUCell(8), layers.MultiHeadScore(2), causal=True, **options
        ),
        [X],
    ),
    "LSTMN": (lambda **options: layers.LSTMN(8, **options), [X]),
    "MinGRU": (lambda **options: layers.MinGRU(8, **options), [X]),
    "MinLSTM": (lambda **options: layers.MinLSTM(8, **options), [X]),
    "SRU": (lambda **options: layers.SRU(8, **options), [X]),
    "SRUPlusPlus": (lambda **options: layers.SRUPlusPlus(8, 4, **options), [X]),
    "RGLRU": (lambda **options: layers.RGLRU(2, **options), [X]),
    "GatedDeltaNet": (lambda **options: layers.GatedDeltaNet(2, **options), [X]),
    "CausalDepthwiseConv1D": (lambda: layers.CausalDepthwiseConv1D(3), [X]),
    "GriffinRecurrence": (lambda **options: layers.GriffinRecurrence(2, **options), [X]),
    "GriffinBlock": (
        lambda **options: layers.GriffinBlock(
            2, window=3, pattern=("recurrent", "attention"), **options
        ),
        [X],
    ),
    "FeedForward": (lambda **options: layers.FeedForward(6, "reglu", **options), [X]),
    "DropPath": (lambda: layers.DropPath(0.5), [X]),
    "LayerScale": (layers.LayerScale, [X]),
    "SinusoidalPositions": (layers.SinusoidalPositions, [X]),
    "LearnedPositions": (lambda: layers.LearnedPositions(6), [X]),
    "RotaryEmbedding": (layers.RotaryEmbedding, [(3, 5, 2, 4)]),
    "ALiBi": (layers.ALiBi, [SCORES]),
    "T5RelativeBias": (layers.T5RelativeBias, [SCORES]),
    "ShawRelative": (lambda: layers.ShawRelative(2), [SCORES, (3, 5, 2, 4)]),
    "RelativeTable": (lambda: layers.RelativeTable((5,)), [SCORES]),
}


def call_arguments(name):
    return set(inspect.signature(getattr(layers, name).call).parameters)


POSITIONS = [name for name in LAYERS if issubclass(getattr(layers, name), layers.Position)]
ATTENTION = [name for name in LAYERS if name not in POSITIONS]
MASKED = [name for name in ATTENTION if any("mask" in word for word in call_arguments(name))]
TAKE_OBJECTS = [name for name in ATTENTION if "mask_arrays" in call_arguments(name)]
TAKE_POSITIONS = [name for name in LAYERS if "positions" in call_arguments(name)]
# Position layers decode, too, and have no projections.
WITHOUT_PROJECTIONS = ["DecodingRNN", "LSTMN", "RGLRU", "CausalDepthwiseConv1D"]
POOL = ["StructuredSelfAttention", "AttentionPooling"]
DECODE = [name for name in LAYERS if hasattr(getattr(layers, name), "decode")]


def test_every_exported_layer_is_here():
    exported = {
        name
        for name, value in vars(layers).items()
        if inspect.isclass(value) and issubclass(value, keras.layers.Layer)
    }
    assert set(LAYERS) == exported - BASES - PARTS
    assert TAKE_OBJECTS == [
        "SelfAttention", "CrossAttention", "DifferentialAttention", "MultiHeadAttention",
        "TransformerEncoderBlock", "TransformerDecoderBlock", "RTransformerBlock",
    ]  # fmt: skip


def draw(name):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype("float32") for shape in LAYERS[name][1]]


def fresh(name, **options):
    return LAYERS[name][0](**options)


def functional(layer, inputs, **arguments):
    nodes = [keras.Input(x.shape[1:]) for x in inputs]
    return keras.Model(nodes, layer(*nodes, **arguments))


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def result(function, *args):
    """The result as NumPy."""
    return run(quick(lambda *args: function(*args)), *args)  # a new function is compiled anew


def assert_equal_weights(model, other):
    """By their paths inside of the model, as their order may be another."""
    named = [{w.path.removeprefix(f"{x.name}/"): w for w in x.weights} for x in (model, other)]
    assert named[0].keys() == named[1].keys()
    assert len(named[0]) == len(model.weights)
    for path, weight in named[0].items():
        pair = run(ops.copy, weight), run(ops.copy, named[1][path])
        np.testing.assert_array_equal(*pair, err_msg=path)


def unbuilt_parts(model):
    return [part.name for part in model._flatten_layers() if not part.built]


@pytest.mark.parametrize("name", LAYERS)
def test_every_part_is_built_after_one_call(name):
    """Else Keras builds the model anew at each batch, and does not quantise it."""
    assert not unbuilt_parts(functional(fresh(name), draw(name)))


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_are_built_with_the_layer_that_has_them(position):
    layer = layers.SelfAttention(2, position=fresh(position))
    layer.build(X)
    assert not unbuilt_parts(layer)


@pytest.mark.parametrize("name", ["MultiHeadAttention", "SelfAttention2D", "LinearAttention"])
def test_positions_are_built_in_layers_of_other_families(name):
    axes = 2 if name == "SelfAttention2D" else 1
    layer = fresh(name, position=layers.RotaryEmbedding(axes=axes))
    layer.build(*LAYERS[name][1])
    assert not unbuilt_parts(layer)


def test_a_batch_is_not_traced_anew():
    """`train_on_batch` runs the call of each layer in its compiled step alone."""
    calls = []

    class Counted(layers.SelfAttention):
        def call(self, x, mask=None, training=None):
            calls.append(self.name)
            return super().call(x, mask=mask, training=training)

    x = draw("SelfAttention")[0]
    positions = layers.RotaryEmbedding(), layers.ALiBi()
    model = keras.Sequential([Counted(2, position=position) for position in positions])
    model.compile("sgd", "mse")
    model.train_on_batch(x, x)
    calls.clear()
    for _ in range(2):
        model.train_on_batch(x, x)
    assert len(calls) == (2 * len(positions) if keras.backend.backend() == "torch" else 0)


# What is quantised is Keras's Dense, or EinsumDense in `MultiHeadAttention`.
QUANTISED = [
    *((name, "int8") for name in ATTENTION),
    *itertools.product(["SelfAttention", "MultiHeadAttention"], ["int4", "float8"]),
]


@pytest.mark.filterwarnings("ignore:.*quantize.*")
@pytest.mark.parametrize(("name", "mode"), QUANTISED)
def test_quantised(name, mode, tmp_path, monkeypatch):
    """Every projection is quantised, and comes back so from a file."""
    # Keras collects garbage for each weight that it replaces, half a second each time in a test.
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    layer, inputs = fresh(name), draw(name)
    model = functional(layer, inputs)
    shake(layer)
    model.quantize(mode)
    again = reloaded(model, tmp_path)
    for part in (*layer._flatten_layers(), *again.layers[-1]._flatten_layers()):
        is_projection = isinstance(part, keras.layers.Dense | keras.layers.EinsumDense)
        assert part.quantization_mode == (mode if is_projection else None), part.name
    assert_equal_weights(again, model)
    if name == "SelfAttention":
        assert_close(result(again, inputs), result(model, inputs))


def check_decoding(layer, inputs):
    """A step, and then the others, equal the call."""
    x, steps, arguments = inputs[0], inputs[0].shape[1], {}
    if isinstance(layer, layers.MultiHeadAttention):
        inputs, arguments = [x], {"value": x, "use_causal_mask": True}

    def both_ways(x, *context):
        pieces = in_pieces(layer, x, [0, 1, steps], steps, *context)
        return pieces, layer(x, *context, **arguments)

    assert_close(*result(both_ways, *inputs))


@pytest.mark.filterwarnings("ignore:.*quantize.*")
@pytest.mark.parametrize("name", POSITIONS)
def test_a_model_with_positions_is_quantised(name):
    model = functional(fresh(name), draw(name))
    model.quantize("int8")


@pytest.mark.filterwarnings("ignore:.*quantize.*")
@pytest.mark.parametrize("name", [name for name in DECODE if name not in POSITIONS])
def test_decoding_of_what_is_quantised_and_has_lora(name, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    layer, inputs = fresh(name), draw(name)
    if name == "MultiHeadAttention":
        inputs = inputs[:1] * 2
    model = functional(layer, inputs)
    model.quantize("int8")
    projections = [part for part in layer._flatten_layers() if hasattr(part, "enable_lora")]
    assert projections or name in WITHOUT_PROJECTIONS
    for part in projections:
        part.enable_lora(2)
    shake(layer)
    check_decoding(layer, inputs)


def object_argument(name):
    """The argument of a layer's call that takes mask objects."""
    return next(
        word for word in ("attention_mask", "context_mask", "mask") if word in call_arguments(name)
    )


ARRAYS = {
    "ids": np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2], [0, 0, 0, 0, -1, -1]], "int32"),
    "lengths": np.array([1, 4, 2], "int32"),
    "keys": np.array([[1, 1, 1, 1, 0, 1], [1] * 6, [0, 1, 1, 1, 1, 1]], bool),
}


def arrays_for(name):
    steps = LAYERS[name][1][-1][1]
    return {key: array[..., :steps] if array.ndim > 1 else array for key, array in ARRAYS.items()}


def mask_object(arrays):
    """A mask of all kinds of arrays."""
    packed = masks.Causal() & masks.Segments(arrays["ids"])
    return (packed | masks.Prefix(arrays["lengths"])) & masks.Padding(arrays["keys"])


@pytest.mark.parametrize("name", TAKE_OBJECTS)
def test_mask_objects_in_functional_models(name, tmp_path):
    """They may hold symbolic tensors: packed sequences whose ids are an input of the model."""
    layer, inputs, arrays = fresh(name), draw(name), arrays_for(name)
    nodes = [keras.Input((None, x.shape[-1])) for x in inputs]
    held = {
        key: keras.Input((None,) * (x.ndim - 1), dtype=x.dtype.name) for key, x in arrays.items()
    }
    argument = object_argument(name)
    output = layer(*nodes, **{argument: mask_object(held)})
    model = keras.Model([*nodes, *held.values()], output)
    shake(layer)
    found = model.predict([*inputs, *arrays.values()], verbose=0)
    other = model.predict([*inputs, *(x[::-1] for x in arrays.values())], verbose=0)
    assert np.abs(other - found).max() > 1e-2
    wanted = result(
        lambda arrays, *inputs: layer(*inputs, **{argument: mask_object(arrays)}), arrays, *inputs
    )
    assert_close(found, wanted)
    assert_close(result(reloaded(model, tmp_path), [*inputs, *arrays.values()]), wanted)


@keras.saving.register_keras_serializable("tests")
class OfDicts(keras.Model):
    """A layer that is called with a dict of arrays, as a user would write it."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, given):
        given = dict(given)
        held = {key: given.pop(key) for key in ARRAYS if key in given}
        if held:
            given[object_argument(type(self.layer).__name__)] = mask_object(held)
        inputs = [given.pop(key) for key in sorted(given) if key.startswith("input")]
        return self.layer(*inputs, **given)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


def padding_masks(name):
    """A padding mask for each argument that takes one."""
    found, inputs = {}, LAYERS[name][1]
    for word in ("mask", "query_mask", "context_mask", "value_mask", "key_mask", "gate_mask"):
        if word in call_arguments(name):
            shape = inputs[0 if word in ("mask", "query_mask") else -1]
            found[word] = np.ones(shape[:-1], bool)
            found[word][1, 3:] = False
    return found


GIVEN = [
    *((name, "arrays") for name in dict.fromkeys([*MASKED, *TAKE_POSITIONS])),
    *((name, "mask object") for name in TAKE_OBJECTS),
]


@pytest.mark.parametrize(("name", "given"), GIVEN)
def test_a_subclassed_model_is_loaded_with_its_weights(name, given, tmp_path):
    """Keras builds it with stand-ins that are all float32, also for masks and positions."""
    options, arguments = {}, padding_masks(name)
    if given == "mask object":
        arguments = arrays_for(name)
    elif name in TAKE_POSITIONS:
        arguments["positions"] = np.array([2, 0, 1, 4, 3], "int32")
        options = {"position": layers.LearnedPositions(6)} if name in ATTENTION else {}
    model = OfDicts(fresh(name, **options))
    arguments |= {f"input{i}": x for i, x in enumerate(draw(name))}
    model({key: keras.KerasTensor(x.shape, x.dtype.name) for key, x in arguments.items()})
    shake(model)
    again = reloaded(model, tmp_path)
    assert again.layer.built
    assert_equal_weights(again, model)
    if (name, given) == ("SelfAttention", "arrays"):
        assert_close(result(again, arguments), result(model, arguments))


def real_steps(name):
    """Which steps of each input are real under `padding_masks`."""
    given = padding_masks(name)
    of_keys = [mask for word, mask in given.items() if word not in ("mask", "query_mask")]
    return [given.get("mask", given.get("query_mask")), *([np.all(of_keys, 0)] if of_keys else [])]


def all_ways(layer, name, inputs):
    """The call, the attention weights and the steps of a decoding, under padding."""
    given, steps = padding_masks(name), real_steps(name)[0]
    found = [layer(*inputs, **given)]
    if hasattr(layer, "attention_weights"):
        found += keras.tree.flatten(layer.attention_weights(*inputs, **given))
    if name in DECODE:
        x, *context = inputs[:1] if name == "MultiHeadAttention" else inputs
        context += [given["context_mask"]] if context else []
        cache = layer.init_cache(len(steps), 6, *context)
        y, cache = layer.decode(x, cache, mask=steps)
        found += [y, layer.decode(x[:, :1], cache)[0]]
    return found


# JAX compiles each layer for seconds; one reads the masks of two inputs, and of decoding.
@pytest.mark.parametrize("name", ["CrossAttention"] if keras.backend.backend() == "jax" else MASKED)
def test_what_stands_at_padding_is_without_effect(name):
    """Be it NaN: on outputs, and on the gradients of weights and inputs."""
    layer = fresh(name)
    layer.build(*LAYERS[name][1])
    shake(layer)
    weights = layer.trainable_variables

    def total(*tensors):
        with keras.StatelessScope(state_mapping=zip(weights, tensors, strict=False)):
            outputs = all_ways(layer, name, tensors[len(weights) :])
        flat = ops.concatenate([ops.reshape(y, (-1,)) for y in outputs])
        return ops.sum(flat * ops.cos(ops.arange(flat.shape[0], dtype="float32")))

    total, results = quick(total), []
    for value in (0.0, np.nan, np.inf):
        pairs = zip(draw(name), real_steps(name), strict=True)
        inputs = [np.where(real[..., None], x, np.float32(value)) for x, real in pairs]
        tensors = [*(run(ops.copy, weight) for weight in weights), *inputs]
        output, gradients = differentiate(total, tensors, 1.0)
        results.append([output, *gradients])
    for found in results[1:]:
        for pair in zip(found, results[0], strict=True):
            assert_close(*pair)


class SeeMask(keras.layers.Layer):
    """Returns the mask that its input comes with."""

    supports_masking = True

    def call(self, x, mask=None):
        return ops.zeros(ops.shape(x)[:-1]) - 1 if mask is None else ops.cast(mask, "float32")

    def compute_output_shape(self, shape):
        return shape[:-1]


@pytest.mark.parametrize("name", [x for x in MASKED if x not in POOL])
def test_padding_of_the_input_is_padding_of_the_output(name):
    """Whatever else the call is given; where steps are pooled there is no padding left."""
    takes_position = name in TAKE_POSITIONS or name == "SelfAttentionRNN"
    options = {"position": layers.RotaryEmbedding()} if takes_position else {}
    layer, inputs = fresh(name, **options), draw(name)
    keep = np.ones(inputs[0].shape[:-1], bool)
    keep[0, 3:] = False
    inputs[0][~keep] = 0.0
    first, *of_others = explicit = padding_masks(name)
    given = [({}, keep), ({first: explicit[first]}, keep & explicit[first])]
    given += [({word: explicit[word]}, keep) for word in of_others]
    if name in TAKE_POSITIONS:
        given.append(({"positions": np.arange(keep.shape[1], dtype="int32")}, keep))
    if name in TAKE_OBJECTS:
        word, steps = object_argument(name), (keep.shape[1], inputs[-1].shape[1])
        given.append(({word: np.ones((len(keep), *steps), bool)}, keep))
        given.append(({word: mask_object(arrays_for(name))}, keep))
    nodes = [keras.Input(x.shape[1:]) for x in inputs]
    masked = keras.layers.Masking()(nodes[0])
    outputs = [layer(masked, *nodes[1:], **arguments) for arguments, _ in given]
    found = result(keras.Model(nodes, [SeeMask()(y) for y in outputs]), inputs)
    for mask, (arguments, expected) in zip(found, given, strict=True):
        np.testing.assert_array_equal(mask, expected, err_msg=f"given {list(arguments)}")
