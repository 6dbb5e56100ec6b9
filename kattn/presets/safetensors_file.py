"""Files of named arrays in the safetensors format, of which one array at a time is in memory.

The library `safetensors` reads them. It writes a file only of arrays that are all in memory, so
that is done here: a file is the length of its header in 8 bytes; the header, in JSON, which says
the dtype, shape and place of each array; and the numbers, with no gap between the arrays.

https://huggingface.co/docs/safetensors/index#format
"""

import dataclasses
import functools
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from kattn.arguments import error

FLOATS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in FLOATS.items()}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """An array that is in memory only while it is looked at.

    Args:
        dtype: NumPy dtype of the array. None for integers and others that are no weights.
        shape: Shape of the array.
        read: Function without arguments that gives the array.
    """

    dtype: Any
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def byte_count(self):
        """How many bytes the array has."""
        return self.dtype.itemsize * math.prod(self.shape)


def read_header(path):
    """The arrays of a file, by name, of which no number is read yet.

    Args:
        path: Path of the file.

    Returns:
        A dict of a `StoredTensor` for each name.

    Raises:
        ValueError: If the file is truncated, or its header says what cannot be.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {name: _stored(path, name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as fault:
        raise error(
            "A safetensors file must hold all that its header names, and no more: this one is "
            "truncated or damaged",
            file=str(path),
            fault=str(fault),
        ) from fault


def write_file(path, tensors):
    """Writes arrays to a file, each of which is made when its turn comes.

    Args:
        path: Path of the file. It appears when it is whole.
        tensors: Dict of a `StoredTensor` for each name.
    """
    header: dict = {"__metadata__": {"format": "pt"}}  # without which transformers refuses the file
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.byte_count
        offsets = {"data_offsets": [start, end]}
        header[name] = {"dtype": CODES[tensor.dtype], "shape": tensor.shape, **offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that all arrays begin at a multiple of 8
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(_bytes(tensor.read(), tensor.dtype))
    unfinished.replace(path)


def _bytes(array, dtype):
    return np.ascontiguousarray(array, dtype).reshape(-1).view("uint8")  # Python has no bfloat16


def _stored(path, name, view):
    dtype, shape = FLOATS.get(view.get_dtype()), tuple(view.get_shape())
    return StoredTensor(dtype, shape, functools.partial(_read, path, name))


def _read(path, name):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return file.get_tensor(name)
