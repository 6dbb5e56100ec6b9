import importlib

import keras
import numpy as np
import pytest
from keras import ops

from kattn import masks
from kattn.layers import MultiHeadAttention
from kattn.layers.position.head_position import HeadPosition
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from kattn.layers.position.sinusoidal_positions import SinusoidalPositions
from tests import oracle as core_oracle
from tests import rotary_oracle
from tests.checks import check_layer, check_ways_in, ready, shake
from tests.compute import assert_close, run
from tests.decode_checks import check_decodes, in_pieces

KEEP_QUERIES = np.array([[1] * 4, [0, 1, 1, 0], [0] * 4], bool)  # none, some, all padded
KEEP_KEYS = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)
FULL = {
    "num_heads": 2,
    "key_dim": 4,
    "value_dim": 5,
    "dropout": 0.4,
    "output_shape": (2, 4),
    "attention_axes": 1,
    "sliding_window": 3,
    "flash_attention": False,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "activity_regularizer": "l2",
    "kernel_constraint": "max_norm",
    "bias_constraint": "max_norm",
    "use_gate": True,
    "seed": 1,
}


def oracle(layer, query, value, key=None, keep=None, causal=False):
    """Output and weights, one query at a time (Vaswani et al. 2017, eq. 1), in float64.

    `keep` broadcasts to the weights, `(B, <other axes>, N, <query axes>, <key axes>)`.
    """
    w = {part.path.split("/", 1)[1]: run(ops.convert_to_tensor, part).astype(float)
         for part in layer.weights}  # fmt: skip
    key = value if key is None else key
    q, k, v = (
        np.tensordot(x, w[f"{name}/kernel"], 1) + w.get(f"{name}/bias", 0.0)
        for name, x in (("query", query), ("key", key), ("value", value))
    )
    rank, heads = query.ndim, q.shape[-2]
    axes = layer.attention_axes or tuple(range(1, rank - 1))
    axes = tuple(axis % rank for axis in axes)
    others = tuple(axis for axis in range(1, rank - 1) if axis not in axes)

    def sizes(x, of):
        return tuple(x.shape[axis] for axis in of)

    def place(b, other, step):
        where = dict(zip((0, *others, *axes), (b, *other, *step), strict=True))
        return tuple(where[axis] for axis in range(rank - 1))

    shape = (*sizes(q, (0, *others)), heads, *sizes(q, axes), *sizes(k, axes))
    keep = np.ones(shape, bool) if keep is None else np.broadcast_to(keep, shape)
    weights, mixed = np.zeros(shape), np.zeros((*q.shape[:-1], v.shape[-1]))
    query_steps, key_steps = (list(np.ndindex(sizes(x, axes))) for x in (q, k))
    offset, window = len(key_steps) - len(query_steps), layer.sliding_window
    for index in np.ndindex(shape[: 2 + len(others)]):
        b, other, n = index[0], index[1:-1], index[-1]
        for i, t in enumerate(query_steps):
            seen = [
                s
                for j, s in enumerate(key_steps)
                if keep[(*index, *t, *s)]
                and (not causal or j <= i + offset)
                and (window is None or abs(i + offset - j) < window)
            ]
            if not seen:
                continue
            at = (*place(b, other, t), n)
            keys = [(*place(b, other, s), n) for s in seen]
            scores = np.array([k[s] @ q[at] for s in keys]) / np.sqrt(q.shape[-1])
            powers = np.exp(scores - scores.max())
            for s, where, p in zip(seen, keys, powers / powers.sum(), strict=True):
                weights[(*index, *t, *s)] = p
                mixed[at] += p * v[where]
    if "gate/kernel" in w:
        gate = np.tensordot(query, w["gate/kernel"], 1) + w.get("gate/bias", 0.0)
        mixed = mixed / (1.0 + np.exp(-gate))
    output = np.tensordot(mixed, w["attention_output/kernel"], 2)
    return output + w.get("attention_output/bias", 0.0), weights


def build(rng, options, query_shape=(3, 4, 6), value_shape=(3, 5, 7), key_shape=None):
    """A layer with weights off their initial values, and its inputs."""
    shapes = [shape for shape in (query_shape, value_shape, key_shape) if shape]
    inputs = [rng.normal(size=shape).astype("float32") for shape in shapes]
    layer = MultiHeadAttention(**{"num_heads": 2, "key_dim": 3, **options})
    shake(layer, inputs)
    return layer, inputs


# Name: options, shapes of query, value and perhaps key, arguments of the call.
ALIKE = {
    "default": ({}, [(3, 4, 6), (3, 5, 7)], {}),
    "key": ({"value_dim": 5}, [(3, 4, 6), (3, 5, 7), (3, 5, 2)], {}),
    "no bias": ({"use_bias": False}, [(3, 4, 6), (3, 5, 7)], {}),
    "gate": ({"use_gate": True, "value_dim": 5}, [(3, 4, 6), (3, 5, 7)], {}),
    "output": ({"output_shape": (2, 3)}, [(3, 4, 6), (3, 5, 7)], {}),
    "causal": ({}, [(3, 5, 6), (3, 5, 7)], {"use_causal_mask": True}),
    "window": ({"sliding_window": 2}, [(3, 5, 6), (3, 5, 7)], {}),
    "causal window": (
        {"sliding_window": 2, "dropout": 0.3},
        [(3, 5, 6), (3, 5, 7)],
        {"use_causal_mask": True},
    ),
    "mask": ({}, [(3, 4, 6), (3, 5, 7)], {"attention_mask": (3, 4, 5)}),
    "mask of heads": ({}, [(3, 4, 6), (3, 5, 7)], {"attention_mask": (3, 2, 4, 5)}),
    "mask for all": ({}, [(3, 4, 6), (3, 5, 7)], {"attention_mask": (1, 4, 5)}),
    "mask of keys": ({}, [(3, 4, 6), (3, 5, 7)], {"attention_mask": (3, 1, 5)}),
    "padded keys": ({}, [(3, 4, 6), (3, 5, 7)], {"value_mask": (3, 5)}),
    "both masks": (
        {},
        [(3, 4, 6), (3, 5, 7), (3, 5, 2)],
        {"value_mask": (3, 5), "key_mask": (3, 5), "attention_mask": (3, 4, 5)},
    ),
    "all axes": ({}, [(3, 4, 2, 6), (3, 5, 3, 7)], {}),
    "all axes, mask": (
        {"value_dim": 5, "use_gate": True},
        [(3, 4, 2, 6), (3, 5, 3, 7)],
        {"attention_mask": (3, 4, 2, 5, 3)},
    ),
    "all axes, mask of heads": (
        {},
        [(3, 4, 2, 6), (3, 5, 3, 7)],
        {"attention_mask": (3, 2, 4, 2, 5, 3)},
    ),
    "axes in turn": ({"attention_axes": (2, 1)}, [(3, 4, 2, 6), (3, 5, 3, 7)], {}),
    "first axis": ({"attention_axes": 1}, [(3, 4, 2, 6), (3, 5, 2, 7)], {}),
    "last axis": ({"attention_axes": (-2,)}, [(3, 2, 4, 6), (3, 2, 5, 7)], {}),
    "last axis, mask": (
        {"attention_axes": 2},
        [(3, 2, 4, 6), (3, 2, 5, 7)],
        {"attention_mask": (3, 2, 4, 5)},
    ),
}


