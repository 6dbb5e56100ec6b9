"""Single functions; whole trainings are in tests/callbacks/test_gradient_clipping.py."""

import numpy as np
import pytest
from keras import ops

from kattn.callbacks.update import clipping
from tests.compute import run


def tensors(arrays):
    return [ops.convert_to_tensor(array) for array in arrays]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("percent", [10.0, 50.0, 100.0])
def test_percentile_is_that_of_the_first_values(rng, count, percent):
    values = rng.normal(size=8).astype("float32")
    found = run(lambda v: clipping.percentile(v, count, percent), values)
    np.testing.assert_allclose(found, np.percentile(values[:count], percent), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("threshold", "factor"), [(2.5, 0.5), (7.0, 1.0)])
def test_joint_norm_is_at_most_the_threshold(threshold, factor):
    gradients = [np.array([3.0], "float32"), np.array([[0.0, 4.0]], "float32")]
    clipped = clipping.clip_joint_norm(tensors(gradients), ops.convert_to_tensor(5.0), threshold)
    for have, want in zip(clipped, gradients, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(have), factor * want, rtol=1e-5)


@pytest.mark.parametrize("norm", [0.5, 1.9, 2.1, 30.0])
def test_zclip_brings_norms_below_the_mean_and_some_deviations(norm):
    """Kumar et al. 2025, eq. 4 to 6, with mean 1, deviation 0.5 and z_threshold 2."""
    z = (norm - 1.0) / (0.5 + 1e-6)
    expected = norm if z <= 2 else 1.0 + 2 * 0.5 * 2 / z
    found = run(lambda n: clipping.zclip_target(n, 1.0, ops.square(0.5 + 0.0 * n), 2.0), norm)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
