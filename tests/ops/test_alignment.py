import numpy as np
import pytest
from keras import ops

from kattn.ops.alignment import count_positions, joined, mix, score_products, seen, weights_of
from tests.compute import assert_close, differentiate, result, run


def test_products_and_sums(rng):
    """Of one query, where JAX takes another way, and of several."""
    key, value = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 5, 6))
    for steps in (1, 3):
        query = rng.normal(size=(2, 3, steps, 4))
        tensors = [ops.convert_to_tensor(x.astype("float32")) for x in (query, key, value)]
        scores = np.einsum("bntd,bnsd->bnts", query, key)
        assert_close(result(score_products, *tensors[:2]), scores)
        context = np.einsum("bnts,bnsd->btnd", scores, value).reshape(2, steps, 18)
        weights = ops.convert_to_tensor(scores.astype("float32"))
        assert_close(result(mix, weights, tensors[2]), context)


def test_a_row_that_sees_nothing_has_no_weights_and_no_gradient(rng):
    scores = rng.normal(size=(1, 1, 2, 3)).astype("float32")
    allowed = np.array([[[[True, False, True], [False] * 3]]])
    found, (gradient,) = differentiate(
        lambda x: weights_of(x, allowed), [scores], rng.normal(size=scores.shape)
    )
    wanted = np.exp(scores[0, 0, 0, ::2]) / np.exp(scores[0, 0, 0, ::2]).sum()
    assert_close(found[0, 0, 0], [wanted[0], 0.0, wanted[1]])
    assert not found[0, 0, 1].any()
    assert not gradient[0, 0, 1].any()
    assert gradient[0, 0, 0, 1] == 0
    assert np.abs(gradient[0, 0, 0, ::2]).min() > 0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2])
def test_seen(causal, window):
    queries, keys = np.array([[0, 2]], "int32"), np.array([[0, 1, 2, 3]], "int32")
    found = seen(queries, keys, causal=causal, window=window)
    if window is None and not causal:
        assert found is None
        return
    for t, s in np.ndindex(2, 4):
        gap = int(queries[0, t]) - int(keys[0, s])
        near = window is None or abs(gap) < window
        assert run(lambda: found)[0, 0, t, s] == (near and (gap >= 0 or not causal))


def test_positions():
    real = np.array([[False, True, True], [True, False, True]])
    x = np.zeros((2, 3, 1), "float32")
    np.testing.assert_array_equal(run(count_positions, None, x), [[0, 1, 2]])
    np.testing.assert_array_equal(run(count_positions, real, x), [[-1, 0, 1], [0, 0, 1]])
    offset = ops.convert_to_tensor([4, 5], dtype="int32")
    np.testing.assert_array_equal(run(count_positions, real, x, offset), [[3, 4, 5], [5, 5, 6]])


def test_joined():
    a, b = np.array([True, True, False]), np.array([True, False, False])
    assert joined(None, None) is None
    np.testing.assert_array_equal(run(joined, a, None, b), a & b)
    np.testing.assert_array_equal(run(lambda: joined(None, a)), a)
