"""Which cases the benchmark of decoding has, and its check that both sides agree."""

import numpy as np
import pytest

from recipes.benchmarks import decode
from recipes.benchmarks.decode import Case, Settings


def test_cases():
    found = decode.cases(Settings(steps=(64, 4096)))
    assert len(found) == len(set(found))
    hub = [case for case in found if case.peer == "keras-hub"]
    assert [str(case) for case in hub] == [
        "L=64, B=1, full",
        "L=64, B=1, window 256",
        "L=64, B=16, full",
        "L=64, B=16, window 256",
        "L=4096, B=1, full",
        "L=4096, B=1, window 256",
        "L=4096, B=16, full",
        "L=4096, B=16, window 256",
    ]
    # Without a cache, B=16 at L=4096 would hold 2**31 scores.
    rerun = [str(case) for case in found if case.peer == "keras"]
    assert rerun == [str(case) for case in hub[:6]]


@pytest.mark.parametrize(
    ("only", "count"),
    [("", 22), ("L=1024, B=1,", 4), ("window 256, keras-hub", 6), ("keras$", 10), ("L=12", 0)],
)
def test_only(only, count):
    assert len(decode.cases(Settings(only=only))) == count


def test_too_few_steps():
    with pytest.raises(ValueError, match=r"more than TOKENS=32: steps=\(256, 32\)"):
        decode.cases(Settings(steps=(256, 32)))


def outputs(**changes):
    found = {31: np.full((2, 1, 3), 0.25), 32: np.full((2, 1, 3), -0.5)}
    return found | {int(key[1:]): value for key, value in changes.items()}


@pytest.mark.parametrize(
    "theirs",
    [outputs(), {32: outputs()[32] + 4e-5}, outputs(_40=np.zeros((2, 1, 3)))],
    ids=["same", "last alone", "one more"],
)
def test_equal(theirs):
    decode.check_equal(Case(64, 2, "full", "keras"), outputs(), theirs)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (outputs(_31=outputs()[31] + 6e-5), r"difference=6e-05, largest=0\.5"),
        (outputs(_31=np.full((2, 1, 3), np.nan)), "case=L=64, B=2, full, peer=keras"),
        ({32: np.zeros((2, 3))}, r"kattn=\(1, 2, 1, 3\), theirs=\(1, 2, 3\)"),
        ({40: np.zeros((2, 1, 3))}, r"positions=\[\]"),
    ],
    ids=["differ", "nan", "shape", "no step in common"],
)
def test_not_equal(theirs, message):
    with pytest.raises(ValueError, match=message):
        decode.check_equal(Case(64, 2, "full", "keras"), outputs(), theirs)


@pytest.mark.parametrize("length", [100, 256, 700])
def test_as_ring(length):
    steps: np.ndarray = np.arange(720.0)[None, None, :, None]
    ring = decode._as_ring(steps, length)
    assert ring.shape == (1, 1, 256, 1)
    assert {step for step in ring.ravel() if step} == {*range(max(length - 256, 1), length)}
    assert all(step % 256 == slot for slot, step in enumerate(ring.ravel()) if step)
