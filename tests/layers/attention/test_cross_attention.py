import keras
import numpy as np
import pytest

from kattn import masks
from kattn.layers import CrossAttention
from kattn.layers.position.alibi import ALiBi
from kattn.layers.position.rotary_embedding import RotaryEmbedding
from kattn.layers.position.sinusoidal_positions import SinusoidalPositions
from tests import oracle, rotary_oracle
from tests.checks import check_layer, ready, shake
from tests.compute import assert_close, run
from tests.decode_checks import check_decodes

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # steps of x
REAL = np.array([[0, 1, 0, 1], [1] * 4, [1, 0, 1, 1]], bool)  # steps of the context
FULL = {
    "num_heads": 4,
    "key_dim": 6,
    "value_dim": 3,
    "num_key_value_heads": 2,
    "use_qk_norm": True,
    "qk_norm_epsilon": 0.3,
    "softcap": 2.0,
    "use_sinks": True,
    "position": RotaryEmbedding(base=50.0, name="rotary"),
    "use_gate": True,
    "dropout": 0.4,
    "seed": 1,
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "use_output_bias": False,
    "output_initializer": "he_uniform",
}
CASES = {
    "default": {"num_heads": 2},
    "no bias": {"num_heads": 2, "use_bias": False},
    "rotary": {"num_heads": 2, "position": RotaryEmbedding(base=50.0)},
    "all": FULL,
}


def build(rng, **options):
    """A layer with weights off their initial values, `(3, 5, 8)` and a context `(3, 4, 6)`."""
    layer = CrossAttention(**options)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    context = rng.normal(size=(3, 4, 6)).astype("float32")
    shake(layer, [x, context])
    return layer, x, context


FROM_THE_FIRST = np.arange(5), np.arange(4)


def since_the_first(keep):
    """Positions counted from the first real step."""
    return np.maximum(np.arange(keep.shape[1]) - keep.argmax(1)[:, None], 0)


def expected_output(layer, x, context, keep, options, positions=FROM_THE_FIRST):
    """From the layer's weights by name; `keep` broadcasts to `(B, N, T, S)`."""
    w = {weight.path.split("/", 1)[1]: run(keras.ops.convert_to_tensor, weight).astype(float)
         for weight in layer.weights if "seed" not in weight.path}  # fmt: skip
    heads = options["num_heads"]
    key_heads = options.get("num_key_value_heads", heads)
    width = options.get("key_dim", 8 // heads)
    value_width = options.get("value_dim", width)
    q = (x @ w["query/kernel"] + w.get("query/bias", 0.0)).reshape(3, 5, heads, width)
    flat = context @ w["key_value/kernel"] + w.get("key_value/bias", 0.0)
    k, v = np.split(flat, [key_heads * width], axis=-1)
    k, v = k.reshape(3, 4, key_heads, width), v.reshape(3, 4, key_heads, value_width)
    if options.get("use_qk_norm"):
        epsilon = options.get("qk_norm_epsilon", 1e-6)
        q = q / np.sqrt((q**2).mean(-1, keepdims=True) + epsilon) * w["query_norm/scale"]
        k = k / np.sqrt((k**2).mean(-1, keepdims=True) + epsilon) * w["key_norm/scale"]
    if "position" in options:
        turns = rotary_oracle.frequencies(q.shape[-1], base=50.0)[None]
        q = rotary_oracle.rotate(q, positions[0][..., None], turns)
        k = rotary_oracle.rotate(k, positions[1][..., None], turns)
    keep = np.broadcast_to(keep, (3, heads, 5, 4))
    mixed, weights = oracle.attention(
        q, k, v, keep=keep, softcap=options.get("softcap"), sinks=w.get("sinks")
    )
    mixed = mixed.reshape(3, 5, heads * value_width)
    if options.get("use_gate"):
        mixed = mixed / (1.0 + np.exp(-(x @ w["gate/kernel"] + w["gate/bias"])))
    return mixed @ w["output/kernel"] + w.get("output/bias", 0.0), weights


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x, context = build(rng, **CASES[case])
    keep = KEEP[:, None, :, None] & REAL[:, None, None, :]
    positions = since_the_first(KEEP), since_the_first(REAL)
    expected, weights = expected_output(layer, x, context, keep, CASES[case], positions)
    given = {"mask": KEEP, "context_mask": REAL}
    assert_close(run(layer, x, context, **given), expected)
    assert_close(run(layer.attention_weights, x, context, **given), weights)


@pytest.mark.parametrize("rank", [3, 4])
def test_masks_of_query_by_key(rng, rank):
    layer, x, context = build(rng, **FULL)
    mask = rng.random((3, 5, 4) if rank == 3 else (3, 4, 5, 4)) > 0.4
    keep = mask[:, None] if rank == 3 else mask
    expected, _ = expected_output(layer, x, context, keep, FULL)
    assert_close(run(layer, x, context, context_mask=mask), expected)


def test_implicit_masks_join_explicit_ones_and_objects(rng):
    layer, x, context = build(rng, **CASES["default"])
    x[~KEEP], context[~REAL] = 0.0, 0.0
    nodes = keras.Input((5, 8)), keras.Input((4, 6))
    masked = [keras.layers.Masking()(node) for node in nodes]
    output = layer(*masked, context_mask=masks.Causal())
    assert getattr(output, "_keras_mask", None) is not None
    assert all(getattr(node, "_keras_mask", None) is not None for node in masked)
    model = keras.Model(nodes, output)
    keep = KEEP[:, None, :, None] & REAL[:, None, None, :] & oracle.causal(5, 4)
    expected, _ = expected_output(layer, x, context, keep, CASES["default"])
    assert_close(model.predict([x, context], verbose=0), expected)


@pytest.mark.parametrize("kernel", ["dense", "chunked"])
def test_weights_do_not_depend_on_the_kernel(rng, kernel):
    layer, x, context = build(rng, **CASES["default"], implementation=kernel)
    expected, weights = expected_output(layer, x, context, True, CASES["default"])
    assert_close(run(layer, x, context), expected)
    assert_close(run(layer.attention_weights, x, context), weights)


@pytest.mark.parametrize("case", ["rotary", "all"])
def test_explicit_positions(rng, case):
    layer, x, context = build(rng, **CASES[case])
    positions = rng.integers(0, 9, (3, 5)), rng.integers(0, 9, (3, 4))
    expected, weights = expected_output(layer, x, context, True, CASES[case], positions)
    given = {"positions": positions[0], "context_positions": positions[1]}
    assert_close(run(layer, x, context, **given), expected)
    assert_close(run(layer.attention_weights, x, context, **given), weights)


def test_absolute_positions_are_added_to_both(rng):
    scheme = SinusoidalPositions()
    layer = CrossAttention(2, position=scheme)
    x, context = rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 4, 8))
    shake(layer, [x, context])
    found = run(layer, x, context)
    layer.position = None
    assert_close(found, run(layer, run(scheme, x), run(scheme, context)))


