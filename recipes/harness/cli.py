"""The course of a command: read flags, prepare, work, and say where the report is."""

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from recipes.harness.backend import choose_backend
from recipes.harness.flags import RunFlags
from recipes.harness.names import printable
from recipes.harness.run_folder import RunFolder, open_run

Settings = TypeVar("Settings", bound=RunFlags)
NOT_RECORDED = ("output", "resume", "checkpoint_every")  # no result depends on them


@dataclass(frozen=True)
class Job:
    """What is left to do when everything that the user gave has been checked.

    Args:
        about: One line about the work, shown before it begins.
        work: Function of the folder and the name of the backend. It trains, writes `report.md`, and
            returns the result in a few sentences.
    """

    about: str
    work: Callable[[RunFolder, str], str]


def parse(
    recipe: str,
    settings: type[Settings],
    arguments: Sequence[str] | None = None,
    presets: Callable[[Settings], Settings] | None = None,
) -> Settings:
    """Read the flags from the command line.

    Args:
        recipe: Name of the recipe, as in `python -m recipes.<recipe>`.
        settings: Dataclass whose fields are the flags.
        arguments: The arguments; None takes those of the command.
        presets: Function of the settings that returns the defaults which suit them, for example
            those for the data set that they name.
    """
    program = f"python -m recipes.{recipe}"
    given = tyro.cli(settings, args=arguments, prog=program)
    if presets is None:
        return given
    return tyro.cli(settings, args=arguments, prog=program, default=presets(given))


def recorded(settings: RunFlags, backend: str) -> dict[str, Any]:
    """The settings that the result depends on, as they are kept and reported."""
    values = dataclasses.asdict(settings) | {"backend": backend}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if name not in NOT_RECORDED
    }


def main(recipe: str, settings: Settings, prepare: Callable[[Settings], Job]) -> int:
    """Run a recipe.

    Args:
        recipe: Name of the recipe, as in `python -m recipes.<recipe>`.
        settings: The flags.
        prepare: Function of the settings that reads the data and returns the work to do. It raises
            ValueError or OSError for bad settings; nothing has been written by then.

    Returns:
        The status to exit with: 0, or 2 for bad input, or 130 if it was stopped.
    """
    start = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal need not have all characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:  # all that can be wrong with what the user gave
        backend = choose_backend(settings.backend)
        settings.check()
        job = prepare(settings)
        folder = open_run(
            recipe.rpartition(".")[2],
            recorded(settings, backend),
            output=settings.output,
            resume=settings.resume,
        )
    except (ValueError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    if folder.report.exists():
        print(f"This run is finished: {printable(str(folder.report))}")
        return 0
    where = printable(str(folder.path))
    print(f"{job.about}, {backend}; writing {where}", flush=True)
    try:
        said = job.work(folder, backend)
    except KeyboardInterrupt:
        print("\nStopped. The same command with --resume goes on.", file=sys.stderr)
        return 130
    except Exception:
        print(
            f"\nFailed. What was trained is kept in {where}: the same command with --resume trains "
            "what is left, if anything is, and writes the report.",
            file=sys.stderr,
        )
        raise
    seconds = time.perf_counter() - start
    print(f"\n{said}\nReport: {printable(str(folder.report))}  ({seconds:.0f} s)")
    return 0
