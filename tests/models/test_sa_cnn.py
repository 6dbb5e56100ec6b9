"""The functional model: what it computes, where attention sits, and that it trains and saves."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import NeighborhoodAttention2D, SelfAttention2D, SqueezeExcite
from kattn.models import sa_cnn, stage_attention

OPTIONS = {
    "filters": (3, 5, 4),
    "num_heads": 2,
    "key_stride": 2,
    "stem_stride": 2,
    "dropout": 0.1,
}


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(model, seed=1):
    """Weights as after training: other than 0 and 1, and of a size that keeps features near 1."""
    rng = np.random.default_rng(seed)
    for w in model.weights:
        values = rng.uniform(0.5, 1.5, w.shape)  # variances, gains
        if w.path.endswith(("kernel", "bias", "beta", "moving_mean")):
            values = rng.normal(size=w.shape) / max(np.prod(w.shape[:-1]), 4) ** 0.5
        w.assign(values)


def convolve(x, kernel, stride):
    """Convolution with "same" padding of `(H, W, C)`, window by window."""
    sides = [-(-side // stride) for side in x.shape[:2]]
    pads = []
    for side, out, window in zip(x.shape[:2], sides, kernel.shape, strict=False):
        total = max((out - 1) * stride + window - side, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, [*pads, (0, 0)])
    y = np.empty((*sides, kernel.shape[-1]))
    for i, j in np.ndindex(*sides):
        window = x[i * stride : i * stride + len(kernel), j * stride : j * stride + kernel.shape[1]]
        y[i, j] = np.einsum("hwc,hwcf->f", window, kernel)
    return y


def oracle(x, model, filters, attention_after, stem_stride):
    """He et al. 2015 with average pooling between stages; one image `(H, W, C)`, float64."""

    def weights(name):
        return [np.float64(ops.convert_to_numpy(w)) for w in model.get_layer(name).weights]

    def conv(x, name, stride=1):
        gamma, beta, mean, variance = weights(f"{name}_norm")
        x = convolve(x, weights(f"{name}_conv")[0], stride)
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    x = np.maximum(conv(x, "stem", stem_stride), 0)
    for stage, width in enumerate(filters):
        if stage:
            rows, columns = (-(-side // 2) for side in x.shape[:2])
            x = np.array(
                [
                    [x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for j in range(columns)]
                    for i in range(rows)
                ]
            )
        name = f"stage{stage}_block0"
        shortcut = x if x.shape[-1] == width else conv(x, f"{name}_shortcut")
        x = np.maximum(conv(x, f"{name}_1"), 0)
        x = np.maximum(shortcut + conv(x, f"{name}_2"), 0)
        if stage in attention_after:  # tested by itself in test_self_attention_nd.py
            attend = model.get_layer(f"stage{stage}_attention")
            x = np.float64(ops.convert_to_numpy(attend(ops.convert_to_tensor(x[None], "float32"))))[
                0
            ]
    kernel, bias = weights("logits")
    return x.mean((0, 1)) @ kernel + bias


@pytest.mark.parametrize(
    ("filters", "attention_after", "stem_stride"),
    [((3, 5), (), 1), ((4, 4, 6), (0, 2), 1), ((3, 5), (1,), 2)],
)
def test_matches_oracle(filters, attention_after, stem_stride):
    x = images(2, 7, 10, 2)
    model = sa_cnn(
        x.shape[1:],
        5,
        filters=filters,
        attention_after=attention_after,
        stem_stride=stem_stride,
        data_format="channels_last",
    )
    randomize(model)
    logits = model.predict(x, verbose=0)
    expected = [oracle(image, model, filters, attention_after, stem_stride) for image in x]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after", [(), (0,), (1, 2)])
def test_attention_sits_after_the_chosen_stages(after):
    model = sa_cnn((12, 9, 2), 5, attention_after=after, data_format="channels_last", **OPTIONS)
    layers = [layer for layer in model.layers if isinstance(layer, SelfAttention2D)]
    assert [layer.name for layer in layers] == [f"stage{stage}_attention" for stage in after]
    assert [layer.input.shape[-1] for layer in layers] == [OPTIONS["filters"][i] for i in after]
    assert all(layer.num_heads == 2 and layer.key_stride == 2 for layer in layers)
    assert model.output_shape == (None, 5)


def test_both_data_formats_compute_the_same():
    last = sa_cnn((11, 9, 2), 5, data_format="channels_last", **OPTIONS)
    first = sa_cnn((2, 11, 9), 5, data_format="channels_first", **OPTIONS)
    randomize(last)
    first.set_weights(last.get_weights())
    x = images(3, 11, 9, 2)
    expected = last.predict(x, verbose=0)
    y = first.predict(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), verbose=0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_new_attention_changes_nothing():
    x = images(3, 8, 10, 1)
    plain = sa_cnn(x.shape[1:], 4, attention_after=(), data_format="channels_last", **OPTIONS)
    model = sa_cnn(x.shape[1:], 4, attention_after=(0, 2), data_format="channels_last", **OPTIONS)
    for layer in plain.layers:
        model.get_layer(layer.name).set_weights(layer.get_weights())
    expected = plain.predict(x, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", stage_attention.NAMES)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_every_attention_by_name(kind, data_format):
    """It sits where it should, learns, and changes nothing at first unless it is a gate."""
    x = images(2, 9, 12, 1)
    x = x if data_format == "channels_last" else x.transpose(0, 3, 1, 2)
    options = {"filters": (8, 8), "num_heads": 2, "window_size": 3, "data_format": data_format}
    model = sa_cnn(x.shape[1:], 4, attention=kind, **options)
    layer = model.get_layer("stage1_attention")
    assert layer.output.shape == layer.input.shape
    if kind not in stage_attention.GATES:
        plain = sa_cnn(x.shape[1:], 4, attention_after=(), **options)
        for part in plain.layers:
            model.get_layer(part.name).set_weights(part.get_weights())
        expected = plain.predict(x, verbose=0)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    randomize(model)
    before = model.predict(x, verbose=0)
    layer.set_weights([w + 0.5 for w in layer.get_weights()])
    assert np.abs(model.predict(x, verbose=0) - before).max() > 1e-4


def test_an_attention_for_each_stage():
    def gate(name):
        return SqueezeExcite(2, name=name)

    kinds = ("neighborhood", gate)
    model = sa_cnn((8, 8, 1), 3, filters=(4, 6, 6), attention_after=(0, 2), attention=kinds,
                   window_size=3)  # fmt: skip
    assert isinstance(model.get_layer("stage0_attention"), NeighborhoodAttention2D)
    assert model.get_layer("stage0_attention").kernel_size == (3, 3)
    assert model.get_layer("stage2_attention").ratio == 2
    assert not any(layer.name == "stage1_attention" for layer in model.layers)


def test_unknown_sides():
    model = sa_cnn((None, None, 1), 3, data_format="channels_last", **OPTIONS)
    for sides in ((9, 12), (16, 7)):
        assert model.predict(images(2, *sides, 1), verbose=0).shape == (2, 3)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_trains_and_saves(tmp_path, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        options = {**OPTIONS, "filters": (3, 4), "blocks_per_stage": 2}
        model = sa_cnn((8, 9, 2), 4, data_format="channels_last", name="small", **options)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.name == "small"
    assert model.output.dtype == "float32"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    x = images(6, 8, 9, 2)
    history = model.fit(x, np.arange(6) % 4, batch_size=3, epochs=2, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    assert (
        model.count_params()
        > sa_cnn((8, 9, 2), 4, **{**options, "blocks_per_stage": 1}).count_params()
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (8, 8)}, r"`input_shape` must have three entries.*input_shape=\(8, 8\)"),
        ({"num_classes": 0}, "`num_classes` must be an integer >= 1; received: num_classes=0"),
        ({"blocks_per_stage": 0}, "`blocks_per_stage` must be an integer >= 1.*blocks_per_stage=0"),
        ({"stem_stride": 0}, "`stem_stride` must be an integer >= 1.*stem_stride=0"),
        ({"filters": ()}, r"`filters` must be one or more integers >= 1; received: filters=\(\)"),
        ({"filters": (4, 0)}, r"`filters` must be .*: filters=\(4, 0\)"),
        ({"attention_after": (3,)}, r"must name stages 0 to 2; received: attention_after=\(3,\)"),
        ({"attention_after": (-1,)}, r"must name stages 0 to 2; received: attention_after=\(-1,\)"),
        ({"attention": "halo"}, "`attention` must be one of self, bottleneck, .*'halo'"),
        ({"attention": ("self", "window")}, "`attention` must be one for all stages"),
        (
            {"attention": "bottleneck", "num_heads": 3},
            "`num_heads` must divide the filters of a stage.*num_heads=3, filters=64",
        ),
        ({"attention": "window", "num_heads": 3}, "must be divisible by `num_heads`"),
        (
            {"attention": "bottleneck", "input_shape": (None, 8, 1)},
            '`input_shape` must have known sides with the attention "bottleneck"',
        ),
        ({"num_heads": 0}, "`num_heads` must be an integer >= 1; received: num_heads=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sa_cnn(**{"input_shape": (8, 8, 1), "num_classes": 3, **arguments})
