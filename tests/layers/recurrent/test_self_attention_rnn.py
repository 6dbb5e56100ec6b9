import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import (
    ALiBi,
    GatedLinearAttention,
    LinearAttention,
    RotaryEmbedding,
    SelfAttention,
    SelfAttentionRNN,
    explain_loops,
)
from tests import rotary_oracle
from tests.checks import check_layer, shake
from tests.compute import assert_close, differentiate, quick, result, run
from tests.layers.recurrent import rnn_oracle

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
WHOLE = {"return_sequences": True}
CASES = {
    "default": {},
    "window": {"window": 2, "position": RotaryEmbedding(base=50.0)},
    "concat": {"combine": "concat", "key_dim": 5},
    "gate": {"combine": "gate", "num_key_value_heads": 1, "causal": False},
}


def build(rng, kind="LSTM", **options):
    """A layer with weights off their initial values, and an input `(3, 5, 8)`."""
    layer = SelfAttentionRNN(getattr(keras.layers, kind)(6, **WHOLE), 2, **options)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


def weights_of(layer):
    return {
        "/".join(weight.path.split("/")[1:]): run(ops.convert_to_tensor, weight).astype(float)
        for weight in layer.weights
        if "seed" not in weight.path
    }


def attend(h, w, keep, options):
    """Vaswani et al. 2017, eq. 1, one query at a time, over h `(B, T, U)`."""
    heads, width = 2, options.get("key_dim", 3)
    shared = heads // options.get("num_key_value_heads", heads)  # query heads of a key
    flat = h @ w["attention/qkv/kernel"] + w["attention/qkv/bias"]
    keys = heads // shared * width
    q, k, v = np.split(flat, [heads * width, heads * width + keys], axis=-1)
    mixed = np.zeros((*h.shape[:2], heads * width))
    for b, t, n in np.ndindex(*h.shape[:2], heads):
        before = options.get("window", h.shape[1])
        seen = [
            s
            for s in range(h.shape[1])
            if keep[b, s] and (0 <= t - s < before or not options.get("causal", True))
        ]
        if not seen or not keep[b, t]:
            continue
        own, key = slice(n * width, (n + 1) * width), n // shared
        of_key = slice(key * width, (key + 1) * width)
        query, found = q[b, t, own], k[b, seen, of_key]
        if "position" in options:
            query, found = (
                turned(a, np.cumsum(keep[b])[at] - 1, width)
                for a, at in ((query[None], [t]), (found, seen))
            )
            query = query[0]
        scores = found @ query / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        mixed[b, t, own] = weights @ v[b, seen, of_key] / weights.sum()
    return mixed @ w["attention/output/kernel"] + w["attention/output/bias"]


def turned(x, positions, width):
    """Rows of x rotated by their positions."""
    turns = rotary_oracle.frequencies(width, base=50.0)[None]
    return rotary_oracle.rotate(x[None, :, None], np.asarray(positions)[None, :, None], turns)[
        0, :, 0
    ]


def expected_output(layer, kind, x, keep, options):
    w = weights_of(layer)
    h, _ = rnn_oracle.rnn(kind, x, layer.rnn.get_weights(), keep=keep)
    a = attend(h, w, keep, options)
    combine = options.get("combine", "add")
    y = h + a
    if combine != "add":
        y = np.concatenate([h, a], axis=-1) @ w[f"{combine}/kernel"] + w[f"{combine}/bias"]
    if combine == "gate":
        g = rnn_oracle.sigmoid(y)
        y = g * h + (1 - g) * a
    return y * keep[..., None]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case, kind):
    options = dict(CASES[case])
    if "position" in options:
        options["key_dim"] = 4
    layer, x = build(rng, kind, **options)
    for keep in (KEEP, np.ones_like(KEEP)):
        expected = expected_output(layer, kind, x, keep, options)
        assert_close(run(quick(layer), x, mask=ops.convert_to_tensor(keep)), expected)
    assert_close(run(quick(layer), x), expected)


