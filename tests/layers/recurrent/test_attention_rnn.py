import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import (
    AdditiveScore,
    AttentionRNN,
    LocationScore,
    MultiHeadScore,
    PredictedWindow,
)
from kattn.layers.recurrent.attention_rnn import AttentionRNNCache
from kattn.ops.cache import KVCache, RingCache
from tests import attention_rnn_oracle as oracle
from tests import checks
from tests.checks import check_layer, check_training, shake
from tests.compute import assert_close, differentiate, quick, result, run
from tests.decode_checks import check_decodes

UNITS = 6
KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5, [1, 1, 0, 0, 0]], bool)
KEEP_MEMORY = np.array([[1, 1, 0, 1], [0, 0, 1, 1], [1] * 4, [0] * 4], bool)
CELLS = {
    "lstm": keras.layers.LSTMCell,
    "gru": keras.layers.GRUCell,
    "simple": keras.layers.SimpleRNNCell,
}
SCORES = {
    "dot": lambda **o: "dot",
    "general": lambda **o: "general",
    "additive": lambda **o: AdditiveScore(5, **o),
    "heads": lambda **o: MultiHeadScore(2, 3, value_dim=4, **o),
    "location": lambda **o: LocationScore(5, filters=2, kernel_size=3, **o),
}
# What the oracle is told, by name of a case. With "own" the layer attends to its input.
CASES = {
    "lstm, additive": {"cell": "lstm", "score": "additive"},
    "gru, dot, own": {"cell": "gru", "score": "dot", "own": True},
    "gru, reset before": {"cell": "gru", "score": "general", "reset_after": False},
    "simple, both": {"cell": "simple", "score": "general", "output": "both", "own": True},
    "lstm, heads, context": {"cell": "lstm", "score": "heads", "output": "context", "own": True},
    "causal": {"cell": "lstm", "score": "additive", "causal": True, "own": True},
    "causal window": {
        "cell": "lstm", "score": "heads", "causal": True, "window": 2, "own": True,
        "output": "attentional",
    },
    "window": {"cell": "gru", "score": "additive", "window": 2, "own": True},
    "window of a memory": {"cell": "gru", "score": "general", "window": 2, "causal": True},
    "location": {"cell": "gru", "score": "location", "output": "attentional"},
    "location, own window": {
        "cell": "lstm", "score": "location", "causal": True, "window": 3, "own": True,
    },
    "local-p": {"cell": "lstm", "score": "general", "reach": 1, "attend": "after"},
    "local-p, shorter memory": {
        "cell": "gru", "score": "general", "reach": 1, "causal": True, "attend": "after",
        "output": "both",
    },
    "local-p, own": {"cell": "gru", "score": "dot", "reach": 2, "causal": True, "own": True},
    "luong": {"cell": "lstm", "score": "general", "attend": "after"},
    "luong, own window": {
        "cell": "gru", "score": "dot", "attend": "after", "causal": True, "window": 2, "own": True,
    },
    "luong, additive, window": {
        "cell": "gru", "score": "additive", "attend": "after", "window": 2, "own": True,
        "output": "both",
    },
    "luong, memory, causal": {
        "cell": "gru", "score": "heads", "attend": "after", "causal": True, "output": "both",
    },
    "feeding": {"cell": "lstm", "score": "additive", "attend": "after", "feeding": True},
    "feeding, own": {
        "cell": "gru", "score": "dot", "attend": "after", "feeding": True, "causal": True,
        "own": True, "output": "context",
    },
    "backwards": {
        "cell": "gru", "score": "general", "causal": True, "own": True, "go_backwards": True,
    },
    "backwards, memory": {
        "cell": "lstm", "score": "location", "window": 2, "go_backwards": True,
    },
}  # fmt: skip
NOT_ARGUMENTS = ("cell", "score", "own", "reach", "feeding", "reset_after")
DECODING = [n for n, c in CASES.items() if not c.get("go_backwards") and (
    c.get("causal") or not c.get("own"))]  # fmt: skip


