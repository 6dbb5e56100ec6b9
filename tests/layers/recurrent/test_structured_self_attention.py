import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import StructuredSelfAttention
from tests import checks
from tests.checks import ready, shake, with_mask
from tests.compute import assert_close, quick, result, run

KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5], bool)  # none, some, all padded
OPTIONS = {
    "penalty": 0.5,
    "use_bias": True,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}


def make(**options):
    return StructuredSelfAttention(2, 6, **{**OPTIONS, **options})


def build(rng, **options):
    """A layer with weights off their initial values, and an input `(3, 5, 8)`."""
    layer, x = make(**options), rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


def expected_output(layer, x, keep):
    """Lin et al. 2017, eq. 6 to 8, hop by hop: the vectors, the weights, the penalty."""
    w = [run(ops.convert_to_tensor, v).astype(float) for v in layer.weights]
    by_shape = {v.shape: v for v in w}
    first, second, bias = (by_shape.get(s) for s in ((8, 6), (2, 6), (6,)))
    weights, penalties = np.zeros((3, 2, 5)), []
    for b in range(3):
        seen = np.flatnonzero(keep[b])
        if not len(seen):
            continue
        hidden = np.tanh(x[b, seen] @ first + (0.0 if bias is None else bias))
        for hop in range(2):
            scores = np.exp(hidden @ second[hop])
            weights[b, hop, seen] = scores / scores.sum()
        excess = weights[b] @ weights[b].T - np.eye(2)
        penalties.append((excess**2).sum())
    mixed = np.einsum("brt,btc->brc", weights, np.where(keep[..., None], x, 0))
    return mixed, weights, np.mean(penalties)


@pytest.mark.parametrize("use_bias", [False, True])
def test_matches_oracle(rng, use_bias):
    layer, x = build(rng, use_bias=use_bias)
    for keep in (np.ones_like(KEEP), KEEP):
        holes = np.where(keep[..., None], x, np.nan).astype("float32")
        mask = {} if keep.all() else {"mask": ops.convert_to_tensor(keep)}
        mixed, weights, _ = expected_output(layer, x, keep)
        assert_close(result(layer, holes, **mask), mixed)
        assert_close(result(layer.attention_weights, holes, **mask), weights)
        assert_close(result(with_mask(layer, ops.convert_to_tensor(keep)), holes), mixed)


def losses(layer, *args, **kwargs):
    """What a call adds to the loss, without the regularizers of weights."""

    def call(values, *args):
        options = {"return_losses": True, **kwargs}
        return layer.stateless_call(values, [], *args, **options)[2]

    return run(quick(call), [v.value for v in layer.trainable_variables], *args)


def test_penalty(rng):
    """The mean over items that have a real step; none where its factor is 0."""
    free = {"kernel_regularizer": None, "bias_regularizer": None}
    layer, x = build(rng, **free)
    for keep in (np.ones_like(KEEP), KEEP):
        (loss,) = losses(layer, x, mask=ops.convert_to_tensor(keep))
        assert_close(loss, 0.5 * expected_output(layer, x, keep)[2])
    (loss,) = losses(layer, x)
    assert_close(loss, 0.5 * expected_output(layer, x, np.ones_like(KEEP))[2])
    (loss,) = losses(layer, x, mask=ops.zeros((3, 5), "bool"))
    assert loss == 0
    for given in ({}, {"mask": ops.zeros((0, 5), "bool")}):
        (loss,) = losses(layer, x[:0], **given)  # nor NaN where there are no items
        assert loss == 0
    without, _ = build(rng, penalty=0.0, **free)
    assert losses(without, x) == []


def test_penalty_keeps_hops_apart(rng):
    """Trained on the penalty alone, hops look at different steps; also where calls are repeated."""
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    for mode in (None, "full"):
        with keras.RematScope(mode=mode):
            layer = make(penalty=1.0, kernel_regularizer=None, bias_regularizer=None)
        inputs = keras.Input((5, 8))
        model = keras.Model(inputs, 0.0 * layer(inputs))
        model.compile(keras.optimizers.Adam(0.1), "mse")
        history = model.fit(x, np.zeros((3, 2, 8)), epochs=30, verbose=0).history["loss"]
        assert history[-1] < 0.5 * history[0]


BATTERY = (
    checks.check_config,
    checks.check_sublayers,
    checks.check_precision,
    checks.check_training,
    checks.check_compiled,
    checks.check_saving,
    checks.check_unknown_sizes,
)


@pytest.mark.parametrize("check", BATTERY)
def test_battery(check):
    check(make, [np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")])


def test_saved_elsewhere():
    checks.check_fixture(make, "structured_self_attention")


def test_hops_are_no_steps(rng):
    """The mask ends here, and padding and the order of steps change nothing."""
    layer = ready(make, [np.zeros((3, 5, 8))])
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    inputs = keras.Input((5, 8))
    pooled = layer(keras.layers.Masking()(inputs))
    assert getattr(pooled, "_keras_mask", None) is None
    expected = result(layer, x)
    assert_close(result(layer, x[:, [3, 1, 0, 4, 2]]), expected)
    longer = np.concatenate([x, 100 + x], axis=1)
    mask = ops.convert_to_tensor(np.arange(10)[None].repeat(3, 0) < 5)
    assert_close(result(layer, longer, mask=mask), expected)


BAD = {
    "hops": ((0, 6), {}, "`num_hops` must be an integer >= 1.*num_hops=0"),
    "hidden": ((2, 1.5), {}, "`hidden_dim` must be an integer >= 1.*hidden_dim=1.5"),
    "penalty": ((2, 6), {"penalty": -1.0}, "`penalty` must be a finite number >= 0.*penalty=-1.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    args, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        StructuredSelfAttention(*args, **options)


def test_bad_input(rng):
    layer, x = build(rng)
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(3, 5\)"):
        make()(x[:, :, 0])
    with pytest.raises(ValueError, match=r"`mask` must be boolean.*float32"):
        layer(x, mask=KEEP.astype("float32"))
    with pytest.raises(ValueError, match=r"`mask` must have shape .*\(3, 5\).*\(3, 4\)"):
        layer(x, mask=KEEP[:, :4])
