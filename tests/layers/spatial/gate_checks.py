"""What is checked of each gate of maps: oracles, masks and bad input in all ranks and layouts."""

import keras
import numpy as np
import pytest
from keras import ops

from tests import checks
from tests.checks import shake, with_mask
from tests.compute import assert_close, result, run

FIRST, LAST = "channels_first", "channels_last"
SIDES = {1: (7,), 2: (5, 4), 3: (3, 2, 4)}
CHANNELS = 6


def maps(rank):
    """A map `(3, *sides, 6)`, and which cells are real: all, some with holes, none."""
    rng = np.random.default_rng(rank)
    x = rng.normal(size=(3, *SIDES[rank], CHANNELS)) + 0.3
    keep = rng.uniform(size=x.shape[:-1]) < 0.6
    keep[0], keep[2] = True, False
    return x.astype("float32"), keep


def laid_out(x, data_format):
    return x if data_format == LAST else np.moveaxis(x, -1, 1)


def built(make, x, **options):
    """A layer with weights off their initial values."""
    layer = make(**options)
    shake(layer, [x])
    return layer


def weights_of(layer):
    return {w.path.partition("/")[2]: np.float64(run(ops.copy, w)) for w in layer.weights}


def check_oracle(make, oracle, rank, data_format):
    """`oracle(x, keep, weights)` is the output of one item, with zeros at padding."""
    x, keep = maps(rank)
    layer = built(make, laid_out(x, data_format), data_format=data_format)
    weights = weights_of(layer)
    for real in (np.ones_like(keep), keep):
        pairs = zip(np.float64(x), real, strict=True)
        expected = np.stack([oracle(item, cells, weights) for item, cells in pairs])
        expected = laid_out(expected * real[..., None], data_format)
        holes = laid_out(np.where(real[..., None], x, np.float32(np.nan)), data_format)
        if real.all():
            assert_close(result(layer, holes), expected)
        mask = ops.convert_to_tensor(real)
        assert_close(result(layer, holes, mask=mask), expected)
        assert_close(result(with_mask(layer, mask), holes), expected)


def check_output_mask(make, rank, data_format):
    """The cells that are real by both masks are those of the output."""
    x, keep = maps(rank)
    x = laid_out(x, data_format)
    layer = built(make, x, data_format=data_format)
    other = np.ones_like(keep)
    other[0, 0] = False
    masked = with_mask(layer, ops.convert_to_tensor(keep))
    both = {"mask": ops.convert_to_tensor(other)}
    checks.assert_output_mask(masked, [x], keep)
    checks.assert_output_mask(masked, [x], keep & other, **both)
    wanted = result(layer, x, mask=ops.convert_to_tensor(keep & other))
    assert_close(result(masked, x, **both), wanted)


def check_unknown_sides(make, data_format):
    """One model serves maps of any sides."""
    shape = (None, None, CHANNELS) if data_format == LAST else (CHANNELS, None, None)
    inputs = keras.Input(shape)
    layer = make(data_format=data_format)
    model = keras.Model(inputs, layer(inputs))
    shake(layer)
    assert model.output_shape == (None, *shape)
    for sides in ((5, 4), (3, 7)):
        x = np.random.default_rng(0).normal(size=(2, *sides, CHANNELS)).astype("float32")
        x = laid_out(x, data_format)
        assert_close(model.predict(x, verbose=0), result(layer, x))


def check_bad_input(make):
    """Of the map and of its mask, for a layer that takes maps of these ranks."""
    x, keep = maps(2)
    layer = built(make, x)
    cases = (
        (x[0, 0], {}, r"`x` must be a batch of maps .*x.shape=\(4, 6\)", make()),
        (x[..., None, None], {}, r"`x` must be a batch of maps .*rank (4|3 to 5)", make()),
        (x[..., :5], {}, r"`x` must be a map with the 2 sides and 6 channels.*4, 5\)", layer),
        (x[:, 0], {}, r"`x` must be a map with the 2 sides.*x.shape=\(3, 4, 6\)", layer),
        (x, {"mask": keep[:, :4]}, r"`mask` must have the sides of the map.*\(3, 4, 4\)", layer),
        (x, {"mask": keep[:2]}, r"`mask` must have the sides of the map.*\(2, 5, 4\)", layer),
        (x, {"mask": keep[:, 0]}, r"`mask` must have rank 3, \(B, H, W\)", layer),
        (x, {"mask": keep.astype("float32")}, "`mask` must be boolean.*float32", layer),
    )
    for given, options, message, called in cases:
        with pytest.raises(ValueError, match=message):
            called(given, **options)
    with pytest.raises(ValueError, match=r"`x` must have a known number of channels.*None\)"):
        make()(keras.Input((5, 4, None)))
    with pytest.raises(ValueError, match="`data_format` must be one of channels_last, "):
        make(data_format="NCHW")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
