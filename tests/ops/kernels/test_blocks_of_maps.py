"""`banded` over maps: blocks of cells, each with the cells around it, against the whole map."""

import numpy as np
import pytest
from keras import ops

from kattn import backend, biases
from kattn.grid import Grid
from kattn.masks import Neighborhood, Padding
from kattn.ops import attention, explain
from kattn.ops.kernels import frames
from kattn.ops.kernels.frames import Axis, Frames
from tests.compute import assert_close, differentiate

MAPS = {
    "sequence": ((41,), {"size": 5}),
    "dilated sequence": ((43,), {"size": 3, "dilation": 4}),
    "image": ((11, 13), {"size": 3}),
    "sides of their own": (
        (9, 14),
        {"size": (4, 3), "dilation": (1, 2), "causal": (False, True), "clamped": False},
    ),
    "moved back far": ((23, 9), {"size": 5}),
    "classes of unlike size": ((13, 9), {"size": 3, "dilation": 2}),
    "video": ((5, 7, 6), {"size": 3, "causal": (True, False, False)}),
}
# What decides between the kernel of the framework and kattn's own.
OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "dropout": {"dropout_rate": 0.4, "seed": 3},
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Several blocks of small maps."""
    monkeypatch.setattr(frames, "NARROWEST", 4)
    monkeypatch.setattr(frames, "KEY_COST", 2)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MAPS)
def test_blocks_see_what_the_whole_map_shows(name, option):
    check(*MAPS[name], lambda array: None, None, **OPTIONS[option])


@pytest.mark.parametrize("option", ["plain", "softcap"])
@pytest.mark.parametrize("by_query", [False, True], ids=["of heads", "of queries"])
@pytest.mark.parametrize("name", ["dilated sequence", "image", "sides of their own", "video"])
def test_biases(name, by_query, option):
    sides, rule = MAPS[name]
    size, rank = rule["size"], len(sides)
    window = size if isinstance(size, tuple) else (size,) * rank
    dilation = rule.get("dilation", 1)
    dilation = dilation if isinstance(dilation, tuple) else (dilation,) * rank
    count = int(np.prod([2 * n - 1 for n in window]))
    shape = (2, 2, int(np.prod(sides)), count) if by_query else (2, count)

    def bias(values):
        table = biases.GridTable(values, window, tuple(range(rank)))
        return table.in_windows(Grid(sides), dilation)

    check(sides, rule, bias, shape, **OPTIONS[option])


def check(sides, rule, bias, shape, **options):
    """Output and gradients of the kernel by blocks, of `chunked`, and of `dense`."""
    if is_refused(sides, rule):
        pytest.skip("frames of so many axes are refused: see test_frames_of_many_axes")
    rng = np.random.default_rng(0)
    steps = int(np.prod(sides))
    tensors = [rng.normal(size=(2, steps, 2, 4)) for _ in range(3)]
    if shape is not None:
        tensors.append(rng.normal(size=shape))
    upstream = rng.normal(size=(2, steps, 2, 4))
    keep = rng.uniform(size=(2, steps)) < 0.7
    keep[1, :7] = False  # some queries see nothing
    mask = Neighborhood(**rule, sides=sides) & Padding(ops.convert_to_tensor(keep))
    assert Frames(tuple(Axis.of_side(n, len(sides)) for n in mask.neighborhood.axes)).blocks > 1

    def run(implementation):
        def call(query, key, value, *values):
            return attention(
                query, key, value, mask=mask, bias=bias(*values) if values else None,
                implementation=implementation, **options,
            )  # fmt: skip

        return differentiate(call, tensors, upstream)

    wanted, slopes = run("dense")
    for implementation in ("banded", "chunked"):
        found, gradients = run(implementation)
        assert_close(found, wanted)
        for pair in zip(gradients, slopes, strict=True):
            assert_close(*pair, 1e-4)


def is_refused(sides, rule):
    return 4 + 2 * len(sides) + ("dilation" in rule) > backend.MOST_AXES


@pytest.mark.parametrize("name", ["dilated sequence", "image", "sides of their own", "video"])
def test_frames_of_many_axes(name):
    """Where the framework has no such tensors, another kernel serves."""
    sides, rule = MAPS[name]
    x = ops.ones((1, int(np.prod(sides)), 1, 4))
    found = explain(x, x, x, mask=Neighborhood(**rule, sides=sides)).passed_over
    assert is_refused(sides, rule) == ("more than 8 axes" in found.get("banded", ""))


def test_a_large_map_is_cut_into_blocks():
    x = ops.ones((1, 48 * 48, 1, 4))
    near = Neighborhood(7, sides=(48, 48))
    assert explain(x, x, x, mask=near).implementation == "banded"
    x = ops.ones((1, 12 * 12, 1, 4))
    why = explain(x, x, x, mask=Neighborhood(7, sides=(12, 12))).passed_over["banded"]
    assert "more than half of S=144" in why


@pytest.mark.parametrize("side", [7, 8, 14, 28, 56, 57, 112, 113])
@pytest.mark.parametrize("size", [3, 7, 8, 13])
@pytest.mark.parametrize("dilation", [1, 3])
def test_frames_hold_all_that_is_seen(side, size, dilation, monkeypatch):
    monkeypatch.setattr(frames, "NARROWEST", 64)
    monkeypatch.setattr(frames, "KEY_COST", 16)
    for clamped in (False, True):
        (near,) = Neighborhood(size, dilation, clamped=clamped, sides=(side,)).axes
        axis = Axis.of_side(near, 2)
        rows, columns = (np.asarray(ops.convert_to_numpy(x)) for x in axis.coordinates())
        keys = np.arange(side)
        found = set()
        for block, frame in zip(rows, columns, strict=True):
            for query in block[block < side]:
                found.add(int(query))
                own = keys[keys % dilation == query % dilation]
                first = np.searchsorted(own, query) - size // 2
                if clamped:
                    first = max(min(first, len(own) - size), 0)
                seen = own[max(first, 0) : max(first + size, 0)]
                assert set(seen) <= set(frame.tolist())
        assert found == set(range(side))
