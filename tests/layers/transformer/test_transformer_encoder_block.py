import functools

import keras
import numpy as np
import pytest
from keras import ops

from kattn import layers, masks
from kattn.layers import FeedForward, SelfAttention, TransformerEncoderBlock
from kattn.ops import recomputation
from tests import oracle, transformer_oracle
from tests.checks import check_layer, check_permutation, plain, ready, shake
from tests.compute import assert_close, run
from tests.transformer_oracle import weights_of

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
CASES = {
    "default": {},
    "rms": {"norm": "rms"},
    "post": {"placement": "post"},
    "sandwich": {"placement": "sandwich", "norm": "rms"},
    "parallel": {"placement": "parallel", "residual_scale": 0.5},
    "deep": {"placement": "post", "residual_scale": 1.7},
    "gains": {"layer_scale": 0.1, "placement": "sandwich"},
}


def make(attention=None, feed_forward=None, *, dtype=None, **options):
    """A block of width 8, whose parts have the dtype that is asked for, too."""
    attention = attention or SelfAttention(2, dtype=dtype)
    feed_forward = feed_forward or FeedForward(6, dtype=dtype)
    return TransformerEncoderBlock(attention, feed_forward, dtype=dtype, **options)


def expected_output(block, x, keep, **options):
    w = weights_of(block)
    see = np.broadcast_to(keep[:, None, None] & keep[:, None, :, None], (3, 2, 5, 5))
    parts = [
        ("attention", lambda h: transformer_oracle.self_attention(w, h, see, 2)),
        ("feed_forward", lambda h: transformer_oracle.feed_forward(w, h)),
    ]
    options = {
        "placement": options.get("placement", "pre"),
        "scale": options.get("residual_scale", 1.0),
    }
    return transformer_oracle.block(w, x, parts, **options)


@pytest.fixture
def x(rng):
    return rng.normal(size=(3, 5, 8)).astype("float32")


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(x, case):
    block = ready(functools.partial(make, **CASES[case]), [x])
    everything = np.ones_like(KEEP)
    assert_close(run(block, x), expected_output(block, x, everything, **CASES[case]))
    found = run(block, x, mask=KEEP)
    x = np.where(KEEP[..., None], x, 0.0)
    assert_close(found[KEEP], expected_output(block, x, KEEP, **CASES[case])[KEEP])


def test_names_of_weights(x):
    """They do not depend on how many layers were made before, nor on the names of the parts."""
    wanted = [
        "attention/output/bias",
        "attention/output/kernel",
        "attention/qkv/bias",
        "attention/qkv/kernel",
        "attention_residual/norm/beta",
        "attention_residual/norm/gamma",
        "feed_forward/hidden/bias",
        "feed_forward/hidden/kernel",
        "feed_forward/output/bias",
        "feed_forward/output/kernel",
        "feed_forward_residual/norm/beta",
        "feed_forward_residual/norm/gamma",
    ]
    for block in (make(name="block"), make(SelfAttention(2, name="mine"), name="block")):
        block.build(x.shape)
        assert sorted(weight.path for weight in block.weights) == [f"block/{w}" for w in wanted]


def full(**options):
    """As far off its defaults as it goes."""
    attention = SelfAttention(
        2,
        causal=True,
        position=layers.RotaryEmbedding(name="rotary"),
        dropout=0.1,
        seed=1,
        dtype=options.get("dtype"),
    )
    feed_forward = FeedForward(6, "swiglu", dtype=options.get("dtype"))
    given = {
        "norm": "rms",
        "placement": "sandwich",
        "residual_scale": 1.5,
        "dropout": 0.2,
        "drop_path": 0.3,
        "layer_scale": 0.2,
        "remat": True,
        "seed": 4,
    }
    return TransformerEncoderBlock(attention, feed_forward, **given, **options)


def test_all_checks(x):
    check_layer(full, [x], causal=True)


def test_permuted_steps(x):
    check_permutation(make, [x])


KINDS = {
    "window": lambda: SelfAttention(2, causal=True, window=2, position=layers.ALiBi()),
    "differential": lambda: layers.DifferentialAttention(2, causal=True),
    "linear": lambda: layers.LinearAttention(2, causal=True),
    "gated": lambda: layers.GatedLinearAttention(2),
}