@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "masked"])
def test_bidirectional(rng, keep):
    """Outputs of both directions attend to all others."""
    both = keras.layers.Bidirectional(keras.layers.GRU(3, **WHOLE))
    layer, x = SelfAttentionRNN(both, 2, causal=False), rng.normal(size=(3, 5, 8))
    layer.build(x.shape)
    shake(layer)
    real = np.ones_like(KEEP) if keep is None else keep
    options = {"keep": real}
    ahead, _ = rnn_oracle.rnn("GRU", x, both.forward_layer.get_weights(), **options)
    weights = both.backward_layer.get_weights()
    back, _ = rnn_oracle.rnn("GRU", x, weights, backwards=True, **options)
    h = np.concatenate([ahead, back[:, ::-1]], axis=-1) * real[..., None]
    expected = (h + attend(h, weights_of(layer), real, {"causal": False})) * real[..., None]
    mask = {} if keep is None else {"mask": ops.convert_to_tensor(keep)}
    assert_close(run(quick(layer), x.astype("float32"), **mask), expected)
    with pytest.raises(ValueError, match="Only a causal layer can decode"):
        layer.init_cache(3, 5)


def test_the_loop_is_that_of_the_framework(rng):
    layer, _ = build(rng)
    ((path, loop, reason),) = explain_loops(layer)
    assert path == f"{layer.name}/rnn"
    if keras.backend.backend() == "torch":
        assert (loop, reason) == ("torch.lstm", None)
    else:
        assert loop == "keras"


ATTENTIONS = {
    "linear": lambda: LinearAttention(2, causal=True),
    "gated": lambda: GatedLinearAttention(2),
    "softmax": lambda: SelfAttention(2, causal=True, use_gate=True, position=ALiBi()),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_another_attention(rng, name):
    """It sees the outputs of the recurrent layer, and decodes with them."""
    rnn = keras.layers.SimpleRNN(6, **WHOLE)
    layer = SelfAttentionRNN(rnn, attention=ATTENTIONS[name]())
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    h = rnn(x)
    full = run(lambda: layer(x))
    assert_close(full, run(lambda: h + layer.attention(h)))
    cache = layer.init_cache(3, 5)
    first, cache = layer.decode(x[:, :3], cache)
    last, _ = layer.decode(x[:, 3:], cache)
    assert_close(run(lambda: ops.concatenate([first, last], axis=1)), full)


def test_a_given_attention_is_as_causal_as_the_layer():
    rnn = keras.layers.GRU(6, **WHOLE)
    with pytest.raises(ValueError, match=r"`causal` must be what it is in `attention`.*=True"):
        SelfAttentionRNN(rnn, attention=SelfAttention(2))
    SelfAttentionRNN(rnn, attention=SelfAttention(2), causal=False)


def test_weights(rng):
    """They mix what the call mixes: with the values they give its attention."""
    layer, x = build(rng, window=3)
    mask = ops.convert_to_tensor(KEEP)
    weights = result(layer.attention_weights, x, mask=mask)
    assert_close(weights.sum(-1), np.broadcast_to(KEEP[:, None], (3, 2, 5)))
    far = np.arange(5)[:, None] - np.arange(5)
    assert (weights[:, :, (far < 0) | (far >= 3)] == 0).all()
    w = weights_of(layer)
    h, _ = rnn_oracle.rnn("LSTM", x, layer.rnn.get_weights(), keep=KEEP)
    v = (h @ w["attention/qkv/kernel"] + w["attention/qkv/bias"])[..., 12:].reshape(3, 5, 2, 3)
    mixed = np.einsum("bnts,bsnd->btnd", weights, v).reshape(3, 5, 6)
    y = h + mixed @ w["attention/output/kernel"] + w["attention/output/bias"]
    assert_close(result(layer, x, mask=mask), y * KEEP[..., None])


def test_stateful_layers_go_on(rng):
    """The recurrent layer keeps its state from call to call, and decoding leaves that alone."""
    layer = SelfAttentionRNN(keras.layers.GRU(6, stateful=True, **WHOLE), 2)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    first, second = (run(lambda: layer(x)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    layer.decode(x, layer.init_cache(3, 5))
    layer.rnn.reset_state()
    assert_close(run(lambda: layer(x)), first)


def test_gradients_through_a_thousand_steps(rng):
    """They are finite, and attention carries them from the last step to the first."""
    x = rng.normal(size=(1, 1000, 8)).astype("float32")
    layer, _ = build(rng)
    upstream = np.zeros((1, 1000, 6))
    upstream[:, -1] = 1.0
    _, (gradient,) = differentiate(quick(lambda x: layer(x)), [x], upstream)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0, 0]).max() > 1e-7


def make(**options):
    policy = {"dtype": options["dtype"]} if "dtype" in options else {}
    rnn = keras.layers.LSTM(6, recurrent_initializer="glorot_uniform", **WHOLE, **policy)
    full = {
        "combine": "gate",
        "window": 4,
        "key_dim": 4,
        "num_key_value_heads": 1,
        "position": RotaryEmbedding(base=50.0, name="rotary"),
        "dropout": 0.1,
        "seed": 1,
    }
    return SelfAttentionRNN(rnn, 2, **full, **options)


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="self_attention_rnn", causal=True, decodes=True)


