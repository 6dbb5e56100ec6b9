"""Text as numbers of characters: a file, or the documentation that comes with Python."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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
        places = np.random.default_rng(seed).integers(0, len(self.train) - length, count)
        return self.train[places[:, None] + np.arange(length + 1)]

    def to_validate(self, length: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the part held out: whole batches, `(count, length)` int32 each."""
        count = (len(self.held_out) - 1) // length // batch * batch
        end = count * length
        shape = (count, length)
        return self.held_out[:end].reshape(shape), self.held_out[1 : end + 1].reshape(shape)


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
        from pydoc_data.topics import topics

        content = "\n\n".join(topics[name] for name in sorted(topics))
        name = f"the documentation of Python {sys.version_info.major}.{sys.version_info.minor}"
    else:
        if not path.is_file():
            raise FileNotFoundError(
                f"`text` must name a file that exists; received: text={str(path)!r}"
            )
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(
                f"`text` must name a file in UTF-8; received: text={str(path)!r}"
            ) from None
        name = path.name
    characters = "".join(sorted(set(content)))
    if len(characters) < 2:
        raise ValueError(
            f"`text` must have at least two different characters; received: {characters=}"
        )
    table = {character: number for number, character in enumerate(characters)}
    numbers = np.array([table[character] for character in content], "int32")
    cut = len(numbers) - len(numbers) // 10
    if len(numbers) - cut <= length * batch:
        raise ValueError(
            "`text` must be more than ten times as long as a batch of windows; "
            f"received: characters={len(numbers)}, {length=}, {batch=}"
        )
    return Text(name, characters, numbers[:cut], numbers[cut:])
