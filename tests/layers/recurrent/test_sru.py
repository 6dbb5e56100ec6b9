import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import SRU
from tests.checks import check_layer
from tests.compute import assert_close, differentiate, quick, run
from tests.recurrent_oracle import KEEP, NO_STARTS, STARTS, build, sigmoid, through, weights_of

FULL = {
    "units": 6,
    "highway_bias": -1.0,
    "rescale": True,
    "implementation": "chunked",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}
CASES = {
    "default": {"units": 8},
    "no bias": {"units": 8, "use_bias": False, "rescale": True, "highway_bias": 0.5},
    "no peephole": {"units": 5, "peephole": False},
    "all": FULL,
}


def expected_output(layer, x, keep, starts):
    """Lei et al. 2018, eq. 1 to 4, one step after the other."""
    w, units = weights_of(layer), layer.units
    u, forget, reset, *past = np.split(
        x @ w["inputs/kernel"], w["inputs/kernel"].shape[1] // units, axis=-1
    )
    gain = np.sqrt(1 + 2 * np.exp(layer.highway_bias)) if layer.rescale else 1.0
    past = gain * (past[0] if past else x)
    b_f, b_r = w.get("gate_bias", np.zeros((2, units)))
    v_f, v_r = w.get("peephole", np.zeros((2, units)))
    y = np.zeros((*x.shape[:2], units))

    def step(b, t, c, _):
        f = sigmoid(forget[b, t] + v_f * c + b_f)
        r = sigmoid(reset[b, t] + v_r * c + b_r)
        new = f * c + (1 - f) * u[b, t]
        y[b, t] = r * new + (1 - r) * past[b, t]
        return new

    through(step, x, keep, starts, units)
    return y


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(SRU(**CASES[case]), rng)
    call = quick(layer)
    assert_close(run(call, x), expected_output(layer, x, np.ones_like(KEEP), NO_STARTS))
    found = run(call, x, mask=KEEP, starts=STARTS)
    assert_close(found[KEEP], expected_output(layer, x, KEEP, STARTS)[KEEP])


def test_initial_weights():
    """The highway bias lies in b_r alone, and the gates do not see the state yet."""
    layer = SRU(4, highway_bias=-3.0, bias_initializer="ones")
    layer.build((None, 5, 8))
    w = weights_of(layer)
    np.testing.assert_array_equal(w["gate_bias"], [[1.0] * 4, [-2.0] * 4])
    np.testing.assert_array_equal(w["peephole"], np.zeros((2, 4)))


def test_gradients_through_a_thousand_steps(rng):
    layer, _ = build(SRU(8), rng)
    x = rng.normal(size=(2, 1000, 8)).astype("float32")
    w = dict(zip([w.name for w in layer.weights], layer.get_weights(), strict=True))
    w["gate_bias"][0] = 9.0  # gates that keep the state, and so hand the gradient on
    layer.set_weights(list(w.values()))
    upstream = np.zeros((2, 1000, 8))
    upstream[:, -1] = 1.0
    _, (gradient,) = differentiate(quick(lambda x: layer(x)), [x], upstream)
    assert np.isfinite(gradient).all()
    sizes = np.abs(gradient[:, :-1]).max(axis=(0, 2))  # the last step has the highway besides
    assert sizes[0] > 0.01 * sizes[-1] > 0.0


def test_bad_starts(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    with pytest.raises(ValueError, match=r"`starts` must have shape .*\(3, 5\).*\(3, 4\)"):
        SRU(8)(x, starts=ops.convert_to_tensor(STARTS[:, :4]))
    with pytest.raises(ValueError, match=r"`starts` must be boolean"):
        SRU(8)(x, starts=ops.ones((3, 5)))


def make(**options):
    return SRU(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="sru", causal=True, dropout=False, decodes=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`units` must be an integer >= 1.*units=0"):
        SRU(0)
    with pytest.raises(ValueError, match=r"`highway_bias` must be a finite number; .*=nan"):
        SRU(4, highway_bias=float("nan"))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="others loop over any number")
def test_a_peephole_is_not_exported_for_any_number_of_steps(rng):
    from tests.traced import traced_for_any_length

    layer, x = build(SRU(8), rng)
    with pytest.raises(ValueError, match=r"cannot export.*peephole=False"):
        traced_for_any_length(layer, [x], [(3, "T", 8)])
