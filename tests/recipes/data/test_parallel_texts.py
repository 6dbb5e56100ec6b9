"""Pairs of texts from each kind of source, and what is said of bad ones."""

import gzip
import re

import pytest

from recipes.data.parallel_texts import load
from tests.recipes.real_data import real_data

WITH_PARTS = {
    "train.de": "eins\nzwei\ndrei\n",
    "train.en": "one\ntwo\nthree\n",
    "val.de": "vier\n",
    "val.en": "four\n",
    "test_2016.de": "Fünf\nsechs\n",
    "test_2016.en": "Five\nsix\n",
    "README.md": "not read",
    "train.fr": "un\ndeux\ntrois\n",
}
TESTED = ("test_2016.de", "test_2016.en")


def write(root, files):
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (root / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return f"folder:{root}"


def test_a_folder(tmp_path):
    data = load(write(tmp_path, WITH_PARTS))
    assert data.train == (("eins", "zwei", "drei"), ("one", "two", "three"))
    assert data.validate == (("vier",), ("four",))
    assert data.test == (("Fünf", "sechs"), ("Five", "six"))
    assert data.split == "the source's own parts"
    assert data.about == (
        f"{tmp_path.name}, de to en: 3 pairs to train, 1 to validate and 2 to test"
    )
    turned = load(f"folder:{tmp_path}", ("en", "de"), lower=True)
    assert turned.test == (("five", "six"), ("fünf", "sechs"))


def test_compressed_files_ends_of_lines_and_empty_texts(tmp_path):
    """A character that Python takes for the end of a line is none here."""
    files = {"train.de.gz": "a\x85b\r\n\nc\n d \n", "train.en": "x\u2028y\nmissing\nz\n\n"}
    files |= {"val.de": "v\n", "val.en": "w\n", "test.de": "t", "test.en": "u"}
    data = load(write(tmp_path, files))
    assert data.train == (("a\x85b", "c"), ("x\u2028y", "z"))
    assert data.test == (("t",), ("u",))


def test_two_files_are_divided(tmp_path):
    count = 60
    write(tmp_path, {"a.de": "".join(f"d{i}\n" for i in range(count))})
    write(tmp_path, {"b.en": "".join(f"e{i}\n" for i in range(count))})
    dataset = f"files:{tmp_path / 'a.de'}:{tmp_path / 'b.en'}"
    data, again, other = (load(dataset, seed=seed) for seed in (1, 1, 2))
    assert data == again
    assert data.test != other.test
    parts = (data.train, data.validate, data.test)
    assert [len(part.sources) for part in parts] == [54, 3, 3]
    pairs = [pair for part in parts for pair in zip(*part, strict=True)]
    assert sorted(pairs) == sorted((f"d{i}", f"e{i}") for i in range(count))
    assert data.train.sources == tuple(sorted(data.train.sources, key=lambda x: int(x[1:])))
    assert data.split == (
        "3 pairs to validate and as many to test, drawn from those to train with seed 1"
    )
    assert data.name == "a.de, b.en"


def test_a_folder_without_a_part_to_test(tmp_path):
    lines = "".join(f"{i}\n" for i in range(60))
    data = load(write(tmp_path, {**without(*TESTED), "train.de": lines, "train.en": lines}))
    assert [len(p.sources) for p in (data.train, data.validate, data.test)] == [57, 1, 3]
    assert data.split == "3 pairs to test, drawn from those to train with seed 0"


def test_a_pair_that_comes_often_is_in_one_part(tmp_path):
    """Each of 40 pairs comes five times; a text alone may be in two parts."""
    lines = [
        "".join(f"{word}{i // by}\n" for i in range(40)) * 5 for word, by in (("d", 2), ("e", 1))
    ]
    files = {**without(*TESTED), "train.de": lines[0], "train.en": lines[1]}
    data = load(write(tmp_path, {**files, "val.de": "d0\nd0\n", "val.en": "e0\ne0\n"}))
    train, test = (list(zip(*part, strict=True)) for part in (data.train, data.test))
    assert len(test) == len(set(test)) == 2  # 5 % of the 40 that differ
    assert not set(test) & set(train)
    assert sorted([*train, *5 * test]) == sorted(5 * [(f"d{i // 2}", f"e{i}") for i in range(40)])
    assert data.validate == (("d0", "d0"), ("e0", "e0"))  # a part that is given stays as it is
    files |= {"train.de": "a\n" * 9, "train.en": "b\n" * 9}
    with pytest.raises(ValueError, match=r"enough different pairs .*pairs=9, different=1"):
        load(write(tmp_path, files))


def test_dates():
    pytest.importorskip("babel")
    data = load("dates")
    assert re.fullmatch(r"dates in 36 languages and countries, by Babel [\d.]+", data.name)
    assert [len(p.sources) for p in (data.train, data.validate, data.test)] == [9000, 500, 500]
    days = [set(part.targets) for part in (data.train, data.validate, data.test)]
    assert len(set.union(*days)) == 10_000  # no day is in two parts


def test_multi30k():
    data = load(f"folder:{real_data('multi30k/train.de.gz').parent}")
    assert [len(p.sources) for p in (data.train, data.validate, data.test)] == [29000, 1014, 1000]
    assert data.test.targets[0] == "A man in an orange hat starring at something."


def without(*names):
    return {name: text for name, text in WITH_PARTS.items() if name not in names}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**WITH_PARTS, "train.en": "one\ntwo\n"}, "equal length,.*train.de=3 lines, train.en=2"),
        ({**WITH_PARTS, "val.de": ""}, "files that hold text; .*val.de', which is empty"),
        ({**WITH_PARTS, "val.de": "\n \n"}, "files that hold text"),
        ({**WITH_PARTS, "val.de": b"\xe4\n"}, "files in UTF-8; .*file='.*val.de'"),
        ({**without("val.de"), "val.de.gz": ""}, "files that hold text"),
        (without("test_2016.en"), r"part in both languages; .*in one=\['test_2016'\]"),
        (without("train.de", "train.en"), r"named train.<language>, .*parts=\[\]"),
        ({}, "named train.<language>"),
        (
            {**WITH_PARTS, "test_2017.de": "x", "test_2017.en": "y"},
            r"at most one part to test on; .*parts=\['test_2016', 'test_2017'\]",
        ),
        ({**WITH_PARTS, "val.de": "a\n\n", "val.en": "\nb\n"}, "of which both texts are not empty"),
        (
            {"train.de": "a\nb\n", "train.en": "c\nd\n"},
            "enough different pairs to hold some out; .*pairs=2, different=2",
        ),
    ],
)
def test_unusable_folders(tmp_path, files, message):
    with pytest.raises(ValueError, match=f"`dataset` must .*{message}"):
        load(write(tmp_path, files))


