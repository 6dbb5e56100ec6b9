"""What a comparison has to say: `report.md` with its tables and figures."""

import functools
import math
import statistics
from collections.abc import Mapping
from typing import Any

from recipes.harness import report
from recipes.harness.comparison import Comparison
from recipes.harness.faults import missing
from recipes.harness.figures import curves
from recipes.harness.fitting import read_results
from recipes.harness.flags import TrainingFlags
from recipes.harness.learning_rate import rate_section
from recipes.harness.run_folder import RunFolder
from recipes.harness.statistics import (
    Score,
    clear_differences,
    one_difference,
    with_spread,
)
from recipes.harness.timing import measure_steps

FEW = 3  # kinds of model that a sentence and a column each can tell of


def write(
    comparison: Comparison,
    settings: TrainingFlags,
    folder: RunFolder,
    models: Mapping[str, Any],
    backend: str,
) -> str:
    """Plots, and everything a comparison has to say in `report.md`; returns the verdict."""
    from kattn.profile import layer_costs

    titles, score = comparison.titles, comparison.scores[0]
    results = read_results(folder, list(titles), settings.seeds)
    references = folder.read_json("references.json") or {}
    finals = report.final_scores(results, score)
    draw = functools.partial(_curves, comparison, results, finals)
    figure = folder.add_figure("curves.png", "Learning curves", draw)
    sections = _sections(comparison, models, folder)
    costs = {kind: layer_costs(model) for kind, model in models.items()}
    steps = measure_steps(models, {kind: comparison.batches(kind, 0)[0] for kind in models})
    said = _verdict(comparison, finals, references)
    notes = report.bullets((*_notes(comparison, settings, finals), *comparison.notes))
    if len(titles) <= FEW:
        table = report.by_seed_table(titles, score, results)
        sections = {"By seed": table, **sections}
    last = list(titles)[-1]
    sections = {**sections, f"Layers of the model {titles[last]}": report.layers_table(costs[last])}
    own = "".join(f"## {name}\n\n{body}\n\n" for name, body in sections.items())
    chosen = "the epoch whose weights were tested" if settings.keep == "best" else "nothing"
    rated = "All"
    if comparison.rates:
        rated = ", ".join(titles[kind] for kind in titles if kind not in comparison.rates)
    text = f"""# {comparison.title}

**{said}**

{report.summary_table(titles, comparison.scores, results, costs, steps, references)}

{notes}

## Learning curves

Lines show the mean over seeds, bands reach from the lowest to the highest seed. The validation data
chose {chosen}.

{figure}

{rate_section(folder, rated)}{own}{report.closing_sections(settings, backend)}"""
    folder.write_text("report.md", text)
    return said


