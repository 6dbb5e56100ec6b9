import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as library

from kattn.presets.safetensors_file import StoredTensor, read_header, write_file

ARRAYS = {
    "half": np.array([1.5, -2.0, 3.0], "float16"),  # after which nothing is aligned
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "b/c": np.array([[1.0, 3.0]], ml_dtypes.bfloat16),
    "one": np.array(2.5, "float64"),
    "none": np.ones((0, 2), "float32"),
}
TENSORS = {name: StoredTensor(x.dtype, x.shape, x.copy) for name, x in ARRAYS.items()}


def check(stored):
    assert set(stored) == set(ARRAYS)
    for name, array in ARRAYS.items():
        found = stored[name].read()
        assert found.dtype == stored[name].dtype == array.dtype
        assert found.shape == stored[name].shape == array.shape
        np.testing.assert_array_equal(found, array)


def test_round_trip(tmp_path):
    write_file(tmp_path / "x.safetensors", TENSORS)
    check(read_header(tmp_path / "x.safetensors"))


def test_the_library_writes_the_same(tmp_path):
    """So that it reads ours, too."""
    write_file(tmp_path / "x.safetensors", TENSORS)
    library.save_file(ARRAYS, tmp_path / "y.safetensors", metadata={"format": "pt"})
    check(read_header(tmp_path / "y.safetensors"))
    for name, array in library.load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_integers_are_no_weights(tmp_path):
    library.save_file({"x": np.arange(3)}, tmp_path / "x.safetensors")
    assert read_header(tmp_path / "x.safetensors")["x"].dtype is None


def test_an_unfinished_file_has_another_name(tmp_path):
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_file(tmp_path / "x.safetensors", {"a": StoredTensor(np.dtype("f4"), (3,), fail)})
    assert not (tmp_path / "x.safetensors").exists()


def raw(header, numbers=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty": b"",
    "no header": struct.pack("<Q", 50) + b"{}",
    "no JSON": raw(b"abc"),
    "no entry": raw({"a": 3}),
    "other size": raw({"a": {**ENTRY, "shape": [3]}}, bytes(8)),
    "truncated": raw({"a": ENTRY}, bytes(7)),
    "longer": raw({"a": ENTRY}, bytes(9)),
    "overlap": raw({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=r"truncated or damaged; received: file=.*x\.safetensors"):
        read_header(path)
