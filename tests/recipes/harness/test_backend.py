"""Which backend is chosen, and what is said where none can be."""

import json
import os
import sys

import pytest

from recipes import harness


@pytest.fixture
def frameworks(monkeypatch, tmp_path):
    """Pretend which frameworks are installed and what keras.json says; keras not yet imported."""

    def pretend(installed, configured=None):
        monkeypatch.setattr(
            harness.backend, "find_spec", lambda name: name if name in installed else None
        )
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("KERAS_BACKEND", "restored afterwards")
        monkeypatch.delenv("KERAS_BACKEND")
        monkeypatch.delitem(sys.modules, "keras", raising=False)
        if configured:
            (tmp_path / "keras.json").write_text(json.dumps({"backend": configured}))

    return pretend


@pytest.mark.parametrize(
    ("name", "environment", "configured", "installed", "chosen"),
    [
        ("torch", "jax", "jax", ("jax", "torch"), "torch"),
        (None, "jax", "torch", ("jax", "torch"), "jax"),
        (None, None, "torch", ("jax", "torch"), "torch"),
        (None, None, "tensorflow", ("jax", "torch"), "jax"),  # keras.json names it by itself
        (None, None, None, ("torch",), "torch"),
    ],
)
def test_choose_backend(frameworks, monkeypatch, name, environment, configured, installed, chosen):
    frameworks(installed, configured)
    if environment:
        monkeypatch.setenv("KERAS_BACKEND", environment)
    assert harness.choose_backend(name) == chosen
    assert os.environ["KERAS_BACKEND"] == chosen


@pytest.mark.parametrize(
    ("name", "installed", "message"),
    [
        ("torch", ("jax",), r"kattn\[torch\]'\); received: backend='torch', installed=\['jax'\]"),
        ("mxnet", ("jax",), "backend='mxnet'"),
        (None, (), "none is installed"),
    ],
)
def test_choose_backend_refuses(frameworks, name, installed, message):
    frameworks(installed)
    with pytest.raises(ValueError, match=message):
        harness.choose_backend(name)


def test_choose_backend_after_keras():
    import keras

    running = keras.backend.backend()
    assert harness.choose_backend(running) == running
