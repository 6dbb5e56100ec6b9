"""Frames of windows along one axis and along two, against loops over positions in NumPy."""

import itertools

import keras
import numpy as np
import pytest

from kattn.ops.kernels import frames
from kattn.ops.kernels.frames import Axis, Frames
from tests.compute import run

# (queries, keys, reach, parts) of each axis: no size divides another.
AXES = {
    "sequence": [(13, 17, (4, 0), 2)],
    "both sides": [(17, 11, (3, 5), 1)],
    "map": [(7, 7, (2, 2), 2), (9, 10, (3, 1), 2)],
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(frames, "NARROWEST", 2)


def make(name):
    return Frames(tuple(Axis.make(t, s, reach, parts=n) for t, s, reach, n in AXES[name]))


def array(name, which, *lead):
    sides = [getattr(axis, which) for axis in make(name).axes]
    return np.random.default_rng(0).normal(size=(*lead, *sides, 3)).astype("float32")


def flat(x):
    """The steps of all axes on one."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


@pytest.mark.parametrize("name", AXES)
def test_queries_in_blocks_and_back(name):
    cut, x = make(name), array(name, "queries", 2, 4)
    blocks = run(cut.cut_queries, flat(x))
    assert blocks.shape == (cut.blocks, 2, 4, cut.size, 3)
    counts, sizes = ([range(getattr(a, n)) for a in cut.axes] for n in ("blocks", "size"))
    for b, block in enumerate(itertools.product(*counts)):
        for s, step in enumerate(itertools.product(*sizes)):
            place = [i * a.size + j for i, j, a in zip(block, step, cut.axes, strict=True)]
            np.testing.assert_array_equal(blocks[b, :, :, s], _entry(x, place))
    np.testing.assert_array_equal(run(cut.join_queries, blocks), flat(x))


def _entry(x, place):
    inside = all(0 <= p < n for p, n in zip(place, x.shape[2:-1], strict=True))
    return x[(slice(None), slice(None), *place)] if inside else np.zeros((*x.shape[:2], 3), x.dtype)


@pytest.mark.parametrize("name", AXES)
def test_a_frame_holds_the_keys_around_its_block(name):
    cut, x = make(name), array(name, "keys", 2, 4)
    gathered = run(lambda x: cut.gather(cut.cut_keys(x)), flat(x))
    assert gathered.shape == (cut.blocks, 2, 4, cut.frame, 3)
    counts, sizes = ([range(getattr(a, n)) for a in cut.axes] for n in ("blocks", "frame"))
    for b, block in enumerate(itertools.product(*counts)):
        for s, step in enumerate(itertools.product(*sizes)):
            pairs = zip(block, step, cut.axes, strict=True)
            place = [a.first_key + i * a.size + j for i, j, a in pairs]
            np.testing.assert_array_equal(gathered[b, :, :, s], _entry(x, place))


@pytest.mark.parametrize("name", AXES)
def test_a_frame_holds_all_that_its_queries_see(name):
    for axis, (queries, keys, (before, after), _) in zip(make(name).axes, AXES[name], strict=True):
        for i in range(queries):
            first = axis.first_key + i // axis.size * axis.size
            own = i + keys - queries
            assert first <= own - before
            assert own + after < first + axis.frame


@pytest.mark.parametrize("name", AXES)
def test_scatter_is_the_transpose_of_gather(name):
    cut = make(name)
    blocks = run(cut.cut_keys, flat(array(name, "keys", 2, 4)))
    gathered = run(cut.gather, keras.ops.convert_to_tensor(blocks))
    other = np.random.default_rng(1).normal(size=gathered.shape).astype("float32")
    scattered = run(cut.scatter, keras.ops.convert_to_tensor(other))
    assert scattered.shape == blocks.shape
    left = (gathered.astype("float64") * other).sum()
    np.testing.assert_allclose(left, (scattered.astype("float64") * blocks).sum(), rtol=1e-5)
