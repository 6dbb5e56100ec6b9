import keras
import numpy as np
import pytest

from kattn import biases
from kattn.ops.scores import add_bias, check_scores
from tests.compute import assert_close, run


def test_queries_stand_at_the_end(rng):
    scores = rng.normal(size=(2, 3, 4, 6)).astype("float32")
    expected = scores.astype(float)
    for b, n, i, j in np.ndindex(*scores.shape):
        expected[b, n, i, j] -= (n + 1) * abs(i + 2 - j)
    found = run(add_bias, scores, biases.ALiBi((1.0, 2.0, 3.0)))
    assert_close(found, expected)


def test_bad_scores():
    for shape in ((2, 3, 4), (2, None, 4, 4)):
        with pytest.raises(ValueError, match=r"`scores` must have rank 4.*scores\.shape="):
            check_scores(shape)
    with pytest.raises(ValueError, match="`slopes` of a bias must have one row for each head, N=2"):
        add_bias(np.zeros((1, 2, 3, 3), "float32"), biases.ALiBi((1.0, 2.0, 3.0)))
    assert check_scores((None, 2, None, None)) == 2


def test_the_sum_is_made_in_float32():
    """In float16 the bias alone would be infinite."""
    scores = keras.ops.full((1, 1, 1, 2), 60000.0, dtype="float16")
    found = add_bias(scores, biases.ALiBi((70000.0,)))
    assert keras.backend.standardize_dtype(found.dtype) == "float16"
    assert_close(run(keras.ops.cast, found, "float32")[0, 0, 0], [-10000.0, 60000.0], 1e-3)
