"""SelfAttention1D, 2D and 3D against SAGAN, sec. 3, and the forms of the non-local block."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn import masks
from kattn.grid import Grid
from kattn.layers import (
    ALiBi,
    RelativeTable,
    RotaryEmbedding,
    SelfAttention1D,
    SelfAttention2D,
    SelfAttention3D,
    SinusoidalPositions,
)
from kattn.spans import Span
from tests import compute, rotary_oracle
from tests import oracle as core_oracle
from tests.checks import check_layer, shake
from tests.compute import assert_close
from tests.layers.spatial import gate_checks

FIRST, LAST = "channels_first", "channels_last"


def pool(x, stride):
    """Maximum over windows, of which half of what sticks out does so at the start."""
    height, width, channels = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    top = (rows * stride - height) // 2
    left = (columns * stride - width) // 2
    pooled = np.empty((rows, columns, channels))
    for i, j in np.ndindex(rows, columns):
        i0, j0 = i * stride - top, j * stride - left
        window = x[max(i0, 0) : i0 + stride, max(j0, 0) : j0 + stride]
        pooled[i, j] = window.max((0, 1))
    return pooled


def oracle(x, weights, num_heads, stride):
    """x + gamma * softmax(q k^T / sqrt(D)) v W, one query at a time, x being `(B, H, W, C)`."""
    weights = apart(weights)
    kernels = {name: weights[f"{name}/kernel"] for name in ("query", "key", "value", "output")}
    biases = {name: weights.get(f"{name}/bias", 0.0) for name in kernels}
    y, maps = np.empty_like(x), []
    for b, image in enumerate(x):
        q = (image @ kernels["query"] + biases["query"]).reshape(-1, kernels["query"].shape[1])
        k = pool(image @ kernels["key"] + biases["key"], stride).reshape(-1, q.shape[1])
        v = pool(image @ kernels["value"] + biases["value"], stride)
        v = v.reshape(len(k), -1)
        width, value_width = q.shape[1] // num_heads, v.shape[1] // num_heads
        mixed, seen = np.empty((len(q), v.shape[1])), np.empty((num_heads, len(q), len(k)))
        for n, t in np.ndindex(num_heads, len(q)):
            head = slice(n * width, (n + 1) * width)
            scores = k[:, head] @ q[t, head] / np.sqrt(width)
            seen[n, t] = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            value_head = slice(n * value_width, (n + 1) * value_width)
            mixed[t, value_head] = seen[n, t] @ v[:, value_head]
        out = mixed @ kernels["output"] + biases["output"]
        y[b] = image + weights["gamma"] * out.reshape(image.shape)
        maps.append(seen)
    return y, np.stack(maps)


def weights_of(layer):
    return {w.path.partition("/")[2]: np.float64(ops.convert_to_numpy(w)) for w in layer.weights}


def apart(weights):
    """The weights, with those of query, key and value apart."""
    value_width = len(weights["output/kernel"])
    key_width = (weights["qkv/kernel"].shape[1] - value_width) // 2
    weights, ends = dict(weights), [key_width, 2 * key_width]
    for part in ("kernel", "bias"):
        whole = weights.pop(f"qkv/{part}", None)
        if whole is not None:
            pieces = zip(("query", "key", "value"), np.split(whole, ends, axis=-1), strict=True)
            weights |= {f"{name}/{part}": piece for name, piece in pieces}
    return weights


def randomize(layer, seed=1):
    """Give every weight, gamma and biases too, numbers that a fault would not hide behind."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=w.shape) * 0.5 + 0.1 for w in layer.weights])


def build(shape, **options):
    layer = SelfAttention2D(**options)
    layer.build(shape)
    randomize(layer)
    return layer


def run(layer, x, **options):
    return ops.convert_to_numpy(layer(ops.convert_to_tensor(x, "float32"), **options))


