import keras
import numpy as np
import pytest

from kattn import masks
from kattn.layers import DifferentialAttention
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from tests import oracle, rotary_oracle
from tests.checks import check_layer, shake
from tests.compute import assert_close, run
from tests.decode_checks import in_pieces
from tests.layers.attention.test_self_attention import DECODED, KEEP

FULL = {
    "num_heads": 4,
    "key_dim": 4,
    "value_dim": 3,
    "num_key_value_heads": 2,
    "causal": True,
    "window": 3,
    "use_qk_norm": True,
    "qk_norm_epsilon": 0.3,
    "softcap": 2.0,
    "use_sinks": True,
    "pattern": masks.Window(4) | masks.Prefix(1),
    "position": RotaryEmbedding(base=50.0, name="rotary"),
    "use_gate": True,
    "dropout": 0.4,
    "lambda_init": 0.3,
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
    "causal": {"num_heads": 2, "causal": True, "lambda_init": 0.2, "use_bias": False},
    "all": FULL,
}


def expected_output(layer, x, keep, options):
    """Ye et al. 2024, eq. 1 to 3, from the layer's weights by name."""
    w = {weight.path.split("/", 1)[1]: run(keras.ops.convert_to_tensor, weight).astype(float)
         for weight in layer.weights if "seed" not in weight.path}  # fmt: skip
    heads = options["num_heads"]
    key_heads = options.get("num_key_value_heads", heads)
    width = options.get("key_dim", 8 // heads // 2)
    value_width = options.get("value_dim", 2 * width)
    flat = x @ w["qkv/kernel"] + w.get("qkv/bias", 0.0)
    ends = np.cumsum([2 * heads * width, 2 * key_heads * width])
    q, k, v = np.split(flat, ends, axis=-1)
    q, k = q.reshape(3, 5, 2 * heads, width), k.reshape(3, 5, 2 * key_heads, width)
    v = v.reshape(3, 5, key_heads, value_width)
    if options.get("use_qk_norm"):
        epsilon = options.get("qk_norm_epsilon", 1e-6)
        q = q / np.sqrt((q**2).mean(-1, keepdims=True) + epsilon) * w["query_norm/scale"]
        k = k / np.sqrt((k**2).mean(-1, keepdims=True) + epsilon) * w["key_norm/scale"]
    if "position" in options:
        turns = rotary_oracle.frequencies(width, base=50.0)[None]
        q, k = (rotary_oracle.rotate(part, np.arange(5)[:, None], turns) for part in (q, k))
    if options.get("causal"):
        keep = keep & oracle.causal(5, 5)
    if "window" in options:
        keep = keep & oracle.window(5, 5, options["window"])
    scores = {"keep": keep, "softcap": options.get("softcap"), "sinks": w.get("sinks")}
    y1, a1 = oracle.attention(q[:, :, :heads], k[:, :, :key_heads], v, **scores)
    y2, a2 = oracle.attention(q[:, :, heads:], k[:, :, key_heads:], v, **scores)
    start = options.get("lambda_init", 0.8)
    factor = np.exp(w["lambda_q1"] @ w["lambda_k1"]) - np.exp(w["lambda_q2"] @ w["lambda_k2"])
    factor = factor + start
    y = y1 - factor * y2
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * w["norm/scale"] * (1 - start)
    y = y.reshape(3, 5, heads * value_width)
    if options.get("use_gate"):
        y = y / (1.0 + np.exp(-(x @ w["gate/kernel"] + w["gate/bias"])))
    return y @ w["output/kernel"] + w.get("output/bias", 0.0), a1 - factor * a2


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer = DifferentialAttention(**CASES[case])
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    shake(layer, [x])
    keep = KEEP[:, None, None, :] & KEEP[:, None, :, None]
    keep = np.broadcast_to(keep, (3, layer.num_heads, 5, 5))
    expected, weights = expected_output(layer, x, keep, CASES[case])
    assert_close(run(layer, x, mask=KEEP), expected)
    assert_close(run(layer.attention_weights, x, mask=KEEP), weights)


@pytest.mark.parametrize("case", DECODED)
def test_decoding_equals_the_call(rng, case):
    layer = DifferentialAttention(2, key_dim=4, **DECODED[case])
    x = rng.normal(size=(3, 7, 8)).astype("float32")
    shake(layer, [x])
    assert_close(run(in_pieces, layer, x, [0, 3, 4, 7], 8), run(layer, x))
    assert layer.init_cache(3, 8).keys.shape[-1] == 8
    assert layer.init_cache(3, 8).values.shape[-1] == 8


def test_lambda_of_a_layer():
    assert DifferentialAttention.lambda_of(1) == pytest.approx(0.2)
    assert DifferentialAttention.lambda_of(5) == pytest.approx(0.8 - 0.6 * np.exp(-1.2))


def make(**options):
    return DifferentialAttention(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="differential_attention", causal=True, window=3, decodes=True)


def test_bad_input(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    with pytest.raises(ValueError, match=r"`lambda_init` must be in \(0, 1\).*lambda_init=1\.0"):
        DifferentialAttention(2, lambda_init=1.0)
    with pytest.raises(ValueError, match=r"divisible by 2 \* `num_heads`.*width=8, num_heads=3"):
        DifferentialAttention(3)(x)
    with pytest.raises(ValueError, match=r"`num_heads` must be an integer >= 1.*num_heads=0"):
        DifferentialAttention(0)
