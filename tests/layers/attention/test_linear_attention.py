import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import ALiBi, LearnedPositions, LinearAttention, RotaryEmbedding
from kattn.ops.linear import LinearState
from tests import linear_oracle as oracle
from tests import rotary_oracle
from tests.checks import check_layer, check_permutation, shake
from tests.compute import assert_close, quick, run

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
FULL = {
    "num_heads": 4,
    "key_dim": 6,
    "value_dim": 3,
    "num_key_value_heads": 2,
    "feature_map": "performer",
    "num_features": 8,
    "causal": True,
    "position": RotaryEmbedding(base=50.0, name="rotary"),
    "use_gate": True,
    "implementation": "chunked",
    "seed": 1,
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
}
CASES = {
    "default": {"num_heads": 2},
    "causal": {"num_heads": 2, "causal": True},
    "parallel": {"num_heads": 2, "causal": True, "implementation": "parallel"},
    "grouped": {"num_heads": 4, "num_key_value_heads": 2, "key_dim": 3},
    "values": {"num_heads": 2, "key_dim": 3, "value_dim": 5, "use_bias": False},
    "gate": {"num_heads": 2, "use_gate": True},
    "softmax": {"num_heads": 2, "feature_map": "softmax"},
    "softmax, causal": {"num_heads": 2, "feature_map": "softmax", "causal": True},
    "performer": {"num_heads": 2, "feature_map": "performer", "seed": 3},
    "performer_relu": {"num_heads": 2, "feature_map": "performer_relu", "num_features": 3},
    "rotary": {"num_heads": 2, "position": RotaryEmbedding(base=50.0)},
    "rotary, parallel": {
        "num_heads": 4,
        "num_key_value_heads": 2,
        "key_dim": 2,
        "causal": True,
        "implementation": "parallel",
        "position": RotaryEmbedding(base=50.0),
    },
    "learned": {"num_heads": 2, "causal": True, "position": LearnedPositions(9, name="table")},
    "all": FULL,
}
CAUSAL = [
    case
    for case, options in CASES.items()
    # The masks of these tests have gaps, over which positions are counted, but not in a state.
    if options.get("causal") and "position" not in options
]


def build(rng, **options):
    """A layer with weights off their initial values, and an input `(3, 5, 8)`."""
    layer = LinearAttention(**options)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


def weights_of(layer):
    return {
        weight.path.split("/", 1)[1]: run(ops.convert_to_tensor, weight).astype(float)
        for weight in layer.weights
    }


def features(w, q, k, keep, feature_map="elu", *, causal=False):
    if feature_map == "elu":
        return oracle.elu_plus_one(q), oracle.elu_plus_one(k)
    if feature_map == "softmax":
        of_keys = oracle.softmax(k) if causal else oracle.softmax_steps(k, keep)
        return oracle.softmax(q), of_keys
    phi = {"performer": oracle.positive_features, "performer_relu": oracle.rectified_features}
    return tuple(phi[feature_map](x, w["projection"]) for x in (q, k))


