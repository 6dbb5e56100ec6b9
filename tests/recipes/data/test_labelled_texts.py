"""Labelled texts from each kind of source, and what is said of bad ones."""

import inspect

import numpy as np
import pytest

from recipes.data.labelled_texts import TextData, first_paragraphs, load


def folder(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"folder:{root}"


WITH_SPLITS = {
    "train/good/1.txt": "fine",
    "train/good/2.md": "lovely",
    "train/bad/1.txt": "awful",
    "test/good/1.txt": "nice",
    "test/bad/1.TXT": "poor",
    "test/bad/x.png": "not read",
}


def test_docstrings_of_scipy():
    data = load("scipy")
    assert data.name.startswith("docstrings of SciPy ")
    assert len(data.classes) == 11
    count = len(data.texts) + len(data.test_texts)
    assert 800 < count < 3000
    assert len({*data.texts, *data.test_texts}) == count  # none is in both
    assert len(data.test_texts) == pytest.approx(count / 5, abs=11)
    assert set(data.labels) == set(data.test_labels) == set(range(11))
    of_fft = [text for text, label in zip(data.texts, data.labels, strict=True) if label == 0]
    assert sum("Fourier" in text for text in of_fft) > 5
    assert not any("scipy." in text for text in data.texts)
    again, other = load("scipy"), load("scipy", seed=1)
    assert again.test_texts == data.test_texts
    assert other.test_texts != data.test_texts


def test_what_is_taken_of_a_docstring():
    docstring = """gamma(z, out=None)

    The gamma function, as
    in `scipy.special.loggamma`.

    It has poles.

    Parameters
    ----------
    z : array_like
    """
    taken = first_paragraphs(inspect.cleandoc(docstring))
    assert taken == "The gamma function, as in ``. It has poles."


def test_split_folders(tmp_path):
    data = load(folder(tmp_path, WITH_SPLITS))
    assert data.classes == ("bad", "good")
    assert data.texts == ("awful", "fine", "lovely")
    assert data.labels.tolist() == [0, 1, 1]
    assert (data.test_texts, data.test_labels.tolist()) == (("poor", "nice"), [0, 1])
    assert data.split == (
        "the source's own folders train and test; "
        "2 classes from the folders at level 2, ['bad', 'good']"
    )


def test_names_of_splits_in_any_case_and_linked_folders(tmp_path):
    files = {"Training/good/1.txt": "fine", "Training/bad/1.txt": "awful"}
    dataset = folder(tmp_path / "root", files)
    folder(tmp_path / "elsewhere", {"good/1.txt": "nice", "bad/1.txt": "poor"})
    (tmp_path / "root/Dev").symlink_to("../elsewhere")
    data = load(dataset)
    assert (data.texts, data.test_texts) == (("awful", "fine"), ("poor", "nice"))
    (tmp_path / "root/Training/bad/2.txt").symlink_to("absent.txt")
    reason = r"'Training/bad/2\.txt', reason='No such file or directory'"
    with pytest.raises(ValueError, match=rf"`dataset` must hold readable .*, text={reason}"):
        load(dataset)


def test_level_of_the_classes(tmp_path):
    files = {f"{kind}/old/{i}.txt": f"a {kind}" for kind in ("train", "bus") for i in range(5)}
    dataset = folder(tmp_path, files)
    with pytest.raises(ValueError, match=r"--classes-from\) must be given"):
        load(dataset)
    data = load(dataset, classes_from=1)
    assert data.classes == ("bus", "train")
    assert (sorted({*data.texts}), len(data.test_texts)) == (["a bus", "a train"], 2)
    assert data.split == (
        "no splits in the source: 20% of each class, drawn with seed 0; "
        "2 classes from the folders at level 1, ['bus', 'train']"
    )
    rule = "`classes_from` must be a level of the folders in folder:.*; received: dataset='scipy', "
    with pytest.raises(ValueError, match=f"{rule}classes_from=1"):
        load("scipy", classes_from=1)


def test_seeded_split_where_there_is_none(tmp_path):
    files = {f"{name}/{i}.txt": f"{name} {i}" for name in ("a", "b") for i in range(10)}
    dataset = folder(tmp_path, files)
    first, again, other = (load(dataset, seed=seed) for seed in (1, 1, 2))
    assert np.bincount(first.test_labels).tolist() == [2, 2]
    assert sorted([*first.texts, *first.test_texts]) == sorted(files.values())
    for text, label in zip(first.texts, first.labels, strict=True):
        assert text.startswith(first.classes[label])
    assert first.test_texts == again.test_texts != other.test_texts
    assert "drawn with seed 1" in first.split


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"good/x.png": "x"}, "must hold texts .*files=1, texts=0"),
        ({"1.txt": "x", "good/1.txt": "x"}, "laid out <split>/<class>/<text> .*'1.txt'"),
        ({"good/1.txt": "x", "good/2.txt": "y"}, r"two classes; .*classes=\('good',\)"),
        ({"good/1.txt": "x", "bad/1.txt": "y"}, "two texts of each class; .*'bad', texts=1"),
        ({**WITH_SPLITS, "train/bad/2.txt": b"\xe4"}, "texts in UTF-8; .*text='train/bad/2.txt'"),
    ],
)
def test_unusable_folders(tmp_path, files, message):
    with pytest.raises(ValueError, match=f"`dataset` .*{message}"):
        load(folder(tmp_path, files))


@pytest.mark.parametrize("dataset", ["imdb", "folder:", "tfds:", ""])
def test_unknown_dataset(dataset):
    with pytest.raises(ValueError, match=f"`dataset` must be scipy, tfds:.*dataset='{dataset}'"):
        load(dataset)


def test_what_validates_is_held_out_first():
    labels = np.arange(200, dtype="int32") % 2
    texts = tuple(map(str, range(200)))
    data = TextData("x", ("a", "b"), texts, labels, texts[:2], labels[:2], "none")
    fit, validate = data.to_fit_and_to_validate()
    assert len(validate) == 30
    assert sorted([*fit, *validate]) == list(range(200))
    few, same = data.to_fit_and_to_validate(per_class=7)
    np.testing.assert_array_equal(validate, same)
    assert np.bincount(labels[few]).tolist() == [7, 7]
    assert set(few) <= set(fit)
    more, _ = data.to_fit_and_to_validate(per_class=1000)
    assert sorted(more) == sorted(fit)
    one = TextData("x", ("a", "b"), texts[:3], labels[:3], (), labels[:0], "none")
    with pytest.raises(ValueError, match=r"enough texts to validate.*texts=3"):
        one.to_fit_and_to_validate()


def test_a_set_of_tensorflow_datasets(monkeypatch, tmp_path):
    for package in ("tensorflow", "importlib_resources"):
        pytest.importorskip(package)
    tfds = pytest.importorskip("tensorflow_datasets")

    class Reviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "reviews"
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["neg", "pos"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            for i in range(4):
                yield i, {"text": f"{split} {i}", "label": i % 2}

    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: Reviews(data_dir=data_dir))
    data = load("tfds:reviews", data_dir=tmp_path)
    assert data.classes == ("neg", "pos")
    assert sorted(data.texts) == [f"train {i}" for i in range(4)]
    for text, label in zip(data.test_texts, data.test_labels, strict=True):
        assert int(text[-1]) % 2 == label
    assert data.split == "the set's own train and test"