@pytest.mark.parametrize("name", KINDS)
def test_any_attention_decodes(x, name):
    """Prompts that are padded at the left, then the other steps."""
    placement = {"window": "post", "linear": "parallel"}.get(name, "pre")
    block = ready(lambda: make(KINDS[name](), placement=placement), [x])
    real = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]], bool)

    counts = real.sum(axis=1)
    prompt = np.stack([np.roll(x[b], 3 - n, axis=0)[:3] for b, n in enumerate(counts)])
    after = np.stack([x[b, n : n + 2] for b, n in enumerate(counts)])

    def decode(prompt, after):
        y, cache = block.decode(prompt, block.init_cache(3, 8), mask=real)
        return y[:, -1:], block.decode(after, cache)[0]

    found, full = np.concatenate(run(decode, prompt, after), axis=1), run(block, x)
    assert_close(found, np.stack([full[b, n - 1 : n + 2] for b, n in enumerate(counts)]))


def test_a_stack_of_blocks_is_saved(x, tmp_path):
    """Of several kinds of attention, of which two share a table of positions."""
    table, node = layers.T5RelativeBias(name="table"), keras.Input((None, 8))
    attention = [
        SelfAttention(2, position=table),
        KINDS["differential"](),
        KINDS["gated"](),
        SelfAttention(2, position=table),
    ]
    h = node
    for i, layer in enumerate(attention):
        h = make(layer, name=f"block{i}")(h)
    model = keras.Model(node, h)
    shake(model)
    assert_close(model.predict(x, verbose=0), run(model, x))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(run(again, x), run(model, x))
    assert [w.path for w in again.weights] == [w.path for w in model.weights]
    blocks = [again.get_layer(f"block{i}") for i in range(4)]
    assert blocks[0].attention.position is blocks[3].attention.position
    assert len(again.trainable_weights) == len(model.trainable_weights)


