import keras
import numpy as np
import pytest
from keras import ops

from kattn import biases, masks
from kattn.layers import CrossAttention, DifferentialAttention, SelfAttention
from kattn.layers.position.learned_positions import LearnedPositions
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from kattn.layers.position.score_bias import ScoreBias
from tests import oracle, rotary_oracle
from tests.checks import check_layer, shake
from tests.compute import assert_close, run
from tests.decode_checks import in_pieces

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
FULL = {
    "num_heads": 4,
    "key_dim": 6,
    "value_dim": 3,
    "num_key_value_heads": 2,
    "causal": True,
    "window": 3,
    "use_qk_norm": True,
    "qk_norm_epsilon": 0.3,
    "softcap": 2.0,
    "use_sinks": True,
    "pattern": masks.Window(4) | masks.Prefix(1),
    "position": RotaryEmbedding(base=50.0, fraction=0.67, name="rotary"),
    "use_gate": True,
    "dropout": 0.4,
    "seed": 1,
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "use_output_bias": False,
    "output_initializer": "he_uniform",
}
CASES = {
    "default": {"num_heads": 2},
    "causal": {"num_heads": 2, "causal": True},
    "window": {"num_heads": 1, "window": 2},
    "grouped": {"num_heads": 4, "num_key_value_heads": 2, "key_dim": 3},
    "values": {"num_heads": 2, "key_dim": 3, "value_dim": 5},
    "no bias": {"num_heads": 2, "use_bias": False},
    "norm": {"num_heads": 2, "use_qk_norm": True},
    "softcap": {"num_heads": 2, "softcap": 0.5},
    "sinks": {"num_heads": 2, "use_sinks": True},
    "pattern": {"num_heads": 2, "pattern": masks.Window(2) | masks.Prefix(1)},
    "rotary": {"num_heads": 2, "position": RotaryEmbedding(base=50.0)},
    "learned": {"num_heads": 2, "position": LearnedPositions(7, name="table")},
    "gate": {"num_heads": 2, "use_gate": True},
    "all": FULL,
}


def build(rng, **options):
    """A layer with weights off their initial values, and an input `(3, 5, 8)`."""
    layer = SelfAttention(**options)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


