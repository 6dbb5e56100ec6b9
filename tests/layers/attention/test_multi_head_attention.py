import importlib

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import MultiHeadAttention
from kattn.layers.position.head_position import HeadPosition
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from kattn.layers.position.sinusoidal_positions import SinusoidalPositions
from tests import oracle as core_oracle
from tests import rotary_oracle
from tests.checks import check_layer, check_ways_in, ready, shake
from tests.compute import assert_close, quick, run
from tests.decode_checks import check_decodes, in_pieces
from tests.multi_head_oracle import FULL, build, oracle

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
    for layer in (theirs, ours):
        layer.build(*shapes)
    shake(theirs)
    assert [(w.shape, w.name) for w in ours.weights] == [(w.shape, w.name) for w in theirs.weights]
    ours.set_weights(theirs.get_weights())
    expected, scores = run(theirs, *inputs, return_attention_scores=True, **arguments)
    output, weights = run(ours, *inputs, return_attention_scores=True, **arguments)
    assert_close(output, expected)
    assert_close(weights, scores)
    assert_close(run(ours, *inputs, **arguments), expected)
    assert_close(run(ours.attention_weights, *inputs, **arguments), scores)


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


def test_decoding_step_by_step(rng):
    """A4: the last query against all keys is the last row of the whole."""
    layer, (x, _) = build(rng, {"sliding_window": 3}, (3, 5, 6), (3, 5, 6))

    def steps_and_whole(x):
        steps = [
            layer(x[:, t : t + 1], x[:, : t + 1], use_causal_mask=True) for t in range(x.shape[1])
        ]
        return ops.concatenate(steps, axis=1), layer(x, x, use_causal_mask=True)

    assert_close(*run(quick(steps_and_whole), ops.convert_to_tensor(x)))


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
def test_never_the_fused_kernel(rng, monkeypatch, device, options, steps, kernel):
    """A6: False is not None."""
    if device == "cuda" and kernel == "banded":
        kernel = "chunked"  # where bands are passed over for the fused kernel, the next one serves
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
    real = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]], bool)
    counts = real.sum(1)
    prompt = np.where(real[..., None], 0.0, 5.0) + np.zeros((3, 3, 6))
    for b, count in enumerate(counts):
        prompt[b, real[b]] = x[b, :count]
    step = x[range(3), counts][:, None]

    def all_ways(x, prompt, real, step):
        pieces = [in_pieces(layer, x, cuts, 6) for cuts in ([0, 1, 2, 3, 4, 5, 6], [0, 4, 6])]
        y, cache = layer.decode(prompt, layer.init_cache(3, 6), mask=real)
        return layer(x, x, use_causal_mask=True), pieces, y, layer.decode(step, cache)[0]

    given = [ops.convert_to_tensor(a) for a in (x, prompt.astype("float32"), real, step)]
    full, pieces, of_prompt, of_step = run(quick(all_ways), *given)
    for found in pieces:
        assert_close(found, full)
    for b, count in enumerate(counts):
        assert_close(of_prompt[b, real[b]], full[b, :count])
    assert_close(of_step[:, 0], full[range(3), counts])


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


GROUPED = {
    "num_heads": 4, "key_dim": 3, "num_key_value_heads": 2, "use_gate": True, "sliding_window": 3
}  # fmt: skip


def test_grouped_heads_equal_those_of_keras(rng):
    """Whose layer for them has other names for the arguments, and the same weights."""
    inputs = [rng.normal(size=shape).astype("float32") for shape in ((3, 5, 6), (3, 5, 7))]
    mask = {"attention_mask": rng.random((3, 5, 5)) > 0.3, "use_causal_mask": True}
    mask["attention_mask"][:, :, 0] = mask["attention_mask"][:, range(5), range(5)] = True
    theirs = keras.layers.GroupQueryAttention(3, 4, 2, use_gate=True, sliding_window=3)
    ours = MultiHeadAttention(**GROUPED)
    for layer in (theirs, ours):
        layer.build(*(x.shape for x in inputs))
    shake(theirs)
    assert [w.path.split("/", 1)[1] for w in ours.weights] == [
        w.path.split("/", 1)[1] for w in theirs.weights
    ]
    ours.set_weights(theirs.get_weights())
    expected, scores = run(theirs, *inputs, return_attention_scores=True, **mask)
    assert_close(run(ours, *inputs, **mask), expected)
    assert_close(run(ours.attention_weights, *inputs, **mask), scores)
