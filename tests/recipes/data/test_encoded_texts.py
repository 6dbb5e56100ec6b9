"""Texts as rows of tokens, and as bags of words."""

import numpy as np
import pytest

from recipes.data.bag_of_words import bag_of_words
from recipes.data.encoded_texts import EncodedTexts
from recipes.data.labelled_texts import TextData


@pytest.fixture
def data(rng):
    """Texts whose class is told by one word."""
    labels = rng.integers(0, 3, 90).astype("int32")
    told = [("red", "green", "blue")[label] for label in labels]
    texts = [f"the {word} thing no {i}" for i, word in enumerate(told)]
    split = {"texts": tuple(texts[:60]), "labels": labels[:60]}
    split |= {"test_texts": tuple(texts[60:]), "test_labels": labels[60:]}
    return TextData("things", ("r", "g", "b"), split="by hand", **split)


def test_rows_are_cut_or_padded(data):
    pytest.importorskip("tokenizers")
    from kattn.text import Subwords

    subwords = Subwords.train(data.texts, 300)
    found = EncodedTexts.of(data, subwords, 5)
    assert found.x.shape == (60, 5)
    assert found.x_test.shape == (30, 5)
    assert found.vocabulary_size == subwords.vocabulary_size
    whole = subwords.encode(data.texts[7])
    np.testing.assert_array_equal(found.x[7][: len(whole)], whole[:5])
    longer = EncodedTexts.of(data, subwords, 40).x[7]
    assert (longer[: len(whole)] == subwords.encode(data.texts[7])[: len(whole)]).all()
    assert not longer[len(whole) :].any()


def test_bag_of_words_reads_the_word_that_tells(data):
    fit, validate = np.arange(50), np.arange(50, 60)
    found = bag_of_words(data, fit, validate)
    assert found["accuracy"] == 1
    assert 0 < found["loss"] < 0.2
    assert bag_of_words(data, fit, validate, on="validation")["loss"] != found["loss"]
    one_missing = fit[data.labels[fit] != 2]
    found = bag_of_words(data, one_missing, validate)
    assert found["accuracy"] == pytest.approx((data.test_labels != 2).mean())
    assert found["loss"] > 1  # a class that was never seen costs much
