"""Labelled texts: docstrings of SciPy, TensorFlow Datasets, or a folder."""

import importlib
import inspect
import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from recipes.data import class_folders, sources

SUFFIXES = {".md", ".rst", ".txt"}
SCIPY_PARTS = (
    *("fft", "integrate", "interpolate", "linalg", "ndimage", "optimize"),
    *("signal", "sparse", "spatial", "special", "stats"),
)
FEWEST_WORDS = 5  # of a docstring that is taken
VALIDATION_FRACTION = 0.15  # of the training texts


@dataclass(frozen=True)
class TextData:
    """Texts with the numbers of their classes, `(count,)` int32, and where they came from."""

    name: str
    classes: tuple[str, ...]
    texts: tuple[str, ...]  # to train and to validate
    labels: np.ndarray
    test_texts: tuple[str, ...]
    test_labels: np.ndarray
    split: str  # how train and test were told apart, for the report

    def to_fit_and_to_validate(self, per_class: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the texts to fit and of those to validate, the same ones in every run.

        Args:
            per_class: Number of texts to fit at most of each class; None for all.

        Raises:
            ValueError: If there are too few texts to hold some out.
        """
        order = np.random.default_rng(0).permutation(len(self.labels))
        cut = round(VALIDATION_FRACTION * len(order))
        if not 0 < cut < len(order):
            raise ValueError(
                "`dataset` must have enough texts to validate on some; "
                f"received: texts={len(order)}"
            )
        fit, validate = order[cut:], order[:cut]
        if per_class is not None:
            found = self.labels[fit]
            members = [fit[found == label][:per_class] for label in range(len(self.classes))]
            fit = np.concatenate(members)
        return fit, validate


def load(
    dataset: str, *, data_dir: Path | None = None, seed: int = 0, classes_from: int | None = None
) -> TextData:
    """Read the texts that a flag names.

    Args:
        dataset: `scipy`, what its functions say of themselves, by part of the library;
            `tfds:<name>`, a set with the features text and label; or `folder:<path>`, laid out
            `<split>/<class>/<text>` or `<class>/<text>`, see `class_folders.read`. Without splits,
            a fifth of each class, drawn with `seed`, becomes the test split.
        data_dir: Where TensorFlow Datasets keeps its files. None: its own default.
        seed: Of the split, where one is drawn.
        classes_from: Level of the folders that name the classes, from 1; None finds it.

    Raises:
        ValueError: For an unknown `dataset`, a missing extra, a file that cannot be read or is
            not in UTF-8, no texts, fewer than two classes, or folders that cannot be told to be
            splits or classes.
        FileNotFoundError: If the path does not exist.
    """
    sources.check_classes_from(dataset, classes_from)
    scheme, _, rest = dataset.partition(":")
    if dataset == "scipy":
        data = _scipy(seed)
    elif scheme == "tfds" and rest:
        data = _tfds(rest, data_dir, seed)
    elif scheme == "folder" and rest:
        data = _folder(Path(rest).expanduser(), seed, classes_from)
    else:
        raise ValueError(
            f"`dataset` must be scipy, tfds:<name> or folder:<path>; received: dataset={dataset!r}"
        )
    sources.check_classes(dataset, data.classes)
    return data


def _scipy(seed: int) -> TextData:
    """The first paragraphs of the docstrings of SciPy's public functions and classes.

    The class is the part of the library. What would give it away is left out: signatures, names of
    modules and all sections (parameters, examples ...). Docstrings that two names share count once.
    """
    found: dict[str, str] = {}
    for part in SCIPY_PARTS:
        module = importlib.import_module(f"scipy.{part}")
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            if not inspect.ismodule(thing):
                text = first_paragraphs(inspect.getdoc(thing) or "")
                if len(text.split()) >= FEWEST_WORDS:
                    found.setdefault(text, part)
    texts = tuple(found)
    y = np.array([SCIPY_PARTS.index(part) for part in found.values()], "int32")
    return _drawn(f"docstrings of SciPy {version('scipy')}", SCIPY_PARTS, texts, y, seed)


def first_paragraphs(docstring: str) -> str:
    """What stands above the first section of a docstring, without signatures and module names."""
    above = re.split(r"\n[^\n]+\n[-=]{3,}", f"\n{docstring}")[0]
    paragraphs = re.split(r"\n\s*\n", above.strip())
    kept = [" ".join(each.split()) for each in paragraphs if not re.match(r"\w+\(", each.strip())]
    return re.sub(r"\b(scipy|numpy|np)(\.\w+)+", "", " ".join(kept)).strip()


def _tfds(name: str, data_dir: Path | None, seed: int) -> TextData:
    dataset = f"tfds:{name}"
    builder = sources.tfds_builder(name, data_dir, ("text", "label"))
    import tensorflow_datasets as tfds

    classes = tuple(builder.info.features["label"].names)
    held_out = sources.held_out_split(builder.info.splits)

    def read(split: str) -> tuple[tuple[str, ...], np.ndarray]:
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        texts = tuple(example["text"].decode("utf-8") for example in examples)
        return texts, np.array([example["label"] for example in examples], "int32")

    texts, y = read("train")
    if held_out is None:
        return _drawn(dataset, classes, texts, y, seed)
    split = f"the set's own train and {held_out}"
    return TextData(dataset, classes, texts, y, *read(held_out), split)


def _folder(root: Path, seed: int, classes_from: int | None) -> TextData:
    dataset = f"folder:{root}"
    names = class_folders.names_in(root)
    found = class_folders.read(dataset, names, SUFFIXES, "text", classes_from)

    def read(files: class_folders.Labelled) -> tuple[tuple[str, ...], np.ndarray]:
        return tuple(_file(dataset, root, name) for _, name in files), found.numbers(files)

    texts, y = read(found.train)
    if found.test:
        return TextData(dataset, found.classes, texts, y, *read(found.test), found.about)
    data = _drawn(dataset, found.classes, texts, y, seed)
    return replace(data, split=f"{data.split}; {found.about}")


def _file(dataset: str, root: Path, name: str) -> str:
    try:
        return (root / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"`dataset` must hold texts in UTF-8; received: dataset={dataset!r}, text={name!r}"
        ) from None
    except OSError as error:
        raise ValueError(
            f"`dataset` must hold readable texts only; received: dataset={dataset!r}, "
            f"text={name!r}, reason={error.strerror!r}"
        ) from error


def _drawn(
    dataset: str, classes: tuple[str, ...], texts: tuple[str, ...], y: np.ndarray, seed: int
) -> TextData:
    test, split = sources.draw_test(dataset, classes, y, seed, "text")
    train, held_out = (tuple(texts[i] for i in np.flatnonzero(each)) for each in (~test, test))
    return TextData(dataset, classes, train, y[~test], held_out, y[test], split)