@pytest.mark.parametrize("case", ALIKE)
def test_equals_keras(rng, case):
    """Scores are asked for, which keeps Keras on the one of its paths that works everywhere."""
    options, shapes, arguments = ALIKE[case]
    inputs = [rng.normal(size=shape).astype("float32") for shape in shapes]
    arguments = {
        name: rng.random(value) > 0.4 if isinstance(value, tuple) else value
        for name, value in arguments.items()
    }
    options = {"num_heads": 2, "key_dim": 3, **options}
    theirs, ours = keras.layers.MultiHeadAttention(**options), MultiHeadAttention(**options)
    theirs(*inputs, return_attention_scores=True)
    shake(theirs)
    ours(*inputs)
    assert [(w.shape, w.name) for w in ours.weights] == [(w.shape, w.name) for w in theirs.weights]
    ours.set_weights(theirs.get_weights())
    expected, scores = run(theirs, *inputs, return_attention_scores=True, **arguments)
    output, weights = run(ours, *inputs, return_attention_scores=True, **arguments)
    assert_close(output, expected)
    assert_close(weights, scores)
    assert_close(run(ours, *inputs, **arguments), expected)
    assert_close(run(ours.attention_weights, *inputs, **arguments), scores)


def test_equals_keras_on_implicit_masks(rng):
    x = rng.normal(size=(3, 4, 6)).astype("float32")
    c = rng.normal(size=(3, 5, 6)).astype("float32")
    x[~KEEP_QUERIES], c[~KEEP_KEYS] = 0.0, 0.0
    options = {"num_heads": 2, "key_dim": 3, "dropout": 0.1}
    layers = keras.layers.MultiHeadAttention(**options), MultiHeadAttention(**options)
    models = []
    for layer in layers:
        nodes = keras.Input((4, 6)), keras.Input((5, 6))
        masked = [keras.layers.Masking()(node) for node in nodes]
        models.append(keras.Model(nodes, layer(*masked)))
    shake(layers[0])
    layers[1].set_weights(layers[0].get_weights())
    expected, found = (model.predict([x, c], verbose=0) for model in models)
    assert_close(found, expected)


def test_takes_the_config_and_the_weight_file_of_keras(rng, tmp_path):
    """FULL has dropout, whose seeds are in the file."""
    options = {**FULL, "flash_attention": None}
    inputs = [rng.normal(size=(3, 5, 6)).astype("float32")] * 2
    models = []
    for make in (
        lambda: keras.layers.MultiHeadAttention(**options),
        lambda: MultiHeadAttention.from_config(models[0].layers[-1].get_config()),
    ):
        nodes = keras.Input((5, 6)), keras.Input((5, 6))
        models.append(keras.Model(nodes, make()(*nodes)))
    theirs, ours = models
    shake(theirs.layers[-1])
    theirs.save_weights(tmp_path / "keras.weights.h5")
    ours.load_weights(tmp_path / "keras.weights.h5")
    assert_close(ours.predict(inputs, verbose=0), theirs.predict(inputs, verbose=0))
    config = ours.layers[-1].get_config()
    assert config.pop("flash_attention") is None
    expected = theirs.layers[-1].get_config()
    assert config.keys() == expected.keys()
    assert {**config, "dtype": 0, "attention_axes": 0} == {
        **expected, "dtype": 0, "attention_axes": 0
    }  # fmt: skip


