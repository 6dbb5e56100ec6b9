"""Splits, augmentation and batches of images."""

import dataclasses

import numpy as np
import pytest

from recipes.data import image_batches, images


def test_validation_images_are_not_fitted():
    data = images.load("digits")
    numbered = dataclasses.replace(data, y_train=np.arange(1200, dtype="int32"))
    splits = image_batches.Splits.of(numbered, 60)
    assert sorted([*splits.y_fit, *splits.y_val]) == list(range(1200))


def test_augment_moves_and_mirrors():
    x = np.arange(2 * 5 * 4 * 3, dtype="uint8").reshape(1, 5, 8, 3).repeat(300, 0)
    moved = {
        image.tobytes()
        for image in image_batches.augment(x, np.random.default_rng(0), shift=1, flip=True)
    }
    expected = set()
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)), mode="edge")
    for dy, dx in np.ndindex(3, 3):
        window = padded[dy : dy + 5, dx : dx + 8]
        expected |= {window.tobytes(), window[:, ::-1].tobytes()}
    assert moved == expected
    same = image_batches.augment(x, np.random.default_rng(0), shift=0, flip=False)
    np.testing.assert_array_equal(same, x)


def test_batches_are_scaled_and_augmented_the_same_way_each_time():
    splits = image_batches.Splits.of(images.load("digits"), 60)
    first, again = (
        image_batches.training_batches(splits, 60, 3, shift=2, flip=True) for _ in range(2)
    )
    plain = image_batches.training_batches(splits, 60, 3)
    (x, y), (x2, y2), (x3, y3) = first[0], again[0], plain[0]
    np.testing.assert_array_equal(x, x2)
    np.testing.assert_array_equal(y, y2)
    np.testing.assert_array_equal(y, y3)
    assert not np.array_equal(x, x3)
    assert x.dtype == "float32"
    assert (x.min(), x.max()) == (-1, 1)
    assert len(first) == 1080 // 60


def test_a_batch_must_be_filled():
    message = "`batch_size` must be at most .*; received: batch_size=1081, images=1080"
    with pytest.raises(ValueError, match=message):
        image_batches.Splits.of(images.load("digits"), 1081)


def test_words_on_the_images():
    splits = image_batches.Splits.of(images.load("digits"), 60)
    assert splits.about == "digits: 1,080 + 120 + 597 images"
    words = " ".join(splits.section.split())
    assert "1,080 images to fit, 120 to validate and 597 to test; 8 x 8 pixels, 1 channel" in words
