"""Files whose folders name their classes: which folders are splits, and which are classes."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from recipes.data import sources

Files = Mapping[str, tuple[str, ...]]  # by name, the folders and the file name that it is made of
Labelled = tuple[tuple[str, str], ...]  # (class, file name)


@dataclass(frozen=True)
class ClassFolders:
    """The files of each class, as (class, file name), in the splits of their source.

    Args:
        classes: Names of the classes, sorted.
        train: Files to train on.
        test: Files to test on; none, if the source has no splits.
        about: How the folders were read, in a line.
    """

    classes: tuple[str, ...]
    train: Labelled
    test: Labelled
    about: str

    def numbers(self, files: Labelled) -> np.ndarray:
        """The number of the class of each file, int32."""
        index = {label: number for number, label in enumerate(self.classes)}
        return np.array([index[label] for label, _ in files], "int32")


def names_in(root: Path) -> list[str]:
    """Names of all files and folders below a folder, as a zip file has them.

    They are POSIX paths relative to `root`, with a slash behind those of folders. Links are
    followed, but not one that leads back to a folder around it. A link that leads nowhere counts as
    a file if it has a suffix, else as an empty folder. Hidden names are left out.

    Raises:
        FileNotFoundError: If there is nothing of this name.
        ValueError: If it is not a folder.
        OSError: If a folder cannot be read.
    """
    dataset = f"folder:{root}"
    if not root.exists():
        raise FileNotFoundError(
            f"`dataset` must name a folder that exists; received: dataset={dataset!r}"
        )
    if not root.is_dir():
        raise ValueError(f"`dataset` must name a folder, not a file; received: dataset={dataset!r}")
    return list(_walk(root, "", (root.resolve(),)))


def _walk(folder: Path, prefix: str, around: tuple[Path, ...]) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        name = prefix + path.name
        if _is_hidden(path.name):
            continue
        if path.is_dir():
            yield f"{name}/"
            real = path.resolve()
            if real not in around:
                yield from _walk(path, f"{name}/", (*around, real))
        elif path.is_file():
            yield name
        elif path.is_symlink():
            yield lost_link(name)


def lost_link(name: str) -> str:
    """The name to list for a link that cannot be followed."""
    return name if PurePosixPath(name).suffix else f"{name}/"


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "__MACOSX"))


def read(
    dataset: str,
    names: Iterable[str],
    suffixes: Collection[str],
    what: str,
    classes_from: int | None = None,
) -> ClassFolders:
    """Sort files into splits and classes by their folders.

    Args:
        dataset: The data set, for messages.
        names: Names of the files, as POSIX paths. Those of folders end with a slash.
        suffixes: Suffixes of the files to read; others are left out.
        what: What such a file holds, for messages, for example "image".
        classes_from: Level of the folders that name the classes; 1 means those at the top. The
            folders right above them are splits, if one is named as such to train and another to
            test or to validate. None: it is found by the names of the folders.

    Raises:
        ValueError: If there is no file, if files are not laid out so, if the level is not given and
            could be one or another, if a split is empty or there twice, or if a class is only held
            out.
    """
    files, empty = _sorted_out(dataset, names, suffixes, what)
    level = classes_from or _find_level(dataset, files)
    _check_depth(dataset, files, level, what)
    train, test = _splits(dataset, files, empty, level, what)
    labelled: dict[str, list[tuple[str, str]]] = {}
    for name, parts in files.items():
        split = parts[level - 2] if test else train
        labelled.setdefault(split, []).append((parts[level - 1], name))
    classes = tuple(sorted({label for label, _ in labelled[train]}))
    held_out = tuple(labelled[test]) if test else ()
    unknown = {label for label, _ in held_out} - set(classes)
    if unknown:
        raise ValueError(
            f"`dataset` must have a {train} folder for every class; received: "
            f"dataset={dataset!r}, only in {test}={sorted(unknown)}"
        )
    said = [f"the source's own folders {train} and {test}"] if test else []
    said.append(f"{len(classes)} classes from the folders at level {level}, {_some(classes)}")
    unused = labelled.keys() - {train, test}
    without = {"/".join(parts) for parts in empty if len(parts) <= level}
    for how, which in (("not used", unused), (f"without {what}s", without)):
        said += [f"{how}: {_some(which)}"] if which else []
    return ClassFolders(classes, tuple(labelled[train]), held_out, "; ".join(said))


def _some(names: Iterable[str]) -> str:
    """The first of the names, for a message."""
    listed = sorted(names)
    return f"{listed[:5]}" + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _sorted_out(
    dataset: str, names: Iterable[str], suffixes: Collection[str], what: str
) -> tuple[Files, set[tuple[str, ...]]]:
    """The files to read, and the folders without any, but not those in such a folder."""
    paths = {name: PurePosixPath(name).parts for name in sorted(names)}
    paths = {name: parts for name, parts in paths.items() if not any(map(_is_hidden, parts))}
    others = {name for name in paths if not name.endswith("/")}
    files = {
        name: parts
        for name, parts in paths.items()
        if name in others and PurePosixPath(name).suffix.lower() in suffixes
    }
    if not files:
        raise ValueError(
            f"`dataset` must hold {what}s ({' '.join(sorted(suffixes))}); "
            f"received: dataset={dataset!r}, files={len(others)}, {what}s=0"
        )
    full = {parts[:end] for parts in files.values() for end in range(len(parts))}
    folders = {parts[:end] for parts in paths.values() for end in range(1, len(parts))}
    folders |= {parts for name, parts in paths.items() if name not in others}
    return files, {parts for parts in folders - full if parts[:-1] in full}


def _find_level(dataset: str, files: Files) -> int:
    """The level of the folders that name the classes, by the usual names of splits.

    Folders around everything do not count. Below them, the classes are one level down if the
    folders have names of splits, one to train and one to hold out. They are those folders
    themselves if none has such a name, or only one that has no folders in it, as a class of trains.

    Raises:
        ValueError: If neither is the case.
    """
    paths = list(files.values())
    around, shortest = 0, min(map(len, paths))
    while True:
        tops = {parts[around] for parts in paths}
        if len(tops) > 1 or shortest <= around + 2:
            break
        around += 1
    named = {top for top in tops if sources.kind_of_split(top)}
    kinds = {sources.kind_of_split(top) for top in named}
    if named == tops and "train" in kinds and len(kinds) > 1:
        return around + 2
    nested = {parts[around : around + 2] for parts in paths if len(parts) > around + 2}
    inside = {parts[1] for parts in nested}
    if len(named) == 1 and named.isdisjoint(parts[0] for parts in nested):
        return around + 1
    if not named and not (inside and all(map(sources.kind_of_split, inside))):
        return around + 1
    deeper = f", or {around + 2}, if they are {_some(inside)} in these" if inside else ""
    raise ValueError(
        "`classes_from` (--classes-from) must be given where folders could be splits or classes: "
        f"{around + 1}, if the classes are {_some(tops)}{deeper}; received: dataset={dataset!r}"
    )


def _check_depth(dataset: str, files: Files, level: int, what: str) -> None:
    misplaced = [name for name, parts in files.items() if len(parts) <= level]
    if misplaced:
        top = sorted({parts[0] for parts in files.values()})
        raise ValueError(
            f"`dataset` must be laid out <split>/<class>/<{what}> or <class>/<{what}>, or "
            "classes_from (--classes-from) be the level of the classes; "
            f"received: dataset={dataset!r}, classes_from={level}, top folders={top[:8]}, "
            f"misplaced={misplaced[:3]}"
        )


def _splits(
    dataset: str, files: Files, empty: Collection[tuple[str, ...]], level: int, what: str
) -> tuple[str, str]:
    """The names of the folders to train and to test on; "" and "" if there are no splits."""
    if level == 1:
        return "", ""
    above = {parts[level - 2] for parts in files.values()}
    lacking = {parts[-1] for parts in empty if len(parts) == level - 1}
    train, test = (sources.splits_of_kind(above | lacking, kind) for kind in ("train", "test"))
    test = test or sources.splits_of_kind(above | lacking, "validation")
    if not train or not test:
        return "", ""
    if len(train) > 1 or len(test) > 1 or not above.issuperset(train + test):
        raise ValueError(
            f"`dataset` must hold {what}s in one folder to train and in one to test; received: "
            f"dataset={dataset!r}, to train={train}, to test={test}, "
            f"without {what}s={sorted(lacking - above)}"
        )
    return train[0], test[0]