def make_case(name, **options):
    """A layer, and whether it attends to its input."""
    case = CASES[name]
    given = {key: value for key, value in case.items() if key not in NOT_ARGUMENTS}
    if "reach" in case:
        given["window"] = PredictedWindow(case["reach"], 4)
    given["input_feeding"] = case.get("feeding", False)
    own = {"reset_after": case["reset_after"]} if "reset_after" in case else {}
    cell = CELLS[case["cell"]](UNITS, **own)
    return AttentionRNN(cell, SCORES[case["score"]](), **given, **options)


def sequences(rng, name):
    """Input and memory; the memory is as wide as the state, and so is the input for "own"."""
    own = CASES[name].get("own", False)
    width = UNITS if own else 3
    x = rng.normal(size=(4, 5, width)).astype("float32")
    memory = rng.normal(size=(4, 4, UNITS)).astype("float32")
    return [x] if own else [x, memory]


def masks_of(inputs):
    """The masks of a call, by name."""
    return dict(zip(("mask", "memory_mask"), (KEEP, KEEP_MEMORY)[: len(inputs)], strict=False))


def weights_of(layer):
    return {
        weight.path.split("step/", 1)[1]: run(ops.convert_to_tensor, weight).astype(float)
        for weight in layer.weights
        if "step/" in weight.path
    }


def expected(layer, name, inputs, keep=KEEP, keep_memory=KEEP_MEMORY, initial=None):
    """What the oracle gives for the layer's weights."""
    case, (x, *memory) = CASES[name], inputs
    out = layer.compute_output_shape(*[a.shape for a in inputs])
    out = out[0][-1] if layer.return_state else out[-1]
    options = {**case, "out": out, "units": UNITS, "heads": 2 if case["score"] == "heads" else 1}
    memory = memory[0].astype(float) if memory else None
    return oracle.run(
        weights_of(layer), x.astype(float), memory, keep, keep_memory, options, initial
    )


def built(name, inputs, **options):
    layer = make_case(name, **options)
    layer.build(*[a.shape for a in inputs])
    shake(layer)
    return layer


@pytest.mark.parametrize("name", CASES)
def test_matches_oracle(rng, name):
    """Outputs, weights and states, with masks and without."""
    inputs = sequences(rng, name)
    layer = built(name, inputs, return_state=True)
    y, maps, states = expected(layer, name, inputs)
    found = result(layer, *inputs, **masks_of(inputs))
    for have, want in zip(found, (y, *states), strict=True):
        assert_close(have, want)
    assert_close(result(layer.attention_weights, *inputs, **masks_of(inputs)), maps)
    everything = [np.ones_like(keep) for keep in (KEEP, KEEP_MEMORY)]
    y, _, states = expected(layer, name, inputs, *everything)
    for have, want in zip(result(layer, *inputs), (y, *states), strict=True):
        assert_close(have, want)


@pytest.mark.parametrize("name", DECODING)
def test_decoding_in_pieces(rng, name):
    """Of which padding is a part, as of a whole."""
    inputs = sequences(rng, name)
    layer = built(name, inputs)
    x, *memory = inputs
    # In the input itself a window of the call counts padding, and decoding does not keep it.
    keep = KEEP if not (CASES[name].get("own") and "window" in CASES[name]) else KEEP | True
    masks = {**masks_of(inputs), "mask": keep}
    given = {"context": memory[0], "context_mask": KEEP_MEMORY} if memory else {}
    decode, cache = quick(layer.decode), layer.init_cache(4, 5, **given)
    found, start = [], 0
    for size in (2, 1, 2):
        piece = slice(start, start + size)
        y, cache = decode(x[:, piece], cache, mask=keep[:, piece])
        found, start = [*found, run(lambda y=y: y)], start + size
    assert isinstance(cache, AttentionRNNCache)
    assert_close(np.concatenate(found, axis=1), result(layer, *inputs, **masks), 2e-5)


def test_caches_are_as_long_as_what_is_seen(rng):
    inputs = sequences(rng, "causal window")
    ring = built("causal window", inputs).init_cache(4, 9).memory
    assert isinstance(ring, RingCache)
    assert ring.keys.shape == (4, 2, 2, 3)
    whole = built("causal", inputs).init_cache(4, 9).memory
    assert isinstance(whole, KVCache)
    assert whole.keys.shape == (4, 1, 9, 5)


