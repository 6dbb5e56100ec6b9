import keras
import numpy as np
import pytest

from kattn.layers import SRUPlusPlus
from tests.checks import check_layer
from tests.compute import assert_close, quick, run
from tests.recurrent_oracle import KEEP, build, sigmoid, through, weights_of

FULL = {
    "units": 6,
    "attention_dim": 4,
    "num_heads": 2,
    "window": 3,
    "dropout": 0.2,
    "attention_dropout": 0.1,
    "seed": 3,
    "highway_bias": -1.0,
    "rescale": True,
    "peephole": False,
    "implementation": "chunked",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}
CASES = {"default": {"units": 8, "attention_dim": 3}, "all": FULL}


def attended(z, k, v, keep, heads, window):
    """Causal softmax attention of one item, one query and one head after the other."""
    y, width = np.zeros(z.shape), z.shape[1] // heads
    for t in range(len(z)):
        real = [s for s in range(t + 1) if keep[s]]
        seen = [s for s in real if t - s < window]
        for n in range(heads):
            part = slice(n * width, (n + 1) * width)
            if seen:
                scores = k[seen, part] @ z[t, part] / np.sqrt(width)
                p = np.exp(scores - scores.max())
                y[t, part] = p @ v[seen, part] / p.sum()
    return y


def expected_output(layer, x, keep):
    """Lei 2021, eq. 3 to 6, around the recurrence of Lei et al. 2018."""
    w, units = weights_of(layer), layer.units
    z = x @ w["down/kernel"]
    k, v = np.split(z @ w["key_value/kernel"], 2, axis=-1)
    window = layer.window or x.shape[1]
    mixed = [attended(z[b], k[b], v[b], keep[b], layer.num_heads, window) for b in range(len(x))]
    h = z + w["alpha"] * np.stack(mixed)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    h = (h * w["norm/gamma"] + w["norm/beta"]) @ w["expansion/kernel"]
    u, forget, reset, *past = np.split(h, h.shape[-1] // units, axis=-1)
    gain = np.sqrt(1 + 2 * np.exp(layer.highway_bias)) if layer.rescale else 1.0
    past = gain * (past[0] if past else x)
    b_f, b_r = w["gate_bias"]
    v_f, v_r = w.get("peephole", np.zeros((2, units)))
    y = np.zeros((*x.shape[:2], units))

    def step(b, t, c, _):
        f = sigmoid(forget[b, t] + v_f * c + b_f)
        r = sigmoid(reset[b, t] + v_r * c + b_r)
        new = f * c + (1 - f) * u[b, t]
        y[b, t] = r * new + (1 - r) * past[b, t]
        return new

    through(step, x, keep, np.zeros_like(keep), units)
    return y


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(SRUPlusPlus(**CASES[case]), rng)
    call = quick(layer)
    assert_close(run(call, x), expected_output(layer, x, np.ones_like(KEEP)), 2e-5)
    assert_close(run(call, x, mask=KEEP)[KEEP], expected_output(layer, x, KEEP)[KEEP], 2e-5)


def test_attention_starts_at_nothing():
    layer = SRUPlusPlus(4, 2)
    layer.build((None, 5, 8))
    assert weights_of(layer)["alpha"] == 0.0


def test_projections_are_drawn_apart():
    """Also by one seeded initializer, and where parts have the same shape."""
    initializer = keras.initializers.RandomNormal(seed=1)
    layer = SRUPlusPlus(8, 8, kernel_initializer=initializer)
    layer.build((None, 5, 8))
    names = ("down", "key_value", "expansion")
    kernels = [weights_of(layer)[f"{name}/kernel"] for name in names]
    parts = [part for kernel in kernels for part in np.split(kernel, kernel.shape[1] // 8, axis=1)]
    assert len(parts) == 6
    for i, one in enumerate(parts):
        for other in parts[:i]:
            assert np.abs(one - other).max() > 1e-3


def make(**options):
    return SRUPlusPlus(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="sru_plus_plus", causal=True, decodes=True)


BAD = {
    "attention_dim": ({"attention_dim": 0}, "`attention_dim` must be an integer >= 1"),
    "num_heads": ({"num_heads": 3}, "`attention_dim` must be divisible by `num_heads`.*=4, .*=3"),
    "window": ({"window": 0}, "`window` must be an integer >= 1.*window=0"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be a fraction in \[0, 1\)"),
    "attention_dropout": ({"attention_dropout": -0.1}, "`attention_dropout` must be a fraction"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        SRUPlusPlus(**{"units": 4, "attention_dim": 4, **options})
