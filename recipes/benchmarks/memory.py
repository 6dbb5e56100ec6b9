"""What a run needs beyond what stood there before it: the highest resident size, on Linux."""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLEAR = Path("/proc/self/clear_refs")


def is_measurable() -> bool:
    """Whether this system keeps account of the highest resident size, and forgets it when asked."""
    return CLEAR.exists()


def resident(what: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def extra(run: Callable[[], Any]) -> float:
    """MiB that a call needs at its peak beyond what stood there before it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)  # what earlier calls freed is given back, or this one would use it again
    before = resident("VmRSS")
    CLEAR.write_text("5")  # forget the highest size so far
    run()
    return (resident("VmHWM") - before) / 2**20


def elsewhere(module: str, backend: str, *measure: Any) -> float:
    """What a benchmark prints last, in a process of its own, when told what to `--measure`.

    Args:
        module: Name of the benchmark, for example "recipes.benchmarks.attention".
        backend: The framework.
        *measure: What the setting `measure` is to say, as values that JSON can hold.
    """
    command = [sys.executable, "-m", module, "--backend", backend]
    # glibc gives large blocks back at once when told so, and else keeps some for later.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = subprocess.run(
        [*command, "--measure", json.dumps(measure)],
        stdout=subprocess.PIPE,
        check=True,
        env=environment,
    )
    return float(found.stdout.split()[-1])
