"""Batches of pairs of about one length."""

import numpy as np
import pytest

from recipes.data import length_buckets
from recipes.data.length_buckets import LengthBuckets, teacher_forcing


@pytest.fixture
def pairs(rng):
    """Rows of tokens of 1 to 20, the targets of which begin with 1 and end with 2."""
    count, most = 210, 24
    source, target = np.zeros((count, most), "int32"), np.zeros((count, most + 1), "int32")
    for i in range(count):
        lengths = rng.integers(1, 21, 2)
        source[i, : lengths[0]] = rng.integers(3, 99, lengths[0])
        target[i, : lengths[1] + 2] = [1, *rng.integers(3, 99, lengths[1]), 2]
    return source, target


def cut(row):
    return tuple(row[row != 0].tolist())


def test_an_epoch_reads_each_pair_once(pairs):
    data = LengthBuckets(*pairs, batch_size=8, seed=0, multiple=4)
    known = {(cut(source), cut(target)) for source, target in zip(*pairs, strict=True)}
    seen = set()
    for (source, read), wanted, weights in (data[i] for i in range(len(data))):
        assert source.shape == read.shape == wanted.shape == weights.shape
        assert source.shape[1] % 4 == 0
        longest = max((source != 0).sum(1).max(), (wanted != 0).sum(1).max())
        assert source.shape[1] < longest + 4
        np.testing.assert_array_equal(weights, (wanted != 0).astype("float32"))
        for a, b, c in zip(source, read, wanted, strict=True):
            end = (c != 0).sum()
            np.testing.assert_array_equal(b[1:end], c[: end - 1])
            seen.add((cut(a), (int(b[0]), *cut(c))))
    assert len(seen) == len(data) * 8 == 208
    assert seen <= known


def test_widths_are_alike_in_a_batch(pairs):
    """Most padding goes: without the buckets, nearly every batch has a pair of full length."""
    data = LengthBuckets(*pairs, batch_size=8, seed=0, multiple=4)
    widths = [data[i][0][0].shape[1] for i in range(len(data))]
    assert len(set(widths)) > 3
    rises = (np.diff(widths) > 0).sum(), (np.diff(widths) < 0).sum()
    assert min(rises) > 4  # the order of the batches is drawn, too
    order = np.random.default_rng(0).permutation(208)
    drawn = 4 * np.ceil(data.lengths[order].reshape(-1, 8).max(1) / 4)
    assert np.mean(widths) < 0.8 * drawn.mean()
    assert abs(widths[0] - np.mean(widths)) < 4


def test_the_order_depends_on_seed_and_epoch(pairs):
    def order(seed, epoch):
        return LengthBuckets(*pairs, batch_size=8, seed=seed, multiple=4).order(epoch)

    assert sorted(order(1, 0)) == list(range(210))
    np.testing.assert_array_equal(order(1, 3), order(1, 3))
    assert not np.array_equal(order(1, 0), order(1, 1))
    assert not np.array_equal(order(1, 0), order(2, 0))
    data = LengthBuckets(*pairs, batch_size=8, seed=1, multiple=4)
    first = data[5][0][0]
    data.set_epoch(1)
    assert not np.array_equal(first, data[5][0][0])
    data.set_epoch(0)
    np.testing.assert_array_equal(first, data[5][0][0])
    assert data.get_config()["multiple"] == 4  # a training with other widths does not go on


def test_pairs_are_sorted_in_pools(pairs, monkeypatch):
    """Not over the whole epoch, whose batches would then be the same ones in each."""
    monkeypatch.setattr(length_buckets, "POOL", 2)
    data = LengthBuckets(*pairs, batch_size=8, seed=1, multiple=4)
    drawn = super(LengthBuckets, data).order(0)
    pool = {frozenset(drawn[i : i + 16].tolist()) for i in range(0, 208, 16)}
    batches = data.order(0)[:208].reshape(-1, 8)
    assert all(any(set(batch) <= each for each in pool) for batch in batches.tolist())


def test_widths_end_with_the_rows():
    source, target = np.ones((1, 10), "int32"), np.ones((1, 11), "int32")
    (read, _), wanted, _ = teacher_forcing((source, target), 8)
    assert read.shape == wanted.shape == (1, 10)


def test_too_few_pairs(pairs):
    with pytest.raises(ValueError, match=r"`data` must fill at least one batch; .*batch_size=500"):
        LengthBuckets(*pairs, batch_size=500, seed=0)
