import keras
import numpy as np
import pytest

from kattn import backend
from kattn.ops.normalization import rms_normalization
from tests.compute import assert_close, run


@pytest.mark.parametrize("is_exported", [False, True])
def test_matches_oracle(rng, is_exported, monkeypatch):
    """Zhang and Sennrich 2019, eq. 4; the operations of an exported model, too."""
    monkeypatch.setattr(backend, "is_exported_to_onnx", lambda: is_exported)
    x, scale = rng.normal(size=(2, 3, 4)), rng.normal(size=(4,))
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.1) * scale
    x, scale = (keras.ops.convert_to_tensor(each, "float32") for each in (x, scale))
    assert_close(run(rms_normalization, x, scale, 0.1), expected)
