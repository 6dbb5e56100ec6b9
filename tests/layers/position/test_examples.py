"""The examples in the docstrings of position layers run, and give what they say."""

import doctest
import importlib
import inspect

import keras
import numpy as np
import pytest

import kattn

MODULES = sorted(
    {
        value.__module__
        for value in vars(kattn.layers).values()
        if inspect.isclass(value) and value.__module__.startswith("kattn.layers.position")
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    names = {"keras": keras, "np": np, "kattn": kattn}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
