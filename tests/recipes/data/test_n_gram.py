"""The n-gram against counts by hand, and against what is known of a real text."""

import numpy as np
import pytest

from recipes.data.n_gram import NGram
from recipes.data.text import load
from tests.recipes.real_data import real_data


def expected(seen, context, token, size):
    """Witten and Bell 1991, method C, by going through the text."""
    if context is None:
        return 1 / size
    n = len(context)
    behind = [seen[i + n] for i in range(len(seen) - n) if seen[i : i + n] == context]
    shorter = expected(seen, context[1:] if n else None, token, size)
    if not behind:
        return shorter
    kinds = len(set(behind))
    return (behind.count(token) + kinds * shorter) / (len(behind) + kinds)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_matches_counts_by_hand(rng, order):
    seen = rng.integers(0, 3, 60).tolist()
    new = rng.integers(0, 4, 12).tolist()  # 3 was never seen
    found = NGram(np.array(seen), order, 4)
    wanted = [expected(seen, new[i - order + 1 : i], new[i], 4) for i in range(order - 1, len(new))]
    np.testing.assert_allclose(found.probabilities(np.array(new)), wanted, rtol=1e-12)
    chances = found.distribution(np.array(new))
    context = new[len(new) - order + 1 :]
    np.testing.assert_allclose(chances, [expected(seen, context, t, 4) for t in range(4)])
    assert chances.sum() == pytest.approx(1)


def test_samples_follow_the_counts():
    found = NGram(np.array([0, 1, 2] * 400), 3, 4)
    written = found.sample(np.array([0, 1]), 200, seed=1)
    assert (written[:9] == [2, 0, 1] * 3).all()
    assert np.bincount(written, minlength=4)[:3] == pytest.approx([67, 67, 67], abs=5)
    np.testing.assert_array_equal(written, found.sample(np.array([0, 1]), 200, seed=1))


def test_too_many_sequences_to_number():
    with pytest.raises(ValueError, match=r"`order` must be small .*order=12, vocabulary_size=100"):
        NGram(np.arange(20), 12, 100)


def test_tiny_shakespeare():
    """Nats per character of the last tenth, as they were published for this smoothing."""
    path = real_data("tiny_shakespeare/input.txt")
    text = load(f"file:{path}", None, length=64, batch=1)
    assert (len(text.train), len(text.held_out)) == (
        1_003_855,
        111_539,
    )  # nanoGPT's has one less to train
    counts = NGram(text.train, 5, len(text.characters))
    chances = counts.probabilities(np.concatenate([text.train[-4:], text.held_out]))
    assert -np.log(chances).mean() == pytest.approx(1.669, abs=5e-4)
