import keras
import numpy as np
import pytest

from kattn.ops.state_tape import TapeWeights, record_tape
from tests import lstmn_oracle as oracle
from tests.compute import assert_close, compiled, differentiate, quick, run

T, B, U, A = 4, 3, 2, 3
SHAPES = [(T, B, 4 * U), (T, B, A), (B, 3 * U + A), (U, 4 * U), (U, A), (U, A), (A,)]
REAL = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]], bool)  # none, one, all padded


def tape(window, has_first):
    """`record_tape` of the tensors in the order of `SHAPES`."""

    def function(gates, scores, first, *weights):
        real = keras.ops.convert_to_tensor(REAL)
        return record_tape(gates, scores, first, has_first, real, TapeWeights(*weights), window)

    return function


def wanted(window, has_first, inputs):
    gates, scores, first, *weights = inputs
    return oracle.rows_of(gates, scores, first, has_first, REAL, weights, window)[0]


@pytest.mark.parametrize(
    ("window", "has_first"), [(None, True), (None, False), (2, True), (9, False)]
)
def test_matches_oracle_with_gradients(rng, window, has_first):
    """Gradients of all tensors against differences of the oracle."""
    inputs = [rng.normal(size=shape) for shape in SHAPES]
    upstream = rng.normal(size=(T, B, 3 * U + A))
    upstream[~REAL] = 0.0
    found, gradients = differentiate(quick(tape(window, has_first)), inputs, upstream)
    assert_close(found[REAL], wanted(window, has_first, inputs)[REAL])
    for i, gradient in enumerate(gradients):
        slopes, x = np.zeros(SHAPES[i]), inputs[i]
        for place in np.ndindex(*SHAPES[i]):
            value, sums = x[place], []
            for sign in (1, -1):
                x[place] = value + sign * 1e-5
                sums.append((upstream * wanted(window, has_first, inputs)).sum())
            x[place], slopes[place] = value, (sums[0] - sums[1]) / 2e-5
        assert_close(gradient, slopes, 1e-4)


def test_compiled(rng):
    """By XLA, or PyTorch's tracer."""
    inputs = [rng.normal(size=shape).astype("float32") for shape in SHAPES]
    tensors = [keras.ops.convert_to_tensor(x) for x in inputs]
    found = run(compiled(tape(2, has_first=True)), *tensors)
    assert_close(found[REAL], wanted(2, True, inputs)[REAL])
