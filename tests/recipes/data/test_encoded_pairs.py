"""Parallel texts as rows of subwords; translations as texts, and their scores."""

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")

from kattn import generation
from recipes.data.encoded_pairs import BEGIN, END, EncodedPairs, text_scores
from recipes.data.parallel_texts import Pairs, ParallelTexts


@pytest.fixture(scope="module")
def task():
    sources = tuple(f"eins und {i}" for i in range(20))
    targets = tuple(f"one and {i}" for i in range(20))
    long = Pairs(("eins und " * 30,), ("one and " * 30,))
    train = Pairs((*sources, *long.sources), (*targets, *long.targets))
    test = Pairs(("eins", "und eins und", "zwei"), ("one and 1 and 2", "and one and 3", "two"))
    texts = ParallelTexts("t", train, Pairs(sources, targets), test, "by hand")
    return EncodedPairs.of(texts, 280, 12)


def test_rows(task):
    source, target = task.train
    assert (source.shape, target.shape) == ((20, 12), (20, 13))  # the long pair is left out
    assert task.left_out == 1
    assert (source.dtype, target.dtype) == ("int32", "int32")
    tokens = task.subwords.encode("eins und 7")
    assert source[7].tolist() == [*tokens, END, *[0] * (11 - len(tokens))]
    tokens = task.subwords.encode("one and 7")
    assert target[7].tolist() == [BEGIN, *tokens, END, *[0] * (11 - len(tokens))]
    assert task.test[0].shape == (3, 12)
    assert task.vocabulary_size == task.subwords.vocabulary_size <= 280


def test_subwords_are_learnt_from_both_languages_and_no_test(task):
    known = task.subwords.tokenizer.get_vocab()
    assert "eins" in known
    assert "one" in known
    assert not any("zw" in token or "tw" in token for token in known)


def test_texts_that_are_too_long_are_cut_where_they_are_not_trained_on():
    pairs = Pairs(("a", "b"), ("c", "d"))
    texts = ParallelTexts("t", pairs, Pairs(("a" * 9,), ("c",)), Pairs(("b",), ("d" * 9,)), "")
    task = EncodedPairs.of(texts, 270, 4)
    assert np.count_nonzero(task.validate[0]) == 4
    assert np.count_nonzero(task.test[1]) == 5
    assert task.test[1][0, 0] == BEGIN
    with pytest.raises(
        ValueError, match=r"`length` must leave at least one pair.*length=1, pairs=2"
    ):
        EncodedPairs.of(texts, 270, 1)


def test_a_pair_of_just_the_length_is_trained_on():
    """The end counts as a subword: of four with it, four fit, and five do not."""
    train = Pairs(("x", "abc", "x", "abcd", "x"), ("y", "y", "pqr", "y", "pqrs"))
    texts = ParallelTexts("t", train, Pairs(("x",), ("y",)), Pairs(("x",), ("y",)), "")
    task = EncodedPairs.of(texts, 259, 4)  # 256 bytes and 3 special tokens: a subword is a letter
    source, target = task.train
    assert [task.text(row) for row in source] == ["x", "abc", "x"]
    assert [task.text(row) for row in target] == ["y", "y", "pqr"]
    assert source[1, 3] == target[2, 4] == END
    assert task.left_out == 2


def test_a_text_ends_before_its_end(task):
    tokens = task.subwords.encode("one and 7")
    assert task.text([*tokens, END, *tokens]) == "one and 7"
    assert task.text([BEGIN, *tokens, 0, 0]) == "one and 7"
    assert task.text([]) == ""
    pieces = task.pieces(np.array([BEGIN, *tokens, END, 0, 0]))
    assert (pieces[0], "".join(pieces[1:-1]), pieces[-1]) == ("<begin>", "one and 7", "<end>")


def test_what_validates_is_read_as_in_training(task):
    (source, read), wanted, weights = task.to_validate(5)
    assert source.shape == read.shape == wanted.shape == (5, 8)
    np.testing.assert_array_equal(read, task.validate[1][:5, :8])
    np.testing.assert_array_equal(wanted, task.validate[1][:5, 1:9])
    np.testing.assert_array_equal(weights, wanted != 0)


def test_translations_stand_in_the_order_of_their_sources(task, monkeypatch):
    """Sources are decoded in groups of one length, the last of which is filled up."""
    shapes = []

    def generate(model, prompts, count, *, sampler, end_token, pad_token, context):
        assert (model, sampler, end_token, pad_token) == ("model", "sampler", END, 0)
        assert (prompts == BEGIN).all()
        shapes.append((prompts.shape, count, context.shape))
        return np.pad(context, [(0, 0), (0, count - context.shape[1])])

    monkeypatch.setattr(generation, "generate", generate)
    source = np.zeros((5, 12), "int32")
    for i, length in enumerate((9, 2, 12, 3, 1)):
        source[i, :length] = i + 3
    found = task.translate("model", source, "sampler", batch_size=2)
    np.testing.assert_array_equal(found, source)
    assert shapes == [((2, 1), 12, (2, 8)), ((2, 1), 12, (2, 12)), ((2, 1), 12, (2, 12))]


def test_scores(task):
    """BLEU by hand: all n-grams of the second text are right, none of the others."""
    found = task.scores(task.test[1][:, 1:], lower=False)
    assert found == {"bleu": pytest.approx(100), "accuracy": 1}
    wanted = ("the cat sat on the mat", "A dog")
    lower = text_scores(("The cat sat on the mat", "a bird"), wanted, lower=True)
    # 7 of 8 words, 5 of 6 pairs, 4 of 4 and 3 of 3 longer ones; as long as the reference
    assert lower["bleu"] == pytest.approx(100 * (7 / 8 * 5 / 6) ** 0.25, abs=1e-6)
    assert lower["accuracy"] == 0
    assert text_scores(("The cat sat on the mat", "a bird"), wanted, lower=False)["bleu"] < 70
