"""Prepares a tox environment: the backend's build for this machine, and a folder to test from.

    python tests/environment.py NAME FOLDER

Installs the backend that environment NAME needs: its GPU build where an NVIDIA GPU is present, its
CPU build where none is. A backend's environment also gets KerasHub, whose blocks are tried with
kattn's drop-in. FOLDER becomes a copy of `tests`, `recipes` and the README without `kattn`, so that
what the tests import is the installed wheel.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

# torch is pinned where there is no GPU: its newest release on the index is a CUDA build.
CPU = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch==2.13.0"}
GPU = {"tensorflow": "tensorflow[and-cuda]", "jax": "jax[cuda13]", "torch": "torch"}
BACKEND = {"recipes": "tensorflow"}
KERAS_HUB = "keras-hub==0.32.0"


def has_gpu():
    """Whether an NVIDIA GPU answers."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def install(requirement, *, cuda):
    """Installs with pip; refuses a build for GPUs on a machine that has none."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if not cuda and requirement.startswith("torch"):
        report = subprocess.run(
            [*pip, "--dry-run", "--report", "-", requirement],
            stdout=subprocess.PIPE,
            check=True,
        )
        names = [item["metadata"]["name"] for item in json.loads(report.stdout)["install"]]
        if any(name.startswith("nvidia-") for name in names):
            sys.exit(
                "There is no NVIDIA GPU here, and pip would install a CUDA build: "
                "set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu and run tox again."
            )
    subprocess.run([*pip, requirement], check=True)


def install_keras_hub():
    """Without what it depends on, or TensorFlow would come with it beside every backend."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, KERAS_HUB], check=True)


def check_gpu(backend):
    """Stops where the framework does not see the GPU that answered: tests would pass it over."""
    code = "from kattn import backend; print(*backend.devices())"
    environment = {**os.environ, "KERAS_BACKEND": backend}
    found = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, env=environment
    ).stdout.split()
    if len(found) < 2:
        sys.exit(f"There is an NVIDIA GPU here, but {backend} sees only {found}.")


def copy_suite(root, folder):
    """Lays out tests, recipes, the README and the settings of pytest in `folder`."""
    for name in ("tests", "recipes"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, folder)


def main(name, folder):
    """See the head of this file."""
    cuda = has_gpu()
    backend = BACKEND.get(name, name)
    install((GPU if cuda else CPU)[backend], cuda=cuda)
    if cuda:
        check_gpu(backend)
    if name in CPU:  # no recipe needs it
        install_keras_hub()
    copy_suite(pathlib.Path(__file__).resolve().parents[1], pathlib.Path(folder))
    print(f"{name}: {backend} on {'CPU and GPU' if cuda else 'CPU: no NVIDIA GPU here'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
