"""Real data sets that lie beside the repository on some machines."""

from pathlib import Path

import pytest


def real_data(name):
    """The path of a file in a folder `shared/data` beside the repository; skips without it."""
    for parent in Path(__file__).resolve().parents:
        path = parent / "shared" / "data" / name
        if path.is_file():
            return path
    return pytest.skip(f"shared/data/{name} is not beside the repository")
