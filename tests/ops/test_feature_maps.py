import keras
import numpy as np
import pytest
from keras import ops

from kattn.ops import feature_maps
from tests import linear_oracle as oracle
from tests.compute import assert_close, run

SHAPE = (3, 5, 2, 4)  # B, T, N, D
KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)


def draw(rng, size=1.0):
    return (size * rng.normal(size=SHAPE)).astype("float32")


def project(features, seed=0, key_dim=4):
    return run(feature_maps.orthogonal_projection, key_dim, features, seed)


def test_elu_plus_one(rng):
    x = draw(rng, 20.0)
    y = run(feature_maps.elu_plus_one, x)
    np.testing.assert_allclose(y, oracle.elu_plus_one(x.astype(np.float64)), rtol=1e-5)
    assert (y > 0.0).all()


def test_softmax_features(rng):
    x = draw(rng, 20.0)
    assert_close(run(feature_maps.softmax_features, x), oracle.softmax(x.astype(np.float64)))


def test_softmax_steps(rng):
    x = draw(rng, 20.0)
    x[~KEEP] = 300.0  # what stands at padding steps is not looked at
    wanted = oracle.softmax_steps(x.astype(np.float64), KEEP)
    assert_close(run(feature_maps.softmax_steps, x, KEEP), wanted)
    assert_close(run(feature_maps.softmax_steps, x[:2, :, :, :3]), oracle.softmax_steps(
        x[:2, :, :, :3].astype(np.float64), np.ones((2, 5), bool)))  # fmt: skip


def test_positive_random_features(rng):
    x, w = draw(rng), project(9)
    y = run(feature_maps.positive_random_features, x, w)
    wanted = oracle.positive_features(x.astype(np.float64), w.astype(np.float64))
    assert_close(y, wanted)
    y = run(feature_maps.positive_random_features, x, w, scaled_over=-1)
    assert_close(y, wanted / wanted.max(axis=-1, keepdims=True) / 3.0)
    y = run(feature_maps.positive_random_features, x, w, scaled_over=(1, 3), mask=KEEP)
    largest = np.where(KEEP[:, :, None, None], wanted, 0.0).max(axis=(1, 3), keepdims=True)
    assert_close(y[:2], (wanted / np.where(largest > 0.0, largest, 1.0) / 3.0)[:2])


def test_large_inputs_give_finite_features(rng):
    w = project(64)
    for size in (30.0, 1e4):
        for over in (None, -1, (1, 3)):
            y = run(feature_maps.positive_random_features, draw(rng, size), w, scaled_over=over)
            assert np.isfinite(y).all()
            assert over is None or y.max() == pytest.approx(1.0 / 8.0)


def test_rectified_random_features(rng):
    x, w = draw(rng), project(9)
    y = run(feature_maps.rectified_random_features, x, w)
    assert_close(y, oracle.rectified_features(x.astype(np.float64), w.astype(np.float64)))


def test_projections_are_orthogonal_in_groups():
    w = project(11)
    for group in (w[:, :4], w[:, 4:8], w[:, 8:]):
        products = group.T @ group
        np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-5)
    assert np.abs(w[:, :4].T @ w[:, 4:8]).max() > 0.1
    np.testing.assert_array_equal(w, project(11))
    assert np.abs(w - project(11, seed=1)).max() > 0.1


def test_projections_are_standard_normal():
    """Each column alone: mean 0, covariance 1, and a length distributed as that of a Gaussian."""
    w = project(40_000).astype(np.float64)
    np.testing.assert_allclose(w.mean(axis=1), 0.0, atol=0.02)
    np.testing.assert_allclose(w @ w.T / w.shape[1], np.eye(4), atol=0.03)
    squares = (w**2).sum(axis=0)
    assert squares.mean() == pytest.approx(4.0, rel=0.02)
    assert squares.var() == pytest.approx(8.0, rel=0.05)  # chi squared with 4 degrees of freedom


def softmax_kernel(q, k, w):
    phi_q, phi_k = (run(feature_maps.positive_random_features, x, w) for x in (q, k))
    return np.einsum("btnf,bsnf->bnts", phi_q, phi_k)


def test_weights_are_unbiased(rng):
    """The mean over many draws is exp(q k / sqrt(D)), within its own standard error."""
    q, k = draw(rng, 0.4), draw(rng, 0.4)
    wanted = np.exp(np.einsum("btnd,bsnd->bnts", q, k) / 2.0)
    many = project(4 * 20_000).reshape(4, 20_000, 4)
    found = np.stack(
        [softmax_kernel(q, k, np.ascontiguousarray(many[:, i::20].reshape(4, -1)))
         for i in range(20)]
    )  # fmt: skip
    error = found.mean(axis=0) - wanted
    spread = found.std(axis=0, ddof=1) / np.sqrt(20)
    assert np.abs(error / spread).max() < 5.0
    assert np.abs(error / wanted).max() < 0.05


def test_weights_converge(rng):
    """The error falls as 1 / sqrt(features): 16 times as many, a quarter of the error."""
    q, k = draw(rng, 0.5), draw(rng, 0.5)
    wanted = oracle.softmax(np.einsum("btnd,bsnd->bnts", q, k).astype(np.float64) / 2.0)

    def error(features):
        squares = []
        for seed in range(8):
            weights = softmax_kernel(q, k, project(features, seed))
            squares.append((weights / weights.sum(axis=-1, keepdims=True) - wanted) ** 2)
        return np.sqrt(np.mean(squares))

    few, many = error(32), error(512)
    assert 2.5 < few / many < 6.5
    assert many < 0.03


def test_seed_generators_go_on():
    generator = keras.random.SeedGenerator(3)
    first, second = (
        run(feature_maps.orthogonal_projection, 4, 8, seed=generator) for _ in range(2)
    )
    assert np.abs(first - second).max() > 0.1


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"`key_dim` must be an integer >= 1.*key_dim=0"):
        feature_maps.orthogonal_projection(0, 8)
    with pytest.raises(ValueError, match=r"`num_features` must be an integer >= 1.*=8\.0"):
        feature_maps.orthogonal_projection(4, 8.0)


def test_highest_of_padding_is_zero():
    x = ops.convert_to_tensor(np.full(SHAPE, 7.0, "float32"))
    top = run(feature_maps.highest, x, ops.convert_to_tensor(KEEP), axis=(1, 3))
    np.testing.assert_array_equal(top[:, 0, 0, 0], [7.0, 7.0, 0.0])