def make(**options):
    return CrossAttention(**{**FULL, **options})


def test_battery():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 4, 6))]
    check_layer(make, inputs, fixture="cross_attention", decodes=True)


def test_decoding_with_positions_added_to_inputs(rng):
    inputs = [rng.normal(size=(3, 6, 8)), rng.normal(size=(3, 4, 8))]
    check_decodes(
        lambda: ready(lambda: CrossAttention(2, position=SinusoidalPositions()), inputs), inputs
    )


def test_padding_at_the_left_of_either_side_changes_nothing(rng):
    """Also where positions are added to the inputs, or turn queries and keys."""
    x, context = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 4, 8))
    for position in (RotaryEmbedding(), SinusoidalPositions()):
        layer = CrossAttention(2, position=position)
        shake(layer, [x, context])
        full = run(layer, x, context)
        longer, keep = at_the_left(x, 2)
        longer_context, keep_context = at_the_left(context, 3)
        y = run(layer, longer, longer_context, mask=keep, context_mask=keep_context)
        assert_close(y[:, 2:], full)


def at_the_left(x, count):
    """The sequence after so many steps of padding, and which steps are real."""
    keep = np.ones((len(x), count + x.shape[1]), bool)
    keep[:, :count] = False
    return np.concatenate([np.full_like(x[:, :count], 5.0), x], axis=1), keep


def test_bad_decoding(rng):
    x, context = rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 4, 8))
    layer = CrossAttention(2, position=ALiBi())
    layer(x, context)
    with pytest.raises(ValueError, match=r"with a bias cannot decode step by step.*ALiBi"):
        layer.init_cache(3, 5, context=context)
    layer = CrossAttention(2)
    layer(x, context)
    with pytest.raises(ValueError, match=r"`context_mask` must have rank 2, \(B, T\).*\(3, 5, 4\)"):
        layer.init_cache(3, 5, context=context, context_mask=np.ones((3, 5, 4), bool))
    with pytest.raises(ValueError, match=r"`mask` must be a bool array \(B, T\).*Causal"):
        layer.decode(x, layer.init_cache(3, 5, context=context), mask=masks.Causal())


def test_bad_input(rng):
    x, context = rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 4, 6))
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=8, num_heads=3"):
        CrossAttention(3)(x, context)
    with pytest.raises(ValueError, match=r"`context` must have rank 3.*\(3, 4\)"):
        CrossAttention(2)(x, context[:, :, 0])
    with pytest.raises(ValueError, match=r"`mask` must be a bool array \(B, T\).*Causal"):
        CrossAttention(2)(x, context, mask=masks.Causal())
    with pytest.raises(ValueError, match=r"of rank 2 means padding.*\(3, 5\)"):
        CrossAttention(2)(x, context, context_mask=KEEP)
    with pytest.raises(ValueError, match=r"`context_mask` must have rank 2, \(B, T\) or rank 3"):
        CrossAttention(2)(x, context, context_mask=REAL[0])
    with pytest.raises(ValueError, match=r"`num_heads` must be an integer >= 1.*num_heads=0"):
        CrossAttention(0)