# Keras fails, or is wrong, on all that follows.
CASES = {
    "widths": ({"value_dim": 5}, [(3, 4, 6), (3, 5, 7)], {}),
    "more keys": ({}, [(3, 4, 6), (3, 6, 7)], {"causal": True}),
    "more queries": ({}, [(3, 6, 6), (3, 4, 7)], {"causal": True}),
    "one query": ({}, [(3, 1, 6), (3, 5, 7)], {"causal": True}),
    "window, more keys": ({"sliding_window": 2, "value_dim": 4}, [(3, 4, 6), (3, 6, 7)], {}),
    "all axes": (
        {"sliding_window": 4, "value_dim": 4, "use_gate": True, "output_shape": 5},
        [(3, 3, 2, 6), (3, 3, 4, 7)],
        {"causal": True, "mask": (3, 3, 2, 3, 4)},
    ),
    "first axis": (
        {"attention_axes": 1, "sliding_window": 3},
        [(3, 4, 2, 6), (3, 5, 2, 7), (3, 5, 2, 1)],
        {"causal": True, "mask": (3, 2, 4, 5)},
    ),
    "middle axis": (
        {"attention_axes": 2},
        [(2, 3, 4, 2, 6), (2, 3, 5, 2, 7)],
        {"mask": (2, 3, 2, 4, 5)},
    ),
    "two of three axes": (
        {"attention_axes": (-2, 1), "value_dim": 1},
        [(2, 3, 2, 4, 6), (2, 3, 2, 5, 7)],
        {"causal": True, "mask": (2, 2, 2, 4, 3, 5, 3)},
    ),
    "broadcast axes": ({}, [(3, 4, 2, 6), (3, 5, 3, 7)], {"mask": (3, 1, 1, 1, 5, 1)}),
    "broadcast queries": ({}, [(3, 4, 2, 6), (3, 5, 3, 7)], {"mask": (1, 4, 1, 5, 3)}),
}


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    options, shapes, arguments = CASES[case]
    layer, inputs = build(rng, options, *shapes)
    causal, mask, keep = arguments.get("causal", False), None, None
    if "mask" in arguments:
        mask = rng.random(arguments["mask"]) > 0.4
        axes = len(layer.attention_axes or shapes[0][1:-1])
        missing = len(shapes[0]) + axes - mask.ndim  # from the weights' rank
        split = mask.ndim - 2 * axes
        keep = mask.reshape(*mask.shape[:split], *[1] * missing, *mask.shape[split:])
    expected, weights = oracle(layer, *inputs, keep=keep, causal=causal)
    arguments = {"attention_mask": mask, "use_causal_mask": causal}
    assert_close(run(layer, *inputs, **arguments), expected)
    output, scores = run(layer, *inputs, return_attention_scores=True, **arguments)
    assert_close(output, expected)
    assert_close(scores, weights)
    assert_close(run(layer.attention_weights, *inputs, **arguments), weights)


def test_two_axes_of_padding(rng):
    """Masks may cover the first axes of the inputs, or all but the last."""
    layer, inputs = build(rng, {"attention_axes": 2}, (3, 2, 4, 6), (3, 2, 5, 7))
    queries = np.array([[1, 0], [1, 1], [0, 1]], bool)
    keys = rng.random((3, 2, 5)) > 0.4
    keep = queries[:, :, None, None, None] & keys[:, :, None, None, :]
    expected, weights = oracle(layer, *inputs, keep=keep)
    arguments = {"query_mask": queries, "value_mask": keys}
    assert_close(run(layer, *inputs, **arguments), expected)
    assert_close(run(layer.attention_weights, *inputs, **arguments), weights)


def test_inputs_keep_their_masks(rng):
    """A1: what follows the layer still finds them; the residual sum of a block has one."""
    tokens, node = np.array([[1, 2, 0], [3, 0, 0]]), keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(4, 6, mask_zero=True)(node)
    total = keras.layers.Add()([x, MultiHeadAttention(2, 3)(x, x)])
    assert getattr(x, "_keras_mask", None) is not None
    assert getattr(total, "_keras_mask", None) is not None
    model = keras.Model(node, [total, _SeeMask()(total)])
    assert (run(model, tokens)[1] == (tokens != 0)).all()


class _SeeMask(keras.layers.Layer):
    """Returns the mask that its input comes with; -1 for none."""

    supports_masking = True

    def call(self, x, mask=None):
        return -ops.ones(ops.shape(x)[:2]) if mask is None else ops.cast(mask, "float32")

    def compute_output_shape(self, shape):
        return shape[:2]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("flash", [None, False])
def test_a_query_without_keys_gives_the_output_bias(rng, dropout, flash):
    """A2: whatever the kernel, and whatever took the keys."""
    layer, inputs = build(rng, {"dropout": dropout, "flash_attention": flash})
    mask = np.ones((3, 4, 5), bool)
    mask[1, 2] = False
    arguments = {"query_mask": KEEP_QUERIES, "value_mask": KEEP_KEYS, "attention_mask": mask}
    output, scores = run(layer, *inputs, return_attention_scores=True, **arguments)
    bias = run(ops.convert_to_tensor, layer.output_dense.bias)
    for b, t in ((1, 0), (1, 2), (1, 3), (2, 0), (2, 3)):
        np.testing.assert_allclose(output[b, t], bias, atol=1e-6)
        assert (scores[b, :, t] == 0.0).all()
    keep = KEEP_QUERIES[:, :, None] & KEEP_KEYS[:, None] & mask
    assert_close(output, oracle(layer, *inputs, keep=keep[:, None])[0])


@pytest.mark.parametrize("which", ["query", "value", "key"])
def test_explicit_masks_join_implicit_ones(rng, which):
    """A3: eagerly and in a functional model; the output has the mask of both."""
    shapes = {"query": (3, 4, 6), "value": (3, 5, 7), "key": (3, 5, 2)}
    layer, inputs = build(rng, {}, *shapes.values())
    at = list(shapes).index(which)
    implicit = KEEP_QUERIES if which == "query" else KEEP_KEYS
    explicit = np.ones_like(implicit)
    explicit[0, 1] = explicit[1, 1] = False
    inputs[at][~implicit] = 0.0

    nodes = [keras.Input(shape[1:]) for shape in shapes.values()]
    mask_node = keras.Input(explicit.shape[1:], dtype="bool")
    tensors = list(nodes)
    tensors[at] = keras.layers.Masking()(nodes[at])
    output = layer(*tensors, **{f"{which}_mask": mask_node})
    model = keras.Model([*nodes, mask_node], [output, _SeeMask()(output)])

    both = implicit & explicit
    keep = both[:, None, :, None] if which == "query" else both[:, None, None, :]
    expected, _ = oracle(layer, *inputs, keep=keep)
    found, seen = model.predict([*inputs, explicit], verbose=0)
    assert_close(found, expected)
    assert (seen == (both if which == "query" else -1)).all()

    tensors = list(inputs)
    tensors[at] = keras.layers.Masking()(inputs[at])
    assert_close(run(layer, *tensors, **{f"{which}_mask": explicit}), expected)