def test_a_given_attention_survives_a_config():
    layer = SelfAttentionRNN(
        keras.layers.GRU(4, **WHOLE), attention=LinearAttention(2, causal=True)
    )
    config = layer.get_config()
    assert config["num_heads"] is None
    again = SelfAttentionRNN.from_config(config)
    assert isinstance(again.attention, LinearAttention)
    assert again.attention.causal


def lstm(**options):
    return keras.layers.LSTM(6, **{**WHOLE, **options})


BAD = {
    "combine": (lambda: SelfAttentionRNN(lstm(), 2, combine="sum"), "`combine` must be one of add"),
    "heads": (lambda: SelfAttentionRNN(lstm(), 0), "`num_heads` must be an integer >= 1"),
    "no heads": (lambda: SelfAttentionRNN(lstm()), "`num_heads` must be an integer >= 1.*None"),
    "window": (lambda: SelfAttentionRNN(lstm(), 2, window=0), "`window` must be.*window=0"),
    "rnn": (lambda: SelfAttentionRNN(3, 2), r"`rnn` must be a recurrent layer.*rnn=3"),
    "last": (
        lambda: SelfAttentionRNN(lstm(return_sequences=False), 2),
        "return_sequences=True.*received: return_sequences=False",
    ),
    "both": (
        lambda: SelfAttentionRNN(lstm(), 2, attention=SelfAttention(2), window=3),
        "`attention` must stand alone.*num_heads=2, window=3",
    ),
    "no attention": (
        lambda: SelfAttentionRNN(lstm(), attention=3),
        "`attention` must be a Keras layer.*attention=3",
    ),
    "directions": (
        lambda: SelfAttentionRNN(keras.layers.Bidirectional(lstm()), 2),
        "`causal` must be False for a Bidirectional `rnn`.*causal=True",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_input(rng):
    layer, x = build(rng)
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(3, 5\)"):
        SelfAttentionRNN(lstm(), 2)(x[:, :, 0])
    with pytest.raises(ValueError, match=r"`mask` must be boolean.*float32"):
        layer(x, mask=KEEP.astype("float32"))
    with pytest.raises(ValueError, match=r"`mask` must have shape .*\(3, 5\).*\(3, 4\)"):
        layer(x, mask=KEEP[:, :4])
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=6, num_heads=4"):
        SelfAttentionRNN(lstm(), 4)(x)
    gated = SelfAttentionRNN(lstm(), attention=GatedLinearAttention(2))
    with pytest.raises(
        ValueError, match="`attention` must be a layer that has `attention_weights`"
    ):
        gated.attention_weights(x)