def expected_output(layer, x, keep, options, positions=None):
    """From the layer's weights by name; `keep` is `(B, N, T, T)`."""
    w = {weight.path.split("/", 1)[1]: run(keras.ops.convert_to_tensor, weight).astype(float)
         for weight in layer.weights if "seed" not in weight.path}  # fmt: skip
    heads = options["num_heads"]
    position = options.get("position")
    positions = np.arange(5) if positions is None else positions
    if isinstance(position, LearnedPositions):
        x = x + w["table/table"][positions]
    key_heads = options.get("num_key_value_heads", heads)
    width = options.get("key_dim", 8 // heads)
    value_width = options.get("value_dim", width)
    flat = x @ w["qkv/kernel"] + w.get("qkv/bias", 0.0)
    q, k, v = np.split(flat, [heads * width, (heads + key_heads) * width], axis=-1)
    q = q.reshape(3, 5, heads, width)
    k = k.reshape(3, 5, key_heads, width)
    v = v.reshape(3, 5, key_heads, value_width)
    if options.get("use_qk_norm"):
        epsilon = options.get("qk_norm_epsilon", 1e-6)
        q = q / np.sqrt((q**2).mean(-1, keepdims=True) + epsilon) * w["query_norm/scale"]
        k = k / np.sqrt((k**2).mean(-1, keepdims=True) + epsilon) * w["key_norm/scale"]
    if isinstance(position, RotaryEmbedding):
        turn_in_place(position, (q, k), positions)
    keep = keep & visible(options)
    mixed, weights = oracle.attention(
        q, k, v, keep=keep, softcap=options.get("softcap"), sinks=w.get("sinks")
    )
    mixed = mixed.reshape(3, 5, heads * value_width)
    if options.get("use_gate"):
        mixed = mixed / (1.0 + np.exp(-(x @ w["gate/kernel"] + w["gate/bias"])))
    return mixed @ w["output/kernel"] + w.get("output/bias", 0.0), weights


def turn_in_place(position, parts, positions):
    """RoFormer on the first share of the channels."""
    count = round(parts[0].shape[-1] * position.fraction)
    turns = rotary_oracle.frequencies(count, base=50.0)[None]
    for part in parts:
        turned = rotary_oracle.rotate(part[..., :count], positions[..., None], turns)
        part[..., :count] = turned


def visible(options):
    """`(T, T)`: what the constructor's arguments let a step see."""
    keep = np.ones((5, 5), bool)
    if options.get("causal"):
        keep = keep & oracle.causal(5, 5)
    if "window" in options:
        keep = keep & oracle.window(5, 5, options["window"])
    if "pattern" in options:
        size = options["pattern"].left.size
        keep = keep & (oracle.window(5, 5, size) | (np.arange(5) < 1))
    return keep


def since_the_first(keep):
    """Positions counted from the first real step."""
    return np.maximum(np.arange(keep.shape[1]) - keep.argmax(1)[:, None], 0)


def whole(mask, heads):
    """A mask of rank 2, 3 or 4 as `(B, N, T, T)`: padded queries see nothing either."""
    if mask.ndim == 2:
        mask = mask[:, None, None, :] & mask[:, None, :, None]
    elif mask.ndim == 3:
        mask = mask[:, None]
    return np.broadcast_to(mask, (3, heads, 5, 5))


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(rng, **CASES[case])
    keep = whole(KEEP, layer.num_heads)
    positions = since_the_first(KEEP)
    expected, weights = expected_output(layer, x, keep, CASES[case], positions)
    assert_close(run(layer, x, mask=KEEP), expected)
    assert_close(run(layer.attention_weights, x, mask=KEEP), weights)


@pytest.mark.parametrize("rank", [3, 4])
def test_masks_of_query_by_key(rng, rank):
    layer, x = build(rng, **FULL)
    mask = rng.random((3, 5, 5) if rank == 3 else (3, 4, 5, 5)) > 0.4
    expected, weights = expected_output(layer, x, whole(mask, 4), FULL)
    assert_close(run(layer, x, mask=mask), expected)
    assert_close(run(layer.attention_weights, x, mask=mask), weights)


def test_mask_objects(rng):
    layer, x = build(rng, **CASES["default"])
    mask = masks.Causal() & masks.Padding(KEEP)
    keep = np.broadcast_to(oracle.causal(5, 5) & KEEP[:, None, None], (3, 2, 5, 5))
    expected, _ = expected_output(layer, x, keep, CASES["default"])
    assert_close(run(layer, x, mask=mask), expected)


def test_mask_objects_join_the_implicit_mask(rng):
    """Also where the call is traced, and where the object holds no tensor."""
    layer, x = build(rng, **CASES["default"])
    x[~KEEP] = 0.0
    node = keras.Input((5, 8))
    model = keras.Model(node, layer(keras.layers.Masking()(node), mask=masks.Causal()))
    keep = whole(KEEP, 2) & oracle.causal(5, 5)
    assert_close(model.predict(x, verbose=0), expected_output(layer, x, keep, CASES["default"])[0])


def test_a_padded_step_gives_the_output_bias(rng):
    layer, x = build(rng, **CASES["default"])
    bias = next(w for w in layer.weights if w.path.endswith("output/bias"))
    y = run(layer, x, mask=KEEP)
    assert_close(y[~KEEP], np.broadcast_to(run(keras.ops.convert_to_tensor, bias), y[~KEEP].shape))


@pytest.mark.parametrize("kernel", ["dense", "chunked", "banded"])
def test_weights_do_not_depend_on_the_kernel(rng, kernel):
    options = {**CASES["window"], "implementation": kernel}
    layer, x = build(rng, **options)
    expected, weights = expected_output(layer, x, whole(KEEP, 1), CASES["window"])
    assert_close(run(layer, x, mask=KEEP), expected)
    assert_close(run(layer.attention_weights, x, mask=KEEP), weights)


def test_projections_are_initialised_apart():
    """Each as its own Glorot matrix; a seed gives each other numbers."""
    initializer = keras.initializers.GlorotUniform(seed=3)
    layer = SelfAttention(4, kernel_initializer=initializer)
    layer.build((None, None, 64))
    kernel = run(keras.ops.convert_to_tensor, layer.weights[0])
    parts = np.split(kernel, 3, axis=-1)
    limit = np.sqrt(6 / (64 + 64))
    for part in parts:
        assert 0.95 * limit < np.abs(part).max() <= limit
    assert np.abs(parts[0] - parts[1]).max() > 0.1


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention, DifferentialAttention])
def test_the_last_projection_may_differ(kind):
    layer = kind(2, use_output_bias=False, output_initializer="ones", bias_initializer="ones")
    layer.build(*[(None, 5, 8)] * (2 if kind is CrossAttention else 1))
    weights = {weight.path: run(ops.copy, weight) for weight in layer.weights}
    with_bias = [path.split("/")[1] for path in weights if path.endswith("bias")]
    assert with_bias == (["query", "key_value"] if kind is CrossAttention else ["qkv"])
    kernels = {path.split("/")[1]: x for path, x in weights.items() if path.endswith("kernel")}
    np.testing.assert_array_equal(kernels.pop("output"), 1.0)
    assert all(np.abs(kernel).max() < 1 for kernel in kernels.values())


