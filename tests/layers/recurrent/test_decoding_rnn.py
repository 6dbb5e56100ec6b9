import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import DecodingRNN, explain_loops
from tests.checks import check_layer, shake
from tests.compute import assert_close, quick, run
from tests.layers.recurrent import rnn_oracle
from tests.recurrent_oracle import KEEP

WHOLE = {"return_sequences": True}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_matches_oracle(rng, kind):
    layer = DecodingRNN(getattr(keras.layers, kind)(6, **WHOLE))
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    for keep in (KEEP, np.ones_like(KEEP)):
        expected, _ = rnn_oracle.rnn(kind, x, layer.rnn.get_weights(), keep=keep)
        found = run(quick(layer), x, mask=ops.convert_to_tensor(keep))
        assert_close(found, expected * keep[..., None])
    if keras.backend.backend() == "torch":
        assert [each.loop for each in explain_loops(layer)] == [f"torch.{kind.lower()}"]


def test_both_directions_do_not_decode(rng):
    layer = DecodingRNN(keras.layers.Bidirectional(keras.layers.GRU(3, **WHOLE)))
    assert run(layer, rng.normal(size=(3, 5, 8))).shape == (3, 5, 6)
    with pytest.raises(ValueError, match="Only a causal layer can decode"):
        layer.init_cache(3, 5)


def make(**options):
    policy = {"dtype": options["dtype"]} if "dtype" in options else {}
    rnn = keras.layers.GRU(6, recurrent_initializer="glorot_uniform", **WHOLE, **policy)
    return DecodingRNN(rnn, **options)


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="decoding_rnn", causal=True, dropout=False, decodes=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`rnn` must be a recurrent layer.*Dense"):
        DecodingRNN(keras.layers.Dense(3))
    with pytest.raises(ValueError, match=r"`rnn` must be made with return_sequences=True"):
        DecodingRNN(keras.layers.GRU(3))


@pytest.mark.parametrize("kind", ["LSTM", "SimpleRNN"])
def test_no_steps_leave_the_state(rng, kind):
    layer = DecodingRNN(getattr(keras.layers, kind)(6, **WHOLE))
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    _, before = layer.decode(x, layer.init_cache(3, 9))
    y, after = layer.decode(x[:, :0], before)
    assert y.shape == (3, 0, 6)
    for one, other in zip(keras.tree.flatten(before), keras.tree.flatten(after), strict=True):
        np.testing.assert_array_equal(run(ops.copy, one), run(ops.copy, other))
