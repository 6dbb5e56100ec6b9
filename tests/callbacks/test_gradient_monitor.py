import keras
import numpy as np
import pytest
from keras import ops

from kattn.callbacks import GradientClipping, GradientMonitor, GradualUnfreezing
from kattn.layers import SelfAttention, SelfAttention2D
from tests.callbacks import clip_oracle as oracle
from tests.training import Linear

STEPS = 20
PARTS = {"body": "body/", "biases": "bias$"}
WEIGHTS = {"body": ["body/kernel", "body/bias"], "biases": ["body/bias"]}


def build(weights, optimizer=None, **options):
    body = Linear(weights["body/kernel"], weights["body/bias"], name="body")
    head = Linear(weights["head/kernel"], name="head")
    model = keras.Sequential([keras.Input((3,)), body, head])
    model.compile(optimizer or keras.optimizers.SGD(0.01), loss="mse", **options)
    return model


def fit(model, x, y, *callbacks, batch=1, **options):
    return model.fit(
        x, y, batch_size=batch, verbose=0, shuffle=False, callbacks=list(callbacks), **options
    ).history


def simulate(weights, x, y, rate=0.01, most=np.inf):
    """Norms by their names, step by step, of SGD with a global norm of at most `most`."""
    groups = {"": list(weights), **WEIGHTS}
    w, rows = dict(weights), []
    for step in range(len(x)):
        part = slice(step, step + 1)
        grads = oracle.gradients(w, x[part].astype(float), y[part].astype(float))
        total = oracle.norm(grads.values())
        factor = min(1.0, most / total)
        new = {n: w[n] - rate * factor * g for n, g in grads.items()}
        row = {"is_clipped": float(factor < 1)}
        for group, names in groups.items():
            end = f"/{group}" if group else ""
            row["grad_norm" + end] = oracle.norm([grads[n] for n in names])
            row["weight_norm" + end] = oracle.norm([new[n] for n in names])
            row["update_norm" + end] = oracle.norm([new[n] - w[n] for n in names])
        w = new
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_norms(rng):
    """Step by step, of all weights and of groups, and their means in the logs of epochs."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, STEPS, [4, 9])
    expected = simulate(weights, x, y, most=6.0)
    monitor, clipping = GradientMonitor(PARTS), GradientClipping(threshold=6.0)
    logs = fit(build(weights), x, y, monitor, clipping)
    assert 0 < expected["is_clipped"].sum() < STEPS
    assert monitor.history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(monitor.history[name], values, rtol=1e-5, err_msg=name)
        log = "clipped_fraction" if name == "is_clipped" else name
        np.testing.assert_allclose(logs[log], [values.mean()], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(logs["grad_norm_max"], [expected["grad_norm"].max()], rtol=1e-5)


def test_epochs_have_their_own_means(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 8)
    expected = simulate(weights, np.tile(x, (2, 1)), np.tile(y, (2, 1)))
    monitor = GradientMonitor()
    logs = fit(build(weights), x, y, monitor, epochs=2)
    for name in ("grad_norm", "weight_norm", "update_norm"):
        means = expected[name].reshape(2, 8).mean(1)
        np.testing.assert_allclose(logs[name], means, rtol=1e-5)
    assert logs["clipped_fraction"] == [0.0, 0.0]
    fit(model := build(weights), x, y, other := GradientMonitor())
    fit(model, x, y)
    fit(model, x, y, other)
    assert len(other.history["grad_norm"]) == 16


@pytest.mark.parametrize("bad", [np.nan, 1e25])  # of which the norm is NaN, and infinite
def test_updates_that_do_not_happen(rng, bad):
    """Steps left out, and weights at rest."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 4)
    y[2] = bad
    monitor = GradientMonitor(PARTS)
    callbacks = [GradientClipping(threshold=1e6), monitor, GradualUnfreezing({"bias$": 1})]
    logs = fit(build(weights), x, y, *callbacks)
    assert (np.array(monitor.history["update_norm"]) > 0).tolist() == [True, True, False, True]
    assert monitor.history["update_norm/biases"] == [0.0] * 4
    assert np.isfinite(logs["grad_norm"] + logs["weight_norm"] + logs["update_norm"]).all()


