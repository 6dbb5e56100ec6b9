import keras
import numpy as np
import pytest
from keras import ops

from kattn.callbacks import ResetMemory
from kattn.layers import SHARNNBlock, explain_loops
from tests import oracle, transformer_oracle
from tests.checks import check_layer, shake
from tests.compute import assert_close, differentiate, quick, run
from tests.layers.recurrent import rnn_oracle
from tests.transformer_oracle import weights_of

KEEP = np.array([[1] * 6, [0, 1, 1, 0, 1, 1], [0] * 6], bool)  # none, some, all padded


def rnn_layer(kind="LSTM", width=8, **options):
    options["recurrent_initializer"] = "glorot_uniform"  # Keras's own knows no half precision
    options = {"return_sequences": True, "return_state": True, **options}
    return getattr(keras.layers, kind)(width, **options)


def build(rng, kind="LSTM", **options):
    """A block with weights off their initial values, and an input `(3, 6, 8)`."""
    block = SHARNNBlock(rnn_layer(kind), **options)
    x = rng.normal(size=(3, 6, 8)).astype("float32")
    block.build(x.shape)
    shake(block)
    return block, x


def expected_output(block, kind, x, keep, memory=None):
    """The author's code, model.py; a memory is (states, steps, which are real)."""
    w = {**weights_of(block)}
    norm = lambda name, h: transformer_oracle.norm(w, f"{name}_norm", h)  # noqa: E731
    dense = lambda name, h: h @ w[f"{name}/kernel"] + w[f"{name}/bias"]  # noqa: E731
    sigmoid = rnn_oracle.sigmoid
    states, steps, real = memory or (None, x[:, :0], keep[:, :0])
    options = {"keep": keep, "initial": states}
    h, states = rnn_oracle.rnn(kind, norm("start", x), block.rnn.get_weights(), **options)
    real = np.concatenate([real, keep], axis=1)
    if block.use_attention:
        steps, h = np.concatenate([steps, norm("memory", h)], axis=1), norm("middle", h)
        q = sigmoid(w["query_scale"]) * norm("query", dense("query", h))
        c, f = np.split(dense("value_gate", sigmoid(w["value_scale"])), 2)
        k, v = sigmoid(w["key_scale"]) * steps, sigmoid(f) * np.tanh(c) * steps
        see = real[:, None, None] & oracle.causal(x.shape[1], steps.shape[1])
        mixed, _ = oracle.attention(q[:, :, None], k[:, :, None], v[:, :, None], keep=see)
        h = h + mixed[:, :, 0]
    boom = dense("boom", norm("boom", h))
    boom = boom * sigmoid(1.702 * boom)
    boom = sum(boom[..., i : i + 8] for i in range(0, boom.shape[-1], 8))
    return norm("output", h) + boom, (states, steps, real)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("use_attention", [True, False])
def test_matches_oracle(rng, kind, use_attention):
    norm = "rms" if kind == "GRU" else "layer"
    block, x = build(rng, kind, use_attention=use_attention, hidden_dim=24, norm=norm)
    for keep in (np.ones_like(KEEP), KEEP):
        mask = {} if keep.all() else {"mask": ops.convert_to_tensor(keep)}
        held = np.where(keep[..., None], x, np.nan).astype("float32")
        expected, _ = expected_output(block, kind, np.where(keep[..., None], x, 0), keep)
        assert_close(run(quick(block), held, **mask)[keep], expected[keep])


def test_default_width(rng):
    block, x = build(rng)
    expected, _ = expected_output(block, "LSTM", x, np.ones_like(KEEP))
    assert_close(run(quick(block), x), expected)
    assert weights_of(block)["boom/kernel"].shape == (8, 32)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_segments(rng, kind):
    """State and memory of the segments before, which may hold padding, are read."""
    block, x = build(rng, kind, memory_length=4)
    segment, memory, known = quick(block.segment), block.init_memory(3), None
    for at in (slice(0, 2), slice(2, 5), slice(5, 6)):
        keep, part = KEEP[:, at], np.where(KEEP[:, at, None], x[:, at], 0)
        expected, known = expected_output(block, kind, part, keep, known)
        states, *rest = known
        known = (states, *(each[:, -4:] for each in rest))
        y, memory = segment(x[:, at], memory, mask=ops.convert_to_tensor(keep))
        assert_close(run(ops.stop_gradient, y)[keep], expected[keep])
        assert memory.steps.shape == (3, 4, 8)
        for have, want in zip(keras.tree.flatten(memory.state), states, strict=True):
            assert_close(run(ops.stop_gradient, have), want)


def test_the_layer_keeps_what_segments_hand_on(rng):
    """Calls with a memory of the layer's own, and with one that is given, which leaves that."""
    block, x = build(rng, memory_length=4)
    memory, parts = block.init_memory(3), (x[:, :2], x[:, 2:5], x[:, 5:])
    for part in parts:
        given = run(lambda part=part, memory=memory: block(part, memory=memory))
        expected, memory = block.segment(part, memory)
        assert_close(given, run(ops.stop_gradient, expected))
    found = [run(lambda part=part: block(part)) for part in parts]
    assert_close(found[-1], run(ops.stop_gradient, expected))
    again = run(lambda: block(parts[0]))
    assert np.abs(again - found[0]).max() > 1e-3
    block._keeper.reset_memory()
    assert_close(run(lambda: block(parts[0])), found[0])
    with pytest.raises(ValueError, match=r"batch size must be that of the memory.*batch_size=3"):
        block(x[:2])


