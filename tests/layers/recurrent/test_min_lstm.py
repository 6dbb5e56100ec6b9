import numpy as np
import pytest

from kattn.layers import MinLSTM
from tests.checks import check_layer
from tests.compute import assert_close, quick, run
from tests.recurrent_oracle import KEEP, NO_STARTS, STARTS, build, sigmoid, through, weights_of

FULL = {
    "units": 6,
    "activation": "tanh",
    "implementation": "chunked",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}
CASES = {"default": {"units": 7}, "no bias": {"units": 5, "use_bias": False}, "all": FULL}


def expected_output(layer, x, keep, starts):
    """Feng et al. 2024, sec. 3.2: one step after the other."""
    w, units = weights_of(layer), layer.units
    flat = x @ w["inputs/kernel"] + w.get("inputs/bias", 0.0)
    f, i = sigmoid(flat[..., :units]), sigmoid(flat[..., units : 2 * units])
    new = flat[..., 2 * units :]
    is_tanh = layer.activation != "positive"
    new = np.tanh(new) if is_tanh else np.where(new >= 0, new + 0.5, sigmoid(new))
    f, i = f / (f + i), i / (f + i)
    return through(lambda b, t, h, _: f[b, t] * h + i[b, t] * new[b, t], x, keep, starts, units)


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(MinLSTM(**CASES[case]), rng)
    call = quick(layer)
    assert_close(run(call, x), expected_output(layer, x, np.ones_like(KEEP), NO_STARTS))
    found = run(call, x, mask=KEEP, starts=STARTS)
    assert_close(found, expected_output(layer, x, KEEP, STARTS))


def test_shut_gates_share_what_there_is(rng):
    """Both gates near 0, as far as float32 reaches: their shares are still those of the paper."""
    layer, x = build(MinLSTM(4, activation="tanh"), rng)
    kernel, bias = layer.get_weights()
    bias[:8] = -200.0
    layer.set_weights([kernel, bias])
    found = run(quick(layer), x)
    assert_close(found, expected_output(layer, x, np.ones_like(KEEP), NO_STARTS), 1e-4)


def make(**options):
    return MinLSTM(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="min_lstm", causal=True, dropout=False, decodes=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`units` must be an integer >= 1.*units=1.5"):
        MinLSTM(1.5)
