"""Parts of `report.md` that every recipe has."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.harness.cli import recorded
from recipes.harness.flags import RunFlags
from recipes.harness.machine import machine, versions
from recipes.harness.names import in_markdown
from recipes.harness.statistics import Score, with_spread

if TYPE_CHECKING:  # it needs Keras, which is imported once the backend is chosen
    from kattn.profile import LayerCost

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # by kind of model, then by seed
# In lines of text it is held together, as a name would lose its spaces at the end of a line.
CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: bool = True) -> str:
    """A Markdown table; all columns but the first hold numbers, set to the right, or words."""
    rule = ["---"] + ["---:" if numbers else "---"] * (len(header) - 1)
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in [header, rule, *rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(remarks: Sequence[str]) -> str:
    """A Markdown list, its lines at most a hundred characters long, if words and code allow it."""
    lines = textwrap.TextWrapper(
        100,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,  # they may be names
        break_on_hyphens=False,
    )
    held = (CODE.sub(lambda code: code[0].replace(" ", "\0"), remark) for remark in remarks)
    return "\n".join(map(lines.fill, held)).replace("\0", " ")


def final_scores(results: Results, score: Score) -> dict[str, list[float]]:
    """The results of the test by kind, one for each seed, as they are shown."""
    return {
        kind: [score.scale * run["test"][score.key] for run in runs]
        for kind, runs in results.items()
    }


def reference_scores(references: Mapping[str, Mapping[str, float]], score: Score) -> dict[str, str]:
    """The results of methods that were not trained, by title, as they are shown."""
    return {
        title: f"{score.scale * result[score.key]:.{score.digits}f}"
        for title, result in references.items()
        if score.key in result
    }


def summary_table(
    titles: Mapping[str, str],
    scores: Sequence[Score],
    results: Results,
    costs: Mapping[str, Sequence["LayerCost"]],
    steps: Mapping[str, float],
    references: Mapping[str, Mapping[str, float]],
) -> str:
    """A row for each kind of model: scores, parameters, FLOPs, and times of a step and a fit.

    Args:
        titles: Titles of the kinds by name.
        scores: The scores to show.
        results: Results by kind and seed.
        costs: What the layers of each kind cost.
        steps: Seconds of a step of each kind.
        references: Results of methods that were not trained, by title. They come first.
    """
    header = ["Model", *(score.heading for score in scores)]
    header += ["Parameters", "MFLOPs", "Step, ms", "Fit, s"]
    known = [reference_scores(references, score) for score in scores]
    rows = [[title, *(each.get(title, "") for each in known), *[""] * 4] for title in references]
    for kind, runs in results.items():
        seconds = [sum(epoch["seconds"] for epoch in run["epochs"]) for run in runs]
        shown = [with_spread(final_scores(results, each)[kind], each.digits) for each in scores]
        rows.append(
            [
                titles[kind],
                *shown,
                f"{sum(cost.parameters for cost in costs[kind]):,}",
                f"{sum(cost.flops for cost in costs[kind]) / 1e6:.2f}",
                f"{1e3 * steps[kind]:.1f}",
                f"{np.mean(seconds):.1f}",
            ]
        )
    return table(header, rows)


def by_seed_table(titles: Mapping[str, str], score: Score, results: Results) -> str:
    """A row for each seed: the score of each kind, differences, and what the last one learnt."""
    baseline, *others = final_scores(results, score).values()
    learnt = [run["learnt"] for run in list(results.values())[-1]]
    header = ["Seed", *(titles[kind] for kind in results)]
    header += ["Difference"] * len(others) + list(learnt[0])
    rows = []
    for seed, first in enumerate(baseline):
        values = [first, *(other[seed] for other in others)]
        rows.append(
            [
                seed,
                *(f"{value:.{score.digits}f}" for value in values),
                *(f"{value - first:+.{score.digits}f}" for value in values[1:]),
                *(", ".join(f"{x:+.3f}" for x in each.values()) for each in learnt[seed].values()),
            ]
        )
    return table(header, rows)


def layers_table(costs: Sequence["LayerCost"]) -> str:
    """A row for each layer that has weights."""
    rows = [
        [
            cost.layer,
            cost.kind,
            " x ".join(map(str, cost.output_shape)),
            f"{cost.parameters:,}",
            f"{cost.flops:,}" if cost.flops else "not counted",
        ]
        for cost in costs
        if cost.parameters
    ]
    return table(["Layer", "Kind", "Output", "Parameters", "FLOPs"], rows)


def time_spent(results: Results) -> str:
    """A remark on how long all fits took."""
    seconds = [
        sum(epoch["seconds"] for epoch in run["epochs"])
        for runs in results.values()
        for run in runs
    ]
    return f"Training took {sum(seconds):.0f} s in {len(seconds)} fits, with compilation."


def closing_sections(settings: RunFlags, backend: str) -> str:
    """The sections on machine, versions and settings, with which every report ends."""
    facts = machine() | {"backend": backend} | versions("kattn", "keras", "numpy", backend)
    given = {name: in_markdown(str(value)) for name, value in recorded(settings, backend).items()}
    return f"""## Machine and versions

{table(["What", "Value"], list(facts.items()), numbers=False)}

## Settings

{table(["Setting", "Value"], list(given.items()), numbers=False)}
"""
