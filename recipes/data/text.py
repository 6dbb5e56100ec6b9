"""Text as numbers of characters: a file, a set, or the documentation that comes with Python."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data import sources


@dataclass(frozen=True)
class Text:
    """A text as numbers of its characters, the last tenth of it held out."""

    name: str
    characters: str
    train: np.ndarray
    held_out: np.ndarray

    @property
    def about(self) -> str:
        """Name and size, in a sentence or two."""
        return (
            f"Text: {self.name}, {len(self.train) + len(self.held_out):,} characters, of which "
            f"{len(self.characters)} are different; the last tenth validates, and nothing was "
            "chosen by it."
        )

    def windows(self, count: int, length: int, seed: int) -> np.ndarray:
        """Windows at random places of the part to learn from: `(count, length + 1)` int32."""
        return self._windows(np.random.default_rng(seed), count, length)

    def _windows(self, rng: np.random.Generator, count: int, length: int) -> np.ndarray:
        places = rng.integers(0, len(self.train) - length, count)
        return self.train[places[:, None] + np.arange(length + 1)]

    def batches(self, length: int, batch_size: int, steps: int, seed: int) -> Any:
        """Batches of windows at random places, without an end: an epoch is a number of steps.

        Args:
            length: Number of characters in a window.
            batch_size: Number of windows in a batch.
            steps: Number of batches in an epoch.
            seed: Seed of the places, which depend on the epoch, too.

        Returns:
            A `kattn.data.EpochShuffled` of inputs and targets, `(batch_size, length)` int32 each.
        """
        from kattn.data import EpochShuffled

        def draw(batch: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            windows = self._windows(rng, len(batch), length)
            return windows[:, :-1], windows[:, 1:]

        numbers: np.ndarray = np.zeros(steps * batch_size, "int8")  # no data: each batch is drawn
        return EpochShuffled(numbers, batch_size=batch_size, seed=seed, transform=draw)

    def to_validate(self, length: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the part held out: whole batches, `(count, length)` int32 each."""
        count = (len(self.held_out) - 1) // length // batch * batch
        end = count * length
        shape = (count, length)
        return self.held_out[:end].reshape(shape), self.held_out[1 : end + 1].reshape(shape)

    def strided(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows by which each character held out is predicted once, from half a window or more.

        They begin half a window apart, and of each only the second half counts. What stands before
        the part held out is the end of the part to learn from.

        Args:
            length: Number of characters in a window, at least 2.

        Returns:
            `(inputs, targets, is_real)`: inputs `(count, length)`; targets of the steps that count,
            the last of each window, `(count, length // 2)`; and whether there is such a character,
            as the last window may reach beyond the end.
        """
        stride = length // 2
        count = -(-len(self.held_out) // stride)
        before = self.train[-(length - stride + 1) :]
        beyond = np.zeros(count * stride - len(self.held_out), self.held_out.dtype)
        tokens = np.concatenate([before, self.held_out, beyond])
        views = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::stride]
        is_real = np.arange(count * stride).reshape(count, stride) < len(self.held_out)
        return views[:, :-1], views[:, -stride:], is_real


def load(dataset: str, data_dir: Path | None, *, length: int, batch: int) -> Text:
    """Read the text that a flag names.

    Args:
        dataset: `pydoc`, the documentation that comes with Python; `tfds:<name>`, a set with the
            feature text, all splits of it behind each other; or `file:<path>`.
        data_dir: Where TensorFlow Datasets keeps its files. None: its own default.
        length: Number of characters in a window.
        batch: Number of windows in a batch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For an unknown `dataset`, or a text that cannot be read or is too short.
    """
    scheme, _, rest = dataset.partition(":")
    if dataset == "pydoc":
        name, content = _documentation()
    elif scheme == "tfds" and rest:
        name, content = dataset, "".join(_tfds_texts(rest, data_dir))
    elif scheme == "file" and rest:
        path = Path(rest).expanduser()
        name, content = path.name, _file(path, "dataset", dataset)
    else:
        raise ValueError(
            f"`dataset` must be pydoc, tfds:<name> or file:<path>; received: dataset={dataset!r}"
        )
    return _split(name, content, "dataset", length, batch)


def load_text(path: Path | None, length: int, batch: int) -> Text:
    """Read a file, or the documentation that comes with Python.

    Args:
        path: A text file in UTF-8. None takes the documentation of Python.
        length: Number of characters in a window.
        batch: Number of windows in a batch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not in UTF-8, if it has fewer than two different characters, or if it
            is too short to hold out one batch.
    """
    if path is None:
        name, content = _documentation()
    else:
        name, content = path.name, _file(path, "text", str(path))
    return _split(name, content, "text", length, batch)


def _documentation() -> tuple[str, str]:
    from pydoc_data.topics import topics

    content = "\n\n".join(topics[name] for name in sorted(topics))
    return f"the documentation of Python {sys.version_info.major}.{sys.version_info.minor}", content


def _tfds_texts(name: str, data_dir: Path | None) -> Iterator[str]:
    builder = sources.tfds_builder(name, data_dir, ("text",))
    import tensorflow_datasets as tfds

    order = ("train", "validation", "valid", "val", "test")
    for split in sorted(builder.info.splits, key=lambda split: (*order, split).index(split)):
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            yield example["text"].decode("utf-8")


def _file(path: Path, flag: str, value: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"`{flag}` must name a file that exists; received: {flag}={value!r}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"`{flag}` must name a file in UTF-8; received: {flag}={value!r}"
        ) from None


def _split(name: str, content: str, flag: str, length: int, batch: int) -> Text:
    from kattn.text import Characters

    if len(set(content)) < 2:
        raise ValueError(
            f"`{flag}` must have at least two different characters; "
            f"received: characters={''.join(set(content))!r}"
        )
    characters = Characters.of(content)
    numbers = characters.encode(content)
    cut = len(numbers) - len(numbers) // 10
    if len(numbers) - cut <= length * batch:
        raise ValueError(
            f"`{flag}` must be more than ten times as long as a batch of windows; "
            f"received: characters={len(numbers)}, {length=}, {batch=}"
        )
    return Text(name, characters.alphabet, numbers[:cut], numbers[cut:])