def attend_turned(phi, v, keep, positions, *, causal):
    """Su et al. 2021, eq. 19: features are turned above, and not below, one query at a time."""
    phi_q, phi_k = phi
    turns = rotary_oracle.frequencies(phi_q.shape[-1], base=50.0)[None]
    turned = [rotary_oracle.rotate(part, positions[..., None], turns) for part in phi]
    batch, steps, heads, _ = phi_q.shape
    group = heads // phi_k.shape[2]
    mixed, weights = (
        np.zeros((batch, steps, heads, v.shape[-1])),
        np.zeros((batch, heads, steps, steps)),
    )
    for b, n, t in np.ndindex(batch, heads, steps):
        seen = [s for s in range(steps) if keep[b, s] and (s <= t or not causal)]
        if seen:
            total = sum(phi_q[b, t, n] @ phi_k[b, s, n // group] for s in seen)
            for s in seen:
                weight = turned[0][b, t, n] @ turned[1][b, s, n // group] / total
                weights[b, n, t, s] = weight
                mixed[b, t, n] += weight * v[b, s, n // group]
    return mixed, weights


def expected_output(layer, x, keep, options):
    """From the layer's weights by name; `keep` is `(B, T)`."""
    w, (batch, steps, _) = weights_of(layer), x.shape
    positions = np.maximum(np.arange(steps) - keep.argmax(1)[:, None], 0)
    if isinstance(options.get("position"), LearnedPositions):
        x = x + w["table/table"][positions]
    heads = options["num_heads"]
    key_heads = options.get("num_key_value_heads", heads)
    width = options.get("key_dim", 8 // heads)
    value_width = options.get("value_dim", width)
    flat = x @ w["qkv/kernel"] + w.get("qkv/bias", 0.0)
    q, k, v = np.split(flat, [heads * width, (heads + key_heads) * width], axis=-1)
    q = q.reshape(batch, steps, heads, width)
    k = k.reshape(batch, steps, key_heads, width)
    v = v.reshape(batch, steps, key_heads, value_width)
    causal = options.get("causal", False)
    phi_q, phi_k = features(w, q, k, keep, options.get("feature_map", "elu"), causal=causal)
    if isinstance(options.get("position"), RotaryEmbedding):
        mixed, weights = attend_turned((phi_q, phi_k), v, keep, positions, causal=causal)
    else:
        mixed, weights = oracle.attention(phi_q, phi_k, v, keep, causal=causal)
    mixed, weights = mixed * keep[:, :, None, None], weights * keep[:, None, :, None]
    mixed = mixed.reshape(batch, steps, heads * value_width)
    if options.get("use_gate"):
        mixed = mixed / (1.0 + np.exp(-(x @ w["gate/kernel"] + w["gate/bias"])))
    return mixed @ w["output/kernel"] + w.get("output/bias", 0.0), weights


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(rng, **CASES[case])
    expected, weights = expected_output(layer, x, KEEP, CASES[case])
    assert_close(run(quick(layer), x, mask=KEEP), expected)
    assert_close(run(quick(layer.attention_weights), x, mask=KEEP), weights)
    everything = np.ones_like(KEEP)
    expected, weights = expected_output(layer, x, everything, CASES[case])
    assert_close(run(quick(layer), x), expected)
    assert_close(run(quick(layer.attention_weights), x), weights)


def test_a_padded_step_gives_the_output_bias(rng):
    layer, x = build(rng, **CASES["default"])
    y = run(layer, x, mask=KEEP)
    assert_close(y[~KEEP], np.broadcast_to(weights_of(layer)["output/bias"], y[~KEEP].shape))


@pytest.mark.parametrize("feature_map", ["softmax", "performer", "performer_relu"])
def test_padding_is_not_looked_at_by_features(rng, feature_map):
    """Some of them take sums or maxima over steps."""
    layer, x = build(rng, num_heads=2, feature_map=feature_map, seed=1)
    before = run(layer, x, mask=KEEP)
    x[~KEEP] = 50.0
    assert_close(run(layer, x, mask=KEEP), before)


def test_performer_approaches_softmax(rng):
    """With many features the weights are those of softmax attention."""
    options = {"num_heads": 2, "feature_map": "performer", "num_features": 100_000, "seed": 0}
    layer = LinearAttention(**options)
    x = 0.7 * rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    layer.trainable_weights[0].assign(0.3 * rng.normal(size=(8, 24)))
    weights = run(layer.attention_weights, x)
    w = weights_of(layer)
    q, k, _ = np.split((x @ w["qkv/kernel"]).reshape(3, 5, 6, 4), 3, axis=2)
    wanted = oracle.softmax(np.einsum("btnd,bsnd->bnts", q, k) / 2.0)
    assert np.abs(wanted - 0.2).max() > 0.1
    assert np.abs(weights - wanted).max() < 0.03


def test_random_features():
    """A weight that is saved and not trained, drawn from the seed; D ln D by default."""
    first, second, third = (
        LinearAttention(2, 8, feature_map="performer", seed=seed) for seed in (1, 1, 2)
    )
    for layer in (first, second, third):
        layer.build((None, None, 4))
    assert weights_of(first)["projection"].shape == (8, 17)
    assert [w.name for w in first.non_trainable_weights] == ["projection"]
    np.testing.assert_array_equal(*(weights_of(x)["projection"] for x in (first, second)))
    assert np.abs(weights_of(first)["projection"] - weights_of(third)["projection"]).max() > 0.1


@pytest.mark.parametrize("case", CAUSAL)
def test_decoding_equals_the_whole(rng, case):
    """In pieces, of which those of one step are the usual."""
    layer, x = build(rng, **CASES[case])
    decode, cache = quick(layer.decode), layer.init_cache(3, length=7)
    found, start = [], 0
    for size in (2, 1, 1, 1):
        part = slice(start, start + size)
        y, cache = decode(x[:, part], cache, mask=KEEP[:, part])
        found, start = [*found, run(lambda y=y: y)], start + size
    assert isinstance(cache, LinearState)
    assert_close(np.concatenate(found, axis=1), run(quick(layer), x, mask=KEEP))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", ["causal"])
def test_padded_prompts(rng, case, side):
    """A padded prompt leaves the state of the prompt by itself, exactly."""
    layer, x = build(rng, **CASES[case])
    pad, keep = rng.normal(size=(3, 2, 8)), np.ones((3, 3), bool)
    order = 1 if side == "right" else -1
    longer = np.concatenate([x[:, :3], pad][::order], axis=1).astype("float32")
    mask = np.concatenate([keep, np.zeros((3, 2), bool)][::order], axis=1)
    decode, call = quick(layer.decode), quick(layer)
    _, alone = decode(x[:, :3], layer.init_cache(3, 9))
    y, padded = decode(longer, layer.init_cache(3, 9), mask=mask)
    for have, want in zip(padded, alone, strict=True):
        assert_close(run(lambda have=have: have), run(lambda want=want: want), 1e-6)
    assert_close(run(lambda: y)[mask].reshape(3, 3, 8), run(call, x[:, :3]))
    y, _ = decode(x[:, 3:], padded)
    assert_close(run(lambda: y), run(call, x)[:, 3:])


def test_decoding_in_half_precision_keeps_the_state_in_float32(rng):
    layer = LinearAttention(**FULL, dtype="mixed_bfloat16")
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer(x)
    y, cache = layer.decode(x, layer.init_cache(3, 9))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    dtypes = [keras.backend.standardize_dtype(a.dtype) for a in cache]
    assert dtypes == ["float32", "float32", "int32"]
    assert_close(run(ops.cast, y, "float32"), run(ops.cast, layer(x), "float32"), 2e-2)


def test_decoding_reads_the_mask_that_keras_keeps(rng):
    layer, x = build(rng, **CASES["causal"])
    x[~KEEP] = 0.0
    masked = keras.layers.Masking()(ops.convert_to_tensor(x))
    y, cache = layer.decode(masked, layer.init_cache(3, 9))
    np.testing.assert_array_equal(run(lambda: cache.length), KEEP.sum(axis=1))
    assert_close(run(lambda: y), run(layer, x, mask=KEEP))


def make(**options):
    return LinearAttention(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="linear_attention", causal=True, dropout=False, decodes=True)


@pytest.mark.parametrize("case", ["default", "softmax"])
def test_permutations(rng, case):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    check_permutation(lambda: LinearAttention(**CASES[case]), [x])


BAD = {
    "num_heads": ({"num_heads": 0}, "`num_heads` must be an integer >= 1.*num_heads=0"),
    "key_dim": ({"key_dim": -1}, "`key_dim` must be an integer >= 1.*key_dim=-1"),
    "value_dim": ({"value_dim": 1.5}, "`value_dim` must be.*value_dim=1.5"),
    "num_key_value_heads": (
        {"num_key_value_heads": 3},
        "multiple of `num_key_value_heads`.*num_heads=2, num_key_value_heads=3",
    ),
    "feature_map": ({"feature_map": "relu"}, "`feature_map` must be one of elu.*'relu'"),
    "num_features": (
        {"num_features": 4},
        "`num_features` is for random features.*num_features=4, feature_map='elu'",
    ),
    "implementation": (
        {"implementation": "dense"},
        "`implementation` must be one of auto.*implementation='dense'",
    ),
    "position": ({"position": ALiBi()}, "no scores that a bias could be added to.*ALiBi"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        LinearAttention(**{"num_heads": 2, **options})


def test_bad_input(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=8, num_heads=3"):
        LinearAttention(3)(x)
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(3, 5\)"):
        LinearAttention(2)(x[:, :, 0])
    with pytest.raises(ValueError, match=r"`mask` must be boolean.*float32"):
        LinearAttention(2)(x, mask=KEEP.astype("float32"))
    with pytest.raises(ValueError, match=r"`mask` must have rank 2, \(B, T\).*\(3, 5, 5\)"):
        LinearAttention(2)(x, mask=np.ones((3, 5, 5), bool))


def test_bad_decoding(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer = LinearAttention(2, 4)
    layer(x)
    with pytest.raises(ValueError, match=r"Only a causal layer can decode.*causal=True"):
        layer.init_cache(3, 9)
    with pytest.raises(ValueError, match="must be built before it can make a cache"):
        LinearAttention(2, causal=True).init_cache(3, 5)
