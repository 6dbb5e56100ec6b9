"""The folder that a run writes to, and how `--resume` finds it again."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from recipes.harness.faults import missing
from recipes.harness.figures import take_names_as_they_are

PARTIAL = ".partial-"  # how names of files begin that are not whole yet


class RunFolder:
    """One folder with everything a run writes; each file appears whole or not at all."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def report(self) -> Path:
        """Path of `report.md`, which is written last and exists only for a finished run."""
        return self.path / "report.md"

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a path to write to, which becomes the file `name` if the block succeeds."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{PARTIAL}{target.name}")
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file. What UTF-8 does not have, as names of files may, is escaped."""
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file; None if there is none."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write_figure(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG, its texts as they are: a dollar sign starts no formula."""
        take_names_as_they_are(figure)
        with self.writing(name) as path:
            figure.savefig(path, dpi=150, format="png")

    def add_figure(self, name: str, title: str, draw: Callable[[], Figure]) -> str:
        """Draw a figure and write it; a fault costs this figure only.

        Args:
            name: Name of the file, which ends with ".png".
            title: What the figure shows, for those who cannot see it.
            draw: Function that returns the figure.

        Returns:
            Markdown that shows the figure, or that says why there is none.
        """
        try:
            self.write_figure(name, draw())
        except Exception as error:  # noqa: BLE001 - whatever it is, the results are worth more
            return missing(name, error)
        return f"![{title}]({name})"


def open_run(
    recipe: str, settings: Mapping[str, Any], *, output: Path | None = None, resume: bool = False
) -> RunFolder:
    """Make the folder of a new run, or find the one of a run that was stopped.

    Args:
        recipe: Name of the recipe, with which names of new folders begin.
        settings: Everything that the result depends on. It is kept in `settings.json`.
        output: The folder. None makes a new folder `runs/<recipe>-<time>`, or with `resume` takes
            the newest of them that was started with the same settings.
        resume: If True, go on with an earlier run.

    Returns:
        The folder, which holds `settings.json`.

    Raises:
        ValueError: If a new run would go into a folder that is not empty, or `resume` finds other
            settings.
        FileNotFoundError: If `resume` finds no run.
    """
    settings = json.loads(json.dumps(dict(settings)))  # as they are read back
    if resume:
        return _find_run(recipe, settings, output)
    folder = RunFolder(output or _new_path(recipe))
    if folder.path.exists() and (not folder.path.is_dir() or _has_files(folder.path)):
        raise ValueError(
            "`output` must be a new or an empty folder, unless --resume is given; "
            f"received: output={str(folder.path)!r}"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_json("settings.json", settings)
    return folder


def _has_files(path: Path) -> bool:
    """Whether there is more than a file that a run was killed in the midst of."""
    return any(not found.name.startswith(PARTIAL) for found in path.iterdir())


def _new_path(recipe: str) -> Path:
    stem = Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    later = (stem.with_name(f"{stem.name}-{number}") for number in range(2, 1000))
    return stem if not stem.exists() else next(path for path in later if not path.exists())


def _find_run(recipe: str, settings: Mapping[str, Any], output: Path | None) -> RunFolder:
    paths = [output] if output else sorted(Path("runs").glob(f"{recipe}-*"), reverse=True)
    earlier = {path: RunFolder(path).read_json("settings.json") for path in paths}
    if output and earlier[output] not in (None, settings):
        old, new = earlier[output], settings
        changed = {k: (old.get(k), new.get(k)) for k in {*old, *new} if old.get(k) != new.get(k)}
        raise ValueError(
            "`resume` needs the settings that the run was started with; "
            f"received: output={str(output)!r}, (then, now)={changed}"
        )
    match = next((path for path in paths if earlier[path] == settings), None)
    if match is None:
        where = str(output) if output else f"runs/{recipe}-*"
        raise FileNotFoundError(
            "`resume` needs a run that was started with these settings; "
            f"received: searched={where!r}"
        )
    return RunFolder(match)
