"""Recurrent layers of Keras as parts of others: what is refused, and step-by-step decoding."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import GatedLinearAttention, SelfAttention
from kattn.layers.recurrent.held_rnn import decode_rnn, read_rnn, rnn_cache, run_rnn
from tests.checks import shake
from tests.compute import assert_close, quick, run

WHOLE = {"return_sequences": True}
# None, left, right, holes, all padded.
KEEP = np.array(
    [[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1], [0] * 6], bool
)


class Sum(keras.layers.Layer):
    """A cell that does the least that Keras asks of one: the state is a decaying sum."""

    state_size = 4

    def call(self, x, states):
        h = 0.5 * states[0] + ops.tanh(x)
        return 2 * h, [h]


MAKERS = {
    "LSTM": lambda: keras.layers.LSTM(3, **WHOLE),
    "GRU": lambda: keras.layers.GRU(3, **WHOLE),
    "GRU, before": lambda: keras.layers.GRU(3, reset_after=False, **WHOLE),
    "SimpleRNN": lambda: keras.layers.SimpleRNN(3, **WHOLE),
    "cell": lambda: keras.layers.RNN(keras.layers.LSTMCell(3), **WHOLE),
    "stack": lambda: keras.layers.RNN([keras.layers.LSTMCell(5), keras.layers.GRUCell(3)], **WHOLE),
    "own": lambda: keras.layers.RNN(Sum(), **WHOLE),
    "stateful": lambda: keras.layers.GRU(3, stateful=True, **WHOLE),
    "dropout": lambda: keras.layers.LSTM(3, dropout=0.5, recurrent_dropout=0.5, **WHOLE),
    "kattn": lambda: GatedLinearAttention(2),
}


def made(rng, name):
    rnn = read_rnn(MAKERS[name]())
    x = rng.normal(size=(5, 6, 4)).astype("float32")
    rnn.build(x.shape)
    shake(rnn)
    return rnn, x


@pytest.mark.parametrize("name", MAKERS)
def test_decoding_equals_the_call(rng, name):
    """In pieces of one and of several steps, with and without padding anywhere."""
    rnn, x = made(rng, name)
    decode = quick(functools.partial(decode_rnn, rnn))
    for keep in (None, KEEP):
        if getattr(rnn, "stateful", False):
            rnn.reset_state()
        full = run(
            run_rnn,
            rnn,
            ops.convert_to_tensor(x),
            ops.convert_to_tensor(keep) if keep is not None else None,
        )
        cache, found, start = rnn_cache(rnn, 5, 6), [], 0
        for leaf in keras.tree.flatten(cache):
            assert leaf.shape[0] == 5
        for size in (1, 3, 1, 1):
            at = slice(start, start + size)
            mask = None if keep is None else ops.convert_to_tensor(keep[:, at])
            y, new = decode(ops.convert_to_tensor(x[:, at]), cache, mask)
            keras.tree.assert_same_structure(new, cache)
            cache, start = new, start + size
            found.append(run(ops.stop_gradient, y))
        found = np.concatenate(found, axis=1)
        real = np.ones_like(KEEP) if keep is None else keep
        assert_close(found[real], full[real])
        assert (found[~real] == 0).all()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["LSTM", "stack", "own"])
def test_padding_leaves_the_state_as_it_is(rng, name, steps):
    rnn, x = made(rng, name)
    _, cache = decode_rnn(rnn, x[:, :2], rnn_cache(rnn, 5, 6))
    _, after = decode_rnn(rnn, x[:, :steps], cache, ops.zeros((5, steps), "bool"))
    pairs = zip(keras.tree.flatten(cache), keras.tree.flatten(after), strict=True)
    for old, new in pairs:
        np.testing.assert_array_equal(run(ops.stop_gradient, old), run(ops.stop_gradient, new))


def test_half_precision(rng):
    rnn = read_rnn(keras.layers.LSTM(3, dtype="mixed_float16", **WHOLE))
    rnn.build((5, 6, 4))
    x = rng.normal(size=(5, 6, 4)).astype("float32")
    cache = rnn_cache(rnn, 5, 6)
    y, cache = decode_rnn(rnn, x, cache)
    dtypes = {keras.backend.standardize_dtype(a.dtype) for a in (y, *keras.tree.flatten(cache))}
    assert dtypes == {"float16"}
    found, expected = run(ops.cast, y, "float32"), run(ops.cast, rnn(x), "float32")
    assert_close(found, expected, 2e-3)


def test_no_steps(rng):
    rnn, x = made(rng, "LSTM")
    assert run(run_rnn, rnn, x[:, :0], None).shape == (5, 0, 3)


def test_a_config_is_read():
    config = keras.saving.serialize_keras_object(MAKERS["GRU"]())
    rnn = read_rnn(config)
    assert type(rnn) is keras.layers.GRU
    assert rnn.name == "rnn"


LSTM = keras.layers.LSTM
BAD = {
    "no layer": (lambda: 3, r"`rnn` must be a recurrent layer, such as .*received: rnn=3"),
    "other layer": (lambda: keras.layers.Dense(3), "`rnn` must be a recurrent layer.*Dense"),
    "a class": (lambda: LSTM, "`rnn` must be a recurrent layer"),
    "last": (lambda: LSTM(3), "made with return_sequences=True.*return_sequences=False"),
    "state": (
        lambda: LSTM(3, return_state=True, **WHOLE),
        "return_state=False; .*return_state=True",
    ),
    "backwards": (
        lambda: LSTM(3, go_backwards=True, **WHOLE),
        "must not go backwards.*go_backwards=True",
    ),
    "two": (
        lambda: keras.layers.Bidirectional(LSTM(3, **WHOLE), merge_mode=None),
        "must merge both directions.*merge_mode=None",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_layers(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        read_rnn(make())


def test_one_output_where_that_is_wanted():
    assert read_rnn(LSTM(3), sequences=False).return_sequences is False
    with pytest.raises(ValueError, match=r"return_sequences=False and.*return_sequences=True"):
        read_rnn(LSTM(3, **WHOLE), sequences=False)
    with pytest.raises(ValueError, match="`rnn` must be a recurrent layer"):
        read_rnn(SelfAttention(2), sequences=False)


def test_what_cannot_decode():
    both = read_rnn(keras.layers.Bidirectional(LSTM(3, **WHOLE)))
    with pytest.raises(ValueError, match="must be built before it can make a cache"):
        rnn_cache(both, 2, 3)
    both.build((2, 3, 4))
    with pytest.raises(ValueError, match="must read the sequence from its start"):
        rnn_cache(both, 2, 3)
    rnn = read_rnn(LSTM(3, **WHOLE))
    rnn.build((2, 3, 4))
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer >= 1.*batch_size=0"):
        rnn_cache(rnn, 0, 3)
