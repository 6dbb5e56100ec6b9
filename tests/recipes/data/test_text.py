"""Texts as numbers of characters."""

import numpy as np
import pytest

from recipes.data.text import load, load_text


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


@pytest.mark.parametrize("length", [2, 7, 8])
def test_each_character_held_out_is_predicted_once_from_half_a_window(text, length):
    found = load(f"file:{text}", None, length=length, batch=1)
    inputs, targets, is_real = found.strided(length)
    assert inputs.shape == (len(targets), length)
    assert targets.shape == is_real.shape == (len(inputs), length // 2)
    np.testing.assert_array_equal(targets[is_real], found.held_out)
    # A target is what stands behind its input, so the first of them has this context or more:
    assert length - length // 2 + 1 > length / 2
    whole = np.concatenate([found.train, found.held_out])
    for row in range(len(inputs) - 1):
        start = len(found.train) + row * (length // 2) - (length - length // 2 + 1)
        np.testing.assert_array_equal(inputs[row], whole[start : start + length])
        np.testing.assert_array_equal(targets[row][:-1], inputs[row][length - length // 2 + 1 :])


def test_batches_are_drawn_anew_in_each_epoch(text):
    found = load_text(text, 6, 4)
    data, again = (found.batches(6, 4, 5, seed=2) for _ in range(2))
    assert len(data) == 5
    x, y = data[3]
    assert x.shape == y.shape == (4, 6)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    known = {tuple(found.train[i : i + 7]) for i in range(1171 - 6)}
    assert {(*row, last) for row, last in zip(x.tolist(), y[:, -1].tolist(), strict=True)} <= known
    np.testing.assert_array_equal(x, again[3][0])
    again.set_epoch(1)
    assert not np.array_equal(x, again[3][0])
    assert not np.array_equal(x, found.batches(6, 4, 5, seed=3)[3][0])


def test_a_set_of_tensorflow_datasets(monkeypatch, tmp_path):
    """All splits behind each other, in the order in which they were cut."""
    for package in ("tensorflow", "importlib_resources"):
        pytest.importorskip(package)
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tales(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tales"
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                split: self._generate_examples(split) for split in ("test", "train", "validation")
            }

        def _generate_examples(self, split):
            yield 0, {"text": {"train": "ab" * 45, "validation": "c" * 6, "test": "d" * 4}[split]}

    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: Tales(data_dir=data_dir))
    found = load("tfds:tales", tmp_path, length=3, batch=2)
    assert found.name == "tfds:tales"
    numbers = [*found.train, *found.held_out]
    assert "".join(found.characters[i] for i in numbers) == "ab" * 45 + "c" * 6 + "d" * 4


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("books", "`dataset` must be pydoc, tfds:<name> or file:<path>; .*'books'"),
        ("file:", "`dataset` must be pydoc"),
        ("file:{}/absent.txt", "`dataset` must name a file that exists"),
        ("file:{}/latin.txt", "`dataset` must name a file in UTF-8"),
        ("file:{}/one.txt", "`dataset` must have at least two different characters"),
        ("file:{}/short.txt", "`dataset` must be more than ten times as long .*characters=50"),
    ],
)
def test_unusable_texts(tmp_path, dataset, message):
    (tmp_path / "latin.txt").write_bytes(b"\xe4" * 500)
    (tmp_path / "one.txt").write_text("a" * 500)
    (tmp_path / "short.txt").write_text("ab" * 25)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(dataset.format(tmp_path), None, length=8, batch=2)
