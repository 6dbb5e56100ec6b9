import math
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from kattn.callbacks import GradientClipping, GradualUnfreezing
from kattn.callbacks.update import recorder
from tests.callbacks import clip_oracle as oracle
from tests.training import Linear

BACKEND = keras.backend.backend()
STEPS = 32
SPIKES = (5, 13, 20, 27)
BODY = ["body/kernel", "body/bias"]
MODES = {  # arguments, and the threshold from step 16 on
    "value": ({"threshold": 0.2}, 0.1),
    "norm": ({"threshold": 2.5}, 1.0),
    "global_norm": ({"threshold": 4.0}, 2.0),
    "agc": ({"threshold": 0.15}, 0.3),
    "autoclip": ({"percent": 40.0, "window": 7, "threshold": 20.0}, 2.0),
    "zclip": ({"z_threshold": 1.5, "smoothing": 0.9, "warmup": 5, "threshold": 20.0}, 2.0),
}


def build(weights, optimizer=None, **options):
    body = Linear(weights["body/kernel"], weights["body/bias"], name="body")
    head = Linear(weights["head/kernel"], name="head")
    model = keras.Sequential([keras.Input((3,)), body, head])
    model.compile(optimizer or keras.optimizers.SGD(0.01, momentum=0.9), loss="mse", **options)
    return model


def close_weights(model, expected, tolerance=1e-6):
    """Relative to the largest weight."""
    found = {"/".join(w.path.split("/")[-2:]): np.array(w) for w in model.weights}
    assert found.keys() == expected.keys()
    both = [np.concatenate([w[n].ravel() for n in expected]) for w in (found, expected)]
    close(*both, tolerance)


def close(actual, expected, tolerance=1e-6):
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def fit(model, x, y, *callbacks, batch=1, **options):
    return model.fit(
        x, y, batch_size=batch, verbose=0, shuffle=False, callbacks=list(callbacks), **options
    ).history


class At(keras.callbacks.Callback):
    """Does something before a step."""

    def __init__(self, step, act):
        super().__init__()
        self.step, self.act = step, act

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.step:
            _ = self.model  # which brings JAX's variables up to date
            self.act()


