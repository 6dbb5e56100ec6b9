import keras
import numpy as np
import pytest
from keras import ops

from kattn import masks
from kattn.layers import (
    FeedForward,
    GatedLinearAttention,
    RotaryEmbedding,
    RTransformerBlock,
    SelfAttention,
    explain_loops,
)
from tests import transformer_oracle
from tests.checks import check_layer, shake
from tests.compute import assert_close, quick, run
from tests.layers.recurrent import rnn_oracle
from tests.transformer_oracle import weights_of

KEEP = np.array([[1] * 6, [0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0], [0] * 6], bool)


def rnn_layer(kind, **options):
    options["recurrent_initializer"] = "glorot_uniform"  # Keras's own knows no half precision
    return getattr(keras.layers, kind)(8, **options)


def build(rng, kind="GRU", window=3, **options):
    """A block with weights off their initial values, and an input `(4, 6, 8)`."""
    attention, feed_forward = SelfAttention(2, causal=True), FeedForward(6)
    block = RTransformerBlock(rnn_layer(kind), attention, feed_forward, window=window, **options)
    x = rng.normal(size=(4, 6, 8)).astype("float32")
    block.build(x.shape)
    shake(block)
    return block, x


def local(kind, h, weights, keep, window):
    """Wang et al. 2019, eq. 1: for each real step the last K real ones, zeros before the first."""
    y = np.zeros_like(h)
    for b in range(len(h)):
        steps = [np.zeros(8)] * (window - 1)
        for t in np.flatnonzero(keep[b]):
            steps.append(h[b, t])
            outputs, _ = rnn_oracle.rnn(kind, np.stack(steps[-window:])[None], weights)
            y[b, t] = outputs[0, -1]
    return y


def expected_output(block, kind, x, keep, **options):
    w, window = weights_of(block), block.window
    see = keep[:, None, None] & keep[:, None, :, None] & np.tri(x.shape[1], dtype=bool)
    see = np.broadcast_to(see, (len(x), 2, *see.shape[2:]))
    weights = block.local.rnn.get_weights()
    parts = [
        ("local", lambda h: local(kind, h, weights, keep, window)),
        ("attention", lambda h: transformer_oracle.self_attention(w, h, see, 2)),
        ("feed_forward", lambda h: transformer_oracle.feed_forward(w, h)),
    ]
    return transformer_oracle.block(w, x, parts, **options)


@pytest.mark.parametrize(
    ("kind", "window", "placement"),
    [("GRU", 3, "pre"), ("LSTM", 1, "post"), ("LSTM", 9, "parallel"), ("GRU", 2, "sandwich")],
)
def test_matches_oracle(rng, kind, window, placement):
    """Windows of one step, shorter, and longer than the sequence."""
    block, x = build(rng, kind, window, placement=placement)
    for keep in (np.ones_like(KEEP), KEEP):
        mask = {} if keep.all() else {"mask": ops.convert_to_tensor(keep)}
        held = np.where(keep[..., None], x, np.nan).astype("float32")
        expected = expected_output(
            block, kind, np.where(keep[..., None], x, 0), keep, placement=placement
        )
        assert_close(run(quick(block), held, **mask)[keep], expected[keep])


def test_padding_is_not_there(rng):
    """Padding before, between and behind the steps gives what the steps alone give."""
    block, x = build(rng)
    whole = run(quick(block), x, mask=ops.convert_to_tensor(KEEP))
    for b in range(3):
        alone = run(block, x[b : b + 1, KEEP[b]])
        assert_close(whole[b, KEEP[b]], alone[0])


@pytest.mark.parametrize("sizes", [(1, 1, 3, 1), (5, 1)])
def test_decoding_with_holes(rng, sizes):
    """In pieces shorter and longer than the window, with padding anywhere."""
    block, x = build(rng)
    full = run(quick(block), x, mask=ops.convert_to_tensor(KEEP))
    cache, found, start = block.init_cache(4, 6), [], 0
    for size in sizes:
        at = slice(start, start + size)
        y, cache = block.decode(x[:, at], cache, mask=ops.convert_to_tensor(KEEP[:, at]))
        found, start = [*found, run(ops.stop_gradient, y)], start + size
    assert_close(np.concatenate(found, axis=1)[KEEP], full[KEEP])
    assert cache[0].shape == (4, 2, 8)