def test_decoding_step_by_step(rng):
    """A4: the last query against all keys is the last row of the whole."""
    layer, (x, _) = build(rng, {"sliding_window": 3}, (3, 5, 6), (3, 5, 6))
    whole = run(layer, x, x, use_causal_mask=True)
    for t in range(5):
        step = run(layer, x[:, t : t + 1], x[:, : t + 1], use_causal_mask=True)
        assert_close(step[:, 0], whole[:, t])


@pytest.mark.parametrize("flash", [None, True, False])
def test_flash_attention_is_in_the_config(flash):
    """A6."""
    config = MultiHeadAttention(2, 3, flash_attention=flash).get_config()
    assert config["flash_attention"] is flash
    assert MultiHeadAttention.from_config(config).flash_attention is flash


def kernels_taken(monkeypatch):
    """The names of the kernels that serve, as they are asked."""
    module = importlib.import_module("kattn.ops.attention")
    taken = []

    def note(name, attend):
        return lambda call: taken.append(name) or attend(call)

    for name, kernel in module.KERNELS.items():
        monkeypatch.setattr(kernel, "attend", note(name, kernel.attend))
    return taken


# TensorFlow is faster over all scores at once than in blocks, none of which can be left out.
LONG = "dense" if keras.backend.backend() == "tensorflow" else "chunked"


@pytest.mark.parametrize(
    ("options", "steps", "kernel"),
    [({}, 5, "dense"), ({}, 600, LONG), ({"sliding_window": 8}, 600, "banded")],
)
def test_never_the_fused_kernel(rng, monkeypatch, options, steps, kernel):
    """A6: False is not None."""
    shape = (1, steps, 2)
    layer, inputs = build(rng, {**options, "flash_attention": False}, shape, shape)
    taken = kernels_taken(monkeypatch)
    output = run(layer, *inputs)
    assert taken == [kernel]
    again = MultiHeadAttention(2, 3, **options)
    again(*inputs)
    again.set_weights(layer.get_weights())
    assert_close(run(again, *inputs), output)


def test_always_the_fused_kernel(rng, monkeypatch):
    """Or an error that says why not: TensorFlow has none."""
    layer = MultiHeadAttention(2, 3, flash_attention=True)
    inputs = [rng.normal(size=shape).astype("float32") for shape in ((3, 4, 6), (3, 5, 7))]
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(
            ValueError, match=r"cannot serve this call \(fused: .*implementation='fused'"
        ):
            layer(*inputs)
        return
    taken = kernels_taken(monkeypatch)
    output, scores = run(layer, *inputs, return_attention_scores=True)
    assert taken == ["fused"]
    expected, weights = oracle(layer, *inputs)
    assert_close(output, expected)
    assert_close(scores, weights)


def test_keras_switch_for_flash_attention(rng, monkeypatch):
    layer, inputs = build(rng, {})
    taken = kernels_taken(monkeypatch)
    monkeypatch.setattr(keras.config, "is_flash_attention_enabled", lambda: False)
    layer(*inputs)
    assert taken == ["dense"]


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "bfloat16"])
def test_keeps_numbers(rng, dtype):
    """Keras takes them, and Keras code passes them: 0 = may not attend."""
    layer, inputs = build(rng, {})
    mask = rng.random((3, 4, 5)) > 0.4
    expected, _ = oracle(layer, *inputs, keep=(mask & KEEP_KEYS[:, None])[:, None])
    arguments = {"attention_mask": mask, "value_mask": KEEP_KEYS}
    arguments = {name: ops.cast(x, dtype) for name, x in arguments.items()}
    assert_close(run(layer, *inputs, **arguments), expected)


def test_keeps_two_axes_and_mask_objects(rng):
    layer, inputs = build(rng, {})
    mask = rng.random((4, 5)) > 0.4
    expected, _ = oracle(layer, *inputs, keep=mask & KEEP_KEYS[:, None, None], causal=True)
    arguments = {"value_mask": KEEP_KEYS, "use_causal_mask": True}
    assert_close(run(layer, *inputs, attention_mask=mask, **arguments), expected)
    mask = masks.Dense(mask)
    assert_close(run(layer, *inputs, attention_mask=mask, **arguments), expected)
    mask = mask & masks.Causal() & masks.Padding(KEEP_KEYS)
    assert_close(run(layer, *inputs, attention_mask=mask), expected)


def test_mask_objects_over_several_axes(rng):
    """They see the steps as one axis."""
    layer, inputs = build(rng, {}, (3, 2, 3, 6), (3, 4, 3, 7))
    expected, weights = oracle(layer, *inputs, causal=True)
    assert_close(run(layer, *inputs, attention_mask=masks.Causal()), expected)
    found = run(layer.attention_weights, *inputs, attention_mask=masks.Causal())
    assert_close(found, weights)


def test_shapes_of_scores_in_a_functional_model():
    """Keras says (B, N, T, T), whatever S and the axes are."""
    layer = MultiHeadAttention(2, 3, attention_axes=2, output_shape=5)
    nodes = keras.Input((4, None, 6)), keras.Input((4, 7, 3))
    output, scores = layer(*nodes, return_attention_scores=True)
    assert output.shape == (None, 4, None, 5)
    assert scores.shape == (None, 4, 2, None, 7)
    assert layer.compute_output_shape((2, 4, 3, 6), (2, 4, 7, 3)) == (2, 4, 3, 5)


