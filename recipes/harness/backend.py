"""The framework that Keras runs on, chosen before Keras is imported."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")


def choose_backend(name: str | None = None) -> str:
    """Tell Keras, before it is imported, which framework to run on.

    Args:
        name: `tensorflow`, `jax` or `torch`. None takes what `KERAS_BACKEND` says, else what
            keras.json says if that is installed, else the first that is installed.

    Returns:
        The name of the backend.

    Raises:
        ValueError: If the backend is unknown or not installed, if none is installed, or if Keras
            has already been imported on another.
    """
    installed = [backend for backend in BACKENDS if find_spec(backend) is not None]
    asked = name or os.environ.get("KERAS_BACKEND")
    configured = _configured_backend()
    if not asked and configured in installed:
        asked = configured
    if not asked and not installed:
        raise ValueError(
            f"`backend` must be one of {', '.join(BACKENDS)}, of which none is installed; "
            f"received: backend={name!r}"
        )
    chosen = asked or installed[0]
    if chosen not in installed:
        raise ValueError(
            f"`backend` must be one of {', '.join(BACKENDS)} and installed "
            f"(pip install 'kattn[{chosen}]'); received: backend={chosen!r}, installed={installed}"
        )
    running = sys.modules["keras"].backend.backend() if "keras" in sys.modules else chosen
    if running != chosen:
        raise ValueError(
            "`backend` must be chosen before keras is imported; "
            f"received: backend={chosen!r}, running={running!r}"
        )
    os.environ["KERAS_BACKEND"] = chosen
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up chatter
    # PyTorch's threads spin while they wait. On two cores with other work that made a step of 0.1 s
    # last 0.4 to 1.4 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return chosen


def _configured_backend() -> str | None:
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    config = home / "keras.json"
    return json.loads(config.read_text()).get("backend") if config.is_file() else None