def long_window(rng, **options):
    """A layer with a window over its input, longer than the frames that it is cut into."""
    layer = AttentionRNN(keras.layers.GRUCell(UNITS), "general", causal=True, **options)
    x = rng.normal(size=(2, 75, 4)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


@pytest.mark.parametrize("causal", [True, False])
def test_frames_are_what_the_mask_is(rng, causal):
    """Over many chunks, with gradients, against the same loop with weights over all steps."""
    layer = AttentionRNN(
        keras.layers.GRUCell(UNITS), "general", causal=causal, window=5, output="context"
    )
    x = rng.normal(size=(2, 75, 4)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    keep = np.ones((2, 75), bool)
    keep[1, 50:] = False
    maps = result(layer.attention_weights, x, mask=keep)[:, 0]
    assert_close(result(layer, x, mask=keep), np.einsum("bts,bsd->btd", maps, x))
    reach = np.subtract.outer(np.arange(75), np.arange(75))
    outside = (reach >= 5) | (reach < (0 if causal else -4))
    assert np.abs(maps[:, outside]).max() == 0
    upstream = np.zeros((2, 75, 4))
    upstream[:, 40] = 1.0
    _, (gradient,) = differentiate(quick(lambda x: layer(x)), [x], upstream)
    assert np.abs(gradient[:, 36 : 41 if causal else 45]).min() > 0
    assert np.isfinite(gradient).all()


def test_gradients_match_those_of_the_mask(rng):
    """Frames against an `allowed` of T x T."""
    layer, x = long_window(rng, window=4)
    wide = AttentionRNN(keras.layers.GRUCell(UNITS), "general", causal=True, window=4)
    wide.build(x.shape)
    wide.set_weights(layer.get_weights())
    rules = wide._rules
    wide._rules = lambda queries, keys, **_: rules(queries, keys)  # no frames
    upstream = rng.normal(size=(2, 75, UNITS))
    found, (gradient,) = differentiate(quick(lambda x: layer(x)), [x], upstream)
    expected, (wanted,) = differentiate(quick(lambda x: wide(x)), [x], upstream)
    assert_close(found, expected)
    assert_close(gradient, wanted, 1e-4)


def test_a_loop_does_not_unroll(rng):
    """A longer sequence makes no longer program."""
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch has no graph here")
    layer, _ = long_window(rng, window=4)

    def size(steps):
        x = np.zeros((2, steps, 4), "float32")
        if keras.backend.backend() == "jax":
            import jax

            return len(str(jax.make_jaxpr(lambda x: layer(x))(x)).splitlines())
        import tensorflow as tf

        traced = tf.function(lambda x: layer(x), autograph=False)
        return len(traced.get_concrete_function(tf.constant(x)).graph.get_operations())

    assert size(300) < 1.1 * size(60)


def test_gradients_through_a_thousand_steps_are_finite(rng):
    layer = AttentionRNN(keras.layers.GRUCell(2), "dot", causal=True, window=3)
    x = rng.normal(size=(1, 1000, 2)).astype("float32")
    layer.build(x.shape)
    upstream = np.zeros((1, 1000, 2))
    upstream[:, -1] = 1.0
    function = lambda x: layer(x)  # noqa: E731
    if keras.backend.backend() == "tensorflow":  # which would run each operation by itself
        import tensorflow as tf

        function = tf.function(function, autograph=False)
    _, (gradient,) = differentiate(quick(function), [x], upstream)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0, -1]).max() > 0


def test_initial_state_and_last_output(rng):
    name = "feeding"
    inputs = sequences(rng, name)
    layer = built(name, inputs, return_state=True)
    whole = result(layer, *inputs, memory_mask=KEEP_MEMORY)
    x, memory = inputs
    _, *states = result(layer, x[:, :2], memory, memory_mask=KEEP_MEMORY)
    assert [s.shape for s in states] == [(4, UNITS)] * 3
    rest = result(layer, x[:, 2:], memory, memory_mask=KEEP_MEMORY, initial_state=states)
    assert_close(rest[0], whole[0][:, 2:])
    for have, want in zip(rest[1:], whole[1:], strict=True):
        assert_close(have, want)
    last = built(name, inputs, return_sequences=False)
    last.set_weights(layer.get_weights())
    found = result(last, *inputs, **masks_of(inputs))
    steps = result(layer, *inputs, **masks_of(inputs))[0]
    for b, keep in enumerate(KEEP):
        wanted = steps[b, np.flatnonzero(keep)[-1]] if keep.any() else np.zeros(UNITS)
        np.testing.assert_allclose(found[b], wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["causal", "causal window", "luong", "luong, own window"])
