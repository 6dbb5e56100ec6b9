"""What every recipe needs and no task knows: backend, run folder, progress, cost, statistics."""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

BACKENDS = ("tensorflow", "jax", "torch")
COLOURS = ("#7f7f7f", "#d1495b", "#00798c", "#edae49")  # a baseline first: grey


def choose_backend(name: str | None = None) -> str:
    """Tell Keras, before it is imported, which framework to run on.

    Args:
        name: `tensorflow`, `jax` or `torch`. None: what `KERAS_BACKEND` says, else what
            keras.json says if that is installed, else the first that is installed.

    Returns:
        The backend's name.

    Raises:
        ValueError: If the backend is unknown or not installed, if none is installed, or if Keras
            has already been imported on another.
    """
    installed = [backend for backend in BACKENDS if find_spec(backend) is not None]
    asked = name or os.environ.get("KERAS_BACKEND")
    configured = _configured_backend()
    if not asked and configured in installed:
        asked = configured
    if not asked and not installed:
        raise ValueError(f"backend must be one of {BACKENDS}, of which none is installed")
    chosen = asked or installed[0]
    if chosen not in installed:
        raise ValueError(
            f"backend must be one of {BACKENDS} and installed (pip install 'kattn[{chosen}]'): "
            f"backend={chosen!r}, installed={installed}"
        )
    if "keras" in sys.modules and sys.modules["keras"].backend.backend() != chosen:
        raise ValueError(
            f"backend must be chosen before keras is imported: backend={chosen!r}, "
            f"running={sys.modules['keras'].backend.backend()!r}"
        )
    os.environ["KERAS_BACKEND"] = chosen
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up chatter
    # PyTorch's threads spin while they wait. On two cores with other work that made a step of 0.1 s
    # last 0.4 to 1.4 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return chosen


def _configured_backend() -> str | None:
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    config = home / "keras.json"
    return json.loads(config.read_text()).get("backend") if config.is_file() else None


class RunFolder:
    """One folder with everything a run writes; each file appears whole or not at all."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def report(self) -> Path:
        """`report.md`, written last: it exists only for a finished run."""
        return self.path / "report.md"

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write to, which becomes `name` if the block succeeds."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".partial-{target.name}")
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file; None if there is none."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write_figure(self, name: str, figure: Figure) -> None:
        """Write a figure as PNG."""
        with self.writing(name) as path:
            figure.savefig(path, dpi=150, format="png")


def open_run(
    recipe: str, settings: Mapping[str, Any], *, output: Path | None = None, resume: bool = False
) -> RunFolder:
    """Make the folder of a new run, or find the one of a run that was stopped.

    Args:
        recipe: Name of the recipe.
        settings: What the result depends on; kept in `settings.json`.
        output: The folder. None: a new `runs/<recipe>-<time>`, or with `resume` the newest of them
            that was started with the same settings.
        resume: If True, go on with an earlier run.

    Raises:
        ValueError: If a new run would go into a folder that is not empty, or `resume` finds other
            settings.
        FileNotFoundError: If `resume` finds no run.
    """
    settings = json.loads(json.dumps(dict(settings)))  # as they are read back
    if resume:
        return _find_run(recipe, settings, output)
    folder = RunFolder(output or _new_path(recipe))
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise ValueError(
            "output must be a new or an empty folder, unless --resume is given: "
            f"output={str(folder.path)!r}"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_json("settings.json", settings)
    return folder


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
            f"resume needs the settings the run was started with: output={str(output)!r}, "
            f"(then, now)={changed}"
        )
    found = next((path for path in paths if earlier[path] == settings), None)
    if found is None:
        where = str(output) if output else f"runs/{recipe}-*"
        raise FileNotFoundError(
            f"resume needs a run that was started with these settings: searched={where!r}"
        )
    return RunFolder(found)


class Progress:
    """A bar over the steps of one fit; a line per epoch where nobody watches a terminal."""

    def __init__(self, label: str, epochs: int, steps: int, *, first_epoch: int = 0):
        self.label, self.epochs = label, epochs
        self.bar = tqdm(
            total=epochs * steps,
            initial=first_epoch * steps,
            desc=label,
            unit="step",
            disable=None,
            dynamic_ncols=True,
        )

    def step(self) -> None:
        """One more training step is done."""
        self.bar.update()

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Epoch `number`, counted from 1, is done and measured these values."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.bar.disable:
            print(f"{self.label}: epoch {number}/{self.epochs}  {shown}", flush=True)
        else:
            self.bar.set_postfix_str(shown)

    def close(self) -> None:
        """The fit is over."""
        self.bar.close()


def measure_in_turns(
    cases: Mapping[str, Callable[[], float]], *, turns: int = 5, warm_up: int = 1
) -> dict[str, float]:
    """Median of what each case returns, the cases being called in turns after a warm-up."""
    for case in cases.values():
        for _ in range(warm_up):
            case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(turns):
        for name, case in cases.items():
            times[name].append(case())
    return {name: statistics.median(values) for name, values in times.items()}


@dataclass(frozen=True)
class LayerCost:
    """Parameters and forward FLOPs (2 per multiply-add) of one layer for one example."""

    layer: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    flops: int


FREE = {  # not counted: a few operations per number
    "Activation",
    "Add",
    "AveragePooling2D",
    "BatchNormalization",
    "Dropout",
    "GlobalAveragePooling2D",
    "InputLayer",
    "MaxPooling2D",
    "ReLU",
}


def layer_costs(model: Any) -> list[LayerCost]:
    """Count what each layer of a functional Keras model costs for one example.

    Convolutions, dense layers and attention are counted, biases are not; the layers in `FREE` count
    as nothing. Shapes must be known but for the batch.

    Raises:
        ValueError: For a layer it has no rule for.
    """
    return [
        LayerCost(
            layer.name,
            type(layer).__name__,
            tuple(layer.output.shape[1:]),
            layer.count_params(),
            _flops(layer),
        )
        for layer in model.layers
    ]


def _flops(layer: Any) -> int:
    kind = type(layer).__name__
    if kind in FREE:
        return 0
    shape = layer.input.shape
    if kind == "Conv2D":  # each output number is a product over the window and its channels
        return 2 * math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:-1])
    if kind == "Dense":
        return 2 * math.prod(shape[1:]) * layer.units
    if kind == "SelfAttention2D":
        last = layer.data_format == "channels_last"
        height, width, channels = shape[1:] if last else (*shape[2:], shape[1])
        queries = height * width
        keys = math.ceil(height / layer.key_stride) * math.ceil(width / layer.key_stride)
        key_width, value_width = layer.key.units, layer.value.units
        projections = queries * channels * 2 * (key_width + value_width)  # Q, K; V, output
        products = queries * keys * (key_width + value_width)  # Q K^T; weights times V
        return 2 * (projections + products)
    raise ValueError(f"layer_costs must have a rule for every layer: layer={layer.name}, {kind=}")


def machine() -> dict[str, str]:
    """What the run ran on, in words."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.partition(":")[2] for line in lines if line.startswith("model name")), cpu)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"CPU": cpu.strip(), "cores": str(cores), "system": platform.platform(terse=True)}


