"""Texts as numbers of characters."""

import numpy as np
import pytest

from recipes.data.text import load_text


@pytest.fixture
def text(tmp_path):
    """Lines of a's and b's, in which b follows a."""
    path = tmp_path / "ab.txt"
    path.write_text("ab" * 400 + "\n" + "abab\n" * 100, encoding="utf-8")
    return path


def test_text_is_held_out_and_targets_come_next(text):
    found = load_text(text, length=6, batch=4)
    assert found.characters == "\nab"
    assert len(found.train) == 1171  # of 1301
    whole = "".join(found.characters[i] for i in [*found.train, *found.held_out])
    assert whole == text.read_text()
    x, y = found.to_validate(6, 4)
    assert x.shape == y.shape == (20, 6)
    np.testing.assert_array_equal(x.ravel(), found.held_out[:120])
    np.testing.assert_array_equal(y.ravel(), found.held_out[1:121])
    windows = found.windows(500, 6, seed=1)
    known = {tuple(found.train[i : i + 7]) for i in range(1171 - 6)}
    assert {tuple(window) for window in windows} <= known
    assert not np.array_equal(windows, found.windows(500, 6, seed=2))


def test_default_text_is_pythons_documentation():
    found = load_text(None, 64, 16)
    assert "documentation of Python 3." in found.name
    assert len(found.train) > 300_000