def images(shape=(2, 5, 7, 6), seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("data_format", [FIRST, LAST])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_heads": 3, "key_dim": 4, "value_dim": 2, "key_stride": 2},
        {"num_heads": 2, "key_dim": 1, "value_dim": 5, "key_stride": 3, "use_bias": False},
        {"num_heads": 2, "key_dim": 3, "key_stride": 9},
    ],
)
def test_matches_oracle(data_format, options):
    x = images()
    given = x if data_format == LAST else x.transpose(0, 3, 1, 2)
    layer = build(given.shape, data_format=data_format, **options)
    num_heads, stride = options.get("num_heads", 1), options.get("key_stride", 1)
    y, maps = oracle(x, weights_of(layer), num_heads, stride)
    if data_format == FIRST:
        y = y.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run(layer, given), y, rtol=1e-5, atol=1e-5)
    seen = ops.convert_to_numpy(layer.attention_weights(ops.convert_to_tensor(given, "float32")))
    np.testing.assert_allclose(seen, maps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["dense", "chunked"])
def test_kernel_does_not_change_the_result(kernel):
    x = images()
    layer = build(x.shape, num_heads=2, key_dim=3, key_stride=2, implementation=kernel)
    expected, _ = oracle(x, weights_of(layer), 2, 2)
    np.testing.assert_allclose(run(layer, x), expected, rtol=1e-5, atol=1e-5)


def test_new_layer_is_the_identity_and_gamma_learns_first():
    x = images()
    layer = SelfAttention2D(num_heads=2, data_format=LAST)
    np.testing.assert_array_equal(run(layer, x), np.float32(x))
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = weights_of(layer)
    model.fit(np.float32(x), np.float32(images(seed=3)), verbose=0)
    after = weights_of(layer)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {"gamma"}
    assert np.isfinite(after["gamma"])


def test_default_widths_and_weight_names():
    layer = build((None, 5, 7, 32), num_heads=2, data_format=LAST)
    shapes = {name: weight.shape for name, weight in weights_of(layer).items()}
    assert shapes == {
        "gamma": (),
        "qkv/kernel": (32, 24),  # 2 heads of 32 // 8 // 2 twice, and of 32 // 2 // 2
        "qkv/bias": (24,),
        "output/kernel": (16, 32),
        "output/bias": (32,),
    }


def test_unseeded_initializer_draws_anew_for_each_projection():
    layer = SelfAttention2D(data_format=LAST)
    layer.build((None, 5, 7, 32))
    weights = apart(weights_of(layer))
    assert not np.array_equal(weights["query/kernel"], weights["key/kernel"])


@pytest.mark.parametrize("data_format", [FIRST, LAST])
def test_unknown_sides_in_a_functional_model(data_format):
    shape = (None, None, 6) if data_format == LAST else (6, None, None)
    inputs = keras.Input(shape)
    layer = SelfAttention2D(2, key_stride=2, data_format=data_format)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, *shape)
    randomize(layer)
    for sides in ((5, 7), (4, 3)):
        x = images((2, *sides, 6))
        expected, _ = oracle(x, weights_of(layer), 2, 2)
        given = x if data_format == LAST else x.transpose(0, 3, 1, 2)
        y = model.predict(np.float32(given), verbose=0)
        y = y if data_format == LAST else y.transpose(0, 2, 3, 1)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    x = images()
    layer = build(x.shape, num_heads=2, key_stride=2, dtype=policy, data_format=LAST)
    y = layer(ops.convert_to_tensor(x, "float32"))
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {"float32"}
    expected, _ = oracle(x, weights_of(layer), 2, 2)
    y = ops.convert_to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(y, expected, rtol=0.05, atol=0.05)


def test_dropout_only_in_training():
    x = images((1, 5, 7, 6))
    layer = build(x.shape, dropout=0.5, seed=3, data_format=LAST)
    without, _ = oracle(x, weights_of(layer), 1, 1)
    np.testing.assert_allclose(run(layer, x), without, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(layer, x, training=False), without, rtol=1e-5, atol=1e-5)
    first, second = run(layer, x, training=True), run(layer, x, training=True)
    assert np.abs(first - without).max() > 1e-2
    assert np.abs(first - second).max() > 1e-2