def _sections(
    comparison: Comparison, models: Mapping[str, Any], folder: RunFolder
) -> Mapping[str, str]:
    try:
        return comparison.sections(models, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the results are worth more
        return {"Further sections": missing("What the recipe has to say beside", error)}


def write_overview(
    title: str,
    comparisons: Mapping[str, Comparison],
    settings: TrainingFlags,
    folder: RunFolder,
    backend: str,
) -> str:
    """A report on several comparisons whose own reports are in folders of their names."""
    columns, verdicts = {}, []
    for name, comparison in comparisons.items():
        part = RunFolder(folder.path / name)
        results = read_results(part, list(comparison.titles), settings.seeds)
        references = part.read_json("references.json") or {}
        finals = report.final_scores(results, comparison.scores[0])
        verdicts.append(f"{name}: {_verdict(comparison, finals, references)}")
        for score in comparison.scores:
            columns[f"{name}: {score.title}{', %' if score.is_percentage else ''}"] = {
                **report.reference_scores(references, score),
                **{
                    comparison.titles[kind]: with_spread(values, score.digits)
                    for kind, values in report.final_scores(results, score).items()
                },
            }
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    said = "\n\n".join(verdicts)
    text = f"""# {title}

{said}

{report.table(["", *columns], [[row, *(c.get(row, "") for c in columns.values())] for row in rows])}

{report.bullets([f"[{name}/report.md]({name}/report.md)" for name in comparisons])}

{report.closing_sections(settings, backend)}"""
    folder.write_text("report.md", text)
    return said


def _verdict(
    comparison: Comparison,
    finals: Mapping[str, list[float]],
    references: Mapping[str, Mapping[str, float]],
) -> str:
    score, titles = comparison.scores[0], comparison.titles
    (first, baseline), *others = finals.items()
    unit = "points" if score.is_percentage else ""
    what = score.heading
    if len(others) >= FEW:
        said = [clear_differences(what, first, finals, titles)]
    elif others:
        said = [
            one_difference(
                f"{titles[kind]} against {titles[first]}: the {score.title}",
                values,
                baseline,
                unit=unit,
                digits=score.digits,
            )
            for kind, values in others
        ]
    else:
        said = [f"{what}: {titles[first]} {with_spread(baseline, score.digits)}."]
    known = report.reference_scores(references, score)
    if known:
        told = ", ".join(f"{title} {value}" for title, value in known.items())
        said.append(f"{what}, for comparison: {told}.")
    return " ".join(said)


def _curves(comparison: Comparison, results: report.Results, finals: Any) -> Any:
    score, titles = comparison.scores[0], comparison.titles
    short = _short(score)
    shown = {"loss": "training loss", "val_loss": "validation loss"}
    validated = next(iter(results.values()))[0]["epochs"][0]
    if score.key != "loss" and f"val_{score.key}" in validated:
        shown[f"val_{score.key}"] = f"validation {short}"
    return curves(
        {titles[kind]: [run["epochs"] for run in runs] for kind, runs in results.items()},
        shown,
        {titles[kind]: values for kind, values in finals.items()},
        f"{score.title}{', %' if score.is_percentage else ''}, one line per seed",
    )


def _short(score: Score) -> str:
    return score.title.removeprefix("test ").removeprefix("validation ")


def _rates(comparison: Comparison, settings: TrainingFlags) -> str:
    """A sentence on the learning rates, where they differ."""
    if not comparison.rates:
        return ""
    rates = [
        f"{title} {comparison.rates.get(kind, settings.learning_rate):.3g}"
        for kind, title in comparison.titles.items()
    ]
    return f" Highest learning rates: {', '.join(rates)}."


def _notes(
    comparison: Comparison, settings: TrainingFlags, finals: Mapping[str, list[float]]
) -> list[str]:
    weights = "last epoch" if settings.keep == "last" else "epoch with the lowest validation loss"
    budget = f"for {settings.epochs} epochs"
    if settings.minutes is not None:
        budget = (
            f"for as many epochs as last {settings.minutes:g} min by the time of a step that was "
            "measured before, without compilation and validation"
        )
    notes = [
        f"Scores: mean ± standard deviation over seeds ({settings.seeds}), with the weights of the "
        f"{weights}. {comparison.test_note}",
        f"All models of a seed are trained on the same data, {budget}."
        f"{_rates(comparison, settings)}",
        "MFLOPs: one example forward, counted by `kattn.profile.layer_costs`: 2 per multiply-add "
        "of convolutions, dense and recurrent layers and attention; normalisation, activations, "
        "pooling and softmax are not counted. A training step is about three times that per "
        "example.",
        f"Step: one training step of {settings.batch_size} examples, median over 5 turns of 10 "
        "steps, the models measured in turns after a warm-up. Fit: mean over seeds, with "
        "compilation.",
    ]
    score = comparison.scores[0]
    if score.is_percentage:
        right = statistics.fmean(next(iter(finals.values()))) / 100
        error = 100 * math.sqrt(right * (1 - right) / comparison.tested)
        notes.append(
            f"That there are only {comparison.tested:,} test examples gives any one {score.title} "
            f"a standard error of about {error:.2f} points. Differences by seed are in points."
        )
    return notes