def make(**options):
    return SelfAttention(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="self_attention", causal=True, window=3, decodes=True)


@pytest.mark.parametrize("case", ["rotary", "learned", "all"])
def test_explicit_positions(rng, case):
    """Also where they are symbolic."""
    layer, x = build(rng, **CASES[case])
    positions = np.array([[0, 2, 1, 5, 3], [6, 5, 4, 3, 2], [0, 0, 1, 1, 2]])
    keep = whole(np.ones((3, 5), bool), layer.num_heads)
    expected, weights = expected_output(layer, x, keep, CASES[case], positions)
    assert_close(run(layer, x, positions=positions), expected)
    assert_close(run(layer.attention_weights, x, positions=positions), weights)
    nodes = keras.Input((5, 8)), keras.Input((5,), dtype="int32")
    model = keras.Model(nodes, layer(nodes[0], positions=nodes[1]))
    assert_close(model.predict([x, positions], verbose=0), expected)


@pytest.mark.parametrize("case", ["learned", "rotary", "causal"])
def test_packed_sequences_are_those_apart(rng, case):
    layer, x = build(rng, **CASES[case])
    ids = np.array([[0, 0, 0, 1, 1], [3, 4, 4, 4, 4], [0, 0, 0, 0, -1]])
    found = run(layer, x, mask=masks.Causal() & masks.Segments(ids))
    for b, start, stop in ((0, 0, 3), (0, 3, 5), (1, 0, 1), (1, 1, 5), (2, 0, 4)):
        apart = run(layer, x[b : b + 1, start:stop], mask=masks.Causal())
        assert_close(found[b, start:stop], apart[0])


class Slopes(ScoreBias):
    def bias(self, query, grid=None):
        return biases.ALiBi((0.5, 0.25))


class Relative(ScoreBias):
    """Numbers of each query's own."""

    def bias(self, query, grid=None):
        return biases.Clipped(keras.ops.transpose(query[..., :3], (0, 2, 1, 3)))