def test_no_steps(rng, name):
    """The last output is 0 then, and the states are those before."""
    x, *memory = sequences(rng, name)
    layer = built(name, [x, *memory], return_sequences=False, return_state=True)
    states = [rng.normal(size=(4, size)).astype("float32") for size in layer._state_sizes()]
    for given in ({}, {"mask": KEEP[:, :0]}):
        y, *last = result(layer, x[:, :0], *memory, initial_state=states, **given)
        np.testing.assert_array_equal(y, np.zeros_like(y))
        assert y.shape[0] == 4
        for found, before in zip(last, states, strict=True):
            assert_close(found, before)


def test_given_states_match_oracle(rng):
    inputs = sequences(rng, "causal")
    layer = built("causal", inputs)
    states = [rng.normal(size=(4, UNITS)) for _ in range(2)]
    y, *_ = expected(layer, "causal", inputs, initial=states)
    given = [s.astype("float32") for s in states]
    assert_close(result(layer, *inputs, mask=KEEP, initial_state=given), y)


def test_stateful(rng):
    inputs = sequences(rng, "luong")
    x, memory = inputs
    layer = built("luong", inputs, stateful=True)
    plain = built("luong", inputs)
    for ours, theirs in zip(plain.weights, layer.trainable_weights, strict=True):
        ours.assign(theirs)
    whole = result(plain, x, memory)
    parts = [run(layer, x[:, :2], memory), run(layer, x[:, 2:], memory)]
    assert_close(np.concatenate(parts, axis=1), whole)
    layer.reset_state()
    assert_close(run(layer, x[:, :2], memory), whole[:, :2])
    upstream = rng.normal(size=(4, 3, UNITS))  # states are written after they are read
    _, (gradient,) = differentiate(lambda x: layer(x, memory), [x[:, 2:]], upstream)
    states = {"initial_state": [np.zeros((4, UNITS), "float32")] * 2}
    plain.return_state = True
    _, *states["initial_state"] = result(plain, x[:, :2], memory)
    plain.return_state = False
    _, (wanted,) = differentiate(lambda x: plain(x, memory, **states), [x[:, 2:]], upstream)
    assert_close(gradient, wanted, 1e-4)
    with pytest.raises(ValueError, match=r"batch size of a stateful layer.*batch_size=None"):
        make_case("causal", stateful=True).build((None, 5, UNITS))


def test_bidirectional(rng):
    """Keras's wrapper makes a second layer that goes backwards, and turns its outputs."""
    x = rng.normal(size=(4, 5, UNITS)).astype("float32")
    both = keras.layers.Bidirectional(make_case("causal"))
    both.build(x.shape)
    shake(both)
    found = result(both, x, mask=KEEP)
    forward, backward = both.forward_layer, both.backward_layer
    assert backward.go_backwards
    wanted = [
        result(forward, x, mask=KEEP),
        np.flip(result(backward, x, mask=KEEP), axis=1),
    ]
    assert_close(found, np.concatenate(wanted, axis=-1))
    y, *_ = oracle.run(
        weights_of(backward), x.astype(float), None, KEEP, None,
        {**CASES["causal"], "go_backwards": True, "units": UNITS, "out": UNITS},
    )  # fmt: skip
    assert_close(found[:, :, UNITS:], np.flip(y, axis=1))


@keras.saving.register_keras_serializable("tests")
class Halving(keras.layers.Layer):
    """A cell of a user: no `output_size`, no `get_initial_state`, a state unlike its output."""

    state_size = UNITS

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], UNITS), name="kernel")
        self.built = True

    def call(self, inputs, states):
        state = 0.5 * states[0] + inputs @ self.kernel
        return 3.0 * state, [state]


