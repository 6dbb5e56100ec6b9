"""An architecture of another library: what its settings and tensors mean for a model of ours."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kattn.arguments import error


def _nothing(name, given):
    return False


def _of_tokens(model):
    return None, None


@dataclasses.dataclass(frozen=True)
class Family:
    """How the models of one architecture are read and written.

    Args:
        model: Class of the models.
        position: Class of their position layers.
        architectures: For each `model_type` of a config.json that is read, the class in
            `transformers` that a model is written for.
        arguments: Function of a `Config`, of the tensors by name and of the arguments that the
            caller gave. It returns the arguments of the model, and raises ValueError for settings
            that ask for something else.
        settings: Function of a `model_type`, of what `facts` returned, and of the `BlockOptions` of
            the model, which say what is dropped. It returns the settings that mean the same.
        links: Function of a model that is built, and of the `Config` of its folder. It returns an
            iterable of `Link`, among which may be some of weights that the model does not have.
        input_shape: Function of a model that returns what it is built with.
        prefix: What the names of the tensors of most folders begin with.
        unprefixed: Beginnings of names that stand beside `prefix`.
        table: Name of the vectors of the tokens.
        copies: Names of tensors that repeat `table`.
        head: Name of the matrix that gives the logits, which repeats `table` if both are tied.
        is_tied: Whether they are where nothing is said.
        renamed: Pairs of a part of a name in old folders and what it is now.
        buffers: Pattern of the names of tensors that hold no weights.
        leaves_out: Function of the name of a tensor and the arguments that the caller gave, which
            says whether the tensor belongs to what the model does not have.
    """

    model: Any
    position: Any
    architectures: Mapping[str, str]
    arguments: Callable
    settings: Callable
    links: Callable
    input_shape: Callable = _of_tokens
    prefix: str = ""
    unprefixed: tuple[str, ...] = ()
    table: str = ""
    copies: tuple[str, ...] = ()
    head: str = ""
    is_tied: bool = True
    renamed: tuple[tuple[str, str], ...] = ()
    buffers: str = "$^"
    leaves_out: Callable = _nothing

    def tensors(self, config, stored):
        """The tensors of a folder by the names in the links, without buffers and repetitions.

        Args:
            config: Its `Config`.
            stored: Dict of `StoredTensor` by the names in the folder.

        Returns:
            A dict of them.
        """
        tensors = {}
        for name, tensor in stored.items():
            name = name.removeprefix(self.prefix)
            for old, new in self.renamed:
                name = name.replace(old, new)
            if not re.search(self.buffers, name):
                tensors[name] = tensor
        is_tied = self.head and config.get("tie_word_embeddings", self.is_tied)
        for copy in (*self.copies, self.head) if is_tied else self.copies:
            if copy in tensors and self.table not in tensors:
                tensors[self.table] = tensors.pop(copy)
            elif copy in tensors and _are_equal(tensors[copy], tensors[self.table]):
                del tensors[copy]
        return tensors

    def name_in_folder(self, name):
        """The whole name of a tensor in a folder that is written."""
        return name if name.startswith(self.unprefixed) else f"{self.prefix}{name}"

    def ties(self, config, tensors):
        """Whether the vectors of the tokens are also the matrix that gives the logits.

        As `transformers` does, the tensors have the last word: a head of other numbers is a head of
        its own.
        """
        return bool(config.get("tie_word_embeddings", self.is_tied)) and self.head not in tensors


def word_for(meaning, meanings):
    """The first value of a setting that means this; raises ValueError if there is none.

    Args:
        meaning: Activation of a model.
        meanings: Dict from the values to what they mean.
    """
    for word, known in meanings.items():
        if known == meaning:
            return word
    known = ", ".join(dict.fromkeys(meanings.values()))
    raise error(
        f"`activation` must be one of {known} to be written in this format",
        activation=meaning,
    )


def _are_equal(one, other):
    return one.shape == other.shape and np.array_equal(one.read(), other.read())
