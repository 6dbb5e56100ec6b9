"""Backups come back as they were written, or not at all."""

import hashlib
import json
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest

from kattn.callbacks.backup import files

STATE = {
    "numbers": [1, -(2**80), 0.1, float("inf"), True, None, "text ü"],
    "tuple": (3, (1, 2), None),
    "array": np.arange(6, dtype="float16").reshape(2, 3).T,
    "scalar": np.float32(0.1),
    "empty": {"list": [], "dict": {}, "array": np.zeros((0, 2), "uint8")},
    "array_in_list": [np.array(5, "int64"), {"array": "not one"}],
}


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        return all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (np.ndarray, np.generic)):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return one == other


def test_round_trip(tmp_path):
    files.write(tmp_path / "new" / "folder", 3, 7, STATE, keep=1)
    (path,) = files.paths(tmp_path / "new" / "folder")
    assert path.name == "backup-000003-000000007.kattn"
    assert same(files.read(path), STATE)


def test_file_by_hand(tmp_path):
    """The format, from its description."""
    files.write(tmp_path, 0, 1, {"a": np.array([1, 2], "int16"), "b": 3}, keep=1)
    content = (tmp_path / "backup-000000-000000001.kattn").read_bytes()
    head, body, digest = content[:15], content[:-32], content[-32:]
    assert head == b"kattn backup 2\n"
    assert hashlib.sha256(body).digest() == digest
    with pathlib.Path(tmp_path / "body").open("wb+") as file:
        file.write(body[15:])
        file.seek(0)
        text, array = (np.load(file, allow_pickle=False) for _ in range(2))
        assert not file.read()
    assert json.loads(bytes(text)) == {"dict": {"a": {"array": 0}, "b": 3}}
    np.testing.assert_array_equal(array, [1, 2])


def test_paths_are_in_order_of_time(tmp_path):
    positions = [(0, 5), (0, 10), (2, 0), (10, 0), (999999, 5), (1234567, 3), (1234567, 1234567890)]
    for epoch, step in positions:
        files.write(tmp_path, epoch, step, {"at": [epoch, step]}, keep=9)
    (tmp_path / "backup-1-x.kattn").touch()
    found = [files.read(path)["at"] for path in files.paths(tmp_path)]
    assert found == [list(position) for position in positions]
    assert files.paths(tmp_path / "none") == []


def test_keeps_the_last(tmp_path):
    for step in range(5):
        files.write(tmp_path, 0, step, {}, keep=2)
    found = [path.name for path in files.paths(tmp_path)]
    assert found == ["backup-000000-000000003.kattn", "backup-000000-000000004.kattn"]


class Died(BaseException):
    pass


@pytest.mark.parametrize("place", ["write_array", "fsync", "replace"])
def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch, place):
    files.write(tmp_path, 0, 1, {"step": 1}, keep=1)
    module = np.lib.format if place == "write_array" else os

    def die(*arguments, **options):
        raise Died

    monkeypatch.setattr(module, place, die)
    with pytest.raises(Died):
        files.write(tmp_path, 0, 2, {"step": 2}, keep=1)
    monkeypatch.undo()
    (path,) = files.paths(tmp_path)
    assert files.read(path) == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 2
    files.remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)

        def noting(*arguments, name=name, function=function):
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(os, name, noting)
    files.write(tmp_path, 0, 1, {}, keep=1)
    assert calls == ["fsync", "replace", "fsync"]


def written(tmp_path):
    files.write(tmp_path, 0, 1, STATE, keep=1)
    return tmp_path / "backup-000000-000000001.kattn"


@pytest.mark.parametrize("place", range(11))
def test_any_changed_byte_is_damage(tmp_path, place):
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[min(place * len(content) // 10, len(content) - 1)] ^= 16
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"damaged.*received: file='.*{path.name}', sha256_written='.*', sha256_c"
    ):
        files.read(path)


@pytest.mark.parametrize("size", [0, 5, 31, 32, 47, 400, -1])
def test_a_part_is_damage(tmp_path, size):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="damaged"):
        files.read(path)


def test_other_versions_are_refused(tmp_path):
    path = tmp_path / "backup-000000-000000001.kattn"
    body = b"kattn backup 3\nsomething new"
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.raises(
        ValueError, match=r"version=b'kattn backup 3\\n', expected=b'kattn backup 2"
    ):
        files.read(path)


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, {2, 3}]}, r"state\['a'\]\[1\]={2, 3}"),
        ({"a": {1: 2}}, r"state\['a'\]={1: 2}"),
        ({"a": np.array([None])}, r"state\['a'\].shape=\(1,\)"),
        ({"a": b"x"}, r"state\['a'\]=b'x'"),
    ],
)
def test_other_types_are_refused(tmp_path, state, where):
    with pytest.raises(ValueError, match=f"A state must consist of .*; received: {where}"):
        files.write(tmp_path / "new", 0, 1, state, keep=1)
    assert not (tmp_path / "new").exists()


def test_types_that_numpy_does_not_know(tmp_path):
    """As those of variables in bfloat16."""
    numbers = np.array([1.5, -2.0, 0.25], ml_dtypes.bfloat16)
    files.write(tmp_path, 0, 1, {"numbers": numbers, "one": numbers[0]}, keep=1)
    state = files.read(files.paths(tmp_path)[-1])
    assert state["numbers"].dtype == state["one"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(state["numbers"].astype(float), [1.5, -2.0, 0.25])
    assert float(state["one"]) == 1.5
