import numpy as np
from keras import ops

from kattn.ops.random_numbers import mix, uniform
from tests.compute import run


def numbers(seed, step, shape):
    return run(lambda *x: uniform(*x, shape), np.int32(seed), np.int32(step))


def lowbias32(x):
    """Of NumPy's unsigned integers."""
    x = x.astype("uint32")
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return (x ^ (x >> np.uint32(16))).astype("int32")


def test_mix():
    x = np.array([0, 1, -1, 2**31 - 1, -(2**31), 123456789], "int32")
    np.testing.assert_array_equal(run(mix, x), lowbias32(x))


def test_the_same_on_every_backend():
    start = lowbias32(lowbias32(np.array([7])) + np.int32(3))
    found = lowbias32(lowbias32(np.arange(6, dtype="int32") + start) + start).astype("uint32") >> 8
    np.testing.assert_array_equal(numbers(7, 3, (2, 3)), found.reshape(2, 3) / 2.0**24)


def test_uniform():
    """Counts in 64 cells of a million numbers, and of pairs of neighbours, steps and seeds."""
    x = numbers(0, 0, (1000, 1000))
    assert 0 <= x.min() < 1e-5
    assert 1 - 1e-5 < x.max() < 1
    others = {
        "next": np.roll(x, 1, axis=1),
        "row": np.roll(x, 1, axis=0),
        "step": numbers(0, 1, (1000, 1000)),
        "seed": numbers(1, 0, (1000, 1000)),
    }
    for name, other in others.items():
        assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 4e-3, name  # 4 deviations
        cells = (8 * x).astype(int) * 8 + (8 * other).astype(int)
        counts = np.bincount(cells.ravel(), minlength=64)
        chi_square = ((counts - x.size / 64) ** 2 / (x.size / 64)).sum()
        assert chi_square < 63 + 5 * np.sqrt(2 * 63), name  # 5 deviations


def test_sequences_do_not_overlap():
    """Another step is no shift of a step."""
    x, y = (ops.convert_to_numpy(numbers(5, step, (4096,))) for step in (0, 1))
    assert len(np.intersect1d(x[:-1] * 2**24 + x[1:], y[:-1] * 2**24 + y[1:])) < 3