def test_a_file_that_is_cut_off(tmp_path):
    dataset = write(tmp_path, {**without("val.de"), "val.de.gz": "vier\n" * 50})
    (tmp_path / "val.de.gz").write_bytes((tmp_path / "val.de.gz").read_bytes()[:-9])
    with pytest.raises(
        ValueError, match=r"`dataset` must name readable files; .*val.de.gz.*reason="
    ):
        load(dataset)
    (tmp_path / "val.de.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="`dataset` must name readable files"):
        load(dataset)


def test_a_file_that_is_damaged(tmp_path):
    """A block of a kind that does not exist, behind the ten bytes of the header."""
    dataset = write(tmp_path, {**without("val.de"), "val.de.gz": "vier\n" * 50})
    content = bytearray((tmp_path / "val.de.gz").read_bytes())
    content[10] |= 0b110
    (tmp_path / "val.de.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"readable files; .*val.de.gz.*reason=.*invalid block"):
        load(dataset)


@pytest.mark.parametrize("dataset", ["multi30k", "files:a", "files:a:b:c", "files::b", "folder:"])
def test_unknown_dataset(dataset):
    with pytest.raises(ValueError, match=f"`dataset` must be dates, files:.*dataset='{dataset}'"):
        load(dataset)


@pytest.mark.parametrize("dataset", ["folder:{}/absent", "files:{}/a:{}/b"])
def test_paths_that_do_not_exist(tmp_path, dataset):
    with pytest.raises(FileNotFoundError, match=r"`dataset` must name .* exists?; received"):
        load(dataset.format(tmp_path, tmp_path))


def test_one_language():
    with pytest.raises(ValueError, match=r"must be two languages; .*target_language='de'"):
        load("folder:x", ("de", "de"))


def test_a_set_of_tensorflow_datasets(monkeypatch, tmp_path):
    for package in ("tensorflow", "importlib_resources"):
        pytest.importorskip(package)
    tfds = pytest.importorskip("tensorflow_datasets")

    class Phrases(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "phrases"
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path

        def _info(self):
            features = tfds.features.Translation(languages=("de", "en"))
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(part) for part in ("train", "test")}

        def _generate_examples(self, part):
            for i in range(40 if part == "train" else 2):
                yield i, {"de": f"{part} ä{i}", "en": f"{part} a{i}"}

    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: Phrases(data_dir=data_dir))
    data = load("tfds:phrases", ("en", "de"), data_dir=tmp_path)
    assert data.name == "tfds:phrases, en to de"
    assert sorted(zip(*data.test, strict=True)) == [("test a0", "test ä0"), ("test a1", "test ä1")]
    assert (len(data.train.sources), len(data.validate.sources)) == (38, 2)
    for source, target in zip(*data.train, strict=True):
        assert source.replace("a", "ä").replace("trä", "tra") == target
    with pytest.raises(ValueError, match=r"must have the features en and fr; .*'tfds:phrases'"):
        load("tfds:phrases", ("en", "fr"), data_dir=tmp_path)
