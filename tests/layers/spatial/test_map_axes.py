"""MapAxes: where the axes are, and what is taken over real cells, in both layouts."""

import numpy as np
import pytest
from keras import ops

from kattn.layers.spatial.map_axes import MapAxes
from tests.compute import assert_close, run
from tests.layers.spatial.gate_checks import FIRST, LAST, laid_out, maps


@pytest.mark.parametrize("data_format", [LAST, FIRST])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_statistics_and_shapes(rank, data_format):
    x, keep = maps(rank)
    axes = MapAxes.of_shape(laid_out(x, data_format).shape, data_format)
    assert (axes.rank, axes.channels) == (rank, 6)
    holes = laid_out(np.where(keep[..., None], x, np.float32(np.nan)), data_format)
    read, padding = axes.read(ops.convert_to_tensor(holes), ops.convert_to_tensor(keep))
    means, highest = np.zeros((3, 6)), np.zeros((3, 6))
    for b in range(2):  # the last item has no real cell
        means[b], highest[b] = x[b][keep[b]].mean(axis=0), x[b][keep[b]].max(axis=0)
    assert_close(run(axes.mean, read, padding), means)
    assert_close(run(axes.max, read, padding), highest)
    cells, flat = run(axes.cells, read, padding)
    np.testing.assert_array_equal(flat, keep.reshape(3, -1))
    again = run(axes.of_sequence, ops.convert_to_tensor(cells), read)
    np.testing.assert_array_equal(again, run(ops.copy, read))
    np.testing.assert_array_equal(cells, np.where(keep[..., None], x, 0).reshape(3, -1, 6))
    whole = ops.convert_to_tensor(laid_out(x, data_format))
    assert_close(run(axes.mean, whole, None), x.reshape(3, -1, 6).mean(axis=1))
    assert_close(run(axes.max, whole, None), x.reshape(3, -1, 6).max(axis=1))
    assert run(axes.real, whole, None).shape == keep.shape
    gate = np.float32(means + 1)
    product = run(lambda: whole * axes.of_channels(ops.convert_to_tensor(gate)))
    by_item = gate.reshape(3, *[1] * rank, 6)
    assert_close(product, laid_out(x * by_item, data_format))


@pytest.mark.parametrize("data_format", [LAST, FIRST])
def test_a_map_without_cells(data_format):
    x = ops.ones((2, 3, 0, 6) if data_format == LAST else (2, 6, 3, 0))
    axes = MapAxes.of_shape(x.shape, data_format)
    assert not axes.has_cells(x)
    for statistic in (axes.mean, axes.max):
        np.testing.assert_array_equal(run(statistic, x, None), np.zeros((2, 6)))
