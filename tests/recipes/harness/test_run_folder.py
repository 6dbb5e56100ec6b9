"""Folders of runs: files that are whole, and runs that are found again."""

import os

import pytest
from matplotlib.figure import Figure

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


def test_a_fault_in_a_figure_costs_that_figure(tmp_path, capsys):
    folder = harness.RunFolder(tmp_path)

    def draw():
        raise ValueError("no\n  *room*")

    assert folder.add_figure("a.png", "Curves", lambda: Figure()) == "![Curves](a.png)"
    text = folder.add_figure("b.png", "Results", draw)
    assert text.startswith("**b.png is missing**, as making it failed: `ValueError: no *room*`. ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    error = capsys.readouterr().err
    assert "warning: b.png is missing in the report" in error
    assert "in draw" in error  # the traceback
    with pytest.raises(KeyboardInterrupt):
        folder.add_figure("c.png", "", interrupted)


def interrupted():
    raise KeyboardInterrupt


def test_any_text_is_written(tmp_path):
    harness.RunFolder(tmp_path).write_text("report.md", "é \udce9")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "é \\udce9"


def test_settings_with_names_that_are_no_utf8(tmp_path):
    settings = {"dataset": os.fsdecode(b"folder:/a\xff")}
    harness.open_run("task", settings, output=tmp_path / "run")
    found = harness.open_run("task", settings, output=tmp_path / "run", resume=True)
    assert found.read_json("settings.json") == settings


def test_killed_before_the_settings_were_whole(tmp_path):
    """The folder has no run, so that the command without `--resume` takes it."""
    (tmp_path / ".partial-settings.json").write_text("{")
    assert harness.open_run("task", {"a": 1}, output=tmp_path).read_json("settings.json") == {
        "a": 1
    }
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
