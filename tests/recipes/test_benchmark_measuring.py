"""What the benchmarks share: turns, memory, and the file of records."""

import json
import sys

import keras
import numpy as np
import pytest

from recipes.benchmarks import memory, records, turns


def test_turns_are_taken_alternately():
    order = []
    sides = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert turns.in_turns(sides, 3) == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    assert order == ["a", "b"] * 3


@pytest.mark.parametrize(("fewest", "taken"), [(1, 1), (2, 2), (9, 5)])
def test_turns_end_once_they_took_too_long(fewest, taken):
    times = turns.in_turns({"a": float}, 5, fewest=fewest, seconds=0.0)
    assert len(times["a"]) == taken


def test_medians_and_quartiles():
    """The ratio is of the turns, not of the medians."""
    ours, theirs = [1.0, 2.0, 30.0, 4.0, 5.0], [2.0, 1.0, 10.0, 4.0, 50.0]
    assert turns.compared(ours, theirs) == {"kattn_ms": 4.0, "peer_ms": 4.0, "ratio": 1.0}
    found = turns.quartiles(ours, theirs)
    assert found["kattn_quartiles"] == [2.0, 5.0]
    assert found["peer_quartiles"] == [2.0, 10.0]
    assert found["ratio_quartiles"] == [0.5, 2.0]
    assert turns.quartiles([3.0], [2.0])["ratio_quartiles"] == [1.5, 1.5]


def test_milliseconds():
    assert 0.0 <= turns.milliseconds(lambda: None) < 1e3


@pytest.mark.skipif(not memory.is_measurable(), reason="The system keeps no highest resident size")
def test_extra_memory():
    needed = memory.extra(lambda: keras.ops.ones(2**24))  # 64 MiB, on the GPU if there is one
    assert 60 <= needed <= 80


def test_elsewhere(tmp_path, monkeypatch):
    """The last word that the other process prints."""
    folder = tmp_path / "elsewhere_of_test.py"
    folder.write_text("import sys\nprint('said', *sys.argv[1:4:2])\nprint('MiB', 2.5)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert memory.elsewhere("elsewhere_of_test", "jax", "kattn", {"steps": 3}) == 2.5


def test_file_of_records(tmp_path):
    records.write(tmp_path / "found.json", [{"case": "a", "ratio": 0.5}], "numpy", "no-such")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["records"] == [{"case": "a", "ratio": 0.5}]
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["no-such"] == "not installed as a package"
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