def test_unknown_sizes_of_several_axes(rng):
    layer, inputs = build(rng, {"attention_axes": (1, 3)}, (3, 4, 2, 3, 6), (3, 5, 2, 1, 7))
    nodes = keras.Input((None, None, None, 6)), keras.Input((None, None, None, 7))
    mask = keras.Input((None, None), dtype="bool")
    model = keras.Model([*nodes, mask], layer(*nodes, value_mask=mask, use_causal_mask=True))
    keep = rng.random((3, 5, 2)) > 0.4
    whole = keep.transpose(0, 2, 1)[:, :, None, None, None, :, None]
    expected, _ = oracle(layer, *inputs, keep=whole, causal=True)
    assert_close(model.predict([*inputs, keep], verbose=0), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"position": RotaryEmbedding(), "key_dim": 4},
        {"sliding_window": 3, "value_dim": 5, "use_gate": True},
        {"sliding_window": 2, "position": RotaryEmbedding(), "key_dim": 2, "output_shape": (2, 3)},
        {"attention_axes": 1, "dropout": 0.3},
    ],
)
def test_decoding_is_causal_self_attention(rng, options):
    layer = MultiHeadAttention(**{"num_heads": 2, "key_dim": 3, **options})
    x = rng.normal(size=(3, 6, 6)).astype("float32")
    shake(layer, [x, x])
    full = run(layer, x, x, use_causal_mask=True)
    for cuts in ([0, 1, 2, 3, 4, 5, 6], [0, 4, 6]):
        assert_close(run(in_pieces, layer, x, cuts, 6), full)
    real = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]], bool)
    prompt = np.where(real[..., None], 0.0, 5.0) + np.zeros((3, 3, 6))
    for b, count in enumerate(real.sum(1)):
        prompt[b, real[b]] = x[b, :count]
    y, cache = layer.decode(prompt, layer.init_cache(3, 6), mask=ops.convert_to_tensor(real))
    y = run(ops.stop_gradient, y)
    for b, count in enumerate(real.sum(1)):
        assert_close(y[b, real[b]], full[b, :count])
    step = np.stack([x[b, n] for b, n in enumerate(real.sum(1))])[:, None]
    y, _ = layer.decode(step, cache)
    wanted = np.stack([full[b, n] for b, n in enumerate(real.sum(1))])
    assert_close(run(ops.stop_gradient, y)[:, 0], wanted)


def test_positions(rng):
    """Rotary queries and keys, from aligned ends; the weights, too."""
    scheme = RotaryEmbedding()
    layer, (x, c) = build(rng, {"key_dim": 4, "position": scheme})
    w = {part.path.split("/", 1)[1]: run(ops.convert_to_tensor, part) for part in layer.weights}
    q = np.tensordot(x, w["query/kernel"], 1) + w["query/bias"]
    k, v = (np.tensordot(c, w[f"{n}/kernel"], 1) + w[f"{n}/bias"] for n in ("key", "value"))
    turns = rotary_oracle.frequencies(4)[None]
    q = rotary_oracle.rotate(q, np.arange(1, 5)[:, None], turns)
    k = rotary_oracle.rotate(k, np.arange(5)[:, None], turns)
    mixed, weights = core_oracle.attention(q, k, v)
    output = np.tensordot(mixed, w["attention_output/kernel"], 2) + w["attention_output/bias"]
    assert_close(run(layer, x, c), output)
    assert_close(run(layer.attention_weights, x, c), weights)


@pytest.mark.parametrize("absolute", [False, True])
def test_padding_moves_no_position(rng, absolute):
    """Positions count from the first real step of both sequences: as without the padding."""
    position = Stretched() if absolute else RotaryEmbedding()
    layer, (x, c) = build(rng, {"key_dim": 4, "position": position})
    expected = run(layer, x, c)
    x = np.pad(x, ((0, 0), (1, 0), (0, 0)), constant_values=9.0)
    c = np.pad(c, ((0, 0), (2, 1), (0, 0)), constant_values=9.0)
    keeps = {"query_mask": np.arange(5) >= 1, "value_mask": abs(np.arange(8) - 4) <= 2}
    keeps = {name: np.tile(keep, (3, 1)) for name, keep in keeps.items()}
    assert_close(run(layer, x, c, **keeps)[:, 1:], expected)


class Stretched(HeadPosition):
    """Absolute positions of heads, which no shift leaves as they are."""

    def rotate(self, x, positions=None):
        positions = ops.cast(positions, x.dtype)[..., None, None]
        return x * (1.0 + 0.1 * positions)


def test_bad_schemes_and_caches(rng):
    message = r"`position` must turn queries and keys or be a bias.*Sinusoidal"
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(2, 3, position=SinusoidalPositions())
    layer, _ = build(rng, {"attention_axes": 2}, (3, 2, 4, 6), (3, 2, 5, 7))
    with pytest.raises(
        ValueError, match=r"Only a layer for sequences \(B, T, C\) can decode.*\(2,\)"
    ):
        layer.init_cache(3, 5)


def make(**options):
    extra = {"position": RotaryEmbedding(name="rotary"), "num_key_value_heads": 1}
    return MultiHeadAttention(**{**FULL, **extra, **options})


def test_battery(rng):
    inputs = [rng.normal(size=(3, 5, 6)), rng.normal(size=(3, 5, 7)), rng.normal(size=(3, 5, 2))]
    check_layer(make, inputs, masked=False, fixture="multi_head_attention")
    check_ways_in(make, [inputs[0], inputs[1]])


class OfItself(MultiHeadAttention):
    """What decodes is the causal self-attention."""

    def __call__(self, x):
        return super().__call__(x, x, use_causal_mask=True)


@pytest.mark.parametrize(
    "options",
    [{"use_gate": True, "value_dim": 5}, {"sliding_window": 3, "position": RotaryEmbedding()}],
)
def test_decoding_conforms(rng, options):
    x = rng.normal(size=(3, 6, 8))
    check_decodes(lambda: ready(lambda: OfItself(2, 4, **options), [x]), [x])


def test_battery_over_all_axes(rng):
    inputs = [rng.normal(size=(3, 4, 2, 6)), rng.normal(size=(3, 4, 3, 7))]
    check_layer(
        # No scores change where a bias moves all keys alike, so that it would not train.
        lambda **options: MultiHeadAttention(
            2,
            4,
            use_bias=False,
            position=RotaryEmbedding(name="rotary"),
            num_key_value_heads=1,
            **options,
        ),
        inputs,
        masked=False,
        dropout=False,
    )