def test_blocks_share_parts(x, tmp_path):
    """As ALBERT's do: and so they do when they are loaded."""
    shared, node = FeedForward(6), keras.Input((5, 8))
    first, second = (make(feed_forward=shared, name=name) for name in ("first", "second"))
    model = keras.Model(node, second(first(node)))
    shake(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    parts = [again.get_layer(name).feed_forward for name in ("first", "second")]
    assert parts[0] is parts[1]
    assert_close(run(again, x), run(model, x))


def test_maps(rng):
    """Attention over images, channels last; there is no mask then."""
    x = rng.normal(size=(2, 3, 4, 8)).astype("float32")
    block = ready(lambda: make(layers.SelfAttention2D(2, key_dim=4)), [x])
    y = x + run(block.attention, run(block._residuals[0].read, x))
    wanted = y + run(block.feed_forward, run(block._residuals[1].read, y))
    assert_close(run(block, x), wanted)


@keras.saving.register_keras_serializable("tests")
def wide_norm():
    return keras.layers.LayerNormalization(epsilon=0.5)


@pytest.mark.parametrize("norm", [keras.layers.LayerNormalization(epsilon=0.5), wide_norm])
def test_norms_of_your_own(x, norm):
    block = ready(lambda: make(norm=norm, placement="sandwich"), [x])
    norms = [part for part in block._flatten_layers() if "norm" in part.name]
    assert [part.epsilon for part in norms] == [0.5] * 4
    assert len({id(part) for part in norms}) == 4
    again = TransformerEncoderBlock.from_config(block.get_config())
    assert plain(again.get_config()) == plain(block.get_config())
    again.build(x.shape)
    again.set_weights(block.get_weights())
    assert_close(run(again, x), run(block, x))


def test_positions_reach_the_attention(x):
    block = ready(lambda: make(SelfAttention(2, position=layers.LearnedPositions(7))), [x])
    at = np.array([6, 0, 1, 3, 2], "int32")
    h = run(block._residuals[0].read, x)
    y = x + run(block.attention, h, positions=at)
    wanted = y + run(block.feed_forward, run(block._residuals[1].read, y))
    assert_close(run(block, x, positions=at), wanted)


def test_masks_of_query_by_key(x):
    """Beside the Keras mask, which stays where it was."""
    x[~KEEP] = 0.0
    block, node = make(), keras.Input((5, 8))
    masked = keras.layers.Masking()(node)
    model = keras.Model(node, block(masked, mask=masks.Causal()))
    shake(model)
    causal = np.broadcast_to(oracle.causal(5, 5), (3, 5, 5))
    joined = ops.convert_to_tensor(causal & KEEP[:, None] & KEEP[..., None])
    assert_close(model.predict(x, verbose=0)[KEEP], run(block, x, mask=joined)[KEEP])


def test_branches_are_dropped_for_whole_items(rng):
    """In a block whose branches are 0 but for a skipped one, an item stays what it was."""
    x = rng.normal(size=(64, 3, 8)).astype("float32")
    block = make(drop_path=0.5, seed=3)
    block.build(x.shape)
    change = run(block, x, training=True) - x
    stayed = np.abs(change).max(axis=(1, 2)) == 0
    assert 0.1 < stayed.mean() < 0.45  # both branches are skipped for a quarter
    assert_close(run(block, x), run(block, x, training=False))


def test_a_seed_drops_apart(x):
    """Channels and items, first and second part: each has numbers of its own."""
    block = full()
    block.build(x.shape)
    seeds = [w for w in block.non_trainable_variables if "seed" in w.path]
    states = [tuple(run(ops.convert_to_tensor, seed)) for seed in seeds]
    assert len({*states}) == len(states) == 5


def train(remat, x, make=full):
    """The loss and the weights after a step of `fit`."""
    keras.utils.set_random_seed(0)
    block = make()
    block = TransformerEncoderBlock.from_config({**block.get_config(), "remat": remat})
    node = keras.Input((5, 8))
    model = keras.Model(node, block(keras.layers.Masking()(node)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(x, x, verbose=0)
    return history.history["loss"], model.get_weights()


def test_norms_that_train_otherwise_do_so_with_remat(x):
    """Batch normalisation takes the moments of the batch when the block runs again, too."""
    norm = keras.layers.BatchNormalization(momentum=0.5)
    for placement in ("post", "parallel"):
        make_block = functools.partial(make, norm=norm, placement=placement)
        pairs = zip(train(True, x, make_block)[1], train(False, x, make_block)[1], strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_remat_trains_as_without(x, monkeypatch):
    """With dropout of all kinds; it runs the block again, not each of its parts once more."""
    calls, recomputed = [], recomputation.recomputed
    monkeypatch.setattr(recomputation, "recomputed", lambda f: calls.append(f) or recomputed(f))
    expected, wanted = train(remat=False, x=x)
    assert not calls
    with keras.RematScope(mode="full"):
        part = SelfAttention(2)
    run(make(part, remat=True), x)
    assert len(calls) == 1
    found, weights = train(remat=True, x=x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for one, other in zip(weights, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


BAD = {
    "class": ({"attention": SelfAttention}, r"`attention` must be a Keras layer, not its class"),
    "part": ({"feed_forward": 4}, r"`feed_forward` must be a Keras layer.*feed_forward=4"),
    "norm": ({"norm": "batch"}, r"`norm` must be 'layer', 'rms', .*norm='batch'"),
    "placement": ({"placement": "both"}, r"`placement` must be one of pre, post, .*'both'"),
    "scale": ({"residual_scale": 0}, r"`residual_scale` must be a finite number above 0"),
    "gain": ({"layer_scale": -1.0}, r"`layer_scale` must be a finite number above 0"),
    "dropout": ({"dropout": 1}, r"`dropout` must be a fraction"),
    "path": ({"drop_path": 1.5}, r"`drop_path` must be a fraction.*1\.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        TransformerEncoderBlock(**{"attention": SelfAttention(2), **options})


def test_what_cannot_decode(x):
    block = ready(make, [x])
    with pytest.raises(ValueError, match=r"Only a causal layer can decode.*'attention'"):
        block.init_cache(3, 5)
    block = ready(lambda: make(keras.layers.Dense(8)), [x])
    with pytest.raises(ValueError, match=r"`attention` must be a layer that can decode.*Dense"):
        block.init_cache(3, 5)
