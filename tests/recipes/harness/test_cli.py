"""The course of a command: bad input, an interrupt, a report."""

import os
import subprocess
import sys
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


def test_an_error_of_the_program_is_not_hidden(tmp_path, capsys):
    """And it is said that nothing is lost by it."""

    def work(folder, backend):
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        harness.main("task", Settings(output=tmp_path / "run"), job(work))
    kept = f"What was trained is kept in {tmp_path / 'run'}: the same command with --resume"
    assert kept in capsys.readouterr().err


PRINTING = """
import sys
from recipes import harness
from tests.recipes.harness.test_cli import Settings, job

def work(folder, backend):
    folder.write_text("report.md", "")
    return "98.4 ± 0.2"

settings = Settings(output=harness.cli.Path(sys.argv[1]))
for _ in range(2):
    code = harness.main("task", settings, job(work))
    settings = harness.cli.dataclasses.replace(settings, resume=True)
sys.exit(code)
"""


def test_a_terminal_that_lacks_characters(tmp_path):
    """And a folder whose name is no UTF-8."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    output = os.fsencode(tmp_path) + b"/caf\xe9"
    command = [sys.executable, "-c", PRINTING, output]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    shown = f"{tmp_path}/caf\\xe9"
    assert f"writing {shown}\n\n98.4 \\xb1 0.2\nReport: {shown}/report.md" in done.stdout.decode()
    assert f"This run is finished: {shown}/report.md" in done.stdout.decode()


def test_controls_in_an_error(tmp_path, capsys):
    def prepare(settings):
        raise ValueError("no \x1b[2J file")

    assert harness.main("task", Settings(output=tmp_path / "run"), prepare) == 2
    assert capsys.readouterr().err == "error: no \\x1b[2J file\n"


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
