"""ALiBi against the paper, a pair at a time."""

import keras
import numpy as np
import pytest

from kattn.grid import Grid
from kattn.layers.position.alibi import ALiBi
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.score_bias import ScoreBias
from tests import bias_checks, checks
from tests.bias_checks import quick
from tests.compute import assert_close, run

# Press et al. 2021, sec. 3: "1/2, 1/4, ... 1/256" for 8 heads, and their geometric means for 16.
EIGHT = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
SLOPES = {
    1: [1 / 256],
    2: [1 / 16, 1 / 256],
    3: [1 / 16, 1 / 256, 1 / 4],
    4: [1 / 4, 1 / 16, 1 / 64, 1 / 256],
    6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8],
    8: EIGHT,
    12: [*EIGHT, *(2.0 ** -(n + 0.5) for n in range(4))],
}
SIZES = (2, 5, 7, 3, 4)  # B, T, S, N, D


def rule(q, *weights, keys=7):
    batch, queries, heads, _ = q.shape
    slopes = weights[0] if weights else SLOPES[heads]
    bias = np.zeros((batch, heads, queries, keys))
    for b, n, i, j in np.ndindex(*bias.shape):
        bias[b, n, i, j] = -slopes[n] * abs(i + keys - queries - j)
    return bias


def learned(heads=3):
    layer = ALiBi(learned=True)
    layer.attach(width=12, num_heads=heads, key_dim=4)
    checks.shake(layer)
    return layer


@pytest.mark.parametrize("heads", SLOPES)
@pytest.mark.parametrize("is_learned", [False, True])
def test_alone(rng, heads, is_learned):
    scores = rng.normal(size=(2, heads, 3, 5)).astype("float32")
    expected = scores + rule(np.zeros((2, 3, heads, 4)), keys=5)
    assert_close(run(quick(ALiBi(learned=is_learned)), scores), expected)


def test_queries_are_not_needed(rng):
    scores = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    q = rng.normal(size=(2, 4, 3, 6)).astype("float32")
    np.testing.assert_array_equal(run(ALiBi(), scores, q), run(ALiBi(), scores))


@pytest.mark.parametrize("kernel", bias_checks.KERNELS)
@pytest.mark.parametrize("make", [ALiBi, learned])
def test_in_attention(monkeypatch, kernel, make):
    bias_checks.small_blocks(monkeypatch)
    layer = make()
    bias_checks.check_attention(layer, layer.bias, rule, SIZES, kernel)


def test_weights():
    layer = ALiBi()
    layer.attach(width=12, num_heads=3, key_dim=4)
    layer.attach(width=12, num_heads=6, key_dim=4)
    assert not layer.weights
    layer = ALiBi(learned=True, name="bias")
    layer.attach(width=12, num_heads=6, key_dim=4)
    layer.attach(width=24, num_heads=6, key_dim=2)
    assert [w.path for w in layer.weights] == ["bias/slopes"]
    assert_close(run(keras.ops.convert_to_tensor, layer.slopes), SLOPES[6])


@pytest.mark.parametrize("is_learned", [False, True])
def test_unknown_sizes(rng, is_learned):
    node = keras.Input((3, None, None))
    model = keras.Model(node, ALiBi(learned=is_learned)(node))
    for shape in ((2, 3, 4, 4), (1, 3, 2, 6)):
        scores = rng.normal(size=shape).astype("float32")
        expected = scores + rule(np.zeros((shape[0], shape[2], 3, 1)), keys=shape[3])
        assert_close(model.predict(scores, verbose=0), expected)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_far_away(policy):
    """In bfloat16, distances above 256 would be rounded, and slopes of a weight."""
    layer = ALiBi(learned=True, dtype=policy)
    layer.attach(width=2, num_heads=1, key_dim=2)
    checks.shake(layer)
    scores = np.zeros((1, 1, 1, 1002), "float32")
    expected = -bias_checks.weights_of(layer)[0][0] * np.arange(1001, -1, -1)
    found = run(keras.ops.cast, layer(scores), "float32")
    # Rounded once, at the end.
    assert_close(found[0, 0, 0], expected, 1.2 * 2**-9)


def make(**options):
    return ALiBi(**{"learned": True, **options})


@pytest.mark.parametrize("size", [(2, 3, 5, 7), (3, 6, 4, 4)])
def test_battery(rng, size):
    flags = {"sequence": False, "masked": False, "dropout": False}
    checks.check_layer(make, [rng.normal(size=size)], fixture="alibi", **flags)


@pytest.mark.parametrize("check", ["config", "sublayers", "precision", "compiled", "saving"])
def test_battery_without_weights(rng, check):
    getattr(checks, f"check_{check}")(ALiBi, [rng.normal(size=(2, 3, 5, 7))])


@pytest.mark.parametrize("is_learned", [False, True])
def test_in_a_layer(tmp_path, is_learned):
    bias_checks.check_in_a_layer(ALiBi(learned=is_learned), rule, 7, tmp_path)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_precision_inside_a_layer(policy):
    bias_checks.check_inside(ALiBi(learned=True), rule, 7, policy)


def test_it_is_relative():
    assert issubclass(ALiBi, ScoreBias)
    assert not issubclass(ALiBi, InputPosition)


def test_bad_input():
    with pytest.raises(ValueError, match=r"`scores` must have rank 4.*\(3, 4, 5\)"):
        ALiBi()(np.ones((3, 4, 5), "float32"))
    with pytest.raises(ValueError, match=r"has no weights yet.*'early'"):
        ALiBi(learned=True, name="early").bias(np.ones((1, 2, 3, 4)))
    with pytest.raises(
        ValueError, match=r"was built for num_heads=3; it cannot be shared with num_heads=4\."
    ):
        learned().attach(width=12, num_heads=4, key_dim=3)
    with pytest.raises(
        ValueError, match=r"ALiBi has.*sequences only; use RelativeTable.*grid=Grid"
    ):
        ALiBi().bias(np.ones((1, 6, 3, 4)), Grid((2, 3)))
    with pytest.raises(ValueError, match=r"`slopes` of a bias.*N=2.*received: .*3"):
        learned()(np.ones((1, 2, 5, 5), "float32"))
