"""DeformableAttention2D against sec. 3.2 of its paper, one query and one point at a time."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import DeformableAttention2D
from tests import checks
from tests.checks import with_mask
from tests.compute import assert_close, differentiate, result
from tests.layers.spatial import gate_checks
from tests.layers.spatial.gate_checks import CHANNELS, FIRST, LAST, built, laid_out, weights_of

HEADS, GROUPS, KEY_DIM, VALUE_DIM, STRIDE, KERNEL, RANGE = 4, 2, 3, 5, 2, 3, 0.8
BIAS_SIDES = (3, 4)  # smaller than the maps, so that some differences are beyond the table
SIDES = (5, 6)


def make(**options):
    arguments = {
        "value_dim": VALUE_DIM,
        "num_groups": GROUPS,
        "key_stride": STRIDE,
        "kernel_size": KERNEL,
        "offset_range": RANGE,
        "bias_sides": BIAS_SIDES,
        "dropout": 0.3,
        "seed": 1,
        "kernel_initializer": "he_normal",
        "table_initializer": "random_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
    }
    return DeformableAttention2D(HEADS, KEY_DIM, **{**arguments, **options})


def images():
    """Images, and which cells are real: all, a corner and a cell far from it, none."""
    x = np.random.default_rng(4).normal(size=(3, *SIDES, CHANNELS)).astype("float32")
    keep = np.zeros(x.shape[:-1], bool)
    keep[0], keep[1, :2, :3], keep[1, 4, 5] = True, True, True
    return x, keep


def project(x, weights, name):
    return x @ weights[f"{name}/kernel"] + weights.get(f"{name}/bias", 0.0)


def windows(side):
    """For each window of `STRIDE` cells the middle, and the first cell that the kernel reads."""
    count = math.ceil(side / STRIDE)
    before = (count * STRIDE - side) // 2
    kernel_before = max((count - 1) * STRIDE + KERNEL - side, 0) // 2
    starts = [i * STRIDE for i in range(count)]
    return [(at - before + (STRIDE - 1) / 2, at - kernel_before) for at in starts]


def offset(q, row, column, weights):
    """Where a point of one group goes, for a kernel whose first cell is at row and column."""
    hidden = np.array(weights["offsets/convolution/bias"], copy=True)
    for i, j in np.ndindex(KERNEL, KERNEL):
        if 0 <= row + i < q.shape[0] and 0 <= column + j < q.shape[1]:
            hidden += q[row + i, column + j] * weights["offsets/convolution/kernel"][i, j, :, 0]
    hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
    hidden = hidden * weights["offsets/norm/gamma"] + weights["offsets/norm/beta"]
    hidden = np.array([h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in hidden])
    return RANGE * STRIDE * np.tanh(hidden @ weights["offsets/offset/kernel"])


def tents(place, sides):
    """The weights of cells at a place: 1 at its middle, 0 one cell away."""
    row, column = (
        np.maximum(0, 1 - np.abs(p - np.arange(n))) for p, n in zip(place, sides, strict=True)
    )
    return row[:, None] * column


def inside(place, sides):
    return np.clip(place, 0, np.array(sides) - 1)


def points_of(x, keep, weights):
    """The points of one image, `(G, S, 2)`."""
    q = project(x, weights, "query") * keep[..., None]
    found = []
    for of_group in np.split(q, GROUPS, axis=-1):
        for middle_row, row in windows(x.shape[0]):
            for middle_column, column in windows(x.shape[1]):
                middle = np.array([middle_row, middle_column])
                point = middle + offset(of_group, row, column, weights)
                found.append(inside(point, keep.shape))
    return np.reshape(found, (GROUPS, -1, 2))


def both(x, keep, weights):
    """Xia et al. 2022, sec. 3.2, for one image: the output and the attention weights."""
    points, width = points_of(x, keep, weights), x.shape[-1] // GROUPS
    real, sampled = np.zeros(points.shape[:2], bool), np.zeros((points.shape[1], x.shape[-1]))
    for g, s in np.ndindex(*points.shape[:2]):
        share = tents(points[g, s], keep.shape) * keep
        real[g, s] = share.sum() > 0
        if real[g, s]:
            group = slice(g * width, (g + 1) * width)
            sampled[s, group] = np.einsum("hw,hwc->c", share, x[..., group]) / share.sum()
    k, v = np.split(project(sampled, weights, "key_value"), [HEADS * KEY_DIM], axis=-1)
    q = project(x, weights, "query")
    seen = np.zeros((HEADS, *keep.shape, len(sampled)))
    mixed = np.zeros((*keep.shape, HEADS, VALUE_DIM))
    for n, i, j in np.ndindex(HEADS, *keep.shape):
        g, head = n * GROUPS // HEADS, slice(n * KEY_DIM, (n + 1) * KEY_DIM)
        if not keep[i, j] or not real[g].any():
            continue
        scores = np.full(len(sampled), -np.inf)
        for s in np.flatnonzero(real[g]):
            place = points[g, s] - (i, j) + np.array(BIAS_SIDES) - 1
            table = weights["table"][..., n]
            bias = np.sum(tents(inside(place, table.shape), table.shape) * table)
            scores[s] = q[i, j, head] @ k[s, head] / np.sqrt(KEY_DIM) + bias
        seen[n, i, j] = np.exp(scores - scores.max())
        seen[n, i, j] /= seen[n, i, j].sum()
        mixed[i, j, n] = seen[n, i, j] @ v[:, n * VALUE_DIM : (n + 1) * VALUE_DIM]
    y = project(mixed.reshape(*keep.shape, -1), weights, "output") * keep[..., None]
    return y, seen.reshape(HEADS, keep.size, -1)


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_matches_oracle(data_format):
    x, keep = images()
    layer = built(make, laid_out(x, data_format), data_format=data_format)
    weights = weights_of(layer)
    for real in (np.ones_like(keep), keep):
        items = list(zip(np.float64(x), real, strict=True))
        expected, seen = (
            np.stack(parts) for parts in zip(*(both(*item, weights) for item in items), strict=True)
        )
        expected = laid_out(expected, data_format)
        points = np.stack([points_of(*item, weights) for item in items])
        holes = laid_out(np.where(real[..., None], x, np.float32(np.nan)), data_format)
        mask = ops.convert_to_tensor(real)
        if real.all():
            assert_close(result(layer, holes), expected)
        else:
            assert (seen[1].sum(axis=1) == 0).any(), "no point is padding"
        assert_close(result(layer.points, holes, mask=mask), points)
        assert_close(result(layer.attention_weights, holes, mask=mask), seen)
        assert_close(result(layer, holes, mask=mask), expected)
        assert_close(result(with_mask(layer, mask), holes), expected)


def test_gradients_flow_through_the_points():
    """Along a direction of all inputs, against finite differences of the oracle."""
    x = np.float64(images()[0][:1])
    layer = built(make, np.float32(x))
    weights, keep = weights_of(layer), np.ones(SIDES, bool)
    rng, step = np.random.default_rng(0), 1e-6
    direction, upstream = rng.normal(size=x.shape), rng.normal(size=x.shape)
    _, (gradient,) = differentiate(layer, [x], upstream)
    ahead, behind = (both(x[0] + by * direction[0], keep, weights)[0] for by in (step, -step))
    expected = np.sum((ahead - behind) * upstream[0]) / (2 * step)
    assert abs(np.sum(gradient * direction) - expected) < 1e-3 * abs(expected)


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_points_before_they_move(stride):
    """They are the middles of the windows, inside of the image."""
    layer = make(key_stride=stride, offset_range=1e-9, data_format=LAST)
    found = result(layer.points, images()[0])
    sides = [(np.arange(n)[::stride] - (-n % stride) // 2 + (stride - 1) / 2) for n in SIDES]
    expected = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
    expected = inside(expected, SIDES)
    assert_close(found, np.broadcast_to(expected, (3, GROUPS, *expected.shape)))


def test_a_group_of_its_own_has_points_of_its_own():
    x, _ = images()
    points = result(built(make, x, data_format=LAST).points, x)
    assert np.abs(points[:, 0] - points[:, 1]).max() > 0.1
    assert result(built(make, x, num_groups=1, data_format=LAST).points, x).shape[1] == 1


def test_default_widths():
    layer = DeformableAttention2D(3, use_bias=False)
    layer.build((None, 5, 4, 6) if layer.data_format == LAST else (None, 6, 5, 4))
    shapes = {name: weight.shape for name, weight in weights_of(layer).items()}
    assert shapes == {
        "query/kernel": (6, 6),
        "offsets/convolution/kernel": (5, 5, 6, 1),
        "offsets/norm/gamma": (6,),
        "offsets/norm/beta": (6,),
        "offsets/offset/kernel": (6, 2),
        "key_value/kernel": (6, 12),
        "output/kernel": (6, 6),
    }


BATTERY = (
    checks.check_config,
    checks.check_sublayers,
    checks.check_precision,
    checks.check_training,
    checks.check_compiled,
    checks.check_saving,
    checks.check_dropout,
)


@pytest.mark.parametrize("check", BATTERY)
def test_battery(check):
    check(make, [images()[0]])


def test_saved_elsewhere():
    checks.check_fixture(make, "deformable_attention_2d")


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_masks_and_unknown_sides(data_format):
    gate_checks.check_output_mask(make, 2, data_format)
    gate_checks.check_unknown_sides(make, data_format)


def test_half_precision_under_a_mask():
    """A point that is far from the one real cell near it is that cell, not a part of it."""
    x, keep = images()
    layer, half = built(make, x), built(make, x, dtype="mixed_float16")
    half.set_weights(layer.get_weights())
    options = {"mask": ops.convert_to_tensor(keep)}
    assert_close(np.float32(result(half, x, **options)), result(layer, x, **options), 2e-2)


BAD = [
    ({"num_groups": 3}, r"`num_groups` must divide `num_heads`.*num_groups=3, num_heads=4"),
    ({"num_groups": 0}, r"`num_groups` must be an integer >= 1.*num_groups=0"),
    ({"key_stride": 0}, r"`key_stride` must be an integer >= 1.*key_stride=0"),
    ({"kernel_size": 2.5}, r"`kernel_size` must be an integer >= 1.*kernel_size=2.5"),
    ({"offset_range": 0.0}, r"`offset_range` must be a finite number above 0.*=0.0"),
    ({"bias_sides": 7}, r"`bias_sides` must be two integers >= 1, .*bias_sides=7"),
    ({"bias_sides": (7, 0)}, r"`bias_sides` must be two integers >= 1, .*bias_sides=\(7, 0\)"),
    ({"dropout": 1.0}, r"`dropout` must be a fraction in .*dropout=1.0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_input():
    x, keep = images()
    layer = built(make, x, data_format=LAST)
    with pytest.raises(ValueError, match=r"`x` must be a batch of maps with 2 sides, of rank 4; "):
        make()(x[0])
    with pytest.raises(ValueError, match=r"`x` must be a map with the 2 sides and 6 channels"):
        layer(x[..., :4])
    with pytest.raises(ValueError, match=r"`mask` must have the sides of the map.*\(3, 5, 5\)"):
        layer(x, mask=keep[..., :5])
    with pytest.raises(ValueError, match="`x` must have a known number of channels"):
        make()(keras.Input((5, 6, None)))
    shape = (None, 5, 6, 7)
    with pytest.raises(ValueError, match=r"divisible by `num_heads`.*width=7, num_heads=2"):
        DeformableAttention2D(2, data_format=LAST).build(shape)
    with pytest.raises(ValueError, match=r"must divide the channels.*num_groups=2, channels=7"):
        make(data_format=LAST).build(shape)
    with pytest.raises(ValueError, match=r"must leave each group two channels.*=4, channels=1"):
        DeformableAttention2D(4, 1, num_groups=4, data_format=LAST).build((None, 5, 6, 8))
