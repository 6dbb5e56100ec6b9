"""Characters as tokens."""

import numpy as np
import pytest

from kattn.text import Characters

TEXT = "Ein Wal, 鯨 und 🐳: zwei Wale.\n"


@pytest.mark.parametrize("first", [0, 1, 5])
def test_numbers_count_through_the_alphabet(first):
    characters = Characters.of(TEXT, first=first)
    expected = [sorted(set(TEXT)).index(c) + first for c in TEXT]
    found = characters.encode(TEXT)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    assert characters.decode(found) == TEXT
    assert characters.vocabulary_size == max(expected) + 1


def test_an_alphabet_in_another_order():
    characters = Characters("cab")
    assert characters.encode("abc").tolist() == [1, 2, 0]
    assert characters.decode([0, 1, 2]) == "cab"


def test_an_empty_text():
    characters = Characters("ab")
    assert characters.encode("").shape == (0,)
    assert characters.decode([]) == ""


@pytest.mark.parametrize("text", ["abz", "ab\u0000", "ab🐳"])
def test_an_unknown_character_is_named(text):
    with pytest.raises(ValueError, match="characters of the alphabet; received: character="):
        Characters("ab").encode(text)


@pytest.mark.parametrize("token", [0, 3])
def test_a_number_of_no_character_is_named(token):
    with pytest.raises(ValueError, match=f"numbers of characters; received: token={token}"):
        Characters("ab", first=1).decode([1, token])


@pytest.mark.parametrize("alphabet", ["", "aba", ["a", "b"]])
def test_bad_alphabets(alphabet):
    with pytest.raises(ValueError, match=r"write Characters.of\(text\)"):
        Characters(alphabet)
