import json
import pickle

import numpy as np
import pytest

from kattn.presets.folder import read_config, stored_tensors, write_folder
from kattn.presets.safetensors_file import StoredTensor

ARRAYS = {"a": np.ones((2, 3), "float32"), "b": np.zeros(4, "float32")}
TENSORS = {name: StoredTensor(x.dtype, x.shape, x.copy) for name, x in ARRAYS.items()}


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(ARRAYS))
    with pytest.raises(ValueError, match=r"must hold model\.safetensors or .*could run code"):
        stored_tensors(tmp_path)


def bad_index(change):
    def write(folder):
        write_folder(folder, {}, TENSORS, 20)
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(folder, index["weight_map"])
        path.write_text(json.dumps(index))

    return write


def remove(folder, files):
    (folder / files["a"]).unlink()


BAD = {
    "leads elsewhere": (
        bad_index(lambda _, files: files.update(a="../model.safetensors")),
        r"`weight_map` must say",
    ),
    "no file": (bad_index(remove), r"must hold each file.*file='model-00001-of-00002"),
    "no tensor": (
        bad_index(lambda _, files: files.update(c=files["a"])),
        r"must hold each tensor that the index names; received: missing=\['c'\]",
    ),
    "not in the index": (
        bad_index(
            lambda _, files: files.pop("a") and files.update(c="model-00001-of-00002.safetensors")
        ),
        r"must name the file of each tensor, as it does not for 'a'",
    ),
    "not JSON": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        r"must be JSON",
    ),
    "no map": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        r"`weight_map` must say",
    ),
    "no object": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("[]"),
        r"must hold a JSON object",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(name, tmp_path):
    write, message = BAD[name]
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        stored_tensors(tmp_path)


def test_shards(tmp_path):
    write_folder(tmp_path, {"x": 1}, TENSORS, 20)
    assert read_config(tmp_path)["x"] == 1
    stored = stored_tensors(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert index["weight_map"] == dict(zip("ab", files, strict=True))
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(stored[name].read(), array)


def test_no_config(tmp_path):
    with pytest.raises(ValueError, match=r"must hold config\.json"):
        read_config(tmp_path)
