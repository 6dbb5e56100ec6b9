"""Backups as files that are whole or not there.

A file is a line with the version of the format, records of NumPy's `.npy` format, and the SHA-256
of all that. The first record is JSON text, in which arrays stand by their number; nothing in a file
is ever executed. Whoever is killed while it writes leaves a file of another name.
"""

import hashlib
import io
import json
import os
import re
from typing import Any

import numpy as np

FIRST_LINE = b"kattn backup 1\n"
NAME = re.compile(r"backup-(\d+)-(\d+)\.kattn")
UNFINISHED = re.compile(r"backup-\d+-\d+\.unfinished")
DIGEST = hashlib.sha256().digest_size
CHUNK = 2**20


def write(directory, epoch, step, state, *, keep):
    """Save a state as the newest backup, and remove all but the last few.

    Args:
        directory: A `pathlib.Path`. It is made if need be.
        epoch: The epoch to go on in.
        step: The step of that epoch to go on with.
        state: Dicts (with strings as keys), lists, tuples, NumPy arrays and numbers, bool, int,
            float, str and None.
        keep: How many backups to keep, 1 or more.

    Raises:
        ValueError: If something in the state is of another type.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_packed(state, arrays, "state"))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"backup-{epoch:06d}-{step:09d}.kattn"
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        hashing = _Hashing(file)
        hashing.write(FIRST_LINE)
        for array in (np.frombuffer(text.encode(), "uint8"), *arrays):
            np.lib.format.write_array(hashing, array, allow_pickle=False)
        file.write(hashing.sha.digest())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    _sync(directory)
    for old in paths(directory)[:-keep]:
        old.unlink()


def paths(directory):
    """The backups in a directory, the oldest first."""
    found = directory.iterdir() if directory.exists() else ()
    numbered = [(NAME.fullmatch(path.name), path) for path in found]
    return [path for match, path in sorted((_position(m), p) for m, p in numbered if m)]


def read(path):
    """The state in a backup.

    Raises:
        ValueError: If the file is not as it was written, or of another version.
    """
    with path.open("rb") as file:
        _check(path, file)
        file.seek(len(FIRST_LINE))
        text = np.lib.format.read_array(file, allow_pickle=False).tobytes().decode()
        packed = json.loads(text)
        count = _count(packed)
        arrays = [np.lib.format.read_array(file, allow_pickle=False) for _ in range(count)]
    return _unpacked(packed, arrays)


def remove_unfinished(directory):
    """Remove what killed processes have left."""
    for path in list(directory.iterdir()) if directory.exists() else ():
        if UNFINISHED.fullmatch(path.name):
            path.unlink()


class _Hashing(io.RawIOBase):
    """Writes into a file, and hashes on the way."""

    def __init__(self, file):
        super().__init__()
        self._file = file
        self.sha = hashlib.sha256()

    def write(self, data):
        self.sha.update(data)
        return self._file.write(data)


def _position(match):
    return tuple(int(number) for number in match.groups())


def _sync(directory):
    """Make the names in a directory last, where the system can."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check(path, file):
    left = max(path.stat().st_size - DIGEST, 0)
    sha, first = hashlib.sha256(), b""
    while left:
        chunk = file.read(min(left, CHUNK))
        first = first or chunk[: len(FIRST_LINE)]
        sha.update(chunk)
        left -= len(chunk)
    written, found = file.read().hex(), sha.hexdigest()
    if written != found:
        raise ValueError(
            "A backup must be as it was written; this one is damaged, and left as it is. If it is "
            "taken away, training goes on from the one before: "
            f"file={str(path)!r}, sha256 written={written!r}, found={found!r}"
        )
    if first != FIRST_LINE:
        raise ValueError(
            "A backup must be of the version of this kattn, and is left as it is: "
            f"file={str(path)!r}, version={first!r}, expected={FIRST_LINE!r}"
        )


def _packed(value: Any, arrays, where):
    """As JSON can hold it; what JSON has not is a dict of one entry, which says what it is."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return {"number": _place(np.array(value), arrays)}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return {"array": _place(value, arrays)}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, arrays, f"{where}[{i}]") for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {"dict": {k: _packed(item, arrays, f"{where}[{k!r}]") for k, item in value.items()}}
    raise ValueError(
        "A state must be made of dicts with strings as keys, lists, tuples, NumPy arrays, numbers, "
        f"strings and None: {where}={value!r}"
    )


def _place(array, arrays):
    """Where it is put; with the name of its type, if a file of NumPy does not know that."""
    arrays.append(array)
    place = len(arrays) - 1
    return place if array.dtype.kind != "V" else [place, array.dtype.name]


def _unpacked(packed, arrays):
    if isinstance(packed, list):
        return [_unpacked(item, arrays) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "dict":
        return {key: _unpacked(item, arrays) for key, item in content.items()}
    if kind == "tuple":
        return tuple(_unpacked(item, arrays) for item in content)
    place, *name = content if isinstance(content, list) else [content]
    array = arrays[place].view(np.dtype(name[0])) if name else arrays[place]
    return array if kind == "array" else array[()]


def _count(packed):
    """Of arrays."""
    if isinstance(packed, list):
        return sum(map(_count, packed))
    if not isinstance(packed, dict):
        return 0
    ((kind, content),) = packed.items()
    if kind in ("array", "number"):
        return 1
    return sum(map(_count, content.values() if kind == "dict" else content))
