import math

import keras
import numpy as np
import pytest

from kattn.ops.rotary import rotary_frequencies, rotate
from tests import rotary_oracle as oracle
from tests.compute import assert_close, compiled, differentiate, run

SCALED = {
    "none": {},
    "base": {"base": 500.0},
    "linear": {"scaling": "linear", "factor": 3.0},
    "ntk": {"scaling": "ntk", "factor": 3.0, "base": 700.0},
    "yarn": {"scaling": "yarn", "factor": 5.0, "original_length": 300},
    "yarn with turns": {
        "scaling": "yarn",
        "factor": 2.5,
        "original_length": 64,
        "beta_fast": 4.0,
        "beta_slow": 0.25,
        "base": 100.0,
    },
}
SCALED["llama3"] = {**SCALED["yarn with turns"], "scaling": "llama3"}
POSITIONS = {
    "(T,)": np.array([3, 0, 7, 100, 2]),
    "(B, T)": np.array([[3, 0, 7, 100, 2], [5, 5, -6, 1, 0], [0, 1, 2, 3, 4]]),
    "floats": np.array([0.5, -1.25, 3.0, 60.75, 2.0]),
}


def inputs(rng):
    """B=3, T=5, N=2, D=12."""
    return rng.normal(size=(3, 5, 2, 12)).astype("float32")


@pytest.mark.parametrize("width", [4, 10, 64])
@pytest.mark.parametrize("case", SCALED)
def test_frequencies_match_oracle(case, width):
    found, expected = (
        make(width, **SCALED[case]) for make in (rotary_frequencies, oracle.frequencies)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_yarn_by_hand():
    """Waves of 2 pi, 20 pi, 200 pi and 2000 pi steps turn 1000, 100, 10 and 1 times."""
    found = rotary_frequencies(8, scaling="yarn", factor=4.0, original_length=2000 * math.pi)
    # 10 turns are 9 / 31 of the way from 1 to 32, so 9 / 31 + 22 / 31 / 4 = 14.5 / 31 remains.
    np.testing.assert_allclose(found, [1.0, 0.1, 0.145 / 31, 0.00025], rtol=1e-12)


def test_ntk_keeps_the_highest_and_divides_the_lowest():
    plain, found = rotary_frequencies(16), rotary_frequencies(16, scaling="ntk", factor=8.0)
    np.testing.assert_allclose(found[[0, -1]], [plain[0], plain[-1] / 8.0])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", POSITIONS)
def test_matches_oracle(rng, name, interleaved):
    x, positions = inputs(rng), POSITIONS[name]
    frequencies = oracle.frequencies(12, base=50.0)
    found = run(rotate, x, positions, frequencies, interleaved=interleaved, scale=1.3)
    expected = oracle.rotate(x, positions[..., None], frequencies[None], interleaved, 1.3)
    assert_close(found, expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_axes_and_a_part_match_oracle(rng, batch, interleaved):
    """Frequencies of their own for each axis; channels 8 to 11 stay."""
    x, frequencies = inputs(rng), np.array([[1.0, 0.2], [0.5, 0.07]])
    positions = rng.integers(0, 30, size=(*batch, 5, 2))
    found = run(rotate, x, positions, frequencies, interleaved=interleaved)
    assert_close(found, oracle.rotate(x, positions, frequencies, interleaved))
    np.testing.assert_array_equal(found[..., 8:], x[..., 8:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_differences_only(rng, interleaved):
    q, k = inputs(rng), inputs(rng)
    frequencies = rotary_frequencies(12, base=100.0)

    def scores(shift):
        turned = (
            run(rotate, x, np.arange(5) + shift, frequencies, interleaved=interleaved)
            for x in (q, k)
        )
        return np.einsum("btnd,bsnd->bnts", *turned)

    assert_close(scores(137), scores(0), 3e-5)
    assert np.abs(scores(0) - np.einsum("btnd,bsnd->bnts", q, k)).max() > 0.1


def test_norms_are_kept(rng):
    x = inputs(rng)
    y = run(rotate, x, POSITIONS["(B, T)"], rotary_frequencies(12))
    assert_close(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1))


def test_gradient_turns_back(rng):
    x, upstream = inputs(rng), inputs(rng)
    frequencies = rotary_frequencies(8, base=50.0)
    _, (found,) = differentiate(lambda x: rotate(x, POSITIONS["(T,)"], frequencies), [x], upstream)
    assert_close(found, oracle.rotate(upstream, -POSITIONS["(T,)"][:, None], frequencies[None]))


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2**-11), ("bfloat16", 2**-9)])
def test_half_precision_far_away(rng, dtype, rounding):
    x = keras.ops.cast(inputs(rng), dtype)
    frequencies = rotary_frequencies(12)
    positions = 100000 + np.arange(5)
    y = rotate(x, positions, frequencies)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    exact = oracle.rotate(run(keras.ops.cast, x, "float32"), positions[:, None], frequencies[None])
    assert_close(run(keras.ops.cast, y, "float32"), exact, 1.2 * rounding)


