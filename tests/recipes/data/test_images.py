"""Reading labelled images from each kind of source, and what is said of bad ones."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from recipes.data import images, sources


def picture(value, *, size=(6, 4), mode="RGB", file_format="PNG"):
    """One image as the bytes of a file; `value` fills it."""
    stream = io.BytesIO()
    Image.new(mode, size, value).save(stream, file_format)
    return stream.getvalue()


def folder(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"folder:{root}"


def archive(root, files):
    with zipfile.ZipFile(root / "images.zip", "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return f"zip:{root / 'images.zip'}"


WITH_SPLITS = {
    "train/cat/1.png": picture((1, 2, 3)),
    "train/cat/2.png": picture((2, 2, 3)),
    "train/dog/1.png": picture((3, 2, 3)),
    "test/cat/1.png": picture((4, 2, 3)),
    "test/dog/1.PNG": picture((5, 2, 3)),
    "test/dog/notes.txt": b"not an image",
    "test/dog/.hidden.png": b"not read",
}


def test_digits():
    data = images.load("digits")
    assert data.x_train.shape == (1200, 8, 8, 1)
    assert data.x_test.shape == (597, 8, 8, 1)
    assert data.x_train.dtype == "uint8"
    assert (data.x_train.min(), data.x_train.max()) == (0, 255)
    assert data.classes == tuple("0123456789")
    assert list(data.y_train[:12]) == [*range(10), 0, 1]
    assert images.load("digits", image_size=12).x_test.shape == (597, 12, 12, 1)


@pytest.mark.parametrize("make", [folder, archive])
@pytest.mark.parametrize("around", ["", "pets/"])
def test_split_folders(tmp_path, make, around):
    data = images.load(make(tmp_path, {around + name: f for name, f in WITH_SPLITS.items()}))
    assert data.classes == ("cat", "dog")
    assert data.image_shape == (4, 6, 3)
    assert data.x_train[:, 0, 0].tolist() == [[1, 2, 3], [2, 2, 3], [3, 2, 3]]
    assert data.y_train.tolist() == [0, 0, 1]
    assert data.x_test[:, 0, 0].tolist() == [[4, 2, 3], [5, 2, 3]]
    assert data.y_test.tolist() == [0, 1]
    assert data.split == (
        "the source's own folders train and test; "
        f"2 classes from the folders at level {3 if around else 2}, ['cat', 'dog']"
    )


@pytest.mark.parametrize("make", [folder, archive])
def test_seeded_split_where_there_is_none(tmp_path, make):
    files = {
        f"{c}/{i}.png": picture(10 * i + n, mode="L") for n, c in enumerate("ab") for i in range(10)
    }
    dataset = make(tmp_path, files)
    first, again, other = (images.load(dataset, seed=seed) for seed in (1, 1, 2))
    assert first.x_train.shape == (16, 4, 6, 1)
    assert np.bincount(first.y_test).tolist() == [2, 2]
    seen = np.concatenate([first.x_train, first.x_test])[:, 0, 0, 0]
    assert sorted(seen) == sorted(10 * i + n for n in range(2) for i in range(10))
    labels = np.concatenate([first.y_train, first.y_test])
    np.testing.assert_array_equal(seen % 10, labels)
    np.testing.assert_array_equal(first.x_test, again.x_test)
    assert not np.array_equal(first.x_test, other.x_test)
    assert "drawn with seed 1" in first.split


def test_one_coloured_image_makes_all_rgb(tmp_path):
    files = {"a/1.png": picture(7, mode="L"), "b/1.png": picture((1, 2, 3))}
    files |= {
        "a/2.png": picture(True, mode="1"),
        "b/2.png": picture((0, 100, 255, 51), mode="RGBA"),
    }
    data = images.load(folder(tmp_path, files))
    pixels = np.concatenate([data.x_train, data.x_test])[:, 0, 0].tolist()
    assert sorted(pixels) == [[1, 2, 3], [7, 7, 7], [204, 224, 255], [255, 255, 255]]


def test_different_sizes_are_resized_on_demand(tmp_path):
    files = {
        f"{c}/{i}.jpg": picture(9, size=(6 + i, 4), file_format="JPEG")
        for c in "ab"
        for i in (1, 2)
    }
    dataset = folder(tmp_path, files)
    rule = (
        r"must hold images of one size, or image_size \(--image-size\) be given; .*"
        r"'a/1.jpg' is \(4, 7\), 'a/2.jpg' is \(4, 8\)"
    )
    with pytest.raises(ValueError, match=rule):
        images.load(dataset)
    assert images.load(dataset, image_size=5).image_shape == (5, 5, 3)


@pytest.mark.parametrize("make", [folder, archive])
@pytest.mark.parametrize("content", [b"no image", b"", picture((1, 2, 3))[:50]])
def test_corrupt_image(tmp_path, make, content):
    dataset = make(tmp_path, {**WITH_SPLITS, "train/dog/bad.png": content})
    with pytest.raises(
        ValueError,
        match=r"readable images only; received: dataset='.*image='train/dog/bad.png', reason=",
    ):
        images.load(dataset)


def test_corrupt_zip_member(tmp_path):
    content = picture((1, 2, 3))
    dataset = archive(tmp_path, {**WITH_SPLITS, "train/dog/bad.png": content})
    path = tmp_path / "images.zip"
    stored = path.read_bytes()
    start = stored.index(b"train/dog/bad.png") + len("train/dog/bad.png")
    path.write_bytes(stored[: start + 30] + b"\0\0" + stored[start + 32 :])  # the checksum is off
    with pytest.raises(ValueError, match=r"readable images only; .*image='train/dog/bad.png'"):
        images.load(dataset)


def damaged_lzma(path):
    """Overwrites the middle of the packed bytes of the last file."""
    stored = bytearray(path.read_bytes())
    start = stored.rindex(b"train/dog/bad.png", 0, stored.index(b"PK\1\2")) + 30
    stored[start : start + 20] = b"\xff" * 20
    path.write_bytes(stored)


def marked(offset, value):
    """Sets a number of two bytes in each of the two headers of the last file."""

    def mark(path):
        stored = bytearray(path.read_bytes())
        local = stored.rindex(b"PK\3\4")
        central = stored.rindex(b"PK\1\2")
        for start in (local + offset, central + offset + 2):
            stored[start : start + 2] = value.to_bytes(2, "little")
        path.write_bytes(stored)

    return mark


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damaged_lzma, "LZMAError: "),
        (marked(6, 1), "RuntimeError: .*password"),
        (marked(8, 9), "NotImplementedError: .*compression"),
    ],
)
def test_zip_member_that_cannot_be_unpacked(tmp_path, damage, reason):
    dataset = archive(tmp_path, WITH_SPLITS)
    path = tmp_path / "images.zip"
    noise = np.random.default_rng(0).integers(0, 256, 999, "uint8").tobytes()
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as target:
        target.writestr("train/dog/bad.png", noise)
    damage(path)
    with pytest.raises(ValueError, match=f"image='train/dog/bad.png', reason=.*{reason}") as told:
        images.load(dataset)
    assert dataset in str(told.value)


def test_zip_file_with_a_damaged_index(tmp_path):
    dataset = archive(tmp_path, WITH_SPLITS)
    path = tmp_path / "images.zip"
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\1\3"))
    with pytest.raises(ValueError, match=r"a zip file that can be read; .*reason='BadZipFile: "):
        images.load(dataset)


def test_image_with_too_many_pixels(tmp_path, monkeypatch):
    dataset = folder(tmp_path, {**WITH_SPLITS, "train/dog/big.png": picture(0, size=(50, 50))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"image='train/dog/big.png', reason='DecompressionBombEr"):
        images.load(dataset)


def test_whatever_a_decoder_raises_is_said(tmp_path, monkeypatch):
    def decode(content):
        raise KeyError(274)

    monkeypatch.setattr(images.pixels, "decode", decode)
    with pytest.raises(ValueError, match=r"image='train/cat/1.png', reason='KeyError: 274'"):
        images.load(folder(tmp_path, WITH_SPLITS))


def test_deep_grey_has_one_channel(tmp_path):
    levels = {"a/1": 0, "a/2": 257, "b/1": 32896, "b/2": 65535}
    files = {f"{name}.png": picture(level, mode="I;16") for name, level in levels.items()}
    data = images.load(folder(tmp_path, files))
    assert data.image_shape == (4, 6, 1)
    assert sorted(np.concatenate([data.x_train, data.x_test])[:, 0, 0, 0]) == [0, 1, 128, 255]
    files["a/1.tif"] = picture(3.0, mode="F", file_format="TIFF")
    reason = "floats from 3 to 3, not from 0"
    with pytest.raises(ValueError, match=f"image='a/1.tif', reason='{reason}"):
        images.load(folder(tmp_path, files))


@pytest.mark.parametrize(
    "dataset", ["cifar10", "ftp:mnist", "folder:", "zip:", "tfds:", "", "digits:8"]
)
def test_unknown_dataset(dataset):
    with pytest.raises(
        ValueError, match=f"`dataset` must be digits, tfds:.*; received: dataset='{dataset}'"
    ):
        images.load(dataset)


@pytest.mark.parametrize("scheme", ["folder", "zip"])
def test_path_does_not_exist(tmp_path, scheme):
    dataset = f"{scheme}:{tmp_path / 'absent'}"
    with pytest.raises(
        FileNotFoundError, match=r"`dataset` must name a .* that exists; received: dataset="
    ):
        images.load(dataset)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("folder:{}/a.txt", "a folder, not a file"),
        ("zip:{}/a.txt", "a zip file"),
        ("zip:{}", "zip file"),
    ],
)
def test_path_of_the_wrong_kind(tmp_path, dataset, message):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=f"`dataset` must name .*{message}.*; received: dataset="):
        images.load(dataset.format(tmp_path))


@pytest.mark.parametrize("make", [folder, archive])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cat/notes.txt": b"x"}, "must hold images .*files=1, images=0"),
        ({"1.png": picture(1), "cat/1.png": picture(1)}, "must be laid out .*misplaced=.'1.png'"),
        ({**WITH_SPLITS, "extra/1.png": picture(1)}, "must be given .* are .'extra', 'test', "),
        (
            {**WITH_SPLITS, "test/cow/1.png": picture((1, 2, 3))},
            "every class; .*only in test=.'cow'",
        ),
        ({"cat/1.png": picture(1), "cat/2.png": picture(2)}, r"two classes; .*classes=\('cat',\)"),
        (
            {"cat/1.png": picture(1), "dog/1.png": picture(2)},
            "two images of each class; .*'cat', images=1",
        ),
    ],
)
def test_unusable_layout(tmp_path, make, files, message):
    with pytest.raises(ValueError, match=f"`(dataset|classes_from)` .*{message}"):
        images.load(make(tmp_path, files))


@pytest.mark.parametrize("make", [folder, archive])
def test_level_of_the_classes(tmp_path, make):
    files = {f"{kind}/old/{i}.png": picture(i) for kind in ("train", "bus") for i in range(5)}
    dataset = make(tmp_path, files)
    with pytest.raises(ValueError, match=r"--classes-from\) must be given"):
        images.load(dataset)
    data = images.load(dataset, classes_from=1)
    assert (data.classes, len(data.y_train), len(data.y_test)) == (("bus", "train"), 8, 2)
    assert data.split == (
        "no splits in the source: 20% of each class, drawn with seed 0; "
        "2 classes from the folders at level 1, ['bus', 'train']"
    )
    assert images.load(dataset, classes_from=1, image_size=2).image_shape == (2, 2, 3)


@pytest.mark.parametrize(("dataset", "level"), [("digits", 1), ("tfds:x", 1), ("folder:x", 0)])
def test_level_that_does_not_fit(dataset, level):
    rule = "`classes_from` must be a level of the folders in folder:<path> or zip:<path>, from 1; "
    with pytest.raises(ValueError, match=f"{rule}.*'{dataset}', classes_from={level}"):
        images.load(dataset, classes_from=level)


def test_linked_folders(tmp_path):
    files = {name: f for name, f in WITH_SPLITS.items() if name.startswith("train/cat/")}
    dataset = folder(tmp_path / "root", files)
    others = {name: f for name, f in WITH_SPLITS.items() if name not in files}
    folder(tmp_path / "elsewhere", others)
    (tmp_path / "root/test").symlink_to("../elsewhere/test")
    (tmp_path / "root/train/dog").symlink_to("../../elsewhere/train/dog")
    (tmp_path / "root/train/again").symlink_to("..")
    data = images.load(dataset)
    assert data.y_train.tolist() == [0, 0, 1]
    assert data.x_test[:, 0, 0].tolist() == [[4, 2, 3], [5, 2, 3]]
    assert data.split.endswith("; without images: ['train/again']")


def test_links_in_a_zip_file(tmp_path):
    """They cannot be followed: a folder counts as empty, an image cannot be read."""

    def linked(name):
        dataset = archive(tmp_path, WITH_SPLITS)
        with zipfile.ZipFile(tmp_path / "images.zip", "a") as target:
            link = zipfile.ZipInfo(name)
            link.create_system, link.external_attr = 3, 0o120777 << 16
            target.writestr(link, "../elsewhere")
        return dataset

    assert images.load(linked("train/cow")).split.endswith("; without images: ['train/cow']")
    with pytest.raises(ValueError, match=r"image='train/cow/1.png', reason='no image of a known"):
        images.load(linked("train/cow/1.png"))


def test_empty_folders_in_a_zip_file(tmp_path):
    data = images.load(archive(tmp_path, {**WITH_SPLITS, "train/cow/": b""}))
    assert data.split.endswith("; without images: ['train/cow']")


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"must hold images .*files=0, images=0"):
        images.load(f"folder:{tmp_path}")


def test_image_size_below_one():
    with pytest.raises(
        ValueError, match="`image_size` must be at least 1 pixel; received: image_size=0"
    ):
        images.load("digits", image_size=0)


def test_missing_extra(monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    rule = r"'kattn\[datasets\]'\); received: dataset='tfds:mnist', missing=\['tensorflow', "
    with pytest.raises(ValueError, match=rule):
        images.load("tfds:mnist")


@pytest.fixture
def tfds():
    for package in ("tensorflow", "importlib_resources"):
        pytest.importorskip(package)
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def prepared(tfds, tmp_path):
    """Has TensorFlow Datasets prepare a few images, offline; returns the arguments of `load`."""

    def prepare(title, splits, shape):
        class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = title
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = tmp_path

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "id": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                for i in range(6):
                    height = shape[0] or 4 + i
                    image = np.full((height, 5, 3), 10 * i + (split == "train"), "uint8")
                    yield i, {"image": image, "label": i % 2, "id": str(i)}

        use(Pets)
        return {"dataset": f"tfds:{title}", "data_dir": tmp_path}

    with pytest.MonkeyPatch.context() as patch:

        def use(builder):
            patch.setattr(tfds, "builder", lambda name, data_dir: builder(data_dir=data_dir))

        yield prepare


def test_tensorflow_datasets(prepared):
    data = images.load(**prepared("pets", ("train", "test"), (4, 5, 3)))
    assert data.classes == ("cat", "dog")
    assert data.split == "the set's own train and test"
    assert (data.x_train.shape, data.x_test.shape) == ((6, 4, 5, 3), (6, 4, 5, 3))
    for x, y, odd in ((data.x_train, data.y_train, 1), (data.x_test, data.y_test, 0)):
        assert sorted(x[:, 0, 0, 0]) == [10 * i + odd for i in range(6)]
        np.testing.assert_array_equal(x[:, 0, 0, 0] // 10 % 2, y)


def test_tensorflow_datasets_of_different_sizes_and_without_a_test_split(prepared):
    arguments = prepared("odd_pets", ("train",), (None, None, 3))
    with pytest.raises(ValueError, match=r"images of one size.*--image-size.*'train 0' is"):
        images.load(**arguments)
    data = images.load(**arguments, image_size=7)
    assert (data.x_train.shape, data.x_test.shape) == ((4, 7, 7, 3), (2, 7, 7, 3))
    assert "drawn with seed 0" in data.split


def test_tensorflow_datasets_that_is_unknown_or_holds_no_images(tfds, tmp_path):
    with pytest.raises(
        ValueError, match="TensorFlow Datasets knows; received: dataset='tfds:mnits'"
    ):
        images.load("tfds:mnits", data_dir=tmp_path)
    with pytest.raises(
        ValueError, match="features image and label; received: dataset='tfds:ag_news_subset'"
    ):
        images.load("tfds:ag_news_subset", data_dir=tmp_path)
