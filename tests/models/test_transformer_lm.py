import functools
import gc

import keras
import numpy as np
import pytest
from keras import ops

from kattn import layers, masks
from kattn.models import TransformerLM
from tests import oracle, transformer_oracle
from tests.checks import (
    check_config,
    check_decoding,
    check_dropout,
    check_fixture,
    check_precision,
    check_sublayers,
    check_training,
    check_unknown_sizes,
    check_ways_in,
    ready,
    shake,
)
from tests.compute import assert_close, result, run
from tests.transformer_oracle import under, weights_of

TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]], "int32")  # of 11
KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
CASES = {
    "default": {},
    "post, untied": {"placement": "post", "tie_embeddings": False},
    "windows in turn": {"window": (None, 2), "norm": "rms"},
}


def expected_logits(model, tokens, keep):
    """Radford et al. 2019, sec. 2.3; padding at the left does not move positions."""
    w, options = weights_of(model), model.options
    table = w["embedding/tokens/embeddings"]
    positions = np.maximum(np.arange(tokens.shape[1]) - keep.argmax(1)[:, None], 0)
    x = table[np.where(keep, tokens, 0)] + w["embedding/position/table"][positions]
    steps = tokens.shape[1]
    see = oracle.causal(steps, steps) & keep[:, None, None] & keep[:, None, :, None]
    near = see & oracle.window(steps, steps, 2)
    windows = options.window or (None, None)
    see = [np.repeat(near if window else see, 2, axis=1) for window in windows]
    x = transformer_oracle.stack(under(w, "decoder"), x, see, 2, placement=options.placement)
    return x @ w.get("head/kernel", table.T)


def make(**options):
    """A model of two blocks of width 8 and 11 tokens."""
    position = layers.LearnedPositions(6)
    return TransformerLM(11, 2, 2, 8, **{"position": position, "hidden_dim": 6, **options})


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(case):
    model = ready(functools.partial(make, **CASES[case]), [TOKENS])
    assert_close(run(model, TOKENS), expected_logits(model, TOKENS, np.ones_like(KEEP)))
    found = run(model, np.where(KEEP, TOKENS, -7), mask=KEEP)  # what is no token may stand there
    assert_close(found[KEEP], expected_logits(model, TOKENS, KEEP)[KEEP])


def full(**options):
    """As far off its defaults as it goes, as a Qwen3 of two blocks is."""
    given = {
        "position": layers.RotaryEmbedding(base=50.0),
        "num_key_value_heads": 1,
        "key_dim": 6,
        "hidden_dim": 6,
        "activation": "swiglu",
        "norm": "rms",
        "placement": "sandwich",
        "window": (None, 3),
        "dropout": 0.1,
        "attention_dropout": 0.2,
        "hidden_dropout": 0.3,
        "drop_path": 0.2,
        "use_bias": False,
        "use_qkv_bias": True,
        "use_feed_forward_bias": True,
        "use_qk_norm": True,
        "qk_norm_epsilon": 1e-3,
        "tie_embeddings": False,
        "padding_token": 10,
        "kernel_initializer": "glorot_uniform",
        "remat": True,
        "seed": 3,
    }
    return TransformerLM(11, 2, 2, 8, **{**given, **options})


@pytest.mark.parametrize(
    "check",
    [check_config, check_sublayers, check_training, check_dropout, check_ways_in],
)
def test_as_layers(check):
    check(full, [TOKENS])


def test_precision():
    """Not of `full`: norms over six channels of queries and keys magnify what is rounded."""
    check_precision(functools.partial(make, norm="rms"), [TOKENS])


def test_decoding():
    """With a cache for the positions, beside those of the blocks."""
    check_decoding(functools.partial(make, window=(3, None)), [TOKENS])


def test_models_of_other_backends():
    check_fixture(full, "transformer_lm")


def test_unknown_sizes():
    check_unknown_sizes(make, [TOKENS])


def test_every_option_reaches_the_blocks():
    """In each block, as a config of the parts says."""
    model = full()
    model.build((None, 5))
    for i, block in enumerate(model.blocks):
        attention, feed_forward = block.attention.get_config(), block.feed_forward.get_config()
        wanted = {
            "num_heads": 2, "num_key_value_heads": 1, "key_dim": 6, "use_bias": True,
            "use_output_bias": False, "use_qk_norm": True, "qk_norm_epsilon": 1e-3,
            "dropout": 0.2, "seed": 9 + 10 * i, "window": (None, 3)[i], "causal": True,
        }  # fmt: skip
        assert attention.items() >= wanted.items()
        assert block.attention.position is model.position
        wanted = {"hidden_dim": 6, "activation": "swiglu", "dropout": 0.3, "use_bias": True}
        assert feed_forward.items() >= wanted.items()
        joined = {"placement": "sandwich", "dropout": 0.1, "drop_path": 0.2 * i, "remat": True}
        assert block.get_config().items() >= {**joined, "norm": "rms", "seed": 3 + 10 * i}.items()


