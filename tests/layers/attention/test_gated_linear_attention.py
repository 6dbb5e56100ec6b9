import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import ALiBi, GatedLinearAttention, RotaryEmbedding, SinusoidalPositions
from kattn.ops.gated_linear import GatedLinearState
from tests import checks, rotary_oracle
from tests import linear_oracle as oracle
from tests.checks import check_layer, ready, shake
from tests.compute import assert_close, quick, run

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
FULL = {
    "num_heads": 2,
    "key_dim": 6,
    "value_dim": 3,
    "decay": "gated",
    "position": RotaryEmbedding(base=50.0, name="rotary"),
    "gate_rank": 5,
    "temperature": 0.5,
    "implementation": "chunked",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
}
CASES = {
    "default": {"num_heads": 2},
    "no bias": {"num_heads": 2, "key_dim": 3, "value_dim": 5, "use_bias": False},
    "fixed": {"num_heads": 4, "value_dim": 4, "decay": "fixed"},
    "retention": {
        "num_heads": 2,
        "decay": "fixed",
        "position": RotaryEmbedding(base=50.0),
    },
    "sinusoidal": {"num_heads": 2, "position": SinusoidalPositions(base=50.0)},
    "fixed, parallel": {
        "num_heads": 2,
        "value_dim": 3,
        "decay": "fixed",
        "implementation": "parallel",
    },
    "all": FULL,
}
DECAYS = ["all", "fixed"]


def build(rng, **options):
    """A layer with weights off their initial values, and an input `(3, 5, 8)`."""
    layer = GatedLinearAttention(**options)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


def weights_of(layer):
    return {
        weight.path.split("/", 1)[1]: run(ops.convert_to_tensor, weight).astype(float)
        for weight in layer.weights
    }


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def decays(w, x, heads, width, options):
    """`(B, T, N, D)`: Yang et al. 2023, sec. 4.4; Sun et al. 2023, eq. 8."""
    if options.get("decay") == "fixed":
        fixed = np.array([1.0 - 2.0 ** (-5 - n) for n in range(heads)])
        return np.broadcast_to(fixed[:, None], (*x.shape[:2], heads, width))
    z = x @ w["decay_down/kernel"] @ w["decay_up/kernel"] + w.get("decay_up/bias", 0.0)
    decay = sigmoid(z) ** (1.0 / options.get("temperature", 16.0))
    return decay.reshape(*x.shape[:2], heads, width)