def test_masks_of_the_attention_leave_windows_alone(rng):
    """A mask of query by key, and a mask object, in the call and in decoding."""
    block, x = build(rng)
    window = masks.Window(2)
    array = np.abs(np.subtract.outer(range(6), range(6))) < 2
    found = run(quick(lambda x: block(x, mask=window)), x)
    assert_close(found, run(quick(lambda x: block(x, mask=ops.convert_to_tensor(array[None]))), x))
    assert np.abs(found - run(quick(block), x)).max() > 1e-3
    y, cache = block.decode(x[:, :4], block.init_cache(4, 6), mask=window)
    assert_close(run(ops.stop_gradient, y), found[:, :4])
    y, _ = block.decode(x[:, 4:], cache, mask=window)
    assert_close(run(ops.stop_gradient, y), found[:, 4:])


def test_other_layers(rng):
    """A recurrent layer in both directions of a window, one of two cells, another attention."""
    cells = [keras.layers.GRUCell(5), keras.layers.SimpleRNNCell(8)]
    both = keras.layers.Bidirectional(keras.layers.GRU(4))
    x = rng.normal(size=(2, 6, 8)).astype("float32")
    for rnn in (keras.layers.RNN(cells), both):
        block = RTransformerBlock(rnn, GatedLinearAttention(2), window=3)
        full = run(block, x)
        y, cache = block.decode(x[:, :4], block.init_cache(2, 6))
        again, _ = block.decode(x[:, 4:], cache)
        assert_close(run(lambda y=y, again=again: ops.concatenate([y, again], axis=1)), full)


def test_the_loop_is_that_of_the_framework(rng):
    block, _ = build(rng)
    ((_, loop, reason),) = explain_loops(block)
    on_torch = keras.backend.backend() == "torch"
    assert loop == ("torch.gru" if on_torch else "keras")
    assert (reason is None) == on_torch


def make(**options):
    policy = {"dtype": options["dtype"]} if "dtype" in options else {}
    position = RotaryEmbedding(base=50.0, name="rotary")
    attention = SelfAttention(2, causal=True, position=position, dropout=0.1, seed=1, **policy)
    full = {
        "window": 3,
        "norm": "rms",
        "placement": "sandwich",
        "residual_scale": 1.5,
        "dropout": 0.2,
        "drop_path": 0.3,
        "layer_scale": 0.2,
        "remat": True,
        "seed": 4,
    }
    rnn, feed_forward = rnn_layer("GRU", **policy), FeedForward(6, "swiglu", **policy)
    return RTransformerBlock(rnn, attention, feed_forward, **full, **options)


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="r_transformer_block", causal=True, decodes=True)


def block(rnn=None, attention=None, **options):
    return RTransformerBlock(
        rnn or rnn_layer("GRU"), attention or SelfAttention(2, causal=True), **options
    )


BAD = {
    "window": (lambda: block(window=0), "`window` must be an integer >= 1.*window=0"),
    "rnn": (lambda: block(3, window=2), "`rnn` must be a recurrent layer.*return_sequences=False"),
    "sequences": (
        lambda: block(rnn_layer("GRU", return_sequences=True), window=2),
        "made with return_sequences=False.*return_sequences=True",
    ),
    "stateful": (
        lambda: block(rnn_layer("GRU", stateful=True), window=2),
        "`rnn` must not be stateful.*stateful=True",
    ),
    "width": (
        lambda: block(keras.layers.GRU(6), window=2).build((2, 3, 8)),
        "outputs of the width of the input.*rnn_width=6, width=8",
    ),
    "attention": (lambda: block(attention=3, window=2), "`attention` must be a Keras layer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
