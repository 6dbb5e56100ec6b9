"""The examples in the docstrings of public names run, and give what they say."""

import ast
import contextlib
import doctest
import importlib
import inspect
import re
import sys

import keras
import numpy as np
import pytest

import kattn

SPACES = (
    "arguments",
    "biases",
    "callbacks",
    "data",
    "generation",
    "grid",
    "layers",
    "masks",
    "models",
    "ops",
    "presets",
    "profile",
    "schedules",
    "spans",
    "visualize",
)


def modules():
    """The modules that define public names."""
    names = set()
    for space in SPACES:
        for value in vars(importlib.import_module(f"kattn.{space}")).values():
            if inspect.isclass(value) or inspect.isfunction(value):
                names.add(value.__module__)
    return sorted(name for name in names if name.startswith("kattn."))


MODULES = modules()


def plain(value):
    """A value without what differs between backends: tensors as lists, shapes as tuples."""
    if keras.ops.is_tensor(value) or isinstance(value, np.ndarray):
        return keras.ops.convert_to_numpy(value).tolist()
    if type(value).__name__ in ("TensorShape", "Size"):
        return tuple(value)
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def show(value):
    """Prints the value of an expression."""
    if value is not None:
        print(repr(plain(value)))


@contextlib.contextmanager
def shown_plainly():
    """While examples run, which Python's own hook prints."""
    hook, sys.__displayhook__ = sys.__displayhook__, show
    try:
        yield
    finally:
        sys.__displayhook__ = hook


class Checker(doctest.OutputChecker):
    """Takes numbers for equal if they are so in the digits that a docstring shows."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags | doctest.NORMALIZE_WHITESPACE):
            return True
        want = re.sub(r"array\((.*)\)", r"\1", want, flags=re.DOTALL)  # NumPy's is shown as a list
        try:
            wanted, actual = ast.literal_eval(want.strip()), ast.literal_eval(got.strip())
            return np.shape(wanted) == np.shape(actual) and np.allclose(wanted, actual, atol=1e-3)
        except (ValueError, SyntaxError, TypeError):
            return False


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = {**vars(kattn.ops), **vars(kattn.layers), **vars(module)}
    names |= {"keras": keras, "np": np, "kattn": kattn}
    names = {word: value for word, value in names.items() if not word.startswith("__")}
    names["__name__"] = name
    runner = doctest.DocTestRunner(Checker(), optionflags=doctest.ELLIPSIS)
    with shown_plainly():
        for test in doctest.DocTestFinder().find(module, name, globs=names):
            runner.run(test)
    result = runner.summarize(verbose=False)
    assert result.attempted > 0, f"{name} has no example"
    assert result.failed == 0


def test_a_wrong_example_is_found():
    checker = Checker()
    assert checker.check_output("[0.1667, 2.0]\n", "[0.16666667, 2.0]\n", 0)
    assert not checker.check_output("[0.1667, 2.0]\n", "[0.26666667, 2.0]\n", 0)
    assert not checker.check_output("(2, 3)\n", "(2, 4)\n", 0)
    assert not checker.check_output("[1.0]\n", "[1.0, 1.0]\n", 0)


def test_modules_are_found():
    wanted = {"kattn.layers.attention.self_attention", "kattn.masks.bands", "kattn.ops.attention"}
    assert wanted <= set(MODULES)
