import numpy as np
import pytest

from kattn.layers import GriffinRecurrence
from tests.checks import check_layer
from tests.compute import assert_close, quick, run
from tests.recurrent_oracle import KEEP, build, convolved, gelu, sigmoid, through, weights_of

FULL = {
    "num_heads": 2,
    "units": 6,
    "kernel_size": 3,
    "implementation": "chunked",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}
CASES = {"default": {"num_heads": 4}, "no bias": {"num_heads": 2, "use_bias": False}, "all": FULL}


def expected_output(layer, x, keep):
    """De et al. 2024, sec. 2.3 and 2.4, one step after the other."""
    w, heads = weights_of(layer), layer.num_heads
    flat = x @ w["inputs/kernel"] + w.get("inputs/bias", 0.0)
    h, gate = np.split(flat, 2, axis=-1)
    h = convolved(h, w["convolution/kernel"], w.get("convolution/bias", 0.0), keep)
    width = h.shape[-1]
    block = width // heads
    kernel = w["recurrence/gates_kernel"]
    bias = w.get("recurrence/gates_bias", np.zeros(heads))
    z = np.stack(
        [h[..., n * block : (n + 1) * block] @ kernel[n] + bias[n] for n in range(heads)], axis=2
    )
    i, r = (sigmoid(part).reshape(h.shape) for part in np.split(z, 2, axis=-1))
    a = np.exp(-8.0 * r * np.log1p(np.exp(w["recurrence/decay"])))

    def step(b, t, state, is_first):
        gain = 1.0 if is_first else np.sqrt(1.0 - a[b, t] ** 2)
        return a[b, t] * state + gain * i[b, t] * h[b, t]

    states = through(step, h, keep, np.zeros_like(keep), width)
    return (states * gelu(gate)) @ w["output/kernel"] + w.get("output/bias", 0.0)


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(GriffinRecurrence(**CASES[case]), rng)
    call = quick(layer)
    assert_close(run(call, x), expected_output(layer, x, np.ones_like(KEEP)))
    assert_close(run(call, x, mask=KEEP)[KEEP], expected_output(layer, x, KEEP)[KEEP])


def make(**options):
    return GriffinRecurrence(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="griffin_recurrence", causal=True, dropout=False, decodes=True)


def test_bad_arguments(rng):
    with pytest.raises(ValueError, match=r"`units` must be an integer >= 1.*units=0"):
        GriffinRecurrence(2, 0)
    with pytest.raises(ValueError, match=r"`kernel_size` must be an integer >= 1.*=0"):
        GriffinRecurrence(2, kernel_size=0)
    with pytest.raises(ValueError, match=r"divisible by `num_heads`; .*width=5, num_heads=2"):
        GriffinRecurrence(2, 5)(rng.normal(size=(3, 5, 8)))