def test_adamw_and_accumulation(rng):
    """Updates are those of the optimizer, one for two batches."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 6)
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5, gradient_accumulation_steps=2)
    model, monitor = build(weights, optimizer), GradientMonitor()
    before = oracle.norm(weights.values())
    fit(model, x[:2], y[:2], monitor)
    after = [np.array(w, float) for w in model.get_weights()]
    change = oracle.norm([a - w for a, w in zip(after, weights.values(), strict=True)])
    np.testing.assert_allclose(monitor.history["update_norm"], [change], rtol=1e-5)
    np.testing.assert_allclose(monitor.history["weight_norm"], [oracle.norm(after)], rtol=1e-5)
    assert abs(oracle.norm(after) - before) > 1e-3


def test_log_files(rng, tmp_path):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 4)
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    logs = fit(build(weights), x, y, GradientMonitor(PARTS), logger, epochs=2)
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert {"grad_norm", "update_norm/body", "clipped_fraction"} <= set(header.split(","))
    column = header.split(",").index("update_norm/body")
    found = [float(row.split(",")[column]) for row in rows]
    np.testing.assert_allclose(found, logs["update_norm/body"])


class Unmasked(keras.layers.Layer):
    """Takes the mask away without a warning."""

    supports_masking = True

    def call(self, x):
        return 1.0 * x

    def compute_mask(self, x, mask=None):
        return None


def attending():
    inputs = keras.Input((5, 8))
    mask = keras.Input((5,), dtype="bool")
    x = SelfAttention(2, causal=True, name="first")(inputs, mask=mask)
    x = Unmasked()(x)
    x = SelfAttention(4, name="second")(x)
    image = keras.layers.Reshape((5, 4, 2))(x)
    image = SelfAttention2D(1, key_dim=2, name="third")(image)
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(image))
    model = keras.Model([inputs, mask], outputs)
    model.compile("sgd", loss="mse")
    return model


def entropy(weights):
    """Mean over rows that see a key, of `(B, N, T, S)`."""
    p = np.asarray(weights, float)
    rows = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)
    return rows[p.sum(-1) > 0].mean()


def test_attention(rng):
    """Entropies are those of the layers' own weights; the largest logit by hand for one of them."""
    model = attending()
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0] * 5], bool)
    y = np.zeros((3, 1), "float32")
    first, second = model.get_layer("first"), model.get_layer("second")
    monitor = GradientMonitor(attention_data=[x, mask])
    logs = fit(model, [x, mask], y, monitor, batch=3)
    to_numpy = ops.convert_to_numpy
    expected = entropy(to_numpy(first.attention_weights(x, mask=mask)))
    np.testing.assert_allclose(logs["attention_entropy/first"], [expected], rtol=1e-5)
    middle = ops.convert_to_tensor(to_numpy(first(x, mask=mask)))  # without its mask
    expected = entropy(to_numpy(second.attention_weights(middle)))
    np.testing.assert_allclose(logs["attention_entropy/second"], [expected], rtol=1e-5)
    qkv = next(w for w in second.weights if w.path.endswith("qkv/kernel"))
    bias = next(w for w in second.weights if w.path.endswith("qkv/bias"))
    flat = to_numpy(middle).astype(float) @ np.array(qkv, float) + np.array(bias, float)
    q, k = (flat[..., i : i + 8].reshape(3, 5, 4, 2) for i in (0, 8))
    logits = np.einsum("btnd,bsnd->bnts", q, k) / np.sqrt(2.0)
    np.testing.assert_allclose(logs["largest_logit/second"], [logits.max()], rtol=1e-5)
    assert len([name for name in logs if name.startswith("attention_entropy/")]) == 3
    assert all("call" not in vars(layer) for layer in model.layers)


def test_bad_arguments(rng):
    with pytest.raises(
        ValueError, match=r"of `groups` must be regular expressions.*; received: pattern='\('"
    ):
        GradientMonitor({"all": "("})
    x, y = oracle.data(rng, 1)
    with pytest.raises(
        ValueError, match="match the path of a trainable weight; received: pattern='tail'"
    ):
        fit(build(oracle.start(rng)), x, y, GradientMonitor({"tail": "tail"}))
    with pytest.raises(
        ValueError, match="`attention_data` must be None for a model without attention layers"
    ):
        fit(build(oracle.start(rng)), x, y, GradientMonitor(attention_data=x))