def expected_output(layer, x, keep, options):
    """From the layer's weights by name; `keep` is `(B, T)`."""
    w, (batch, steps, _), heads = weights_of(layer), x.shape, options["num_heads"]
    width = options.get("key_dim", 8 // heads)
    value_width = options.get("value_dim", width)
    positions = np.maximum(np.arange(steps) - keep.argmax(1)[:, None], 0)
    if isinstance(options.get("position"), SinusoidalPositions):
        channel = np.arange(8)
        angle = positions[..., None] * 50.0 ** (-2.0 * (channel // 2) / 8)
        x = x + np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    flat = x @ w["qkv/kernel"] + w.get("qkv/bias", 0.0)
    q, k, v = np.split(flat, [heads * width, 2 * heads * width], axis=-1)
    q, k = (a.reshape(batch, steps, heads, width) for a in (q, k))
    v = v.reshape(batch, steps, heads, value_width)
    if isinstance(options.get("position"), RotaryEmbedding):
        turns = rotary_oracle.frequencies(width, base=50.0)[None]
        q, k = (rotary_oracle.rotate(a, positions[..., None], turns) for a in (q, k))
    mixed, _ = oracle.gated(q / np.sqrt(width), k, v, decays(w, x, heads, width, options), keep)
    for b, t, n in np.ndindex(batch, steps, heads):
        row = mixed[b, t, n]
        row = (row - row.mean()) / np.sqrt(row.var() + 1e-6)
        mixed[b, t, n] = row * w["norm_scale"] + w["norm_shift"]
    gate = x @ w["gate/kernel"] + w.get("gate/bias", 0.0)
    mixed = mixed.reshape(batch, steps, heads * value_width) * gate * sigmoid(gate)
    return (mixed * keep[:, :, None]) @ w["output/kernel"] + w.get("output/bias", 0.0)


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(rng, **CASES[case])
    expected = expected_output(layer, x, KEEP, CASES[case])
    assert_close(run(quick(layer), x, mask=KEEP), expected, 2e-5)
    expected = expected_output(layer, x, np.ones_like(KEEP), CASES[case])
    assert_close(run(quick(layer), x), expected, 2e-5)


@pytest.mark.parametrize("case", ["default", "fixed"])
def test_long_sequences(rng, case):
    """Longer than a chunk, and not a multiple of it.

    Eight channels a head: normalised, two are -1 and 1, whose signs can hang on the last bit.
    """
    options = {**CASES[case], "value_dim": 8}
    layer, _ = build(rng, **options)
    x = rng.normal(size=(1, 150, 8)).astype("float32")
    expected = expected_output(layer, x, np.ones((1, 150), bool), options)
    assert_close(run(quick(layer), x), expected, 2e-5)


def test_a_padded_step_gives_the_output_bias(rng):
    layer, x = build(rng, **FULL)
    y = run(quick(layer), x, mask=KEEP)
    assert_close(y[~KEEP], np.broadcast_to(weights_of(layer)["output/bias"], y[~KEEP].shape))


@pytest.mark.parametrize("case", ["default", "fixed"])
def test_decoding_equals_the_whole(rng, case):
    """In pieces, of which those of one step are the usual."""
    layer, x = build(rng, **CASES[case])
    decode, cache = quick(layer.decode), layer.init_cache(3, length=7)
    found, start = [], 0
    for size in (2, 1, 1, 1):
        part = slice(start, start + size)
        y, cache = decode(x[:, part], cache, mask=KEEP[:, part])
        found, start = [*found, run(lambda y=y: y)], start + size
    assert isinstance(cache, GatedLinearState)
    assert_close(np.concatenate(found, axis=1), run(quick(layer), x, mask=KEEP), 2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", DECAYS)
def test_padded_prompts(rng, case, side):
    """A padded prompt leaves the state of the prompt by itself."""
    layer, x = build(rng, **CASES[case])
    pad, keep = rng.normal(size=(3, 2, 8)), np.ones((3, 3), bool)
    order = 1 if side == "right" else -1
    longer = np.concatenate([x[:, :3], pad][::order], axis=1).astype("float32")
    mask = np.concatenate([keep, np.zeros((3, 2), bool)][::order], axis=1)
    decode, call = quick(layer.decode), quick(layer)
    _, alone = decode(x[:, :3], layer.init_cache(3, 9))
    y, padded = decode(longer, layer.init_cache(3, 9), mask=mask)
    for have, want in zip(padded, alone, strict=True):
        assert_close(run(lambda have=have: have), run(lambda want=want: want), 1e-6)
    assert_close(run(lambda: y)[mask].reshape(3, 3, 8), run(call, x[:, :3]))
    y, _ = decode(x[:, 3:], padded)
    assert_close(run(lambda: y), run(call, x)[:, 3:], 2e-5)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_sums_in_float32(rng, dtype):
    """Sums over steps that float16 cannot hold, and a state of the same dtypes as before."""
    reference = GatedLinearAttention(2, decay="fixed")
    x = 60.0 + rng.normal(size=(3, 5, 8)).astype("float32")
    expected = run(reference, x)
    layer = GatedLinearAttention(2, decay="fixed", dtype=dtype)
    layer.build(x.shape)
    layer.set_weights(reference.get_weights())
    y, cache = layer.decode(x, layer.init_cache(3, 9))
    dtypes = [keras.backend.standardize_dtype(a.dtype) for a in cache]
    assert dtypes == ["float32", "int32"]
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix("mixed_")
    assert np.isfinite(run(ops.cast, y, "float32")).all()
    assert_close(run(ops.cast, y, "float32"), run(ops.cast, layer(x), "float32"), 1e-2)
    assert expected.shape == (3, 5, 8)


def make(**options):
    return GatedLinearAttention(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(
        make, [x], fixture="gated_linear_attention", causal=True, dropout=False, decodes=True
    )


def make_fixed(**options):
    return GatedLinearAttention(**{**FULL, "decay": "fixed", **options})


@pytest.mark.parametrize(
    "check",
    [checks.check_config, checks.check_training, checks.check_unknown_sizes, checks.check_masks],
)
def test_fixed_decays(rng, check):
    """What of the battery the decay could change; the rest is the same for both."""
    check(make_fixed, [rng.normal(size=(3, 5, 8)).astype("float32")])


def test_strong_gates_forget(rng):
    """A gate that is shut leaves a step with itself alone."""
    layer = ready(make, [rng.normal(size=(3, 5, 8)).astype("float32")])
    bias = next(w for w in layer.weights if w.path.endswith("decay_up/bias"))
    bias.assign(np.full(12, -1e4))
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    call = quick(layer)
    steps = [run(call, x[:, t : t + 1]) for t in range(5)]
    assert_close(run(call, x), np.concatenate(steps, axis=1))


BAD = {
    "num_heads": ({"num_heads": 0}, "`num_heads` must be an integer >= 1.*num_heads=0"),
    "key_dim": ({"key_dim": -1}, "`key_dim` must be an integer >= 1.*key_dim=-1"),
    "value_dim": ({"value_dim": 1.5}, "`value_dim` must be.*value_dim=1.5"),
    "gate_rank": ({"gate_rank": 0}, "`gate_rank` must be an integer >= 1.*gate_rank=0"),
    "decay": ({"decay": "slow"}, "`decay` must be one of gated, fixed.*decay='slow'"),
    "temperature": (
        {"temperature": 0.0},
        "`temperature` must be a finite number above 0.*temperature=0.0",
    ),
    "implementation": (
        {"implementation": "dense"},
        "`implementation` must be one of auto.*implementation='dense'",
    ),
    "position": ({"position": ALiBi()}, "no scores that a bias could be added to.*ALiBi"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        GatedLinearAttention(**{"num_heads": 2, **options})


def test_bad_input(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=8, num_heads=3"):
        GatedLinearAttention(3)(x)
    with pytest.raises(ValueError, match=r"`value_dim` must be an integer >= 2.*value_dim=1"):
        GatedLinearAttention(8)(x)
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(3, 5\)"):
        GatedLinearAttention(2)(x[:, :, 0])
    with pytest.raises(ValueError, match=r"`mask` must be boolean.*float32"):
        GatedLinearAttention(2)(x, mask=KEEP.astype("float32"))
    with pytest.raises(ValueError, match=r"`mask` must have shape .*\(3, 5\).*\(3, 4\)"):
        GatedLinearAttention(2)(x, mask=KEEP[:, :4])
    with pytest.raises(ValueError, match="must be built before it can make a cache"):
        GatedLinearAttention(2).init_cache(3, 5)
