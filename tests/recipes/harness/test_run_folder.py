"""Folders of runs: files that are whole, and runs that are found again."""

import pytest

from recipes import harness


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_appear_whole_or_not_at_all(tmp_path):
    folder = harness.RunFolder(tmp_path)
    folder.write_json("deep/a.json", {"x": 1})

    def stopped_half_way():
        with folder.writing("deep/a.json") as path:
            path.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped_half_way()
    assert folder.read_json("deep/a.json") == {"x": 1}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert folder.read_json("absent.json") is None


def test_new_runs_never_share_a_folder(here):
    first, second = (harness.open_run("task", {"a": 1}).path for _ in range(2))
    assert first != second
    assert first.parent == second.parent
    assert harness.RunFolder(second).read_json("settings.json") == {"a": 1}


def test_new_run_leaves_an_earlier_one_alone(tmp_path):
    harness.open_run("task", {"a": 1}, output=tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"`output` must be a new or an empty folder.*received: output='.*run'"
    ):
        harness.open_run("task", {"a": 2}, output=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`output` must be a new or an empty folder"):
        harness.open_run("task", {"a": 2}, output=tmp_path / "file")


def test_resume_finds_the_newest_run_with_the_same_settings(here):
    for name, value in (("20250101-000000", 1), ("20250102-000000", 1), ("20250103-000000", 2)):
        harness.open_run("task", {"a": (value,)}, output=here / "runs" / f"task-{name}")
    found = harness.open_run("task", {"a": (1,)}, resume=True)
    assert found.path.name == "task-20250102-000000"


def test_resume_refuses_other_settings(here):
    harness.open_run("task", {"a": 1, "b": 2}, output=here / "run")
    assert (
        harness.open_run("task", {"a": 1, "b": 2}, output=here / "run", resume=True).path
        == here / "run"
    )
    with pytest.raises(
        ValueError, match=r"`resume` needs the settings .*\(then, now\)=\{'b': \(2, 3\)\}"
    ):
        harness.open_run("task", {"a": 1, "b": 3}, output=here / "run", resume=True)


@pytest.mark.parametrize("output", [None, "absent"])
def test_resume_without_a_run(here, output):
    with pytest.raises(FileNotFoundError, match=r"`resume` needs a run .*received: searched="):
        harness.open_run("task", {}, output=output and here / output, resume=True)