def test_scores_under_mixed_precision(rng):
    layer, inputs = build(rng, {"dtype": "mixed_bfloat16"})
    output, scores = layer(*inputs, return_attention_scores=True)
    assert {keras.backend.standardize_dtype(x.dtype) for x in (output, scores)} == {"bfloat16"}
    weights = run(layer.attention_weights, *inputs)
    assert weights.dtype == "float32"
    assert_close(run(ops.cast, scores, "float32"), weights, 1e-2)
    expected, _ = oracle(layer, *inputs)
    assert_close(run(ops.cast, output, "float32"), expected, 6e-2)


def test_scores_are_those_before_dropout(rng):
    layer, inputs = build(rng, {"dropout": 0.5, "seed": 3})
    calm, weights = run(layer, *inputs, return_attention_scores=True)
    output, scores = run(layer, *inputs, return_attention_scores=True, training=True)
    assert_close(scores, weights)
    assert np.abs(output - calm).max() > 1e-3


def test_losses_are_those_of_keras(rng):
    """Activity is that of the projections: the layer's own output does not count again."""
    inputs = [rng.normal(size=shape).astype("float32") for shape in ((3, 5, 6), (3, 5, 7))]
    options = {**FULL, "flash_attention": None, "value_dim": 3}
    theirs, ours = keras.layers.MultiHeadAttention(**options), MultiHeadAttention(**options)
    shake(theirs, inputs)
    ours(*inputs)
    ours.set_weights(theirs.get_weights())
    totals = []
    for layer in (theirs, ours):
        layer(*inputs)
        totals.append(run(sum, layer.losses))
    assert_close(totals[1], totals[0])


def test_explicit_and_implicit_keeps_different_ranks(rng):
    """Each covers the first axes of the input, whether or not the sizes happen to agree."""
    layer, inputs = build(rng, {"attention_axes": 2}, (3, 3, 3, 6), (3, 3, 5, 7))
    implicit = rng.random((3, 3, 3)) > 0.4
    explicit = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1]], bool)
    inputs[0][~implicit] = 0.0
    keep = (implicit & explicit[:, :, None])[:, :, None, :, None]
    expected, _ = oracle(layer, *inputs, keep=keep)
    masked = keras.layers.Masking()(inputs[0])
    assert_close(run(layer, masked, inputs[1], query_mask=explicit), expected)


@pytest.mark.parametrize("axes", [None, 1])
def test_what_stands_at_padding_over_axes_is_without_effect(rng, axes):
    layer, (x, c) = build(rng, {"attention_axes": axes}, (2, 3, 4, 6), (2, 3, 4, 7))
    of_query, of_value = rng.random((2, 3, 4)) > 0.3, rng.random((2, 3)) > 0.3
    found = []
    for value in (0.0, np.nan):
        x[~of_query], c[~of_value] = value, value
        given = {"query_mask": of_query, "value_mask": of_value}
        found.append(run(layer, x, c, np.copy(c), **given))
    assert_close(found[1], found[0])


def test_weights_see_implicit_masks_under_mixed_precision(rng):
    layer, (x, c) = build(rng, {"dtype": "mixed_bfloat16"})
    x[~KEEP_QUERIES], c[~KEEP_KEYS] = 0.0, 0.0
    masked = [keras.layers.Masking()(a) for a in (x, c)]
    weights = run(layer.attention_weights, *masked)
    keep = KEEP_QUERIES[:, None, :, None] & KEEP_KEYS[:, None, None, :]
    assert (weights[~np.broadcast_to(keep, weights.shape)] == 0.0).all()
    assert_close(weights, oracle(layer, x, c, keep=keep)[1], 3e-2)


GROUPED = {
    "num_heads": 4, "key_dim": 3, "num_key_value_heads": 2, "use_gate": True, "sliding_window": 3
}  # fmt: skip


def test_grouped_heads_equal_those_of_keras(rng):
    """Whose layer for them has other names for the arguments, and the same weights."""
    inputs = [rng.normal(size=shape).astype("float32") for shape in ((3, 5, 6), (3, 5, 7))]
    mask = {"attention_mask": rng.random((3, 5, 5)) > 0.3, "use_causal_mask": True}
    mask["attention_mask"][:, :, 0] = mask["attention_mask"][:, range(5), range(5)] = True
    theirs = keras.layers.GroupQueryAttention(3, 4, 2, use_gate=True, sliding_window=3)
    theirs(*inputs, return_attention_scores=True)
    shake(theirs)
    ours = MultiHeadAttention(**GROUPED)
    ours(*inputs)
    assert [w.path.split("/", 1)[1] for w in ours.weights] == [
        w.path.split("/", 1)[1] for w in theirs.weights
    ]
    ours.set_weights(theirs.get_weights())
    expected, scores = run(theirs, *inputs, return_attention_scores=True, **mask)
    assert_close(run(ours, *inputs, **mask), expected)
    assert_close(run(ours.attention_weights, *inputs, **mask), scores)


def test_private_names_of_keras(rng):
    layer, _ = build(rng, {"sliding_window": 5, "flash_attention": False, "value_dim": 2})
    names = ("num_heads", "key_dim", "value_dim", "dropout", "use_bias", "use_gate")
    for name in (*names, "attention_axes", "sliding_window", "flash_attention"):
        assert getattr(layer, f"_{name}") == getattr(layer, name)
    for part, name in (("query", "query"), ("output", "attention_output")):
        assert getattr(layer, f"_{part}_dense") is getattr(layer, f"{part}_dense")
        assert getattr(layer, f"_{part}_dense").name == name
    layer._sliding_window = 1
    assert layer.sliding_window == 1


