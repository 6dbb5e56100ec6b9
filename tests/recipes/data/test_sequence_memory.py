"""Generated sequences: associative recall and copying, told by plain loops."""

import numpy as np
import pytest

from recipes.data import sequence_memory as memory
from recipes.data.sequence_memory import AssociativeRecall, CopyMemory


@pytest.mark.parametrize(("vocabulary", "length", "pairs"), [(16, 12, 1), (20, 24, 6), (40, 30, 5)])
def test_each_query_asks_for_the_value_of_its_key(rng, vocabulary, length, pairs):
    task = AssociativeRecall(vocabulary, length, (pairs,))
    tokens, labels, is_counted = task.draw(rng, 50, pairs)
    assert tokens.shape == labels.shape == is_counted.shape == (50, length)
    assert (tokens.dtype, labels.dtype, is_counted.dtype) == ("int32", "int32", "bool")
    for row, wanted, counted in zip(tokens.tolist(), labels.tolist(), is_counted, strict=True):
        values = {row[2 * i]: row[2 * i + 1] for i in range(pairs)}
        assert len(values) == len(set(values.values())) == pairs
        assert all(1 <= key < vocabulary // 2 for key in values)
        assert all(vocabulary // 2 <= value < vocabulary for value in values.values())
        queries = [t for t in range(2 * pairs, length) if row[t]]
        assert all(t % 2 == 0 for t in queries)
        assert sorted(row[t] for t in queries) == sorted(values)
        assert np.flatnonzero(counted).tolist() == queries
        assert wanted == [values[row[t]] if t in queries else 0 for t in range(length)]
    assert len({tuple(row) for row in tokens.tolist()}) > 40


def test_all_keys_and_values_are_drawn(rng):
    task = AssociativeRecall(8, 8, (2,))
    tokens = task.draw(rng, 400, 2).tokens
    assert set(tokens[:, 0]) == set(tokens[:, 2]) == {1, 2, 3}
    assert set(tokens[:, 1]) == set(tokens[:, 3]) == {4, 5, 6, 7}


def test_places_follow_the_power_law(rng):
    """The first key takes place i with p_i ~ i^(power - 1), the second one of what is left."""
    task = AssociativeRecall(16, 12, (2,), power=0.25)
    tokens = task.draw(rng, 40_000, 2).tokens
    weights = np.arange(1, 5) ** -0.75
    p = weights / weights.sum()
    pairs = np.array(
        [[p[i] * p[j] / (1 - p[i]) if i != j else 0 for j in range(4)] for i in range(4)]
    )
    found = np.zeros((4, 4))
    for row in tokens:
        first, second = (int(np.flatnonzero(row[4:] == key)[0]) // 2 for key in row[[0, 2]])
        found[first, second] += 1 / len(tokens)
    np.testing.assert_allclose(found, pairs, atol=0.01)
    assert np.abs(found - pairs.T).max() > 0.02  # the order of the draws matters


def test_what_stands_between(rng):
    """Random tokens leave pairs, queries and labels as they would be without them."""
    task = AssociativeRecall(20, 40, (3,), is_filled=True)
    tokens, labels, is_counted = task.draw(rng, 200, 3)
    given = np.zeros(40, bool)
    given[:6] = True
    for row, wanted, counted in zip(tokens.tolist(), labels.tolist(), is_counted, strict=True):
        values = {row[2 * i]: row[2 * i + 1] for i in range(3)}
        assert sorted(row[t] for t in np.flatnonzero(counted)) == sorted(values)
        assert all(wanted[t] == values[row[t]] for t in np.flatnonzero(counted))
    rest = tokens[~(given | is_counted)]
    assert np.bincount(rest, minlength=20).min() > 0.03 * len(rest)
    assert rest.max() == 19


def test_copy(rng):
    tokens, labels, is_counted = CopyMemory(5).draw(rng, 30, 5)
    assert (tokens.dtype, labels.dtype) == ("int32", "int32")
    assert is_counted.shape == (30, 25)
    assert is_counted.all()
    for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        symbols = row[:10]
        assert row == [*symbols, 0, 0, 0, 0, *[9] * 11]
        assert wanted == [*[0] * 15, *symbols]
    assert set(tokens[:, :10].ravel()) == set(range(1, 9))
    assert (CopyMemory(5).length, CopyMemory(5).vocabulary_size) == (25, 10)


@pytest.mark.parametrize(
    ("delay", "loss"), [(100, 0.1733), (200, 0.0945), (500, 0.0400), (1000, 0.0204)]
)
def test_the_guess_of_copying_is_the_published_one(delay, loss):
    found = CopyMemory(delay).guessed(delay)
    assert found == (pytest.approx(loss, abs=5e-5), 1 / 8)


def test_the_guess_of_recall():
    loss, accuracy = AssociativeRecall(16, 16, (4,)).guessed(4)
    assert loss == pytest.approx(-np.log(accuracy))
    assert accuracy == 1 / 4


def test_batches_mix_levels_and_are_drawn_anew():
    task = AssociativeRecall(20, 24, (1, 3, 6))
    data, again, other = (memory.batches(task, 8, 5, seed) for seed in (2, 2, 3))
    assert len(data) == 5
    tokens, labels, weights = data[1]
    assert weights.dtype == "float32"
    np.testing.assert_array_equal(weights > 0, labels > 0)
    assert np.bincount(weights.sum(1).astype(int)).tolist() == [0, 3, 0, 3, 0, 0, 2]
    np.testing.assert_array_equal(tokens, again[1][0])
    assert not np.array_equal(tokens, data[2][0])
    assert not np.array_equal(tokens, other[1][0])
    again.set_epoch(1)
    assert not np.array_equal(tokens, again[1][0])


class Streams:
    """A task whose sequences are the first random bits that it is given."""

    levels, unit = (1, 2), "things"

    def draw(self, rng, count, level):
        return memory.Examples(*[rng.integers(0, 2**62, (count, 1))] * 3)


@pytest.mark.parametrize("seed", [0, 7, 2**32])
def test_what_is_tested_has_generators_of_its_own(seed):
    """Even where training has the same seed. Else it began with the same 62 bits."""
    data = memory.batches(Streams(), 2, 3, seed)
    drawn = set()
    for epoch in range(3):
        data.set_epoch(epoch)
        drawn |= {int(bits) for i in range(3) for bits in data[i][0][:, 0]}
    assert len(drawn) == 18
    tested = memory.to_test(Streams(), 1, seed)
    assert len(drawn | {int(each.tokens[0, 0]) for each in tested.values()}) == 18 + 2


def test_what_is_tested_has_each_level():
    task = AssociativeRecall(64, 32, (2, 8))
    tests = memory.to_test(task, 100, 7)
    assert {level: each.is_counted.sum() for level, each in tests.items()} == {2: 200, 8: 800}
    same, other = memory.to_test(task, 100, 7), memory.to_test(task, 100, 8)
    np.testing.assert_array_equal(same[8].tokens, tests[8].tokens)
    assert not np.array_equal(other[8].tokens, tests[8].tokens)


def test_levels_rise():
    assert AssociativeRecall(64, 32, (8, 2, 4, 2)).levels == (2, 4, 8)


def test_a_batch_has_all_levels():
    task = AssociativeRecall(64, 32, (2, 4, 8))
    weights = memory.batches(task, 3, 1, 0)[0][2]
    assert weights.sum(1).tolist() == [2, 4, 8]
    with pytest.raises(
        ValueError,
        match=r"`batch_size` must be at least the number of levels, which count pairs; "
        r"received: batch_size=2, levels=\(2, 4, 8\)",
    ):
        memory.batches(task, 2, 1, 0)


def test_scores_are_means_over_labels():
    task = AssociativeRecall(64, 32, (2, 8))
    found = memory.scores(memory.to_test(task, 10, 0), {2: (1.0, 0.5), 8: (2.0, 0.25)})
    assert found == {"loss": pytest.approx(1.8), "accuracy_2": 0.5, "accuracy_8": 0.25}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary_size": 15}, "`vocabulary_size` must be even; received: vocabulary_size=15"),
        ({"length": 31}, "`length` must be even; received: length=31"),
        ({"length": 2}, "`length` must be an integer >= 4"),
        ({"levels": ()}, r"`pairs` must name at least one number; received: pairs=\(\)"),
        ({"levels": (2, 0)}, "`pairs` must be an integer >= 1; received: pairs=0"),
        ({"levels": (9,)}, "`pairs` must be at most a quarter of `length`.*pairs=9, .*length=32"),
        ({"levels": (4,), "vocabulary_size": 8}, "less than half of `vocabulary_size`; .*pairs=4"),
        ({"power": -1.0}, "`power` must be a finite number >= 0"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        AssociativeRecall(**options)


def test_a_delay_that_is_none():
    with pytest.raises(ValueError, match="`delay` must be an integer >= 1; received: delay=0"):
        CopyMemory(0)