@pytest.mark.parametrize("interleaved", [False, True])
def test_compiled(rng, interleaved):
    x, positions = inputs(rng), POSITIONS["(B, T)"].astype("int32")
    frequencies = rotary_frequencies(8)
    tensors = [keras.ops.convert_to_tensor(array) for array in (x, positions)]
    found = run(compiled(lambda *t: rotate(*t, frequencies, interleaved=interleaved)), *tensors)
    assert_close(found, oracle.rotate(x, positions[..., None], frequencies[None], interleaved))


@pytest.mark.parametrize("interleaved", [False, True])
def test_functional_model_of_unknown_sizes(rng, interleaved):
    node, positions = keras.Input((None, 2, 12)), keras.Input((None, 2), dtype="int32")
    frequencies = np.array([[1.0, 0.2], [0.5, 0.07]])
    model = keras.Model(
        [node, positions], rotate(node, positions, frequencies, interleaved=interleaved)
    )
    for batch, steps in ((3, 5), (1, 4)):
        x, p = inputs(rng)[:batch, :steps], rng.integers(0, 30, size=(batch, steps, 2))
        expected = oracle.rotate(x, p, frequencies, interleaved)
        assert_close(model.predict([x, p], verbose=0), expected)


BAD_SCALING = {
    "width": ({"width": 7}, "`width` must be an even integer >= 2.*width=7"),
    "no width": ({"width": 0}, "`width` must be an even integer >= 2.*width=0"),
    "base": ({"base": 1.0}, r"`base` must be a finite number above 1.*base=1\.0"),
    "scaling": ({"scaling": "dynamic"}, "`scaling` must be one of None, linear.*scaling='dynamic'"),
    "factor": (
        {"scaling": "ntk", "factor": 0.5},
        r"`factor` must be a finite number >= 1.*factor=0\.5",
    ),
    "factor alone": ({"factor": 2.0}, r"needs a `scaling`.*factor=2\.0, scaling=None"),
    "width of ntk": (
        {"scaling": "ntk", "factor": 2.0, "width": 2},
        "'ntk' needs a `width` of at least 4.*width=2",
    ),
    "no length": ({"scaling": "yarn"}, "needs an `original_length`.*original_length=None"),
    "length": (
        {"scaling": "yarn", "original_length": 0},
        "`original_length` must be a finite number >= 1.*original_length=0",
    ),
    "betas": (
        {"scaling": "yarn", "original_length": 9, "beta_fast": 1.0},
        r"`beta_fast` must be above `beta_slow`.*beta_fast=1\.0, beta_slow=1\.0",
    ),
    "beta_slow": (
        {"scaling": "yarn", "original_length": 9, "beta_slow": 0.0},
        r"`beta_slow` must be a finite number above 0.*beta_slow=0\.0",
    ),
}


@pytest.mark.parametrize("name", BAD_SCALING)
def test_bad_scaling(name):
    options, message = BAD_SCALING[name]
    with pytest.raises(ValueError, match=message):
        rotary_frequencies(**{"width": 8, **options})


BAD = {
    "rank": (np.ones((5, 2, 12)), np.arange(5), np.ones(4), r"`x` must have rank 4.*\(5, 2, 12\)"),
    "width": (
        np.ones((3, 5, 2, 12)),
        np.arange(5),
        np.ones(7),
        r"`frequencies` must.*shape=\(7,\), x.shape=\(3, 5, 2, 12\)",
    ),
    "no frequency": (np.ones((3, 5, 2, 12)), np.arange(5), [], r"`frequencies` must.*shape=\(0,\)"),
    "rank of frequencies": (
        np.ones((3, 5, 2, 12)),
        np.arange(5),
        np.ones((1, 1, 2)),
        r"`frequencies` must.*shape=\(1, 1, 2\)",
    ),
    "positions": (
        np.ones((3, 5, 2, 12)),
        np.arange(4),
        np.ones(4),
        r"`positions` must have shape.*shape=\(4,\)",
    ),
    "axes": (
        np.ones((3, 5, 2, 12)),
        np.arange(5),
        np.ones((2, 3)),
        r"`positions` must have shape \(T, 2\).*axes=2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    x, positions, frequencies, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        rotate(x.astype("float32"), positions, frequencies)