class Adapter(keras.layers.Layer):
    """A projection and an addition of low rank, as guides to LoRA write it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.down, self.up = keras.layers.Dense(1), keras.layers.Dense(3)

    def call(self, x):
        return self.inner(x) + self.up(self.down(x))[:, :, None]


def test_an_adapter_in_the_place_of_a_projection(rng):
    layer, inputs = build(rng, {})
    calm = run(layer, *inputs)
    layer._tracker.locked = False
    layer._query_dense = Adapter(layer._query_dense)
    layer._query_dense(inputs[0])
    changed = run(layer, *inputs)
    assert np.abs(changed - calm).max() > 1e-3
    assert len(layer.trainable_weights) == 12
    layer._query_dense.up.set_weights([np.zeros((1, 3)), np.zeros(3)])
    assert_close(run(layer, *inputs), calm)
    layer, (x, _) = build(rng, {}, (3, 4, 6), (3, 4, 6))
    layer._tracker.locked = False
    layer._query_dense = Adapter(layer._query_dense)
    full = run(layer, x, x, use_causal_mask=True)
    y, _ = layer.decode(x, layer.init_cache(3, 4))
    assert_close(run(ops.stop_gradient, y), full)


def test_lora_and_quantisation_of_the_projections(rng):
    layer, inputs = build(rng, {"use_bias": False})
    calm = run(layer, *inputs)
    layer._query_dense.enable_lora(1)
    assert_close(run(layer, *inputs), calm)
    raised = layer._query_dense.lora_kernel_b
    raised.assign(np.ones(raised.shape))
    assert np.abs(run(layer, *inputs) - calm).max() > 1e-3
    calm = run(layer, *inputs)
    for part in (layer._key_dense, layer._value_dense, layer._output_dense):
        part.quantize("int8")
        assert keras.backend.standardize_dtype(part._kernel.dtype) == "int8"
    assert_close(run(layer, *inputs), calm, 5e-2)


def test_dtype_policies_by_path():
    policies = keras.dtype_policies.DTypePolicyMap()
    policies["attention/query"] = keras.dtype_policies.QuantizedDTypePolicy("int8", "float32")
    layer = MultiHeadAttention(2, 3, use_bias=False, dtype=policies, name="attention")
    layer.build((3, 4, 6), (3, 5, 7))
    dtypes = [part._kernel.dtype for part in (layer._query_dense, layer._key_dense)]
    assert list(map(keras.backend.standardize_dtype, dtypes)) == ["int8", "float32"]


class Turned(MultiHeadAttention):
    """Rotary embeddings as one puts them into Keras's layer."""

    def _compute_attention(
        self, query, key, value, attention_mask=None, training=None, return_attention_scores=False
    ):
        self.seen = attention_mask
        turn = RotaryEmbedding()
        query, key = turn.rotate(query), turn.rotate(key)
        return super()._compute_attention(
            query, key, value, attention_mask, training, return_attention_scores
        )


@pytest.mark.parametrize("masked", [False, True])
def test_a_subclass_with_attention_of_its_own(rng, masked):
    layer, (x, c) = build(rng, {"key_dim": 4, "position": RotaryEmbedding()}, (3, 5, 6))
    given = {"query_mask": KEEP_KEYS, "value_mask": KEEP_KEYS, "use_causal_mask": True}
    given = given if masked else {}
    own = Turned(2, 4)
    own(x, c)
    own.set_weights(layer.get_weights())
    expected, scores = run(layer, x, c, return_attention_scores=True, **given)
    output, weights = run(own, x, c, return_attention_scores=True, **given)
    assert_close(run(own, x, c, **given), expected)
    for found in (weights, run(own.attention_weights, x, c, **given)):
        assert_close(found, scores)
    assert_close(output, expected)
    if masked:
        assert own.seen.shape == (3, 5, 5)
    with pytest.raises(ValueError, match=r"overrides `_compute_attention` cannot decode.*Turned"):
        own.init_cache(3, 5)


def test_a_subclass_with_what_is_not_called():
    with pytest.raises(TypeError, match=r"Softer overrides _masked_softmax, which .* not call"):

        class Softer(MultiHeadAttention):
            def _masked_softmax(self, scores, mask=None):
                return scores


class Cached(MultiHeadAttention):
    """A cache around the projections and the attention, as KerasHub's layer has it."""

    def call(self, query, value, cache=None, index=None, attention_mask=None):
        query = self._query_dense(query)
        key, value = self._key_dense(value), self._value_dense(value)
        if cache is not None:
            key = ops.slice_update(cache[:, 0], [0, index, 0, 0], key)
            value = ops.slice_update(cache[:, 1], [0, index, 0, 0], value)
        y, _ = self._compute_attention(
            query=query, key=key, value=value, attention_mask=attention_mask,
            return_attention_scores=False, training=False,
        )  # fmt: skip
        return self._output_dense(y), ops.stack((key, value), axis=1)


def test_a_subclass_with_a_cache(rng):
    layer = Cached(2, 3)
    x = rng.normal(size=(3, 4, 6)).astype("float32")
    layer.build(x.shape, x.shape)
    shake(layer)
    mask = np.tri(4, dtype="int32")[None]
    expected, _ = run(layer, x, x, attention_mask=mask)
    plain = MultiHeadAttention(2, 3)
    plain(x, x)
    plain.set_weights(layer.get_weights())
    assert_close(run(plain, x, x, use_causal_mask=True), expected)
    cache = np.zeros((3, 2, 4, 2, 3), "float32")
    for t in range(4):
        step = x[:, t : t + 1]
        y, cache = run(layer, step, step, cache=cache, index=t, attention_mask=mask[:, t : t + 1])
        assert_close(y[:, 0], expected[:, t])


