import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import RGLRU
from tests.checks import check_layer
from tests.compute import assert_close, differentiate, quick, run
from tests.recurrent_oracle import KEEP, NO_STARTS, STARTS, build, sigmoid, through, weights_of

FULL = {
    "num_heads": 2,
    "implementation": "chunked",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}
CASES = {"default": {"num_heads": 4}, "no bias": {"num_heads": 1, "use_bias": False}, "all": FULL}


def expected_output(layer, x, keep, starts):
    """De et al. 2024, eq. 1 to 4, with blocks: one step and one block after the other."""
    w, heads, width = weights_of(layer), layer.num_heads, x.shape[-1]
    block = width // heads
    softplus = np.log1p(np.exp(w["decay"]))

    def step(b, t, h, is_first):
        new = np.zeros(width)
        for n in range(heads):
            part = slice(n * block, (n + 1) * block)
            z = x[b, t, part] @ w["gates_kernel"][n]
            z = sigmoid(z + w["gates_bias"][n] if "gates_bias" in w else z)
            a = np.exp(-8.0 * z[block:] * softplus[part])
            gain = 1.0 if is_first else np.sqrt(1.0 - a**2)
            new[part] = a * h[part] + gain * z[:block] * x[b, t, part]
        return new

    return through(step, x.astype(float), keep, starts, width)


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(RGLRU(**CASES[case]), rng)
    call = quick(layer)
    assert_close(run(call, x), expected_output(layer, x, np.ones_like(KEEP), NO_STARTS))
    found = run(call, x, mask=KEEP, starts=STARTS)
    assert_close(found, expected_output(layer, x, KEEP, STARTS))


def test_decays_start_between_the_radii():
    """exp(-softplus(P)) lies in [0.9, 0.999], and half of it in the outer half of the area."""
    layer = RGLRU(1)
    layer.build((None, 5, 4000))
    radius = np.exp(-np.log1p(np.exp(weights_of(layer)["decay"])))
    assert 0.9 <= radius.min() < 0.902
    assert 0.998 < radius.max() <= 0.999 + 1e-6
    middle = np.sqrt((0.9**2 + 0.999**2) / 2)
    assert abs((radius > middle).mean() - 0.5) < 0.03


def test_blocks_are_drawn_apart():
    layer = RGLRU(3, kernel_initializer=keras.initializers.RandomNormal(seed=1))
    layer.build((None, 5, 12))
    kernel = weights_of(layer)["gates_kernel"]
    blocks = [kernel[n, :, part] for n in range(3) for part in (slice(4), slice(4, 8))]
    for i, one in enumerate(blocks):
        for other in blocks[:i]:
            assert np.abs(one - other).max() > 1e-3


def test_gradients_through_a_thousand_steps(rng):
    """They are finite, also where a gate is shut, at which the square root is steep."""
    layer, _ = build(RGLRU(2), rng)
    values = dict(zip([w.name for w in layer.weights], layer.get_weights(), strict=True))
    values["gates_bias"][:, 4:] = -40.0  # r = 0 but for a rounding: a = 1
    layer.set_weights(list(values.values()))
    x = rng.normal(size=(2, 1000, 8)).astype("float32")
    y, (gradient,) = differentiate(quick(lambda x: layer(x)), [x], np.ones((2, 1000, 8)))
    assert np.isfinite(y).all()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:, 0]).max() > 0.1  # the first step is kept to the end


def test_the_square_root_has_a_slope_of_1000_at_most():
    from kattn.layers.recurrent.rglru import _square_root

    x = np.array([0.0, 1e-9, 1e-6, 0.25, 0.9])
    y, (slope,) = differentiate(quick(_square_root), [x], np.ones(5))
    assert_close(y, np.sqrt(x))
    assert_close(slope, [1000.0, 1000.0, 500.0, 1.0, 0.5 / np.sqrt(0.9)], 1e-4)


def test_bad_starts(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    with pytest.raises(ValueError, match=r"`starts` must have shape .*\(3, 5\).*\(3, 4\)"):
        RGLRU(2)(x, starts=ops.convert_to_tensor(STARTS[:, :4]))
    with pytest.raises(ValueError, match=r"`starts` must be boolean"):
        RGLRU(2)(x, starts=ops.ones((3, 5)))


def make(**options):
    return RGLRU(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="rglru", causal=True, dropout=False, decodes=True)


def test_bad_arguments(rng):
    with pytest.raises(ValueError, match=r"`num_heads` must be an integer >= 1.*num_heads=0"):
        RGLRU(0)
    with pytest.raises(ValueError, match=r"divisible by `num_heads`; .*width=8, num_heads=3"):
        RGLRU(3)(rng.normal(size=(3, 5, 8)))