def test_config_round_trip_keeps_every_field():
    options = {
        "num_heads": 3,
        "key_dim": 4,
        "value_dim": 2,
        "key_stride": 2,
        "dropout": 0.1,
        "use_bias": False,
        "data_format": FIRST,
        "implementation": "dense",
        "seed": 7,
    }
    layer = SelfAttention2D(
        **options,
        kernel_initializer="he_normal",
        bias_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer="l1",
    )
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()
    config = copy.get_config()
    assert {name: config[name] for name in options} == options
    assert config["kernel_initializer"]["class_name"] == "HeNormal"
    assert config["bias_initializer"]["class_name"] == "Ones"
    assert config["kernel_regularizer"]["config"]["l2"] == pytest.approx(0.1)
    assert config["bias_regularizer"]["class_name"] == "L1"


def test_regularizers_and_initializers_reach_the_projections():
    layer = SelfAttention2D(
        kernel_initializer="ones",
        bias_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(0.5),
        bias_regularizer=keras.regularizers.L1(0.25),
        data_format=LAST,
    )
    layer(ops.convert_to_tensor(images(), "float32"))
    # C = 6, D = 1, Dv = 3: kernels of 6 + 6 + 18 + 18 ones, biases of 1 + 1 + 3 + 6.
    total = sum(float(ops.convert_to_numpy(loss)) for loss in layer.losses)
    assert total == pytest.approx(0.5 * 48 + 0.25 * 11)


def test_saved_model_predicts_the_same(tmp_path):
    x = np.float32(images())
    inputs = keras.Input(x.shape[1:])
    layer = SelfAttention2D(2, key_dim=3, key_stride=2, data_format=LAST)
    model = keras.Model(inputs, layer(inputs))
    randomize(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be an integer >= 1; received: num_heads=0"),
        ({"key_dim": 0}, "`key_dim` must be an integer >= 1; received: key_dim=0"),
        ({"value_dim": -1}, "`value_dim` must be an integer >= 1; received: value_dim=-1"),
        ({"key_stride": 0}, "`key_stride` must be an integer >= 1; received: key_stride=0"),
        ({"dropout": 1.0}, r"`dropout` must be a fraction in \[0, 1\); received: dropout=1\.0"),
        (
            {"data_format": "rows"},
            "`data_format` must be one of channels_last, channels_first; received.*'rows'",
        ),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SelfAttention2D(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (2, 5, 6),
            r"`x` must be .*2 sides, of rank 4; .* write x\[None\]; received: x.shape=\(2, 5, 6\)",
        ),
        (
            (2, 5, 7, None),
            r"known number of channels; received: x.shape=\(2, 5, 7, None\), data_format=",
        ),
    ],
)
def test_bad_inputs(shape, message):
    with pytest.raises(ValueError, match=message):
        SelfAttention2D(data_format=LAST).build(shape)


def test_bad_kernel():
    with pytest.raises(ValueError, match=r"`implementation` must be one of auto, .*'quick'"):
        SelfAttention2D(implementation="quick")


