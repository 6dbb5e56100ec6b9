import numpy as np
import pytest

from kattn.layers import AttentionRNN, PredictedWindow
from tests.checks import plain, shake
from tests.compute import assert_close, run


def test_matches_oracle(rng):
    """Luong et al. 2015, eq. 9 and 10."""
    window = PredictedWindow(3, 5, kernel_regularizer="l2")
    query = rng.normal(size=(2, 4, 6)).astype("float32")
    window.build(query.shape)
    shake(window)
    inner, outer = (np.asarray(w, float) for w in window.get_weights())
    counts = np.array([[9], [4]])
    centers = counts / (1 + np.exp(-(np.tanh(query @ inner) @ outer)[..., 0]))
    assert_close(run(window, query, counts), centers)
    positions = np.arange(9)[None].astype("int32")
    distances = run(window.distances, query, positions, counts)
    assert_close(distances, np.arange(9) - centers[:, None, :, None])
    sigma = 3 / 2
    assert_close(run(window.gaussian, distances), np.exp(-(distances**2) / (2 * sigma**2)))


def test_config():
    window = PredictedWindow(3, 5, kernel_initializer="he_normal", name="window")
    again = PredictedWindow.from_config(window.get_config())
    assert plain(again.get_config()) == plain(window.get_config())


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`reach` must be an integer >= 1.*reach=0"):
        PredictedWindow(0)
    with pytest.raises(ValueError, match=r"`units` must be an integer >= 1.*units=0"):
        PredictedWindow(2, 0)
    with pytest.raises(ValueError, match=r"`window` must be an integer >= 1.*window='wide'"):
        AttentionRNN(None, window="wide")