def test_blocks_of_keras_hub(rng, monkeypatch):
    """With the drop-in in their places, and the layer with a cache derived from it."""
    hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    module = importlib.import_module("keras_hub.src.layers.modeling.transformer_decoder")
    cached = vars(module.CachedMultiHeadAttention)
    own = {name: x for name, x in cached.items() if name not in ("__dict__", "__weakref__")}
    ours = type("CachedMultiHeadAttention", (MultiHeadAttention,), own)
    x, c = (rng.normal(size=(3, steps, 8)).astype("float32") for steps in (5, 4))

    def outputs(encoder, decoder):
        step = {
            "self_attention_cache": np.zeros((3, 2, 5, 2, 4), "float32"),
            "self_attention_cache_update_index": 0,
            "cross_attention_cache": np.zeros((3, 2, 4, 2, 4), "float32"),
            "cross_attention_cache_update_index": 0,
        }
        yield run(encoder, x, padding_mask=KEEP_KEYS)[KEEP_KEYS]
        yield run(encoder, x, return_attention_scores=True)[1]
        yield run(decoder, x, c, decoder_padding_mask=KEEP_KEYS)[KEEP_KEYS]
        yield from run(decoder, x[:, :1], c, **step)

    def blocks():
        pair = hub.layers.TransformerEncoder(16, 2), hub.layers.TransformerDecoder(16, 2)
        shake(pair[0], [x])
        shake(pair[1], [x, c])
        return pair

    theirs = blocks()
    expected = list(outputs(*theirs))
    monkeypatch.setattr(keras.layers, "MultiHeadAttention", MultiHeadAttention)
    monkeypatch.setattr(module, "CachedMultiHeadAttention", ours)
    replaced = blocks()
    for new, old in zip(replaced, theirs, strict=True):
        assert isinstance(new._self_attention_layer, MultiHeadAttention)
        new.set_weights(old.get_weights())
    for found, wanted in zip(outputs(*replaced), expected, strict=True):
        assert_close(found, wanted)


def test_initial_values():
    """Without a seed, each projection draws its own."""
    layer = MultiHeadAttention(4, 16)
    layer.build((None, None, 64), (None, None, 64))
    kernels = [run(ops.convert_to_tensor, w) for w in layer.weights if w.name == "kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


BAD = {
    # In the words by which code for Keras's layer knows them.
    "num_heads": ({"num_heads": 0}, "argument `num_heads` must be an integer >= 1.*num_heads=0"),
    "key_dim": ({"key_dim": 1.5}, "argument `key_dim` must be an integer >= 1.*key_dim=1.5"),
    "value_dim": ({"value_dim": 0}, "argument `value_dim` must be an integer >= 1.*value_dim=0"),
    "key heads": ({"num_key_value_heads": 3}, "must be a multiple of `num_key_value_heads`.*=3"),
    "window": ({"sliding_window": 0}, "`sliding_window` must be.*sliding_window=0"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be a fraction in \[0, 1\).*dropout=1\.0"),
    "flash": ({"flash_attention": "yes"}, "`flash_attention` must be.*flash_attention='yes'"),
    "axes": ({"attention_axes": "1"}, "`attention_axes` must be an integer.*attention_axes='1'"),
    "output": ({"output_shape": 2.5}, r"Invalid `output_shape`: it must be an .*output_shape=2\.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(**{"num_heads": 2, "key_dim": 3, **options})


BAD_SHAPES = {
    "rank 2": ({}, [(3, 6), (3, 6)], r"same rank, 3 or more.*query.shape=\(3, 6\)"),
    "two ranks": ({}, [(3, 4, 6), (3, 4, 2, 6)], r"the same rank.*value.shape=\(3, 4, 2, 6\)"),
    "keys": ({}, [(3, 4, 6), (3, 5, 6), (3, 4, 6)], r"must be equal.*key.shape=\(3, 4, 6\)"),
    "rank of the key": ({}, [(3, 4, 6), (3, 5, 6), (6,)], r"must be equal.*key.shape=\(6,\)"),
    "batch": ({}, [(3, 4, 6), (2, 5, 6)], r"same batch size.*value.shape=\(2, 5, 6\)"),
    "batch axis": ({"attention_axes": 0}, [(3, 4, 6)] * 2, r"`attention_axes` must.*\(0,\)"),
    "last axis": ({"attention_axes": -1}, [(3, 4, 6)] * 2, r"`attention_axes` must.*\(-1,\)"),
    "far axis": ({"attention_axes": 2}, [(3, 4, 6)] * 2, r"`attention_axes` must.*\(2,\)"),
    "one axis twice": (
        {"attention_axes": (1, -3)},
        [(3, 4, 5, 6)] * 2,
        r"`attention_axes` must.*\(1, -3\)",
    ),
    "other axes": (
        {"attention_axes": 1},
        [(3, 4, 2, 6), (3, 4, 5, 6)],
        r"attention_axes=\(1,\)",
    ),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_bad_shapes(name):
    """The call and the shape of its output refuse the same."""
    options, shapes, message = BAD_SHAPES[name]
    layer = MultiHeadAttention(2, 3, **options)
    with pytest.raises(ValueError, match=message):
        layer.compute_output_shape(*shapes)
    with pytest.raises(ValueError, match=message):
        layer(*(np.zeros(shape, "float32") for shape in shapes))


@pytest.mark.parametrize("shapes", [[(3, 4, 5), (3, 5, 7)], [(3, 4, 2, 6), (3, 5, 2, 7)]])
def test_shapes_other_than_those_of_build(rng, shapes):
    layer, _ = build(rng, {})
    message = r"built for inputs of rank 3, and for widths \(6, 7, 7\) of `query`, .*\(3, 4, "
    for function, values in (
        (layer.compute_output_shape, shapes),
        (layer, [np.zeros(shape, "float32") for shape in shapes]),
    ):
        with pytest.raises(ValueError, match=message):
            function(*values)


BAD_MASKS = {
    "rank": ("attention_mask", np.ones((5,), bool), r"`attention_mask` must.*\(5,\)"),
    "size": ("attention_mask", np.ones((3, 4, 4), bool), r"must broadcast to.*4, 4\)"),
    "padding rank": ("value_mask", np.ones((3,), bool), r"mask.* must .*\(3,\)"),
    "padding of scores": ("key_mask", np.ones((3, 4, 5), bool), r"mask.* must .*\(3, 4, 5\)"),
    "padding size": ("query_mask", np.ones((3, 5), bool), r"mask.* must .*\(3, 5\)"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks(rng, name):
    argument, mask, message = BAD_MASKS[name]
    layer, inputs = build(rng, {})
    with pytest.raises(ValueError, match=message):
        layer(*inputs, **{argument: mask})
