"""Where data sets come from: TensorFlow Datasets, and the names of splits everywhere."""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = {  # by kind, what they are called
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev", "development", "eval", "evaluation"),
}
TEST_FRACTION = 0.2  # where a source has no splits of its own


def tfds_builder(name: str, data_dir: Path | None, needed: Sequence[str]) -> Any:
    """The builder of a set of TensorFlow Datasets, which is downloaded and prepared.

    Args:
        name: Name of the set.
        data_dir: Where TensorFlow Datasets keeps its files. None: its own default.
        needed: Features that the set must have.

    Raises:
        ValueError: If a package is missing, there is no such set, or it lacks a feature.
    """
    dataset = f"tfds:{name}"
    packages = ("tensorflow", "tensorflow_datasets", "importlib_resources")  # TFDS forgets the last
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(
            "`dataset` needs packages that are not installed (pip install 'kattn[datasets]'); "
            f"received: dataset={dataset!r}, missing={missing}"
        )
    # TensorFlow only reads files here: it must not take the GPU's memory from another backend.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=None if data_dir is None else str(data_dir))
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            "`dataset` must name a set that TensorFlow Datasets knows; "
            f"received: dataset={dataset!r}"
        ) from None
    features = builder.info.features
    if not set(needed) <= set(features):
        raise ValueError(
            f"`dataset` must have the features {' and '.join(needed)}; "
            f"received: dataset={dataset!r}, features={sorted(features)}"
        )
    builder.download_and_prepare()
    return builder


def kind_of_split(name: str) -> str | None:
    """Whether a split of this name is to train, to test or for validation; None for other names."""
    word = re.sub(r"[ _-]?(data|set|split)$", "", name.casefold())
    return next((kind for kind, words in SPLITS.items() if word in words), None)


def splits_of_kind(names: Iterable[str], kind: str) -> list[str]:
    """The names that are of a kind, sorted."""
    return sorted(name for name in names if kind_of_split(name) == kind)


def held_out_split(splits: Collection[str]) -> str | None:
    """The name of the split to test on; None if there is none."""
    found = splits_of_kind(splits, "test") + splits_of_kind(splits, "validation")
    return found[0] if found else None


def draw_test(
    dataset: str, classes: Sequence[str], y: np.ndarray, seed: int, what: str
) -> tuple[np.ndarray, str]:
    """Draw the test split of a source that has none: a fifth of each class.

    Args:
        dataset: The data set, for messages.
        classes: Names of the classes.
        y: Labels, integer, shape `(count,)`.
        seed: Seed of the draw.
        what: What an example is, for messages, for example "image".

    Returns:
        Which examples are to test, bool, shape `(count,)`; and how they were drawn, in words.

    Raises:
        ValueError: If a class has fewer than two examples.
    """
    test: np.ndarray = np.zeros(len(y), bool)
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        members = rng.permutation(np.flatnonzero(y == label))
        if len(members) < 2:
            raise ValueError(
                f"`dataset` must, without splits, hold at least two {what}s of each class; "
                f"received: dataset={dataset!r}, class={name!r}, {what}s={len(members)}"
            )
        test[members[: max(round(TEST_FRACTION * len(members)), 1)]] = True
    split = f"no splits in the source: {TEST_FRACTION:.0%} of each class, drawn with seed {seed}"
    return test, split


def check_classes(dataset: str, classes: Sequence[str]) -> None:
    """Raise ValueError unless there are at least two classes."""
    if len(classes) < 2:
        raise ValueError(
            "`dataset` must hold at least two classes; "
            f"received: dataset={dataset!r}, classes={tuple(classes)}"
        )


def check_classes_from(dataset: str, classes_from: int | None) -> None:
    """Raise ValueError for a level of folders below 1, or for data that are not in folders."""
    if classes_from is None:
        return
    if classes_from < 1 or not dataset.startswith(("folder:", "zip:")):
        raise ValueError(
            "`classes_from` must be a level of the folders in folder:<path> or zip:<path>, from 1; "
            f"received: dataset={dataset!r}, classes_from={classes_from}"
        )
