"""Kill a recipe again and again, and compare what it leaves with a run that was not killed.

    python -m tests.recipes.killed_recipe FOLDER --kills 10 --between 10 60 -- FLAGS OF THE RECIPE

Each start is a process of its own, which SIGKILL ends at a second drawn between those two. A run
that is finished before is compared, and another one begins, until there were so many kills.
"""

import argparse
import io
import json
import pathlib
import random
import subprocess
import sys
import zipfile

import h5py
import numpy as np
from PIL import Image

RECIPE = [sys.executable, "-m", "recipes.image_classification"]


def contents(run):
    """All that a run has left behind, by name of the file, without times."""
    readers = {".json": results, ".keras": weights, ".png": pixels, ".md": report}
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): readers[path.suffix](path) for path in files}


def results(path):
    found = json.loads(path.read_text())
    for epoch in found.get("epochs", ()) if path.parent.name == "history" else ():
        del epoch["seconds"]
    return found


def weights(path):
    """The arrays of a model and of its optimizer, as bytes."""
    found = {}

    def keep(name, value):
        if isinstance(value, h5py.Dataset):
            found[name] = (str(value.dtype), value.shape, np.asarray(value).tobytes())

    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        file.visititems(keep)
    return found


def pixels(path):
    with Image.open(path) as image:
        return image.size, image.tobytes()


def report(path):
    """The lines of a report, without the columns of times."""
    lines, has_times = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        header = line.endswith("| Step, ms | Fit, s |")
        has_times = header or (has_times and line.startswith("|"))
        lines.append(line.rsplit("|", 3)[0] if has_times else line)
    return lines


def differences(run, other):
    """Names of the files that are not the same in both, but for times."""
    found, expected = contents(run), contents(other)
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def survive(command, run, delays):
    """Start, kill and start again until the run ends; how many kills there were.

    Args:
        command: The command without `--output` and `--resume`.
        run: Folder of the run.
        delays: Iterator of seconds after which to kill. Where it ends, nothing is killed.
    """
    kills = 0
    while True:
        resume = ["--resume"] if (run / "settings.json").is_file() else []
        with (run.parent / f"{run.name}.log").open("a") as log:
            process = subprocess.Popen(
                [*command, "--output", str(run), *resume], stdout=log, stderr=log
            )
            delay = next(delays, None)
            try:
                code = process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                print(f"{run.name}: killed after {delay:.1f} s, {where(run)}", flush=True)
                continue
        if code:
            raise RuntimeError(f"{run.name} ended with {code}; see {log.name}")
        return kills


def where(run):
    """What there is of a run that was killed."""
    done = len(list(run.glob("history/*.json")))
    backups = sorted(run.glob("backups/*/*.kattn"))
    going_on = f"{backups[-1].parent.name} at {backups[-1].stem}" if backups else "no backup"
    return f"{done} fits done, {going_on}" + (", report" * (run / "report.md").is_file())


def check(folder, flags, *, kills, between, seed=0):
    """Kill so often; the files that differ from a run that was not killed, by run."""
    command, rng, found = [*RECIPE, *flags], random.Random(seed), {}
    folder.mkdir(parents=True, exist_ok=True)
    survive(command, folder / "whole", iter(()))
    most = 10 * kills
    while kills > 0:
        if len(found) == most:
            raise RuntimeError(f"The runs end before {between[0]:g} s; kill them earlier")
        run = folder / f"killed{len(found)}"
        delays = [rng.uniform(*between) for _ in range(kills)]
        kills -= survive(command, run, iter(delays))
        found[run.name] = differences(run, folder / "whole")
        print(f"{run.name}: {found[run.name] or 'the same as the whole run'}", flush=True)
    return found


def main(arguments):
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(description=about, epilog="Behind -- are flags of the recipe.")
    parser.add_argument("folder", type=pathlib.Path, help="a new folder")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--between", type=float, nargs=2, default=(10.0, 60.0), help="seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the seconds")
    own, flags = list(arguments), []
    if "--" in own:
        cut = own.index("--")
        own, flags = own[:cut], own[cut + 1 :]
    given = parser.parse_args(own)
    options = {"kills": given.kills, "between": given.between, "seed": given.seed}
    found = check(given.folder, flags, **options)
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
