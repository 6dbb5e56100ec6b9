"""Images as models take them: split to validate, scaled, augmented, in batches."""

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.data.images import ImageData


@dataclass(frozen=True)
class Splits:
    """The training images in two parts, one to fit and one to validate, beside the test images."""

    data: ImageData
    x_fit: np.ndarray
    y_fit: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray

    @classmethod
    def of(cls, data: ImageData, batch_size: int) -> "Splits":
        """Hold out a tenth of the training images, the same ones in every run.

        Raises:
            ValueError: If the rest does not fill a batch.
        """
        order = np.random.default_rng(0).permutation(len(data.x_train))
        cut = max(len(order) // 10, 1)
        val, fit = order[:cut], order[cut:]
        if batch_size > len(fit):
            raise ValueError(
                "`batch_size` must be at most the number of images to fit; "
                f"received: batch_size={batch_size}, images={len(fit)}"
            )
        x, y = data.x_train, data.y_train
        return cls(data, x[fit], y[fit], x[val], y[val])

    @property
    def about(self) -> str:
        """Name and numbers of images, in a line."""
        counts = (len(x) for x in (self.x_fit, self.x_val, self.data.x_test))
        return f"{self.data.name}: {' + '.join(f'{count:,}' for count in counts)} images"

    @property
    def section(self) -> str:
        """A paragraph of a report that says which images were used for what."""
        data = self.data
        height, width, channels = data.image_shape
        return textwrap.fill(
            f"{data.name}: {len(self.x_fit):,} images to fit, {len(self.x_val):,} to validate and "
            f"{len(data.x_test):,} to test; {height} x {width} pixels, {channels} channel(s), "
            f"{len(data.classes)} classes. Split: {data.split}.",
            100,
            break_long_words=False,
            break_on_hyphens=False,
        )


def scale(x: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]."""
    return x.astype("float32") / 127.5 - 1


def augment(x: np.ndarray, rng: np.random.Generator, *, shift: int, flip: bool) -> np.ndarray:
    """Move each image `(B, H, W, C)` by up to `shift` pixels, repeating its border; mirror half."""
    batch, height, width, _ = x.shape
    if shift:
        dy, dx = rng.integers(-shift, shift + 1, (2, batch, 1))
        rows = np.clip(np.arange(height) + dy, 0, height - 1)
        columns = np.clip(np.arange(width) + dx, 0, width - 1)
        x = x[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if flip:
        mirrored = rng.random(batch) < 0.5
        x = np.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
    return x


def training_batches(
    splits: Splits, batch_size: int, seed: int, *, shift: int = 0, flip: bool = False
) -> Any:
    """Shuffled, augmented, whole batches; the same for every model of a seed and after --resume."""
    from kattn.data import EpochShuffled

    def prepare(batch: Any, rng: np.random.Generator) -> Any:
        x, y = batch
        return scale(augment(x, rng, shift=shift, flip=flip)), y

    return EpochShuffled(
        (splits.x_fit, splits.y_fit),
        batch_size=batch_size,
        seed=seed,
        drop_remainder=True,
        transform=prepare,
    )
