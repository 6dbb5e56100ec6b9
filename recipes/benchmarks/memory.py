"""What a run needs beyond what stood there before it.

On a CPU that is the highest resident size, which Linux keeps account of. On a GPU it is the most
that the framework had allocated; JAX does not forget that when asked, so it is not measured.
"""

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
    """Whether there is an account of the highest size, which is forgotten when asked."""
    name = _backend_on_gpu()
    return CLEAR.exists() if name is None else name in ON_GPU


def _backend_on_gpu() -> str | None:
    """The framework, or None where it sees no GPU."""
    import keras

    from kattn.backend import devices

    return keras.backend.backend() if len(devices()) > 1 else None


def resident(what: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def extra(run: Callable[[], Any]) -> float:
    """MiB that a call needs at its peak beyond what stood there before it."""
    gc.collect()
    name = _backend_on_gpu()
    if name is not None:
        return ON_GPU[name](run)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)  # what earlier calls freed is given back, or this one would use it again
    before = resident("VmRSS")
    CLEAR.write_text("5")  # forget the highest size so far
    run()
    return (resident("VmHWM") - before) / 2**20


def _extra_of_torch(run: Callable[[], Any]) -> float:
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _extra_of_tensorflow(run: Callable[[], Any]) -> float:
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats("GPU:0")
    before = tf.config.experimental.get_memory_info("GPU:0")["current"]
    run()
    return (tf.config.experimental.get_memory_info("GPU:0")["peak"] - before) / 2**20


ON_GPU = {"torch": _extra_of_torch, "tensorflow": _extra_of_tensorflow}


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
