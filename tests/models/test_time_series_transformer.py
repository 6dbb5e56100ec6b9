import functools

import keras
import numpy as np
import pytest

from kattn.models import TimeSeriesTransformer
from tests import transformer_oracle
from tests.checks import check_config, check_dropout, check_fixture, check_training, ready
from tests.compute import assert_close, run
from tests.transformer_oracle import under, weights_of


def make(**options):
    """A model of 3 steps ahead by 10 steps in patches of 4, every 3 steps: (0, 3, 6, 9 and end)."""
    given = {"input_length": 10, "patch_length": 4, "stride": 3, "num_layers": 2, "num_heads": 2}
    return TimeSeriesTransformer(3, **{**given, "width": 8, "hidden_dim": 6, **options})


@pytest.fixture
def x(rng):
    """Series of other means and scales."""
    series = rng.normal(size=(3, 10, 2)) * [1.0, 7.0] + [20.0, -3.0]
    return series.astype("float32")


def batch_norm(w, name, x):
    """Ioffe and Szegedy 2015, algorithm 2."""
    mean, variance = w[f"{name}/moving_mean"], w[f"{name}/moving_variance"]
    return (x - mean) / np.sqrt(variance + 1e-5) * w[f"{name}/gamma"] + w[f"{name}/beta"]


def expected_forecast(model, x, monkeypatch):
    """Nie et al. 2023, sec. 3.1, channel by channel."""
    if model.options.placement == "post":
        monkeypatch.setattr(transformer_oracle, "norm", batch_norm)
    w, length = weights_of(model), model.input_length
    forecast = np.empty((len(x), model.horizon, x.shape[2]))
    for b, m in np.ndindex(len(x), x.shape[2]):
        series = x[b, :, m].astype(float)
        mean, deviation = series.mean(), np.sqrt(series.var() + 1e-5)
        series = (series - mean) / deviation
        series = np.append(series, [series[-1]] * model.stride)
        starts = range(0, length + model.stride - model.patch_length + 1, model.stride)
        patches = np.stack([series[start : start + model.patch_length] for start in starts])
        h = patches @ w["projection/kernel"] + w["projection/bias"] + w["position/table"]
        see = [np.ones((1, 2, len(h), len(h)), bool)] * 2
        placement = model.options.placement
        h = transformer_oracle.stack(under(w, "encoder"), h[None], see, 2, placement=placement)
        y = h.reshape(-1) @ w["head/kernel"] + w["head/bias"]
        forecast[b, :, m] = y * deviation + mean
    return forecast


@pytest.mark.parametrize("options", [{}, {"norm": "layer", "placement": "pre"}])
def test_matches_oracle(x, options, monkeypatch):
    model = ready(functools.partial(make, **options), [x])
    rng = np.random.default_rng(1)
    for weight in model.non_trainable_weights:
        if "moving" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    assert_close(run(model, x), expected_forecast(model, x, monkeypatch))


def test_channels_do_not_see_each_other_and_may_be_any_number(x):
    model = ready(make, [x])
    both = run(model, x)
    assert both.shape == (3, 3, 2)
    for m in range(2):
        assert_close(run(model, x[..., m : m + 1])[..., 0], both[..., m])


def test_defaults_are_those_of_the_authors():
    model = TimeSeriesTransformer(96)
    model.build((None, 336, 7))
    shapes = {weight.path.split("/", 1)[1]: tuple(weight.shape) for weight in model.weights}
    assert shapes["projection/kernel"] == (16, 16)
    assert shapes["position/table"] == (42, 16)  # PatchTST/42
    assert shapes["head/kernel"] == (42 * 16, 96)
    assert shapes["encoder/block2/feed_forward/hidden/kernel"] == (16, 128)
    assert "encoder/block2/attention_residual/norm/moving_mean" in shapes
    assert len(model.blocks) == 3
    assert model.blocks[0].attention.num_heads == 4
    assert model.blocks[0].dropout == model.blocks[0].feed_forward.dropout == 0.3


@pytest.mark.parametrize(("size", "patches"), [("patchtst-42", 42), ("patchtst-64-reduced", 64)])
def test_published_sizes(size, patches):
    model = TimeSeriesTransformer.from_size(size, horizon=24)
    model.build((None, model.input_length, 1))
    assert model._position.table.shape[0] == patches
    assert model.options.width == (16 if "reduced" in size else 128)


def full(**options):
    return make(**{"head_dropout": 0.2, "seed": 3, "drop_path": 0.2, **options})


@pytest.mark.parametrize("check", [check_config, check_training, check_dropout])
def test_as_layers(check, x):
    check(full, [x])


def test_models_of_other_backends():
    check_fixture(full, "time_series_transformer")


def test_a_forecast_keeps_its_precision(x):
    """Series of any scale go through in float32, under half precision, too."""
    reference = ready(make, [x])
    model = ready(functools.partial(make, dtype="mixed_float16"), [x])
    model.set_weights(reference.get_weights())
    found = model(x * 1e5)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert_close(run(keras.ops.copy, found), run(reference, x) * 1e5, 2e-2)


def test_bad_arguments(x):
    with pytest.raises(ValueError, match=r"`horizon` must be an integer >= 1.*horizon=0"):
        TimeSeriesTransformer(0)
    with pytest.raises(ValueError, match=r"`input_length` must be at least `patch_length`"):
        TimeSeriesTransformer(3, input_length=8)
    with pytest.raises(ValueError, match=r"must have shape \(batch, input_length, channels\)"):
        make()(x[:, :9])
