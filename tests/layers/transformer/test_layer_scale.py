import numpy as np
import pytest
from keras import ops

from kattn.layers import LayerScale
from tests.checks import check_layer, ready
from tests.compute import assert_close, run


def make(**options):
    return LayerScale(**{"init_value": 0.1, **options})


def test_matches_oracle(rng):
    x = rng.normal(size=(3, 5, 4)).astype("float32")
    layer = ready(make, [x])
    scale = run(ops.convert_to_tensor, layer.weights[0])
    expected = np.stack([x[..., c] * scale[c] for c in range(4)], axis=-1)
    assert_close(run(layer, x), expected)


def test_starts_at_the_value():
    np.testing.assert_allclose(run(LayerScale(), np.ones((1, 3), "float32")), 1e-5, rtol=1e-6)


def test_all_checks(rng):
    check_layer(make, [rng.normal(size=(3, 5, 8))], masked=False, dropout=False, equivariant=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`init_value` must be a finite number above 0.*=0"):
        LayerScale(0)
    with pytest.raises(ValueError, match=r"`x` must have a known width.*\(2, None\)"):
        LayerScale().build((2, None))
