"""The course of a command: bad input, an interrupt, a report."""

from dataclasses import dataclass
from pathlib import Path

import keras
import pytest

from recipes import harness


@dataclass(frozen=True)
class Settings(harness.RunFlags):
    """Does little."""

    size: int = 3  # of something
    where: Path | None = None  # a file


def job(work):
    return lambda settings: harness.Job("Three things", work)


def test_a_command_that_works(tmp_path, capsys):
    settings = Settings(output=tmp_path / "run", where=Path("x"))

    def work(folder, backend):
        folder.write_text("report.md", harness.closing_sections(settings, backend))
        return "It is so."

    assert harness.main("studies.task", settings, job(work)) == 0
    backend = keras.backend.backend()
    out = capsys.readouterr().out
    assert out.startswith(f"Three things, {backend}; writing {tmp_path / 'run'}\n\nIt is so.\nRep")
    report = (tmp_path / "run/report.md").read_text()
    assert "| size | 3 |" in report
    assert "| where | x |" in report
    assert f"| backend | {backend} |" in report
    assert "| output |" not in report
    assert f"| keras | {keras.__version__} |" in report
    assert harness.RunFolder(tmp_path / "run").read_json("settings.json") == {
        "backend": backend,
        "seeds": 3,
        "size": 3,
        "where": "x",
    }


def test_a_command_that_is_stopped(tmp_path, capsys):
    def work(folder, backend):
        raise KeyboardInterrupt

    assert harness.main("task", Settings(output=tmp_path / "run"), job(work)) == 130
    assert "The same command with --resume goes on." in capsys.readouterr().err


def test_bad_input_writes_nothing(tmp_path, capsys):
    def prepare(settings):
        raise FileNotFoundError("There is\nno file")

    output = tmp_path / "run"
    assert harness.main("task", Settings(output=output), prepare) == 2
    assert capsys.readouterr().err == "error: There is no file\n"
    assert harness.main("task", Settings(output=output, seeds=0), prepare) == 2
    assert "`seeds` must be an integer >= 1" in capsys.readouterr().err
    assert not output.exists()


def test_an_error_of_the_program_is_not_hidden(tmp_path):
    def work(folder, backend):
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        harness.main("task", Settings(output=tmp_path / "run"), job(work))


def test_new_folders_are_named_after_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert harness.main("studies.task", Settings(), job(lambda folder, backend: "")) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("task-2")


def test_presets():
    def presets(given):
        return Settings(size=10 * given.seeds)

    assert harness.parse("task", Settings, ["--seeds", "2"], presets).size == 20
    assert harness.parse("task", Settings, ["--seeds", "2", "--size", "5"], presets).size == 5
    assert harness.parse("task", Settings, []) == Settings()
