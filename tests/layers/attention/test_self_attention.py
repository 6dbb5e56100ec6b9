import keras
import numpy as np
import pytest

from kattn import masks
from kattn.layers import SelfAttention
from tests import oracle
from tests.checks import check_layer, shake
from tests.compute import assert_close, run

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
FULL = {
    "num_heads": 4,
    "key_dim": 6,
    "value_dim": 3,
    "num_key_value_heads": 2,
    "causal": True,
    "window": 3,
    "qk_norm": True,
    "softcap": 2.0,
    "gate": True,
    "dropout": 0.4,
    "seed": 1,
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
}
CASES = {
    "default": {"num_heads": 2},
    "causal": {"num_heads": 2, "causal": True},
    "window": {"num_heads": 1, "window": 2},
    "grouped": {"num_heads": 4, "num_key_value_heads": 2, "key_dim": 3},
    "values": {"num_heads": 2, "key_dim": 3, "value_dim": 5},
    "no bias": {"num_heads": 2, "use_bias": False},
    "norm": {"num_heads": 2, "qk_norm": True},
    "softcap": {"num_heads": 2, "softcap": 0.5},
    "gate": {"num_heads": 2, "gate": True},
    "all": FULL,
}


def build(rng, **options):
    """A layer with weights off their initial values, and an input `(3, 5, 8)`."""
    layer = SelfAttention(**options)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


def expected_output(layer, x, keep, options):
    """From the layer's weights by name; `keep` is `(B, N, T, T)`."""
    w = {weight.path.split("/", 1)[1]: run(keras.ops.convert_to_tensor, weight).astype(float)
         for weight in layer.weights if "seed" not in weight.path}  # fmt: skip
    heads = options["num_heads"]
    key_heads = options.get("num_key_value_heads", heads)
    width = options.get("key_dim", 8 // heads)
    value_width = options.get("value_dim", width)
    flat = x @ w["qkv/kernel"] + w.get("qkv/bias", 0.0)
    q, k, v = np.split(flat, [heads * width, (heads + key_heads) * width], axis=-1)
    q = q.reshape(3, 5, heads, width)
    k = k.reshape(3, 5, key_heads, width)
    v = v.reshape(3, 5, key_heads, value_width)
    if options.get("qk_norm"):
        q = q / np.sqrt((q**2).mean(-1, keepdims=True) + 1e-6) * w["query_norm/scale"]
        k = k / np.sqrt((k**2).mean(-1, keepdims=True) + 1e-6) * w["key_norm/scale"]
    if options.get("causal"):
        keep = keep & oracle.causal(5, 5)
    if "window" in options:
        keep = keep & oracle.window(5, 5, options["window"])
    mixed, weights = oracle.attention(q, k, v, keep=keep, softcap=options.get("softcap"))
    mixed = mixed.reshape(3, 5, heads * value_width)
    if options.get("gate"):
        mixed = mixed / (1.0 + np.exp(-(x @ w["gate/kernel"] + w["gate/bias"])))
    return mixed @ w["output/kernel"] + w.get("output/bias", 0.0), weights


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
    expected, weights = expected_output(layer, x, keep, CASES[case])
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
    options = {**CASES["window"], "kernel": kernel}
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


def make(**options):
    return SelfAttention(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="self_attention", causal=True, window=3)


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
    "dropout": ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\).*dropout=1\.0"),
    "softcap": ({"softcap": -1.0}, r"`softcap` must be positive.*softcap=-1\.0"),
    "kernel": ({"kernel": "flash"}, "`kernel` must be one of auto.*kernel='flash'"),
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
    with pytest.raises(ValueError, match=r"must be boolean.*float32"):
        SelfAttention(2)(x, mask=KEEP.astype("float32"))
    with pytest.raises(ValueError, match=r"must broadcast to .*\(3, 4\)"):
        SelfAttention(2)(x, mask=KEEP[:, :4])
    with pytest.raises(ValueError, match=r"`mask` must be a kattn.masks.Mask or a bool array"):
        SelfAttention(2)(x, mask=KEEP[0])