def test_initial_weights_are_gpt2s():
    """Radford et al. 2019, sec. 2.3, also where Keras builds the model as it first fits it."""
    model = TransformerLM(50, 2, 2, 64, use_bias=False)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.learning_rate = 0.0
    model.fit(TOKENS[:1], TOKENS[:1], verbose=0)
    stds = {}
    for path, weight in weights_of(model).items():
        if path.endswith(("kernel", "embeddings")):
            stds.setdefault(path.split("/")[-2], []).append(weight.std())
    for name, found in stds.items():
        wanted = 0.01 if name == "output" else 0.02
        np.testing.assert_allclose(found, wanted, rtol=0.1, err_msg=name)
    assert set(stds) == {"tokens", "qkv", "output", "hidden"}


def test_a_seeded_initializer_draws_other_numbers_for_each_matrix():
    model = make(kernel_initializer=keras.initializers.GlorotUniform(seed=1), hidden_dim=8)
    model.build((None, 5))
    kernels = [w for path, w in weights_of(model).items() if path.endswith("kernel")]
    kernels = {kernel[:8, :8].tobytes() for kernel in kernels}
    assert len(kernels) == 8


def test_padding_token_is_masked_and_has_no_loss():
    model = ready(functools.partial(make, padding_token=0), [TOKENS])
    padded = np.array([[0, 0, 3, 1, 4], [9, 2, 6, 5, 3]], "int32")
    found = result(model, padded)
    assert_close(found[0, 2:], result(model, padded[:1, 2:])[0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    per_step = keras.ops.sparse_categorical_crossentropy(padded, found, from_logits=True)
    wanted = run(ops.copy, per_step)[padded != 0].mean()
    np.testing.assert_allclose(model.evaluate(padded, padded, verbose=0), wanted, rtol=1e-4)
    cache = model.init_cache(2, 5)
    assert_close(run(model.decode, padded, cache)[0][0, 2:], found[0, 2:])


def test_packed_sequences_are_those_apart():
    """Also in a functional model, of which the segments are an input; and decoded."""
    model = ready(make, [TOKENS])
    ids = np.array([[0, 0, 1, 1, 1]] * 3, "int32")
    nodes = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    packed = keras.Model(nodes, model(nodes[0], mask=masks.Segments(nodes[1])))
    found = packed.predict([TOKENS, ids], verbose=0)
    for part in (slice(0, 2), slice(2, 5)):
        assert_close(found[:, part], run(model, TOKENS[:, part]))
    cache, pieces = model.init_cache(3, 5), []
    for piece in (TOKENS[:, :3], TOKENS[:, 3:]):
        mask = masks.Segments(ops.convert_to_tensor(ids))
        logits, cache = model.decode(piece, cache, mask=mask)
        pieces.append(run(ops.stop_gradient, logits))
    assert_close(np.concatenate(pieces, axis=1), found)


def test_weights_of_low_rank():
    """They alone are trained; decoding has them, too."""
    model = make()
    with pytest.raises(ValueError, match=r"must be built before weights of low rank are added"):
        model.enable_lora(2)
    shake(model, [TOKENS])
    model.enable_lora(2)
    names = {weight.path.split("/")[-1] for weight in model.trainable_weights}
    assert names == {"lora_kernel_a", "lora_kernel_b"}
    assert len(model.trainable_weights) == 2 * 2 * 4  # blocks, projections
    shake(model)
    before = [run(ops.copy, weight) for weight in model.weights]
    model.compile("sgd", "mse")
    model.fit(TOKENS, np.ones((3, 5, 11), "float32"), verbose=0)
    for weight, old in zip(model.weights, before, strict=True):
        assert (np.abs(run(ops.copy, weight) - old).max() > 0) == weight.trainable
    assert_close(run(model.decode, TOKENS, model.init_cache(3, 5))[0], run(model, TOKENS))


@pytest.mark.filterwarnings("ignore:.*quantize.*")
def test_quantised(tmp_path, monkeypatch):
    """Every matrix is, and comes back so from a file."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # by Keras, half a second for each weight
    model = ready(functools.partial(make, tie_embeddings=False), [TOKENS])
    exact = run(model, TOKENS)
    model.quantize("int8")
    found = run(model, TOKENS)
    assert_close(found, exact, 0.05)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for part in (*model._flatten_layers(), *again._flatten_layers()):
        is_matrix = isinstance(part, keras.layers.Dense | keras.layers.Embedding)
        assert part.quantization_mode == ("int8" if is_matrix else None), part.path
    assert_close(run(again, TOKENS), found)
    assert_close(run(again.decode, TOKENS, again.init_cache(3, 5))[0], found)


BAD = {
    "width": ({"width": 9}, r"`width` must be divisible by `num_heads`.*num_heads=2, width=9"),
    "layers": ({"num_layers": 0}, r"`num_layers` must be an integer >= 1.*num_layers=0"),
    "window": ({"window": []}, r"`window` must be an integer, None, or a tuple.*window=\(\)"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be a fraction.*dropout=1\.0"),
    "position": ({"position": 7}, r"`position` must be a position layer.*position=7"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    sizes = {"vocabulary_size": 11, "num_layers": 2, "num_heads": 2, "width": 8}
    with pytest.raises(ValueError, match=message):
        TransformerLM(**{**sizes, **options})


def test_bad_input():
    with pytest.raises(ValueError, match=r"`tokens` must have rank 2.*write tokens\[None\]"):
        make()(TOKENS[0])
    model = ready(make, [TOKENS])
    with pytest.raises(ValueError, match=r"a position for each step.*length=7.*table=6"):
        model.init_cache(3, 7)
