"""Parallel texts: dates in many languages, files, a folder, or TensorFlow Datasets."""

import gzip
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recipes.data import dates, sources

HELD_FRACTION, HELD_MOST = 0.05, 1000  # pairs that are drawn to validate, and as many to test
DATES = 10_000  # of which 5 % are drawn to validate, and as many to test
KINDS = {"train": "train", "validation": "validate", "test": "test"}


class Pairs(NamedTuple):
    """Texts, and what they are in the other language."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def chosen(self, places: np.ndarray) -> "Pairs":
        """The pairs at some places."""
        return Pairs(*(tuple(side[place] for place in places) for side in self))


@dataclass(frozen=True)
class ParallelTexts:
    """Pairs of texts to train, to validate and to test, and how they were told apart."""

    name: str
    train: Pairs
    validate: Pairs
    test: Pairs
    split: str

    @property
    def about(self) -> str:
        """Name and sizes, in a line."""
        counts = (len(part.sources) for part in (self.train, self.validate, self.test))
        return "{}: {:,} pairs to train, {:,} to validate and {:,} to test".format(
            self.name, *counts
        )


def load(
    dataset: str,
    languages: tuple[str, str] = ("de", "en"),
    *,
    data_dir: Path | None = None,
    seed: int = 0,
    lower: bool = False,
) -> ParallelTexts:
    """Read the pairs that a flag names.

    What a source does not have of the parts to validate and to test is drawn from its part to
    train: 5 %, and at most 1,000 pairs. A pair of which one text is empty is left out. Pairs that
    are equal are drawn together, so that none of them is trained on if one is held out, and each
    counts once where it is held out.

    Args:
        dataset: `dates`, see `dates.draw`; `files:<source>:<target>`, two files with a text in each
            line, plain or with gzip; `folder:<path>`, files named `<part>.<language>` or
            `<part>.<language>.gz`, where the part begins with train, val, test or the like; or
            `tfds:<name>`, a set of TensorFlow Datasets with a feature for each language.
        languages: Source and target language, as they are named in a folder or a set.
        data_dir: Where TensorFlow Datasets keeps its files. None: its own default.
        seed: Seed of the parts that are drawn, and of the dates themselves for `dates`.
        lower: Whether to take the texts in lower case.

    Raises:
        ValueError: For an unknown `dataset`, a missing extra, languages that are the same; for
            files that cannot be read, are not in UTF-8, hold no text, or are of unequal length; for
            parts that are missing, in one language or in both, or ambiguous; or for too few pairs.
        FileNotFoundError: If a path does not exist.
    """
    scheme, _, rest = dataset.partition(":")
    if scheme in ("folder", "tfds") and languages[0] == languages[1]:
        raise ValueError(
            "`source_language` and `target_language` must be two languages; "
            f"received: source_language={languages[0]!r}, target_language={languages[1]!r}"
        )
    if dataset == "dates":
        parts = {"train": Pairs(*dates.draw(DATES, seed))}
        name = f"dates in {len(dates.LOCALES)} languages and countries, by Babel {version('babel')}"
    elif scheme == "files" and re.fullmatch("[^:]+:[^:]+", rest):
        paths = [Path(path).expanduser() for path in rest.split(":")]
        parts, name = {"train": _files(dataset, *paths)}, f"{paths[0].name}, {paths[1].name}"
    elif scheme == "folder" and rest:
        parts = _folder(dataset, Path(rest).expanduser(), languages)
        name = f"{Path(rest).name}, {languages[0]} to {languages[1]}"
    elif scheme == "tfds" and rest:
        parts, name = _tfds(rest, data_dir, languages), f"{dataset}, {' to '.join(languages)}"
    else:
        raise ValueError(
            "`dataset` must be dates, files:<source>:<target>, folder:<path> or tfds:<name>; "
            f"received: dataset={dataset!r}"
        )
    parts = {kind: _cleaned(dataset, pairs, lower=lower) for kind, pairs in parts.items()}
    return _divided(dataset, name, parts, seed)


def _files(dataset: str, source: Path, target: Path) -> Pairs:
    """The lines of two files of equal length."""
    sides = [_lines(dataset, path) for path in (source, target)]
    counts = [len(lines) for lines in sides]
    if counts[0] != counts[1]:
        raise ValueError(
            "`dataset` must name files of equal length, in which the same line of both holds a "
            f"text and its translation; received: dataset={dataset!r}, "
            f"{source.name}={counts[0]} lines, {target.name}={counts[1]} lines"
        )
    return Pairs(*map(tuple, sides))


def _lines(dataset: str, path: Path) -> list[str]:
    received = f"received: dataset={dataset!r}, file={str(path)!r}"
    if not path.is_file():
        raise FileNotFoundError(f"`dataset` must name files that exist; {received}")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"`dataset` must name files in UTF-8; {received}") from None
    # A file that is cut off ends too early; zlib has an error of its own for damaged bytes.
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"`dataset` must name readable files; {received}, reason={str(error)!r}"
        ) from error
    if not text.strip():
        raise ValueError(f"`dataset` must name files that hold text; {received}, which is empty")
    # Not `splitlines`: a text may hold characters that it takes for ends of lines, too.
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _folder(dataset: str, root: Path, languages: tuple[str, str]) -> dict[str, Pairs]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"`dataset` must name a folder that exists; received: dataset={dataset!r}"
        )
    found: dict[str, dict[str, Path]] = {}  # by part, then by language
    for path in sorted(root.iterdir()):
        stem, _, language = path.name.removesuffix(".gz").rpartition(".")
        if language in languages and sources.kind_of_split(re.split("[^A-Za-z]", stem)[0]):
            found.setdefault(stem, {})[language] = path
    lone = sorted(stem for stem, paths in found.items() if len(paths) == 1)
    if lone:
        raise ValueError(
            "`dataset` must have each part in both languages; "
            f"received: dataset={dataset!r}, {languages=}, in one={lone}"
        )
    parts = {}
    for kind in KINDS:
        stems = [s for s in found if sources.kind_of_split(re.split("[^A-Za-z]", s)[0]) == kind]
        if len(stems) > 1 or (kind == "train" and not stems):
            raise ValueError(
                "`dataset` must be a folder with files named train.<language>, and at most one "
                f"part to {KINDS[kind]} on; received: dataset={dataset!r}, {languages=}, "
                f"parts={stems}"
            )
        if stems:
            paths = found[stems[0]]
            parts[kind] = _files(dataset, *(paths[language] for language in languages))
    return parts


def _tfds(name: str, data_dir: Path | None, languages: tuple[str, str]) -> dict[str, Pairs]:
    builder = sources.tfds_builder(name, data_dir, languages)
    import tensorflow_datasets as tfds

    parts = {}
    for kind in KINDS:
        names = sources.splits_of_kind(builder.info.splits, kind)
        if names:
            examples = list(tfds.as_numpy(builder.as_dataset(split=names[0])))
            sides = ([each[lang].decode("utf-8") for each in examples] for lang in languages)
            parts[kind] = Pairs(*(tuple(map(str.strip, side)) for side in sides))
    if "train" not in parts:
        raise ValueError(
            "`dataset` must have a split to train on; "
            f"received: dataset='tfds:{name}', splits={sorted(builder.info.splits)}"
        )
    return parts


def _cleaned(dataset: str, pairs: Pairs, *, lower: bool) -> Pairs:
    is_whole = np.array([all(pair) for pair in zip(*pairs, strict=True)], bool)
    kept = pairs.chosen(np.flatnonzero(is_whole))
    if not kept.sources:
        raise ValueError(
            "`dataset` must hold pairs of which both texts are not empty; "
            f"received: dataset={dataset!r}, pairs={len(pairs.sources)}, of these=0"
        )
    return Pairs(*(tuple(map(str.lower, side)) for side in kept)) if lower else kept


def _divided(dataset: str, name: str, parts: Mapping[str, Pairs], seed: int) -> ParallelTexts:
    """The three parts; what is missing is drawn from that to train."""
    train = parts["train"]
    pairs = list(zip(*train, strict=True))
    first = {pair: place for place, pair in reversed(list(enumerate(pairs)))}
    distinct = np.sort(list(first.values()))  # where a pair comes for the first time
    count = len(distinct)
    held = min(max(round(HELD_FRACTION * count), 1), HELD_MOST)
    missing = [kind for kind in ("validation", "test") if kind not in parts]
    if count <= held * len(missing):
        raise ValueError(
            "`dataset` must have enough different pairs to hold some out; "
            f"received: dataset={dataset!r}, pairs={len(pairs)}, different={count}"
        )
    order = np.random.default_rng(seed).permutation(distinct)
    found = dict(parts)
    for kind in missing:
        found[kind], order = train.chosen(order[:held]), order[held:]
    if missing:
        kept = {pairs[place] for place in order}
        found["train"] = train.chosen(np.flatnonzero([pair in kept for pair in pairs]))
    split = "the source's own parts"
    if missing:
        drawn = " and as many to ".join(KINDS[kind] for kind in missing)
        split = f"{held:,} pairs to {drawn}, drawn from those to train with seed {seed}"
    return ParallelTexts(name, found["train"], found["validation"], found["test"], split)
