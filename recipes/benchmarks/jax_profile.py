"""On what does JAX spend a training step of a small GPT on a CPU?

Task    The training steps of `recipes.benchmarks.language_model`, through `fit`.
Method  XLA says how long each piece of its program ran on each thread (`jax.profiler`), and its
        program says which operation of the model a piece came from. Pieces are fused from several
        operations, of which the last one names them; products are all pieces with a matrix product,
        what is fused with it included. Milliseconds are those of all threads together, so that
        with two threads a step may have up to twice as many as it takes. What is left of the step
        is time in which a thread has nothing to do, or runs Python.
Run     python -m recipes.benchmarks.jax_profile
"""

import collections
import dataclasses
import os
import re
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from recipes import harness
from recipes.benchmarks import language_model, records, turns

STEPS = 20  # of a fit
# The part of a piece is the first whose pattern occurs in the name of the operation.
PARTS = {
    "optimizer": r"adam_?w",
    "loss": r"loss|log_softmax|cross_?entropy",
    "embedding and logits": r"embedding|tokens",
    "projections of attention": r"attention/(qkv|output)",
    "feed-forward": r"feed_forward/",
    "norms": r"norm",
    "attention": r"attention/",
    "residual additions": r"block\d+/",
}
KINDS = ("products", "others")
PRODUCT = re.compile(r"dot|ynn")  # how XLA on CPU calls products, alone and fused
PIECE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{.*?op_name=\"([^\"]*)\"")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Profile the training steps of the language models on JAX."""

    only: str = ""  # a regular expression: sizes whose name it matches


def operations(program: str) -> dict[str, str]:
    """The operation of the model that each piece of a program came from."""
    found = map(PIECE.match, program.splitlines())
    return {match[1]: match[2] for match in found if match}


def part_of(piece: str, operation: str) -> tuple[str, str]:
    """To which part of the model a piece belongs, and whether it has a product."""
    part = next((name for name, p in PARTS.items() if re.search(p, operation)), "other")
    return part, KINDS[0] if PRODUCT.match(piece) else KINDS[1]


def milliseconds(trace: Path, pieces: Mapping[str, str]) -> collections.Counter:
    """Milliseconds of all threads by part and kind."""
    from jax.profiler import ProfileData

    spent: collections.Counter = collections.Counter()
    (file,) = trace.rglob("*.xplane.pb")
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            if "XLA" in line.name:
                for event in line.events:
                    if event.name in pieces:
                        spent[part_of(event.name, pieces[event.name])] += event.duration_ns / 1e6
    return spent


def profile(name: str, folder: Path) -> tuple[float, collections.Counter]:
    """Milliseconds that a step takes, and those of its parts.

    Args:
        name: Name of the size.
        folder: Folder to which XLA writes its programs.
    """
    import jax

    size = language_model.SIZES[name]
    case = language_model.Case(name, "train", size.batch, "none")
    model = language_model.make_ours(case)
    x = language_model.tokens(STEPS * case.batch, size.steps + 1)

    def fit() -> None:
        model.fit(x[:, :-1], x[:, 1:], batch_size=case.batch, verbose=0, shuffle=False)

    fit()
    step = statistics.median(turns.milliseconds(fit) for _ in range(3)) / STEPS
    options: Any = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    trace = folder / f"trace-{name}"
    with jax.profiler.trace(trace, profiler_options=options):
        fit()
    newest = max(folder.glob("*train_step*after_optimizations.txt"), key=os.path.getmtime)
    return step, milliseconds(trace, operations(newest.read_text()))


def rows(spent: Mapping[tuple[str, str], float]) -> list[dict[str, Any]]:
    """A record of each part, with milliseconds of one step; the part that takes most is first."""
    totals: dict[str, float] = collections.defaultdict(float)
    for (part, _), value in spent.items():
        totals[part] += value
    return [
        {"part": part, **{kind: round(spent.get((part, kind), 0.0) / STEPS, 1) for kind in KINDS}}
        for part in sorted(totals, key=totals.__getitem__, reverse=True)
    ]


def main() -> None:
    """See the head of this file."""
    settings = tyro.cli(Settings, description=__doc__)
    with tempfile.TemporaryDirectory() as place:
        flags = f"--xla_dump_to={place} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        harness.choose_backend("jax")
        for name in language_model.SIZES:
            if re.search(settings.only, name):
                step, spent = profile(name, Path(place))
                busy = spent.total() / STEPS
                print(f"{name}: {step:.1f} ms a step; all threads work {busy:.1f} ms of it")
                records.print_head(("part", *KINDS))
                for row in rows(spent):
                    records.print_row(row, ("part", *KINDS))


if __name__ == "__main__":
    main()
