"""Backups as files that are either complete or not there.

A file consists of a line with the version of the format, records in NumPy's `.npy` format, and the
SHA-256 of all that. The first record is JSON text, in which arrays are given by their number, so
nothing in a file is ever executed. A file has another name until it is complete: a process that is
killed while it writes leaves no backup that is damaged.
"""

import hashlib
import io
import json
import os
import re
from typing import Any

import numpy as np

from kattn.arguments import error

FIRST_LINE = b"kattn backup 2\n"
NAME = re.compile(r"backup-(\d+)-(\d+)\.kattn")
UNFINISHED = re.compile(r"backup-\d+-\d+\.unfinished")
DIGEST = hashlib.sha256().digest_size
CHUNK = 2**20


def write(directory, epoch, step, state, *, keep):
    """Save a state as the newest backup, and remove all backups but the last few.

    Args:
        directory: Directory of the backups, a `pathlib.Path`. It is made if it does not exist.
        epoch: Epoch in which training is to go on.
        step: Step of that epoch with which training is to go on.
        state: The state: dicts with strings as keys, lists, tuples, NumPy arrays and numbers,
            bool, int, float, str and None.
        keep: Number of backups to keep, an integer >= 1.

    Raises:
        ValueError: If something in the state has another type.
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
    """Return the paths of the backups in a directory, the oldest first."""
    files = directory.iterdir() if directory.exists() else ()
    numbered = [(NAME.fullmatch(path.name), path) for path in files]
    return [path for match, path in sorted((_position(m), p) for m, p in numbered if m)]


def read(path):
    """Return the state in a backup.

    Args:
        path: Path of the backup, a `pathlib.Path`.

    Raises:
        ValueError: If the file is damaged, or was written in another version of the format.
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
    """Remove the unfinished files that killed processes have left in a directory."""
    for path in list(directory.iterdir()) if directory.exists() else ():
        if UNFINISHED.fullmatch(path.name):
            path.unlink()


class _Hashing(io.RawIOBase):
    """Writes into a file and computes the SHA-256 of what it writes."""

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
    """Have the names in a directory written to the disk, where the system can do that."""
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
    written, computed = file.read().hex(), sha.hexdigest()
    if written != computed:
        raise error(
            "The backup must be as it was written, but it is damaged. It is left as it is; if you "
            "remove it, training goes on from the backup before it",
            file=str(path),
            sha256_written=written,
            sha256_computed=computed,
        )
    if first != FIRST_LINE:
        raise error(
            "The backup must be of the format that this version of kattn writes. It is left as it "
            "is",
            file=str(path),
            version=first,
            expected=FIRST_LINE,
        )


def _packed(value: Any, arrays, where):
    """The value as JSON can hold it. Other types become a dict with the name of the type."""
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
    raise error(
        "A state must consist of dicts with strings as keys, lists, tuples, NumPy arrays of "
        "numbers, numbers, strings and None",
        **{where: value},
    )


def _place(array, arrays):
    """The place of an array; with the name of its type, if a NumPy file does not know the type."""
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
    """The number of arrays."""
    if isinstance(packed, list):
        return sum(map(_count, packed))
    if not isinstance(packed, dict):
        return 0
    ((kind, content),) = packed.items()
    if kind in ("array", "number"):
        return 1
    return sum(map(_count, content.values() if kind == "dict" else content))