def test_cells_of_a_user(rng):
    x = rng.normal(size=(2, 3, UNITS)).astype("float32")
    for attend in ("before", "after"):
        layer = AttentionRNN(Halving(), "dot", attend=attend, output="both")
        layer.build(x.shape)
        found, kernel = result(layer, x), run(ops.convert_to_tensor, layer.weights[0])
        for b in range(2):
            state = np.zeros(UNITS)
            for t in range(3):
                ask, inputs = state, [x[b, t]]
                if attend == "after":
                    ask = state = 0.5 * state + x[b, t] @ kernel
                context = oracle.softmax(x[b] @ ask) @ x[b]
                if attend == "before":
                    state = 0.5 * state + np.concatenate([*inputs, context]) @ kernel
                assert_close(found[b, t], np.concatenate([3 * state, context]))


def test_stacked_cells(rng):
    """The last cell asks."""
    cells = [keras.layers.LSTMCell(4), keras.layers.GRUCell(UNITS)]
    layer = AttentionRNN(keras.layers.StackedRNNCells(cells), "dot", return_state=True)
    x = rng.normal(size=(2, 3, UNITS)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    y, *states = result(layer, x)
    assert [s.shape[1] for s in states] == [4, 4, UNITS]
    w = weights_of(layer)
    first, second = (
        {k.split("/")[-1]: v for k, v in w.items() if f"/{c.name}/" in k} for c in cells
    )
    for b in range(2):
        low, top = [np.zeros(4)] * 2, [np.zeros(UNITS)]
        for t in range(3):
            context = oracle.softmax(x[b] @ top[0]) @ x[b]
            h, low = oracle.lstm(first, np.concatenate([x[b, t], context]), low)
            h, top = oracle.gru(second, h, top)
            assert_close(y[b, t], h)


def make(**options):
    """As far off its defaults as it goes, over its own input."""
    dtype = {"dtype": options["dtype"]} if "dtype" in options else {}
    given = {
        "attend": "after",
        "output": "both",
        "input_feeding": True,
        "causal": True,
        "window": 3,
        "kernel_initializer": "he_normal",
    }
    cell = keras.layers.LSTMCell(4, dropout=0.2, recurrent_dropout=0.3, seed=1, **dtype)
    score = MultiHeadScore(2, 3, value_dim=2, use_bias=False, **dtype)
    return AttentionRNN(cell, score, **{**given, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="attention_rnn", causal=True, decodes=True)


def make_of_two(**options):
    dtype = {"dtype": options["dtype"]} if "dtype" in options else {}
    window = PredictedWindow(3, 4, **dtype)
    score = LocationScore(4, filters=2, kernel_size=3, **dtype)
    cell = keras.layers.GRUCell(6, **dtype)
    return AttentionRNN(cell, score, window=window, output="attentional", **options)


@pytest.mark.parametrize(
    "check",
    [
        checks.check_config,
        checks.check_sublayers,
        checks.check_precision,
        checks.check_training,
        checks.check_masks,
        checks.check_ways_in,
    ],
)
def test_with_a_memory(rng, check):
    """What of the battery a memory could change."""
    inputs = [rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 4, 6))]
    check(make_of_two, [x.astype("float32") for x in inputs])


def test_decoding_with_a_memory(rng):
    inputs = [rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 4, 6))]

    def ready():
        layer = make_of_two()
        layer.build(*[x.shape for x in inputs])
        shake(layer)
        return layer

    def call(layer, x, memory, context_mask=None):
        return layer(x, memory, memory_mask=context_mask)

    check_decodes(ready, inputs, call)


def test_dropout_of_stacked_cells_is_drawn_before_the_loop(rng):
    """In compiled code, where nothing can be drawn in a loop, and again for the next call."""
    cells = [keras.layers.GRUCell(4, dropout=0.4, seed=1), keras.layers.GRUCell(4, seed=2)]
    layer = AttentionRNN(keras.layers.StackedRNNCells(cells), "additive")
    check_training(lambda: layer, [rng.normal(size=(3, 5, 8))])
    assert not [c for c in cells if getattr(c, "_dropout_mask", None) is not None]


class Unsized(keras.layers.Layer):
    """A cell that does not know how wide its state is."""

    state_size = (None,)