def cells(sides, stride):
    """Rows and columns of the middles of the windows that `pool` makes."""
    found = []
    for side in sides:
        count = -(-side // stride)
        found.append([i * stride + (stride - 1) / 2 - (count * stride - side) // 2
                      for i in range(count)])  # fmt: skip
    return np.array([(i, j) for i in found[0] for j in found[1]])


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_rotary_positions(rng, stride):
    """Queries and keys are turned by row and by column; a pooled key stands in the middle."""
    layer = SelfAttention2D(2, 4, key_stride=stride, position=RotaryEmbedding(base=9.0, axes=2))
    x = rng.normal(size=(2, 5, 6, 8)).astype("float32")
    shake(layer, [x])
    w = {
        part.path.split("/", 1)[1]: compute.run(ops.convert_to_tensor, part)
        for part in layer.weights
    }
    w = apart(w)
    turns = np.stack([rotary_oracle.frequencies(2, base=9.0)] * 2)

    def heads(name, stride):
        projected = x @ w[f"{name}/kernel"] + w[f"{name}/bias"]
        pooled = np.stack([pool(image, stride) for image in projected])
        return pooled.reshape(2, -1, 2, pooled.shape[-1] // 2)

    q, k, v = heads("query", 1), heads("key", stride), heads("value", stride)
    q = rotary_oracle.rotate(q, cells((5, 6), 1), turns)
    k = rotary_oracle.rotate(k, cells((5, 6), stride), turns)
    mixed, weights = core_oracle.attention(q, k, v)
    expected = mixed.reshape(2, 5, 6, -1) @ w["output/kernel"] + w["output/bias"]
    assert_close(compute.run(layer, x), x + w["gamma"] * expected)
    assert_close(compute.run(layer.attention_weights, ops.convert_to_tensor(x)), weights)


@pytest.mark.parametrize("by_query", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_relative_tables(rng, stride, by_query):
    """And the table of another map is resized to this one."""
    for sides in ((5, 6), (3, 4)):
        table = RelativeTable(sides, by_query=by_query)
        layer = SelfAttention2D(2, 4, key_stride=stride, position=table)
        x = rng.normal(size=(2, 5, 6, 8)).astype("float32")
        shake(layer, [x])
        w = apart(weights_of(layer))

        def heads(name, side, w=w, x=x):
            found = x @ w[f"{name}/kernel"] + w[f"{name}/bias"]
            found = np.stack([pool(image, side) for image in found])
            return found.reshape(2, -1, 2, found.shape[-1] // 2)

        q, k, v = heads("query", 1), heads("key", stride), heads("value", stride)
        keys = (-(-5 // stride), -(-6 // stride))
        bias = np.zeros((2, 2, 30, keys[0] * keys[1]))
        rule = table.bias(ops.convert_to_tensor(q, "float32"), Grid((5, 6)))
        whole = ops.convert_to_numpy(rule.block(Span(0, 30), Span(0, 30)))
        whole = np.broadcast_to(whole, (2, 2, 30, 30))  # of all cells
        for i, j in np.ndindex(keys):
            bias[..., i * keys[1] + j] = whole[..., i * stride * 6 + j * stride]
        mixed, weights = core_oracle.attention(q, k, v, bias=bias)
        expected = mixed.reshape(2, 5, 6, -1) @ w["output/kernel"] + w["output/bias"]
        assert_close(compute.run(layer, x), x + w["gamma"] * expected)
        assert_close(compute.run(layer.attention_weights, ops.convert_to_tensor(x)), weights)


def test_a_bias_of_sequences_is_refused(rng):
    layer = SelfAttention2D(2, position=ALiBi())
    with pytest.raises(ValueError, match=r"ALiBi has a bias for sequences only.*sides=\(5, 6\)"):
        layer(rng.normal(size=(2, 5, 6, 8)))


def test_absolute_positions_are_added_before_the_projections(rng):
    scheme = SinusoidalPositions(axes=2, grid=(5, 6))
    layer = SelfAttention2D(2, key_stride=2, position=scheme)
    x = rng.normal(size=(2, 5, 6, 8)).astype("float32")
    shake(layer, [x])
    found = compute.run(layer, x) - x
    layer.position = None
    moved = compute.run(scheme, x.reshape(2, 30, 8)).reshape(x.shape)
    assert_close(found, compute.run(layer, moved) - moved)


def make(**options):
    return SelfAttention2D(
        num_heads=2,
        key_dim=4,
        value_dim=5,
        key_stride=2,
        position=RotaryEmbedding(axes=2, name="rotary"),
        dropout=0.4,
        implementation="chunked",
        kernel_regularizer="l2",
        bias_regularizer="l1",
        kernel_initializer="he_normal",
        bias_initializer="ones",
        data_format="channels_first",
        seed=1,
        **options,
    )


def test_battery():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 8))
    check_layer(make, [x], fixture="self_attention_2d", sequence=False, masked=False)


KINDS = {1: SelfAttention1D, 2: SelfAttention2D, 3: SelfAttention3D}
FORMS = ("embedded_gaussian", "gaussian", "dot_product")


def maker(rank, form="embedded_gaussian", **options):
    own = {"value_dim": 5, "key_stride": 2, "form": form, "kernel_initializer": "he_normal"}
    if form != "gaussian":
        own["key_dim"] = 4
    own = {**own, "bias_initializer": "ones", "kernel_regularizer": "l2", **options}

    def make(**more):
        return KINDS[rank](2, **{**own, **more})

    return make


def windows(sides, stride):
    """The cells of each window of keys, which begin where half of the padding goes before."""
    starts = []
    for side in sides:
        count = -(-side // stride)
        before = (count * stride - side) // 2
        starts.append([range(max(i * stride - before, 0), min((i + 1) * stride - before, side))
                       for i in range(count)])  # fmt: skip
    return [
        [
            tuple(cell)
            for cell in np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, len(sides))
        ]
        for ranges in _products(starts)
    ]


def _products(lists):
    if not lists:
        return [()]
    return [(first, *rest) for first in lists[0] for rest in _products(lists[1:])]


def non_local(layer):
    """y of one map, and its weights `(N, T, S)`: Wang et al. 2018, eq. 1 to 4, cell by cell."""

    def mixed(x, keep, weights):
        heads, sides = layer.num_heads, keep.shape
        x = np.where(keep[..., None], x, 0.0)
        width = len(weights["output/kernel"])
        if layer.form == "gaussian":
            q = k = x
            v = x @ weights["value/kernel"] + weights["value/bias"]
        else:
            whole = x @ weights["qkv/kernel"] + weights["qkv/bias"]
            size = (whole.shape[-1] - width) // 2
            q, k, v = np.split(whole, [size, 2 * size], axis=-1)
        seen = [
            [cell for cell in window if keep[cell]] for window in windows(sides, layer.key_stride)
        ]
        real = [j for j, window in enumerate(seen) if window]
        cells = list(np.ndindex(sides))
        maps, y = np.zeros((heads, len(cells), len(seen))), np.zeros((*sides, width))
        for n in range(heads):
            part, value_part = (
                slice(n * z.shape[-1] // heads, (n + 1) * z.shape[-1] // heads) for z in (q, v)
            )
            keys, values = (
                [np.max([z[cell][of_head] for cell in seen[j]], axis=0) for j in real]
                for z, of_head in ((k, part), (v, value_part))
            )
            for i, cell in enumerate(cells):
                if not real or not keep[cell]:
                    continue
                scores = np.array(keys) @ q[cell][part]
                if layer.form == "dot_product":
                    found = scores / len(real)
                else:
                    found = np.exp(scores / np.sqrt(len(keys[0])))
                    found = found / found.sum()
                maps[n, i, real] = found
                y[cell][value_part] = found @ np.array(values)
        return y @ weights["output/kernel"] + weights["output/bias"], maps

    return mixed


@pytest.mark.parametrize("data_format", [FIRST, LAST])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_all_ranks_forms_and_masks(rank, form, data_format):
    make = maker(rank, form)
    layer_of = non_local(make())

    def oracle(x, keep, weights):
        y, _ = layer_of(x, keep, weights)
        return np.where(keep[..., None], x, 0.0) + weights["gamma"] * y

    gate_checks.check_oracle(make, oracle, rank, data_format)


@pytest.mark.parametrize("form", FORMS)
def test_without_residual(form):
    make = maker(2, form, use_residual=False)
    layer_of = non_local(make())
    gate_checks.check_oracle(make, lambda *args: layer_of(*args)[0], 2, LAST)
    layer = make()
    layer.build((None, 5, 4, 6))
    assert not any("gamma" in weight.path for weight in layer.weights)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_attention_weights_of_padded_maps(rank, form):
    x, keep = gate_checks.maps(rank)
    layer = gate_checks.built(maker(rank, form), x)
    found = compute.run(layer.attention_weights, x, ops.convert_to_tensor(keep))
    pairs = zip(np.float64(x), keep, strict=True)
    weights = gate_checks.weights_of(layer)
    assert_close(found, np.stack([non_local(layer)(*pair, weights)[1] for pair in pairs]))


def test_pattern_is_bound_to_the_map():
    """A mask of cells goes by coordinates, one of sequences by the row-major order."""
    x, keep = gate_checks.maps(2)
    rule = masks.Neighborhood(3, clamped=False) & masks.Causal()
    layer = gate_checks.built(maker(2, key_stride=1, pattern=rule), x)
    found = compute.run(layer.attention_weights, x, ops.convert_to_tensor(keep))
    near = [[max(abs(i - k), abs(j - m)) <= 1 and (k, m) <= (i, j) for k, m in np.ndindex(5, 4)]
            for i, j in np.ndindex(5, 4)]  # fmt: skip
    flat = keep.reshape(3, 1, 20)
    visible = np.array(near)[None] & flat & np.swapaxes(flat, 1, 2)
    np.testing.assert_array_equal(found > 0, np.broadcast_to(visible[:, None], found.shape))
    copy = type(layer).from_config(layer.get_config())
    assert copy.pattern == rule


@pytest.mark.parametrize("data_format", [FIRST, LAST])
def test_masks_and_unknown_sides(data_format):
    for form in FORMS:
        gate_checks.check_output_mask(maker(2, form), 2, data_format)
        gate_checks.check_unknown_sides(maker(2, form), data_format)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "cosine"}, "`form` must be one of embedded_gaussian, gaussian, dot_product"),
        ({"form": "gaussian", "key_dim": 4}, '`key_dim` must be None with form="gaussian"'),
        ({"form": "dot_product", "dropout": 0.1}, '`dropout` must not be .*form="dot_product"'),
        (
            {"form": "dot_product", "pattern": masks.Causal()},
            '`pattern` must not be given with form="dot_product"',
        ),
        (
            {"form": "dot_product", "position": RelativeTable((5, 4))},
            "`position` must not be a bias of the scores",
        ),
        (
            {"key_stride": 2, "pattern": masks.Causal()},
            "`key_stride` must be 1 where a `pattern` .*key_stride=2",
        ),
        ({"pattern": "causal"}, "`pattern` must be a kattn.masks.Mask"),
    ],
)
def test_arguments_that_exclude_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        SelfAttention2D(**options)


def test_bad_maps():
    gate_checks.check_bad_input(maker(2))
    with pytest.raises(ValueError, match=r"with 1 side, of rank 3; .*x.shape=\(2, 5, 4, 6\)"):
        SelfAttention1D().build((2, 5, 4, 6))
    with pytest.raises(ValueError, match=r"with 3 sides, of rank 5; .*x.shape=\(2, 5, 4, 6\)"):
        SelfAttention3D().build((2, 5, 4, 6))
    with pytest.raises(ValueError, match=r"must be divisible by `num_heads`.*num_heads=4"):
        SelfAttention2D(4, form="gaussian").build((2, 5, 4, 6))


@pytest.mark.parametrize("form", FORMS)
def test_battery_of_other_ranks(form):
    rank = 1 if form == "dot_product" else 3
    x = np.random.default_rng(0).normal(size=(3, *((6,), (), (2, 3, 2))[rank - 1], 8))
    sequence = rank == 1
    stride = 1 if sequence else 2  # padding moves the windows of keys
    check_layer(
        maker(rank, form, key_stride=stride),
        [x],
        sequence=sequence,
        masked=sequence,
        equivariant=sequence,
        dropout=False,
    )
