"""Subwords as tokens."""

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from kattn.text import Subwords

TEXTS = ["low lower lowest " * 5, "new newer newest " * 5]


@pytest.fixture(scope="module")
def subwords():
    return Subwords.train(TEXTS, 280)


def test_frequent_pieces_are_tokens(subwords):
    assert subwords.vocabulary_size <= 280
    tokens = subwords.encode("lower")
    assert tokens.dtype == np.int32
    assert len(tokens) < len("lower")


@pytest.mark.parametrize("text", ["lower", "", "  two\n\tlines ", "鯨 🐳 é", "<end>x"])
def test_any_text_comes_back(subwords, text):
    tokens = subwords.encode(text)
    if "<end>" in text:  # which is special, and no text
        assert subwords.number("<end>") in tokens
        assert subwords.decode(tokens) == "x"
    else:
        assert subwords.decode(tokens) == text


def test_several_texts_at_once(subwords):
    found = subwords.encode(["low", "newest"])
    assert [x.tolist() for x in found] == [subwords.encode(t).tolist() for t in ("low", "newest")]


def test_special_tokens_come_first(subwords):
    assert [subwords.number(token) for token in ("<pad>", "<end>")] == [0, 1]
    with pytest.raises(ValueError, match="one of the vocabulary; received: token='<start>'"):
        subwords.number("<start>")


@pytest.mark.parametrize("where", ["tokenizer.json", ""])
def test_saved_and_loaded(subwords, tmp_path, where):
    subwords.save(tmp_path / "tokenizer.json")
    again = Subwords.load(tmp_path / where)
    assert again.encode(TEXTS[0]).tolist() == subwords.encode(TEXTS[0]).tolist()


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="`vocabulary_size` must be an integer >= 258"):
        Subwords.train(TEXTS, 200)
    with pytest.raises(FileNotFoundError, match=r"There must be a tokenizer\.json"):
        Subwords.load(tmp_path)
    with pytest.raises(ValueError, match=r"write Subwords\.load\(file\)"):
        Subwords("tokenizer.json")
