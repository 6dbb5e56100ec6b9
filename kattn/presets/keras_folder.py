"""Models of kattn and Keras as folders: what a `.keras` file holds, as files of their own."""

import tempfile
import zipfile
from pathlib import Path

import h5py
import keras

from kattn.arguments import error, local_path

CONFIG, WEIGHTS = FILES = ("config.json", "model.weights.h5")


def save_preset(model, folder):
    """Writes a model as a folder of its config and its weights, for `from_preset`.

    The folder holds `config.json`, `metadata.json` and `model.weights.h5`, which Keras reads, too:
    they are what a `.keras` file holds. Nothing in them is run when they are read.

    Args:
        model: Any Keras model that is built.
        folder: Path of the folder, which is made if there is none. A model in it is overwritten.

    Returns:
        None.

    Raises:
        ValueError: If the model is not built.

    Example:
        >>> model = kattn.models.TransformerLM(20, 1, 2, 8)
        >>> model.build((None, None))
        >>> kattn.presets.save_preset(model, "small")
        >>> again = kattn.presets.from_preset("small")
        >>> again.count_params() == model.count_params()
        True
    """
    if not getattr(model, "built", False):
        raise error(
            "A model must be built before it is written: call it, or its `build`, first",
            model=type(model).__name__,
        )
    folder = local_path(folder=folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "model.keras"
        keras.saving.save_model(model, path)
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)


def from_preset(folder):
    """The model of a folder that `save_preset` wrote, on any backend.

    Args:
        folder: Path of the folder.

    Returns:
        A model that is built, and not compiled.

    Raises:
        ValueError: If a file is missing or truncated, if weights are missing or of another shape,
            or if the config asks for Python code to be run.

    Example:
        >>> model = kattn.models.TransformerLM(20, 1, 2, 8)
        >>> model.build((None, None))
        >>> kattn.presets.save_preset(model, "small")
        >>> type(kattn.presets.from_preset("small")).__name__
        'TransformerLM'
    """
    folder = local_path(folder=folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise error(f"The folder must hold {name}", folder=str(folder))
    try:  # first, as Keras would hide the cause behind a fault of its own
        h5py.File(folder / WEIGHTS).close()
    except OSError as fault:
        raise error(
            "The file of the weights must be HDF5: this one is truncated or damaged",
            file=str(folder / WEIGHTS),
            fault=str(fault),
        ) from fault
    return keras.saving.load_model(str(folder), compile=False, safe_mode=True)