def test_a_memory_that_does_not_fit(rng):
    block, x = build(rng, memory_length=4)
    memory = block.init_memory(3)
    other = SHARNNBlock(rnn_layer("GRU"), memory_length=4)
    other.build(x.shape)
    bad = [
        block.init_memory(2),
        other.init_memory(3),
        memory._replace(steps=memory.steps[:, 1:]),
        memory._replace(steps=memory.steps[..., 1:]),
        memory._replace(state=[state[:, 1:] for state in memory.state]),
        (*memory.state, *memory[1:]),
        "memory",
    ]
    for each in bad:
        for call in (lambda m: block.segment(x, m), lambda m: block(x, memory=m)):
            with pytest.raises(ValueError, match="`memory` must be what `init_memory` or"):
                call(each)
    assert block.segment(x, tuple(memory))[0].shape == (3, 6, 8)


def test_no_gradient_flows_into_earlier_segments(rng):
    block, x = build(rng, memory_length=4)

    def two(first, second):
        _, memory = block.segment(first, block.init_memory(3))
        return block.segment(second, memory)[0] + 0.0 * first

    _, (first, second) = differentiate(quick(two), [x[:, :3], x[:, 3:]], x[:, 3:])
    assert (first == 0).all()
    assert np.abs(second).max() > 0


def test_training_resets_the_memory(rng, tmp_path):
    """By the callback that does it for models with a memory; and the memory is not saved."""
    inputs = keras.Input((3, 8), batch_size=2)
    block = SHARNNBlock(rnn_layer(), memory_length=4, norm="rms")
    model = keras.Model(inputs, block(inputs))
    model.compile("sgd", "mse")
    x = rng.normal(size=(4, 3, 8)).astype("float32")
    model.fit(x, x, 2, epochs=2, shuffle=False, callbacks=[ResetMemory()], verbose=0)
    *_, is_real = block._keeper.memory
    kept = run(ops.convert_to_tensor, is_real)
    assert kept.all()
    assert block._keeper.trainable_weights == []
    expected = run(lambda: block(x[:2], memory=block.init_memory(2)))
    assert_close(model.predict(x[:2], 2, callbacks=[ResetMemory()], verbose=0), expected)
    assert run(ops.convert_to_tensor, is_real).all()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(again.predict(x[:2], 2, verbose=0), expected)


def test_decoding_with_holes(rng):
    block, x = build(rng)
    full = run(quick(block), x, mask=ops.convert_to_tensor(KEEP))
    cache, found = block.init_cache(3, 6), []
    for at in (slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 6)):
        y, cache = block.decode(x[:, at], cache, mask=ops.convert_to_tensor(KEEP[:, at]))
        found.append(run(ops.stop_gradient, y))
    assert_close(np.concatenate(found, axis=1)[KEEP], full[KEEP])


def test_decoding_without_attention(rng):
    block, x = build(rng, use_attention=False)
    y, cache = block.decode(x[:, :4], block.init_cache(3, 6))
    assert len(cache) == 1
    again, _ = block.decode(x[:, 4:], cache)
    found = run(lambda: ops.concatenate([y, again], axis=1))
    assert_close(found, run(quick(block), x))


def test_the_loop_is_that_of_the_framework(rng):
    block, _ = build(rng)
    ((_, loop, _),) = explain_loops(block)
    assert loop == ("torch.lstm" if keras.backend.backend() == "torch" else "keras")


def make(**options):
    policy = {"dtype": options["dtype"]} if "dtype" in options else {}
    full = {"hidden_dim": 16, "norm": "rms", "dropout": 0.2, "kernel_initializer": "he_normal"}
    return SHARNNBlock(rnn_layer(**policy), seed=1, **full, **options)


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="sha_rnn_block", causal=True, decodes=True)


def test_config_of_the_other_arguments():
    block = SHARNNBlock(rnn_layer("GRU"), use_attention=False, memory_length=7)
    again = SHARNNBlock.from_config(block.get_config())
    assert (again.use_attention, again.memory_length) == (False, 7)
    assert isinstance(again.rnn, keras.layers.GRU)


BAD = {
    "rnn": (lambda: SHARNNBlock(3), "`rnn` must be a recurrent layer.*return_state=True"),
    "state": (
        lambda: SHARNNBlock(rnn_layer(return_state=False)),
        "return_sequences=True and return_state=True; received.*return_state=False",
    ),
    "directions": (
        lambda: SHARNNBlock(keras.layers.Bidirectional(rnn_layer())),
        "`rnn` must be a recurrent layer.*Bidirectional",
    ),
    "stateful": (
        lambda: SHARNNBlock(rnn_layer(stateful=True)),
        "`rnn` must not be stateful.*stateful=True",
    ),
    "hidden": (
        lambda: SHARNNBlock(rnn_layer(), hidden_dim=12).build((2, 3, 8)),
        "`hidden_dim` must be a multiple of the width.*hidden_dim=12, width=8",
    ),
    "width": (
        lambda: SHARNNBlock(rnn_layer(width=6)).build((2, 3, 8)),
        "outputs of the width of the input.*rnn_width=6, width=8",
    ),
    "memory": (
        lambda: SHARNNBlock(rnn_layer(), memory_length=0),
        "`memory_length` must be an integer >= 1.*memory_length=0",
    ),
    "no memory": (
        lambda: SHARNNBlock(rnn_layer()).init_memory(2),
        "`memory_length` must be the number of steps.*memory_length=None",
    ),
    "no batch": (
        lambda: SHARNNBlock(rnn_layer(), memory_length=3).build((None, 3, 8)),
        "batch size must be known where there is a memory.*batch_size=None",
    ),
    "dropout": (lambda: SHARNNBlock(rnn_layer(), dropout=1.0), "`dropout` must be.*dropout=1.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
