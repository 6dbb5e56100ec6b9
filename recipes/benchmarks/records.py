"""The records of a benchmark: rows as they are measured, and a file at the end."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes import harness


def print_head(columns: Sequence[str]) -> None:
    """The machine, and the heading of the rows."""
    print(json.dumps(harness.machine()), flush=True)
    print(*columns, sep=" | ", flush=True)


def print_row(record: Mapping[str, Any], columns: Sequence[str]) -> None:
    """One record."""
    print(*(record[column] for column in columns), sep=" | ", flush=True)


def write(path: Path, records: Sequence[Mapping[str, Any]], *packages: str) -> None:
    """Writes the records, whole or not at all, with the machine and the versions of `packages`."""
    found = {
        "machine": harness.machine(),
        "versions": harness.versions("kattn", "keras", "numpy", *packages),
        "records": records,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(path)