def versions(*packages: str) -> dict[str, str]:
    """The version of Python and of each package that is installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (nan for a single value)."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), spread


def paired_interval(
    differences: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Student's t interval of the mean of paired differences; None for fewer than two."""
    if len(differences) < 2:
        return None
    mean, spread = mean_and_spread(differences)
    quantile = stats.t.ppf((1 + confidence) / 2, len(differences) - 1)
    half = float(quantile) * spread / math.sqrt(len(differences))
    return mean - half, mean + half


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: bool = True) -> str:
    """A Markdown table; all columns but the first hold numbers, set to the right, or words."""
    rule = ["---"] + ["---:" if numbers else "---"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [header, rule, *rows])


def curves(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    panels: Mapping[str, str],
    finals: Mapping[str, Sequence[float]],
    finals_title: str,
) -> Figure:
    """Learning curves, one panel per quantity and one colour per model; then the final results.

    Args:
        histories: For each model, for each of its runs, one dict of values per epoch. Shown as mean
            and range over runs.
        panels: Title by the name of the value that a panel shows; losses get a logarithmic axis.
        finals: For each model, the final result of each run; those of one seed are joined.
        finals_title: Title of their panel.
    """
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.6 * (len(panels) + 1), 3.4), layout="constrained")
        *axes, last = figure.subplots(1, len(panels) + 1)
    for panel, (key, title) in zip(axes, panels.items(), strict=True):
        for colour, (label, runs) in zip(COLOURS, histories.items(), strict=False):
            _band(panel, np.array([[epoch[key] for epoch in run] for run in runs]), colour, label)
        if key.endswith("loss"):
            panel.set_yscale("log")
        else:  # the first epochs may leave the panel: the rest would be a flat line
            every = [epoch[key] for runs in histories.values() for run in runs for epoch in run]
            low, high = float(np.quantile(every, 0.15)), max(every)
            panel.set_ylim(low - 0.2 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=8)
    last.plot(np.array(list(finals.values())), color="black", linewidth=0.8, alpha=0.4)
    for x, (colour, values) in enumerate(zip(COLOURS, finals.values(), strict=False)):
        last.plot([x] * len(values), values, "o", color=colour, alpha=0.7)
        last.plot([x - 0.15, x + 0.15], [np.mean(values)] * 2, color=colour, linewidth=2.5)
    last.set_xticks(range(len(finals)), [label.replace(" + ", "\n+ ") for label in finals])
    last.set_xlim(-0.5, len(finals) - 0.5)
    last.set_title(finals_title, fontsize=10)
    last.grid(axis="y", alpha=0.25)
    return figure


def _band(axes: Any, values: np.ndarray, colour: str, label: str) -> None:
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.mean(0), color=colour, label=label, linewidth=1.8)
    axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
