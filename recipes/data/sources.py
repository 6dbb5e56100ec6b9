"""Where data sets come from: TensorFlow Datasets, and files in folders that name their classes."""

import os
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

HELD_OUT = ("test", "val", "valid", "validation")  # the first that exists is the test split
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


def held_out_split(splits: Collection[str]) -> str | None:
    """The name of the split to test on; None if there is none."""
    return next((split for split in HELD_OUT if split in splits), None)


def files_in(root: Path) -> list[str]:
    """Names of all files below a folder, as POSIX paths relative to it.

    Raises:
        FileNotFoundError: If there is nothing of this name.
        ValueError: If it is not a folder.
    """
    dataset = f"folder:{root}"
    if not root.exists():
        raise FileNotFoundError(
            f"`dataset` must name a folder that exists; received: dataset={dataset!r}"
        )
    if not root.is_dir():
        raise ValueError(f"`dataset` must name a folder, not a file; received: dataset={dataset!r}")
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


def splits_of_files(
    dataset: str, names: Sequence[str], suffixes: Collection[str], what: str
) -> dict[str, list[tuple[str, str]]]:
    """Sort files into splits and classes by their folders.

    Args:
        dataset: The data set, for messages.
        names: Names of the files, as POSIX paths.
        suffixes: Suffixes of the files to read; others are left out.
        what: What such a file holds, for messages, for example "image".

    Returns:
        The (class, file name) pairs by split; without split folders all of it is "train".

    Raises:
        ValueError: If there is no file, if files are not laid out so, or if a class is only held
            out.
    """
    files = {name: PurePosixPath(name).parts for name in sorted(names)}
    files = {
        name: parts
        for name, parts in files.items()
        if PurePosixPath(name).suffix.lower() in suffixes
        and not any(part.startswith((".", "__MACOSX")) for part in parts)
    }
    if not files:
        raise ValueError(
            f"`dataset` must hold {what}s ({' '.join(sorted(suffixes))}); "
            f"received: dataset={dataset!r}, files={len(names)}, {what}s=0"
        )
    while len({parts[0] for parts in files.values()}) == 1 and min(map(len, files.values())) > 2:
        files = {name: parts[1:] for name, parts in files.items()}  # one folder around everything
    top = {parts[0] for parts in files.values()}
    has_splits = "train" in top and not top.isdisjoint(HELD_OUT)
    depth = 3 if has_splits else 2
    misplaced = [name for name, parts in files.items() if len(parts) < depth]
    if misplaced or (has_splits and not top <= {"train", *HELD_OUT}):
        raise ValueError(
            f"`dataset` must be laid out <split>/<class>/<{what}> or <class>/<{what}>; "
            f"received: dataset={dataset!r}, top folders={sorted(top)[:8]}, "
            f"misplaced={misplaced[:3]}"
        )
    splits: dict[str, list[tuple[str, str]]] = {}
    for name, parts in files.items():
        split = parts[0] if has_splits else "train"
        splits.setdefault(split, []).append((parts[depth - 2], name))
    held_out = held_out_split(splits)
    unknown = {label for label, _ in splits[held_out]} if held_out else set()
    unknown -= {label for label, _ in splits["train"]}
    if unknown:
        raise ValueError(
            f"`dataset` must have a train folder for every class; received: dataset={dataset!r}, "
            f"only in {held_out}={sorted(unknown)}"
        )
    return splits


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