BAD = {
    "cell": ({"cell": keras.layers.Dense(3)}, "`cell` must be the cell of.*cell='Dense'"),
    "a layer": ({"cell": keras.layers.LSTM(3)}, "`cell` must be the cell of.*cell='LSTM'"),
    "no layer": ({"cell": 3}, "`cell` must be a Keras layer with a `state_size`.*cell=3"),
    "no sizes": (
        {"cell": Unsized()},
        r"`cell` must have states that are vectors.*state_size=\(None,\)",
    ),
    "name": ({"attention": "dots"}, "`attention` must be one of dot, general.*attention='dots'"),
    "score": ({"attention": 3}, "`attention` must be one of 'dot'.*or a score.*attention=3"),
    "window": ({"window": 0}, "`window` must be an integer >= 1.*window=0"),
    "attend": ({"attend": "during"}, "`attend` must be one of before, after.*'during'"),
    "output": ({"output": "all"}, "`output` must be one of None, state.*output='all'"),
    "feeding": (
        {"input_feeding": True},
        '`input_feeding` must be False for attend="before".*input_feeding=True',
    ),
    "lost": (
        {"attend": "after", "output": "state"},
        "`output` must have the context in it.*output='state'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        AttentionRNN(**{"cell": keras.layers.GRUCell(3), **options})


def test_bad_input(rng):
    x = rng.normal(size=(4, 5, 3)).astype("float32")
    memory = rng.normal(size=(4, 4, UNITS)).astype("float32")
    layer = built("luong", [x, memory])
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(4, 5\)"):
        make_case("causal").build((4, 5))
    with pytest.raises(ValueError, match=r"`memory` must have as many channels.*channels=6"):
        layer(x, memory[:, :, :2])
    with pytest.raises(ValueError, match=r"`memory` must be an array with one item.*\(3, "):
        layer(x, memory[:3])
    with pytest.raises(ValueError, match=r"`memory` must have rank 3.*\(4, 4\)"):
        layer(x, memory[:, :, 0])
    with pytest.raises(ValueError, match=r"`memory` must be given.*memory=None, channels=6"):
        layer(x)
    with pytest.raises(ValueError, match="`memory` must be None for a layer that was built with"):
        built("causal", [memory])(memory, memory)
    with pytest.raises(ValueError, match="`memory_mask` must be None where there is no"):
        built("causal", [memory])(memory, memory_mask=KEEP_MEMORY)
    with pytest.raises(ValueError, match=r"`mask` must have rank 2.*\(4, 5, 1\)"):
        layer(x, memory, mask=KEEP[:, :, None])
    with pytest.raises(ValueError, match=r"`memory_mask` must have rank 2.*\(4,\)"):
        layer(x, memory, memory_mask=KEEP_MEMORY[:, 0])
    with pytest.raises(ValueError, match=r"`memory_mask` must be boolean.*float32"):
        layer(x, memory, memory_mask=KEEP_MEMORY.astype("float32"))
    state = np.zeros((4, UNITS), "float32")
    with pytest.raises(ValueError, match=r"`initial_state` must hold a tensor for each.*\[6, 6\]"):
        layer(x, memory, initial_state=[state])
    for bad in (state[:, :2], state[:3], state[0]):
        with pytest.raises(ValueError, match=r"`initial_state` must hold tensors \(B, size\)"):
            layer(x, memory, initial_state=[state, bad])
    with pytest.raises(ValueError, match=r"`memory` must be as wide as the state.*state_width=6"):
        AttentionRNN(keras.layers.GRUCell(UNITS), "dot").build(x.shape)


def test_what_cannot_decode(rng):
    x = rng.normal(size=(4, 5, UNITS)).astype("float32")
    with pytest.raises(ValueError, match="Only a causal layer can decode step by step"):
        built("gru, dot, own", [x]).init_cache(4, 5)
    with pytest.raises(ValueError, match="go_backwards=True cannot decode"):
        built("backwards", [x]).init_cache(4, 5)
    inputs = sequences(rng, "luong")
    layer = built("luong", inputs)
    with pytest.raises(ValueError, match=r"`context` must be the memory.*context=None"):
        layer.init_cache(4, 5)
    with pytest.raises(ValueError, match=r"`context` must be an array with one item.*batch_size=3"):
        layer.init_cache(3, 5, inputs[1])
    with pytest.raises(ValueError, match=r"`context` must have as many channels.*channels=6"):
        layer.init_cache(4, 5, inputs[0])
