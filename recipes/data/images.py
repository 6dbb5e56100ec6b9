"""Labelled images as NumPy arrays: an embedded set, TensorFlow Datasets, a folder or a zip file."""

import os
import stat
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recipes.data import class_folders, pixels, sources

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageData:
    """Images `(count, H, W, C)` uint8 with labels `(count,)` int32, and where they came from."""

    name: str
    classes: tuple[str, ...]
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    split: str  # how train and test were told apart, for the report

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(H, W, C)`."""
        return self.x_train.shape[1:]

    def one_of_each_class(self, count: int) -> np.ndarray:
        """Index of the first test image of each class, for up to `count` classes that have one."""
        present = np.unique(self.y_test)[:count]
        return np.array([np.argmax(self.y_test == label) for label in present])


def load(
    dataset: str,
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    seed: int = 0,
    classes_from: int | None = None,
) -> ImageData:
    """Read the images that `dataset` names.

    Args:
        dataset: `digits`, `tfds:<name>`, `folder:<path>` or `zip:<path>`. The last two are laid out
            `<split>/<class>/<image>` or `<class>/<image>`, see `class_folders.read`; without
            splits, a fifth of each class, drawn with `seed`, becomes the test split.
        data_dir: Where TensorFlow Datasets keeps its files. None: its own default.
        image_size: If given, every image is resized to `image_size` x `image_size` pixels.
        seed: Of the split, where one is drawn.
        classes_from: Level of the folders that name the classes, from 1; None finds it.

    Returns:
        An `ImageData`; images are grey (C = 1) where every one of them is, else RGB (C = 3). How
        files become pixels of 8 bits without transparency is said at `pixels.decode`.

    Raises:
        ValueError: For an unknown `dataset`, a missing extra, an image that cannot be read, images
            of different sizes without `image_size`, no images, fewer than two classes, or folders
            that cannot be told to be splits or classes.
        FileNotFoundError: If the path does not exist.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(
            f"`image_size` must be at least 1 pixel; received: image_size={image_size}"
        )
    sources.check_classes_from(dataset, classes_from)
    scheme, _, rest = dataset.partition(":")
    if dataset == "digits":
        data = _digits(image_size)
    elif scheme == "tfds" and rest:
        data = _tfds(rest, data_dir, image_size, seed)
    elif scheme == "folder" and rest:
        data = _folder(Path(rest).expanduser(), image_size, seed, classes_from)
    elif scheme == "zip" and rest:
        data = _zip(Path(rest).expanduser(), image_size, seed, classes_from)
    else:
        raise ValueError(
            "`dataset` must be digits, tfds:<name>, folder:<path> or zip:<path>; "
            f"received: dataset={dataset!r}"
        )
    sources.check_classes(dataset, data.classes)
    return data


def _digits(image_size: int | None) -> ImageData:
    """UCI optical digits as scikit-learn packs them: 1,797 grey images of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.round(x.reshape(-1, 8, 8, 1) * (255 / 16)).astype("uint8")
    x = _resize_all(x, image_size)
    y = y.astype("int32")
    classes = tuple(str(digit) for digit in range(10))
    split = "the last 597 of 1,797 images in file order are the test split"
    return ImageData("digits", classes, x[:1200], y[:1200], x[1200:], y[1200:], split)


def _tfds(name: str, data_dir: Path | None, image_size: int | None, seed: int) -> ImageData:
    dataset = f"tfds:{name}"
    builder = sources.tfds_builder(name, data_dir, ("image", "label"))
    import tensorflow_datasets as tfds

    features = builder.info.features
    classes = tuple(features["label"].names)
    held_out = sources.held_out_split(builder.info.splits)

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        decoders = tfds.decode.PartialDecoding({"image": True, "label": True})
        same_size = None not in features["image"].shape
        found = tfds.as_numpy(
            builder.as_dataset(split=split, batch_size=512 if same_size else 1, decoders=decoders)
        )
        batches = [(_resize_all(batch["image"], image_size), batch["label"]) for batch in found]
        labels = np.concatenate([label for _, label in batches]).astype("int32")
        if same_size:
            return np.concatenate([x for x, _ in batches]), labels
        names = [f"{split} {number}" for number in range(len(labels))]
        return _stack([x[0] for x, _ in batches], names, dataset), labels

    x, y = read("train")
    if held_out is None:
        return _seeded_split(dataset, classes, x, y, seed)
    return ImageData(dataset, classes, x, y, *read(held_out), f"the set's own train and {held_out}")


def _folder(root: Path, image_size: int | None, seed: int, classes_from: int | None) -> ImageData:
    dataset, names = f"folder:{root}", class_folders.names_in(root)
    found = class_folders.read(dataset, names, SUFFIXES, "image", classes_from)
    return _decoded(dataset, found, lambda name: (root / name).read_bytes(), image_size, seed)


def _zip(path: Path, image_size: int | None, seed: int, classes_from: int | None) -> ImageData:
    dataset = f"zip:{path}"
    if not path.exists():
        raise FileNotFoundError(
            f"`dataset` must name a zip file that exists; received: dataset={dataset!r}"
        )
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # of many types, where the index is damaged
        raise ValueError(
            "`dataset` must name a zip file that can be read; "
            f"received: dataset={dataset!r}, reason={pixels.reason(error)!r}"
        ) from error
    with archive:
        names = [_name(info) for info in archive.infolist()]
        found = class_folders.read(dataset, names, SUFFIXES, "image", classes_from)
        return _decoded(dataset, found, archive.read, image_size, seed)


def _name(info: zipfile.ZipInfo) -> str:
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    return class_folders.lost_link(info.filename) if is_link else info.filename


def _decoded(
    dataset: str,
    found: class_folders.ClassFolders,
    read: Callable[[str], bytes],
    image_size: int | None,
    seed: int,
) -> ImageData:
    used = found.train + found.test
    x = _decode_all(dataset, [name for _, name in used], read, image_size)
    y = found.numbers(used)
    if not found.test:
        data = _seeded_split(dataset, found.classes, x, y, seed)
        return replace(data, split=f"{data.split}; {found.about}")
    cut = len(found.train)
    return ImageData(dataset, found.classes, x[:cut], y[:cut], x[cut:], y[cut:], found.about)


def _decode_all(
    dataset: str, names: Sequence[str], read: Callable[[str], bytes], image_size: int | None
) -> np.ndarray:
    def decode(name: str) -> np.ndarray:
        try:
            image = pixels.decode(read(name))
        except Exception as error:  # of many types, as files can be damaged in many ways
            raise ValueError(
                f"`dataset` must hold readable images only; received: dataset={dataset!r}, "
                f"image={name!r}, reason={pixels.reason(error)!r}"
            ) from error
        return _resize(image, image_size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the GIL
        arrays = list(pool.map(decode, names))
    return _stack(arrays, names, dataset)


def _stack(arrays: Sequence[np.ndarray], names: Sequence[str], dataset: str) -> np.ndarray:
    """`(count, H, W, C)`: RGB as soon as one image is."""
    arrays = [array if array.ndim == 3 else array[..., None] for array in arrays]
    sizes = [array.shape[:2] for array in arrays]
    odd = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if odd is not None:
        raise ValueError(
            "`dataset` must hold images of one size, or image_size (--image-size) be given; "
            f"received: dataset={dataset!r}, {names[0]!r} is {sizes[0]}, "
            f"{names[odd]!r} is {sizes[odd]}"
        )
    channels = max(array.shape[-1] for array in arrays)
    stacked = np.empty((len(arrays), *sizes[0], channels), "uint8")
    for i, array in enumerate(arrays):
        stacked[i] = array  # one grey channel is repeated
    return stacked


def _resize_all(x: np.ndarray, image_size: int | None) -> np.ndarray:
    if image_size is None or x.shape[1:3] == (image_size, image_size):
        return x
    return np.stack([_resize(image, image_size) for image in x])


def _resize(image: np.ndarray, image_size: int | None) -> np.ndarray:
    if image_size is None or image.shape[:2] == (image_size, image_size):
        return image
    from PIL import Image

    grey = image.ndim == 3 and image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    resized = np.asarray(picture.resize((image_size, image_size), Image.Resampling.BILINEAR))
    return resized[..., None] if grey else resized


def _seeded_split(
    dataset: str, classes: tuple[str, ...], x: np.ndarray, y: np.ndarray, seed: int
) -> ImageData:
    test, split = sources.draw_test(dataset, classes, y, seed, "image")
    return ImageData(dataset, classes, x[~test], y[~test], x[test], y[test], split)