DECODED = {
    "plain": {"causal": True},
    "grouped": {"causal": True, "num_key_value_heads": 1, "use_gate": True, "use_qk_norm": True},
    "window": {"causal": True, "window": 3},
    "rotary": {"causal": True, "position": RotaryEmbedding()},
    "rotary, window": {"causal": True, "window": 4, "position": RotaryEmbedding()},
    "learned": {"causal": True, "window": 2, "position": LearnedPositions(9)},
    "slopes": {"causal": True, "window": 3, "position": Slopes()},
    "relative": {"causal": True, "position": Relative()},
    "relative, window": {"causal": True, "window": 3, "position": Relative()},
    "prefix": {"pattern": masks.Causal() | masks.Prefix(2)},
    "streaming": {"causal": True, "pattern": masks.Window(2) | masks.Prefix(1)},
    "dilated": {"causal": True, "pattern": masks.Dilated(2, 2), "use_sinks": True, "softcap": 2.0},
    "global": {"causal": True, "pattern": masks.Window(2) | masks.Global([3])},
}


@pytest.mark.parametrize("case", DECODED)
def test_decoding_equals_the_call(rng, case):
    layer = SelfAttention(2, key_dim=4, **DECODED[case])
    x = rng.normal(size=(3, 7, 8)).astype("float32")
    shake(layer, [x])
    full = run(layer, x)
    assert_close(run(in_pieces, layer, x, [0, 3, 4, 7], 8), full)
    kind = "RingCache" if layer._pattern.reach[0] < 7 else "KVCache"
    assert type(layer.init_cache(3, 8)).__name__ == kind
    # Prompts of 2, 3 and 2 steps, padded at either side, in pieces of 3.
    cache, real = layer.init_cache(3, 8), np.array([[0, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
    prompt, counts = np.full((3, 3, 8), 7.0, "float32"), real.sum(1)
    for b, count in enumerate(counts):
        prompt[b, real[b]] = x[b, :count]
    y, cache = layer.decode(prompt, cache, mask=keras.ops.convert_to_tensor(real))
    y = run(keras.ops.stop_gradient, y)
    for b, count in enumerate(counts):
        assert_close(y[b, real[b]], full[b, :count])
    for more in range(3):
        step = np.stack([x[b, n + more] for b, n in enumerate(counts)])[:, None]
        y, cache = layer.decode(step, cache)
        wanted = np.stack([full[b, n + more] for b, n in enumerate(counts)])
        assert_close(run(keras.ops.stop_gradient, y)[:, 0], wanted)


@pytest.mark.parametrize("position", [None, LearnedPositions(9)])
def test_decoding_under_masks_with_arrays(rng, position):
    layer = SelfAttention(2, causal=True, position=position)
    x = rng.normal(size=(2, 6, 8)).astype("float32")
    shake(layer, [x])
    ids = np.array([[0, 0, 1, 1, 1, 2], [5, 5, 5, 5, 6, 6]])
    dense = rng.random((2, 2, 6, 6)) > 0.3
    for mask in (masks.Segments(ids), masks.Dense(dense), masks.Window(3)):
        full = run(layer, x, mask=mask)
        assert_close(run(in_pieces, layer, x, [0, 3, 4, 5, 6], 6, mask=mask), full)


def test_a_model_is_saved_with_its_scheme(rng, tmp_path):
    """One scheme in two layers is one scheme again."""
    scheme, node = LearnedPositions(7), keras.Input((5, 8))
    y = SelfAttention(2, position=scheme)(node)
    model = keras.Model(node, SelfAttention(4, position=scheme, pattern=masks.Dilated(2, 3))(y))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    assert_close(again.predict(x, verbose=0), model.predict(x, verbose=0))
    layers = [layer for layer in again.layers if isinstance(layer, SelfAttention)]
    assert layers[1].pattern == masks.Dilated(2, 3)
    assert layers[0].position is layers[1].position
    assert layers[0].position.length == 7


def test_permutations(rng):
    from tests.checks import check_permutation

    check_permutation(lambda: SelfAttention(2), [rng.normal(size=(3, 5, 8)).astype("float32")])


BAD = {
    "num_heads": ({"num_heads": 0}, "`num_heads` must be an integer >= 1.*num_heads=0"),
    "key_dim": ({"key_dim": -1}, "`key_dim` must be an integer >= 1.*key_dim=-1"),
    "value_dim": ({"value_dim": 1.5}, "`value_dim` must be.*value_dim=1.5"),
    "num_key_value_heads": (
        {"num_key_value_heads": 3},
        "multiple of `num_key_value_heads`.*num_heads=2, num_key_value_heads=3",
    ),
    "window": ({"window": 0}, "`window` must be an integer >= 1.*window=0"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be a fraction in \[0, 1\).*dropout=1\.0"),
    "softcap": ({"softcap": -1.0}, r"`softcap` must be a finite number above 0.*softcap=-1\.0"),
    "kernel": (
        {"implementation": "flash"},
        "`implementation` must be one of auto.*implementation='flash'",
    ),
    "position": (
        {"position": "rotary"},
        r"`position` must be a position layer, such as kattn.layers.RotaryEmbedding\(\).*'rotary'",
    ),
    "pattern": (
        {"pattern": "causal"},
        r"`pattern` must be a kattn.masks.Mask, such as .*or None.*'causal'",
    ),
    "pattern of arrays": (
        {"pattern": masks.Prefix(np.array([1, 2]))},
        "`pattern` must be a mask without arrays.*Prefix",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        SelfAttention(**{"num_heads": 2, **options})


def test_bad_input(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=8, num_heads=3"):
        SelfAttention(3)(x)
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(3, 5\)"):
        SelfAttention(2)(x[:, :, 0])
    with pytest.raises(ValueError, match=r"`mask` must be boolean.*float32"):
        SelfAttention(2)(x, mask=KEEP.astype("float32"))
    with pytest.raises(ValueError, match=r"of rank 2 means padding.*\(3, 4\)"):
        SelfAttention(2)(x, mask=KEEP[:, :4])
    with pytest.raises(ValueError, match=r"`mask` must have rank 2, \(B, T\) or rank 3"):
        SelfAttention(2)(x, mask=KEEP[0])
    with pytest.raises(ValueError, match=r"wrap a list as np.array\(mask, bool\)"):
        SelfAttention(2).attention_weights(x, mask=KEEP.tolist())
    with pytest.raises(ValueError, match=r"one sequence \(steps, width\) write x\[None\]"):
        SelfAttention(2)(x[0])
    with pytest.raises(ValueError, match=r"`positions` can only be given if.*position=None"):
        SelfAttention(2)(x, positions=np.arange(5))
    with pytest.raises(ValueError, match=r"`positions` can only be given if.*Slopes"):
        SelfAttention(2, position=Slopes())(x, positions=np.arange(5))


def test_bad_decoding(rng, device):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer = SelfAttention(2)
    for options in ({}, {"window": 3}, {"pattern": masks.Dilated(2, 2)}):
        layer = SelfAttention(2, **options)
        layer.build(x.shape)
        with pytest.raises(ValueError, match=r"Only a causal layer can decode.*causal=True"):
            layer.init_cache(3, 5)
    layer = SelfAttention(2, causal=True)
    with pytest.raises(ValueError, match="must be built before it can make a cache"):
        layer.init_cache(3, 5)
    layer.build(x.shape)
    with pytest.raises(ValueError, match=r"`length` must be an integer >= 1.*length=0"):
        layer.init_cache(3, 0)
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer >= 1.*2\.0"):
        layer.init_cache(2.0, 5)
    if device.startswith("cpu"):  # to read a length of a GPU would cost a step of decoding
        with pytest.raises(ValueError, match=r"room for all steps.*length=4, steps=\[5, 5, 5\]"):
            layer.decode(x, layer.init_cache(3, 4))
    with pytest.raises(ValueError, match=r"same batch, key heads.*cache=\(2, 2, 4, 4\)"):
        layer.decode(x, layer.init_cache(2, 9))
    with pytest.raises(ValueError, match=r"`mask` of new steps must be a bool array \(B, t\)"):
        layer.decode(x, layer.init_cache(3, 9), mask=np.ones((3, 5, 5), bool))
