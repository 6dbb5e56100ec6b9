"""The examples in docstrings say what happens."""

import doctest
import importlib
import inspect

import keras
import numpy as np
import pytest

import kattn

SPACES = (kattn.callbacks, kattn.data, kattn.schedules, kattn.visualize)
MODULES = sorted(
    {
        value.__module__
        for space in SPACES
        for value in vars(space).values()
        if inspect.isclass(value) or inspect.isfunction(value)
        if value.__module__.startswith(space.__name__)
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = {"keras": keras, "np": np, "kattn": kattn}
    found = doctest.testmod(module, extraglobs=names)
    assert found.attempted > 0
    assert found.failed == 0
