import keras
import numpy as np
import pytest

from kattn.layers import GatedDeltaNet
from tests.checks import check_layer
from tests.compute import assert_close, differentiate, quick, run
from tests.recurrent_oracle import KEEP, build, convolved, sigmoid, weights_of

FULL = {
    "num_heads": 2,
    "key_dim": 3,
    "value_dim": 5,
    "kernel_size": 2,
    "implementation": "chunked",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}
CASES = {
    "default": {"num_heads": 2},
    "no bias": {"num_heads": 4, "use_bias": False, "implementation": "parallel"},
    "all": FULL,
}


def swish(x):
    return x * sigmoid(x)


def unit(x):
    return x / np.sqrt((x * x).sum() + 1e-6)


def expected_output(layer, x, keep):
    """Yang et al. 2024, eq. 10 and sec. 3.4: one step and one head after the other."""
    w, heads = weights_of(layer), layer.num_heads
    width = layer.key_dim or x.shape[-1] // heads
    value_width = layer.value_dim or width
    flat = x @ w["qkv/kernel"] + w.get("qkv/bias", 0.0)
    flat = swish(convolved(flat, w["convolution/kernel"], w.get("convolution/bias", 0.0), keep))
    q, k, v = np.split(flat, [heads * width, 2 * heads * width], axis=-1)
    b, a = np.split(x @ w["rates/kernel"], 2, axis=-1)
    b, a = sigmoid(b), np.exp(-np.exp(w["speed"]) * np.log1p(np.exp(a + w["shift"])))
    mixed = np.zeros((*x.shape[:2], heads, value_width))
    for i, n in np.ndindex(len(x), heads):
        state = np.zeros((width, value_width))
        keys, values = (slice(n * size, (n + 1) * size) for size in (width, value_width))
        for t in range(x.shape[1]):
            if keep[i, t]:
                key = unit(k[i, t, keys])
                state = a[i, t, n] * state
                state = state + b[i, t, n] * np.outer(key, v[i, t, values] - key @ state)
            row = unit(q[i, t, keys]) / np.sqrt(width) @ state
            mixed[i, t, n] = row / np.sqrt((row * row).mean() + 1e-6) * w["norm_scale"]
    gate = x @ w["gate/kernel"] + w.get("gate/bias", 0.0)
    mixed = mixed.reshape(*x.shape[:2], -1) * swish(gate) * keep[..., None]
    return mixed @ w["output/kernel"] + w.get("output/bias", 0.0)


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(GatedDeltaNet(**CASES[case]), rng)
    call = quick(layer)
    assert_close(run(call, x), expected_output(layer, x, np.ones_like(KEEP)), 2e-5)
    assert_close(run(call, x, mask=KEEP), expected_output(layer, x, KEEP), 2e-5)


def test_long_sequences(rng):
    """Longer than a chunk, and not a multiple of it; the gradients are finite."""
    layer, _ = build(GatedDeltaNet(2), rng)
    x = rng.normal(size=(1, 75, 8)).astype("float32")
    y, (gradient,) = differentiate(quick(lambda x: layer(x)), [x], np.ones((1, 75, 8)))
    assert_close(y, expected_output(layer, x, np.ones((1, 75), bool)), 5e-5)
    assert np.isfinite(gradient).all()


def test_initial_decays():
    """Rates of decay of 1 to 16, times steps of 0.001 to 0.1."""
    layer = GatedDeltaNet(500, key_dim=1)
    layer.build((None, 5, 2))
    w = weights_of(layer)
    speed, step = np.exp(w["speed"]), np.log1p(np.exp(w["shift"]))
    assert 1.0 <= speed.min() < 1.5
    assert 15.5 < speed.max() <= 16.0
    assert 0.00099 < step.min() < 0.0011
    assert 0.09 < step.max() < 0.1001
    assert abs((step < 0.01).mean() - 0.5) < 0.1  # even over the logarithms


def test_projections_are_drawn_apart():
    initializer = keras.initializers.RandomNormal(seed=1)
    layer = GatedDeltaNet(8, key_dim=1, kernel_initializer=initializer)
    layer.build((None, 5, 8))
    w = weights_of(layer)
    kernels = [w[f"{name}/kernel"] for name in ("qkv", "gate", "output", "rates")]
    parts = [part for kernel in kernels for part in np.split(kernel, kernel.shape[1] // 8, axis=1)]
    assert len(parts) == 7
    for i, one in enumerate(parts):
        for other in parts[:i]:
            assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_the_state_in_float32(rng, dtype):
    layer = GatedDeltaNet(2, dtype=dtype)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    y, (before, state) = layer.decode(x, layer.init_cache(3, 9))
    half = dtype.removeprefix("mixed_")
    dtypes = [keras.backend.standardize_dtype(a.dtype) for a in (y, *before, *state)]
    assert dtypes == [half, half, "float32", "int32"]


def make(**options):
    return GatedDeltaNet(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="gated_delta_net", causal=True, dropout=False, decodes=True)


BAD = {
    "num_heads": ({"num_heads": 0}, "`num_heads` must be an integer >= 1.*num_heads=0"),
    "kernel_size": ({"kernel_size": 0}, "`kernel_size` must be an integer >= 1.*=0"),
    "implementation": (
        {"implementation": "step"},
        "`implementation` must be one of auto, parallel, chunked.*'step'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        GatedDeltaNet(**{"num_heads": 2, **options})


def test_bad_input(rng):
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=8, num_heads=3"):
        GatedDeltaNet(3)(rng.normal(size=(3, 5, 8)))
