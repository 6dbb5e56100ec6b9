import keras
import numpy as np
import pytest

from kattn.layers import DropPath
from tests.checks import check_config, check_dropout, check_precision, check_saving
from tests.compute import differentiate, run


def make(**options):
    return DropPath(**{"rate": 0.5, "seed": 5, **options})


def test_items_are_dropped_whole(rng):
    """And the others are as much larger as their mean asks for."""
    x = rng.normal(size=(400, 3, 2)).astype("float32")
    factors = run(make(rate=0.2), x, training=True) / x
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1], x.shape), rtol=1e-5)
    kept = factors[:, 0, 0] > 0
    np.testing.assert_allclose(factors[kept], 1.25, rtol=1e-5)
    assert 0.72 < kept.mean() < 0.88  # four standard deviations


def test_inference_changes_nothing(rng):
    x = rng.normal(size=(4, 3)).astype("float32")
    np.testing.assert_array_equal(run(make(), x), x)
    np.testing.assert_array_equal(run(DropPath(0.0), x, training=True), x)


def test_as_other_layers(rng):
    inputs = [rng.normal(size=(8, 5, 4)).astype("float32")]
    for check in (check_config, check_precision, check_saving, check_dropout):
        check(make, inputs)


def test_a_seed_draws_the_same(rng):
    x = rng.normal(size=(64, 2)).astype("float32")
    first, second = (run(make(), x, training=True) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("mode", [None, "full"])
def test_gradients_are_dropped_with_their_items(rng, mode):
    """Also where the layer runs again for them."""
    x = rng.normal(size=(16, 3)).astype("float32")
    with keras.RematScope(mode=mode):
        layer = make()
    output, gradients = differentiate(lambda x: layer(x, training=True), [x], np.ones_like(x))
    np.testing.assert_allclose(gradients[0], output / x, rtol=1e-5)
    assert 0 < (output[:, 0] == 0).mean() < 1


def test_bad_rate():
    with pytest.raises(ValueError, match=r"`rate` must be a fraction in \[0, 1\).*rate=1\.0"):
        DropPath(1.0)