@pytest.mark.parametrize("mode", MODES)
def test_a_training_in_each_mode(rng, mode):
    """Against a simulation of all of it, in which the threshold changes at half."""
    options, later = MODES[mode]
    weights, (x, y) = oracle.start(rng), oracle.data(rng, STEPS, SPIKES)
    words = {"z_threshold": "z"}
    clipper = oracle.Clipper(mode, **{words.get(n, n): v for n, v in options.items()})

    def change(step):
        clipper.threshold = later if step >= STEPS // 2 else options["threshold"]

    expected = oracle.simulate(weights, x, y, [(list(weights), clipper)], change=change)
    clipping, model = GradientClipping(mode, **options), build(weights)
    logs = fit(model, x, y, clipping, At(STEPS // 2, lambda: clipping.set(threshold=later)))
    norms, clipped_norms, final = expected
    close(clipping.history["norm"], norms)
    close(clipping.history["clipped_norm"], clipped_norms)
    close_weights(model, final)
    is_clipped = clipped_norms < norms
    assert 0 < is_clipped.sum() < STEPS or mode in ("value", "agc")  # there nearly all are
    close(logs["clipped_fraction"], [is_clipped.mean()])
    close(logs["grad_norm"], [norms.mean()])
    close(logs["grad_norm_max"], [norms.max()])
    assert logs["skipped_steps"] == [0]


GROUPS = {  # mode, and thresholds of the bias, the other weights of the body, and the head
    "global_norm": (None, 0.3, 0.1),
    "agc": (None, 0.3, 0.1),
    "value": (0.5, None, 0.1),
    "norm": (None, 0.5, 0.1),
    "autoclip": (None, math.inf, 0.1),
    "zclip": (3.0, math.inf, None),
}


@pytest.mark.parametrize("mode", GROUPS)
def test_groups(rng, mode):
    """Each has a threshold and a history of its own; the first pattern that matches counts."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, STEPS, SPIKES)
    bias, body, head = GROUPS[mode]

    def clipper(threshold):
        return oracle.Clipper(mode, threshold, warmup=5, percent=40.0)

    groups = [
        (["body/bias"], clipper(bias) if bias is not None else None),
        (["body/kernel"], clipper(body) if body is not None else None),
        (["head/kernel"], clipper(head)),
    ]
    norms, clipped_norms, final = oracle.simulate(weights, x, y, groups)
    clipping = GradientClipping(
        mode, head, groups={"bias$": bias, "body/": body}, warmup=5, percent=40.0
    )
    assert (clipping.threshold, clipping.groups) == (head, {"bias$": bias, "body/": body})
    model = build(weights)
    fit(model, x, y, clipping)
    close(clipping.history["norm"], norms)
    close(clipping.history["clipped_norm"], clipped_norms)
    close_weights(model, final)
    assert (clipped_norms < norms - 1e-6).any()


def count_traces(model):
    """A list that grows with each trace of the model's forward pass, which `fit` compiles."""
    traces, call = [], model.call

    def counting(*args, **kwargs):
        traces.append(1)
        return call(*args, **kwargs)

    model.call = counting
    return traces


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced")
def test_thresholds_change_without_a_trace(rng):
    """In the middle of a fit, between fits, and when the callback is gone."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 8)
    model = build(weights)
    clipping, traces = GradientClipping(threshold=0.5), count_traces(model)
    fit(model, x, y, clipping, At(3, lambda: clipping.set(threshold=0.25)))
    before, function = len(traces), model.train_function
    assert before > 0
    clipping.set(threshold=0.125)
    fit(model, x, y, clipping, At(4, lambda: clipping.set(threshold=None)))
    fit(model, x, y)
    fit(model, x, y, GradientClipping(threshold=2.0))
    assert (len(traces), model.train_function) == (before, function)
    close(clipping.history["clipped_norm"][:12], [0.5] * 3 + [0.25] * 5 + [0.125] * 4, 1e-5)
    assert clipping.history["clipped_norm"][12:] == clipping.history["norm"][12:]


def test_without_the_callback_updates_are_kerass_own(rng):
    """Bit for bit, in a model that has been trained with it."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 6, [2])
    stock, model = (
        build(weights, keras.optimizers.Adam(0.1)),
        build(weights, keras.optimizers.Adam(0.1)),
    )
    fit(model, x, y, GradientClipping("zclip", 1e-3, warmup=1))
    assert abs(model.get_weights()[0] - weights["body/kernel"]).max() > 1e-3
    model.set_weights(list(weights.values()))
    for variable in model.optimizer.variables:
        if "learning_rate" not in variable.path:
            variable.assign(ops.zeros(variable.shape, variable.dtype))
    fit(model, x, y)
    fit(stock, x, y)
    for have, want in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(have, want)


def test_an_infinite_threshold_changes_nothing(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 6, [2])
    stock = build(weights)
    fit(stock, x, y)
    for mode in ("value", "norm", "global_norm", "agc"):
        model = build(weights)
        fit(model, x, y, GradientClipping(mode, None))
        for have, want in zip(model.get_weights(), stock.get_weights(), strict=True):
            np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("mode", ["global_norm", "autoclip"])
def test_accumulated_gradients_are_clipped_together(rng, mode):
    """As the larger batch would be."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 16, [5, 9])
    whole, parts = (GradientClipping(mode, 1.0, percent=50.0) for _ in range(2))
    fit(one := build(weights), x, y, whole, batch=2)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, gradient_accumulation_steps=2)
    fit(two := build(weights, optimizer), x, y, parts)
    assert len(parts.history["norm"]) == 8
    close(parts.history["norm"], whole.history["norm"])
    close(parts.history["clipped_norm"], whole.history["clipped_norm"])
    for have, want in zip(two.get_weights(), one.get_weights(), strict=True):
        close(have, want)


SCALED = {
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01, momentum=0.9), initial_scale=1024.0
    ),
    "loss_scale_factor": lambda: keras.optimizers.SGD(0.01, momentum=0.9, loss_scale_factor=64.0),
}


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_gradients_are_unscaled_first(rng, kind):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 8, [3])
    clipper = oracle.Clipper("global_norm", 1.0)
    norms, _, final = oracle.simulate(weights, x, y, [(list(weights), clipper)])
    clipping, model = GradientClipping(threshold=1.0), build(weights, SCALED[kind]())
    fit(model, x, y, clipping)
    close(clipping.history["norm"], norms)
    close_weights(model, final)


BAD_STEP = 2
SKIPPING = {
    "adam": lambda: keras.optimizers.Adam(0.1),
    "accumulated": lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)),
}


@pytest.mark.parametrize(
    ("kind", "bad"),
    [("adam", math.nan), ("adam", math.inf), ("accumulated", math.nan), ("loss scale", math.inf)],
)
def test_steps_that_are_not_finite_are_skipped(rng, kind, bad):
    """All is as if the batch (or those accumulated with it) had not been there."""
    each = 2 if kind == "accumulated" else 1
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 6 * each)
    clipping = GradientClipping("autoclip", percent=50.0)
    model = build(weights, SKIPPING[kind]())
    broken = x.copy()
    broken[BAD_STEP * each, 1] = bad
    logs = fit(model, broken, y, clipping)
    here = np.arange(6) != BAD_STEP
    clean, other = build(weights, SKIPPING[kind]()), GradientClipping("autoclip", percent=50.0)
    rest = here.repeat(each)
    fit(clean, x[rest], y[rest], other)
    for have, want in zip(model.get_weights(), clean.get_weights(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-6)
    assert int(model.optimizer.iterations) == int(clean.optimizer.iterations) == 5
    if kind == "loss scale":  # it leaves the step out itself, before any rule
        here = np.full(5, True)
    skipped = clipping.history["is_skipped"]
    assert skipped == list(1.0 - here)
    for name in ("norm", "clipped_norm"):
        np.testing.assert_allclose(
            np.array(clipping.history[name])[here], other.history[name], rtol=1e-5
        )
    assert logs["skipped_steps"] == [int((~here).sum())]
    assert np.isfinite(logs["grad_norm"][0])


def test_steps_that_are_not_finite_may_stay(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 3)
    x[1] = math.nan
    model, clipping = build(weights), GradientClipping(skip_nonfinite=False)
    fit(model, x, y, clipping)
    assert clipping.history["is_skipped"] == [0.0, 0.0, 0.0]
    assert np.isnan(model.get_weights()[0]).all()


def test_rows_of_an_embedding_are_summed(rng):
    """A token that comes twice has one gradient: TensorFlow keeps two until they are read."""
    tokens = np.array([[1, 1, 1, 1, 2, 3]])
    layer = keras.layers.Embedding(5, 3, name="table")
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layer, keras.layers.Flatten()])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: ops.sum(y * p))
    before = np.array(layer.embeddings)
    upstream = rng.normal(size=(1, 18)).astype("float32")
    clipping = GradientClipping("norm", 0.5)
    fit(model, tokens, upstream, clipping)
    gradient = np.zeros((5, 3))
    np.add.at(gradient, tokens[0], upstream.reshape(6, 3).astype(float))
    close(clipping.history["norm"], [oracle.norm([gradient])])
    change = before - np.array(layer.embeddings)
    close(change, gradient * 0.5 / oracle.norm([gradient]), 1e-5)


def test_history_goes_on_in_a_second_fit(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, STEPS, SPIKES)
    clipper = oracle.Clipper("autoclip", None, percent=50.0)
    norms, clipped, _ = oracle.simulate(weights, x, y, [(list(weights), clipper)])
    model, clipping = build(weights), GradientClipping("autoclip", percent=50.0)
    fit(model, x[:20], y[:20], clipping)
    fit(model, x[20:], y[20:], clipping)
    close(clipping.history["norm"], norms, 1e-5)
    close(clipping.history["clipped_norm"], clipped, 1e-5)


def test_steps_without_the_callback_are_not_in_its_history(rng):
    """Here of the lowest norms, to which each is clipped: those between are the lowest."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 12)
    model, clipping = (
        build(weights, keras.optimizers.SGD(0.0)),
        GradientClipping("autoclip", percent=1e-6),
    )
    norms, _, _ = oracle.simulate(weights, x, y, [], rate=0.0)
    order = np.argsort(norms)
    low, rest = order[:4], order[4:]
    fit(model, x[rest[::2]], y[rest[::2]], clipping)
    fit(model, x[low], y[low])
    fit(model, x[rest[1::2]], y[rest[1::2]], clipping)
    seen = norms[np.concatenate([rest[::2], rest[1::2]])]
    close(clipping.history["norm"], seen, 1e-5)
    close(clipping.history["clipped_norm"], np.minimum.accumulate(seen), 1e-5)
    # Another begins anew, though it takes the same place in the step.
    fit(model, x[rest[-1:]], y[rest[-1:]], other := GradientClipping("autoclip", percent=1e-6))
    assert other.history["clipped_norm"] == other.history["norm"]


@pytest.mark.parametrize("mode", ["norm", "global_norm", "agc"])
def test_what_is_not_clipped_does_not_count_as_clipped(rng, mode):
    """Though norms are summed group by group."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 20)
    groups = {"head": None, "bias$": 1e7}
    logs = fit(build(weights), x, y, GradientClipping(mode, 1e6, groups=groups))
    assert logs["clipped_fraction"] == [0.0]


@pytest.mark.parametrize("mode", ["value", "agc", "global_norm"])
def test_weights_at_rest_have_no_part(rng, mode):
    """In the norms before and after, also in a step where another has clipped."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 1)
    resting = GradualUnfreezing({"body/": 1})
    model = build(weights, keras.optimizers.SGD(0.0))
    fit(model, x, y, GradientClipping("norm", 1e6))
    fit(model, x, y, clipping := GradientClipping(mode, 1e-3), resting)
    grads = oracle.gradients(weights, x.astype(float), y.astype(float))
    head = {"head/kernel": grads["head/kernel"]}
    clipped = oracle.Clipper(mode, 1e-3)(weights, head)
    close(clipping.history["norm"], [oracle.norm(head.values())], 1e-5)
    close(clipping.history["clipped_norm"], [oracle.norm(clipped.values())], 1e-5)


def test_epochs_have_their_own_means(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 6, [1])
    norms, _, _ = oracle.simulate(
        weights,
        np.tile(x, (2, 1)),
        np.tile(y, (2, 1)),
        [(list(weights), oracle.Clipper("norm", 1.0))],
    )
    logs = fit(build(weights), x, y, GradientClipping("norm"), epochs=2)
    close(logs["grad_norm"], norms.reshape(2, 6).mean(1), 1e-5)
    close(logs["grad_norm_max"], norms.reshape(2, 6).max(1), 1e-5)


def test_no_norm_is_lost_in_a_long_epoch(rng, monkeypatch):
    """The rows in the compiled step are few, and read before they are written over."""
    monkeypatch.setattr(GradientClipping, "synchronize_every", 4)
    init = recorder.Recorder.__init__
    monkeypatch.setattr(
        recorder.Recorder, "__init__", lambda self, names, size: init(self, names, 8)
    )
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 50)
    norms, _, _ = oracle.simulate(weights, x, y, [(list(weights), oracle.Clipper("norm", 0.5))])
    steps = 1 if BACKEND == "torch" else 2
    model, clipping = build(weights, steps_per_execution=steps), GradientClipping("norm", 0.5)
    fit(model, x, y, clipping)
    close(clipping.history["norm"], norms)


def test_saved_models_are_stock(rng, tmp_path):
    """No class of kattn, and the optimizer's state whole; in the middle of training, too."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 6, [2])
    model = build(weights, keras.optimizers.Adam(0.1))
    model_file = tmp_path / "model.keras"
    fit(model, x, y, GradientClipping("autoclip"), At(4, lambda: model.save(model_file)))
    loaded = keras.saving.load_model(model_file)
    assert type(loaded.optimizer).__module__.startswith("keras.")
    assert len(loaded.optimizer.variables) == 2 + 2 * 3
    assert "kattn" not in zipfile.ZipFile(model_file).read("config.json").decode()
    assert int(loaded.optimizer.iterations) == 4
    fit(loaded, x[4:], y[4:])
    clipped = np.array(model.get_weights()[0])
    model.load_weights(model_file)
    assert int(model.optimizer.iterations) == 4
    fit(model, x[4:], y[4:])
    for have, want in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(have, want)
    assert abs(clipped - model.get_weights()[0]).max() > 1e-4


BAD = [
    ({"mode": "clip"}, "`mode` must be one of value, norm, .*zclip; received: mode='clip'"),
    ({"threshold": 0.0}, "`threshold` must be above 0, or None .*; received: threshold=0.0"),
    ({"threshold": "1"}, "`threshold` must be above 0, or None .*; received: threshold='1'"),
    ({"threshold": math.nan}, "`threshold` must be above 0, or None .*; received: threshold=nan"),
    (
        {"groups": {"head": -1}},
        r"`groups\['head'\]` must be above 0, .*; received: groups\['head'\]=-1",
    ),
    ({"groups": {"(": 1.0}}, r"of `groups` must be regular expressions.*; received: pattern='\('"),
    ({"percent": 0.0}, "`percent` must be a number above 0 and at most 100; received: percent=0.0"),
    ({"window": 0}, "`window` must be an integer >= 1; received: window=0"),
    ({"warmup": 1.5}, "`warmup` must be an integer >= 1; received: warmup=1.5"),
    ({"smoothing": 1.0}, r"`smoothing` must be a fraction in \(0, 1\); received: smoothing=1.0"),
    (
        {"z_threshold": -1},
        "`z_threshold` must be a finite number above 0; received: z_threshold=-1",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GradientClipping(**options)


def test_bad_changes_and_models(rng):
    clipping = GradientClipping(groups={"body": 1.0})
    with pytest.raises(
        ValueError, match=r"`threshold` must be above 0, or None .*; received: threshold=-1"
    ):
        clipping.set(threshold=-1)
    with pytest.raises(ValueError, match=r"patterns that the callback was built with; .*'head'"):
        clipping.set(groups={"head": 1.0})
    assert (clipping.threshold, clipping.groups) == (1.0, {"body": 1.0})
    x, y = oracle.data(rng, 2)
    with pytest.raises(
        ValueError, match="match the path of a trainable weight; received: pattern='tail'"
    ):
        fit(build(oracle.start(rng)), x, y, GradientClipping(groups={"tail": 1.0}))


REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from kattn.callbacks import GradientClipping, LearningRate
from tests.training import Watch, changes, weight_model
count = int(sys.argv[1])
with tf.distribute.MirroredStrategy([f"cpu:{i}" for i in range(count)]).scope():
    model, watch = weight_model(keras.optimizers.SGD(0.75)), Watch()
x, options = np.zeros((8, 1), "float32"), {"batch_size": 2, "verbose": 0}
model.fit(x, x, callbacks=[LearningRate(lambda step: 0.25 + 0.5 * step), watch], **options)
model.fit(x, x, callbacks=[own := Watch()], **options)
print((0.75 * changes(watch) / changes(own)).round(6).tolist())  # Keras adds up their losses
try:
    model.fit(x, x, callbacks=[clipping := GradientClipping(threshold=0.5)], **options)
    print(clipping.history["clipped_norm"])
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
@pytest.mark.parametrize(
    ("count", "outcome"), [(1, "[0.5, 0.5, 0.5, 0.5]"), (2, "num_replicas_in_sync=2")]
)
def test_replicas(count, outcome):
    """Of two, an optimizer sees the gradients of one at a time: refused. A rate is for both."""
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS, str(count)], capture_output=True, text=True, check=True
    )
    *_, rates, clipping = done.stdout.splitlines()
    assert rates == "[0.25, 0.75, 1.25, 1.75]"
    assert outcome in clipping
