"""The usual recipe: train a few kinds of model from several seeds, and report what differs."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.harness import report
from recipes.harness.cli import Job
from recipes.harness.figures import curves
from recipes.harness.fitting import finish, fit, read_results, unfinished
from recipes.harness.flags import TrainingFlags, make_callbacks, make_clipping
from recipes.harness.learning_rate import find_rate, rate_section
from recipes.harness.run_folder import RunFolder
from recipes.harness.statistics import Score, one_difference
from recipes.harness.timing import measure_steps


@dataclass(frozen=True)
class Comparison:
    """What a recipe compares: data, models and metrics of a task.

    Args:
        title: Heading of the report.
        about: One line about the data, shown before the training.
        titles: Titles of the kinds of model by name. The first kind is the baseline.
        scores: What the test measures. Verdict, table by seed and figure show the first one.
        build: Function of the name of a kind and a seed that returns a compiled model.
        batches: Function of a seed that returns the training data, a `kattn.data.EpochShuffled`.
        validate: Function of a model that returns results by name, called after each epoch.
        test: Function of a trained model that returns results by name, called once.
        tested: Number of examples in the test data.
        learnt: Function of a trained model that returns what else to record of it: by name of a
            quantity, its value in each layer.
        notes: Remarks to print below the table of results.
        sections: Function of the models of seed 0 and the folder that returns further sections of
            the report by heading. It may write figures to the folder.
    """

    title: str
    about: str
    titles: Mapping[str, str]
    scores: tuple[Score, ...]
    build: Callable[[str, int], Any]
    batches: Callable[[int], Any]
    validate: Callable[[Any], Mapping[str, float]]
    test: Callable[[Any], Mapping[str, float]]
    tested: int
    learnt: Callable[[Any], Mapping[str, Mapping[str, float]]] = lambda model: {}
    notes: tuple[str, ...] = ()
    sections: Callable[[Mapping[str, Any], RunFolder], Mapping[str, str]] = lambda models, to: {}


def compare(comparison: Comparison, settings: TrainingFlags) -> Job:
    """The work of training what is not trained yet, and of reporting then."""

    def work(folder: RunFolder, backend: str) -> str:
        ready = settings
        if settings.lr_find:
            model = comparison.build(next(iter(comparison.titles)), 0)
            clipping = make_clipping(settings.clip)
            callbacks = [] if clipping is None else [clipping]
            rate = find_rate(model, comparison.batches(0), folder, callbacks=callbacks)
            ready = dataclasses.replace(settings, learning_rate=rate)
        models = _train(comparison, ready, folder)
        return _write_report(comparison, ready, folder, models, backend)

    runs = f"{settings.seeds} seed(s) x {settings.epochs} epochs"
    return Job(f"{comparison.about}, {runs}", work)


def _train(comparison: Comparison, settings: TrainingFlags, folder: RunFolder) -> dict[str, Any]:
    """Fit what has no result yet; the models of seed 0 by kind."""
    import keras

    models = {}
    for kind, seed, name in unfinished(folder, list(comparison.titles), settings.seeds):
        model = comparison.build(kind, seed)
        _fit_one(comparison, model, kind, seed, name, settings, folder)
        if seed == 0:
            models[kind] = model
    for kind in comparison.titles:
        if kind not in models:
            models[kind] = keras.saving.load_model(folder.path / f"checkpoints/{kind}-seed0.keras")
    return {kind: models[kind] for kind in comparison.titles}


def _fit_one(
    comparison: Comparison,
    model: Any,
    kind: str,
    seed: int,
    name: str,
    settings: TrainingFlags,
    folder: RunFolder,
) -> None:
    data = comparison.batches(seed)
    total = len(data) * settings.epochs
    warm_up = min(len(data), total // 4)
    epochs = fit(
        model,
        data,
        make_callbacks(settings, settings.learning_rate, total, warm_up),
        folder,
        name=name,
        epochs=settings.epochs,
        every=settings.checkpoint_every,
        label=f"{comparison.titles[kind]}, seed {seed} ({seed + 1} of {settings.seeds})",
        validate=comparison.validate,
    )
    result = {
        "model": kind,
        "seed": seed,
        "epochs": epochs,
        "test": dict(comparison.test(model)),
        "learnt": dict(comparison.learnt(model)),
    }
    with folder.writing(f"checkpoints/{name}.keras") as path:
        model.save(path)
    finish(folder, name, result)


def _write_report(
    comparison: Comparison,
    settings: TrainingFlags,
    folder: RunFolder,
    models: Mapping[str, Any],
    backend: str,
) -> str:
    """Plots, and everything the run has to say in `report.md`; returns the verdict."""
    from kattn.profile import layer_costs

    titles, score = comparison.titles, comparison.scores[0]
    results = read_results(folder, list(titles), settings.seeds)
    finals = report.final_scores(results, score)
    folder.write_figure("curves.png", _curves(comparison, results, finals))
    sections = comparison.sections(models, folder)
    costs = {kind: layer_costs(model) for kind, model in models.items()}
    steps = measure_steps(models, comparison.batches(0)[0])
    said = _verdict(comparison, finals)
    notes = report.bullets((*_notes(comparison, settings, finals), *comparison.notes))
    own = "".join(f"## {name}\n\n{body}\n\n" for name, body in sections.items())
    last = list(titles)[-1]
    text = f"""# {comparison.title}

**{said}**

{report.summary_table(titles, comparison.scores, results, costs, steps)}

{notes}

## By seed

{report.by_seed_table(titles, score, results)}

## Learning curves

Lines show the mean over seeds, bands reach from the lowest to the highest seed. Nothing was chosen
by the validation data.

![Learning curves](curves.png)

{rate_section(folder)}{own}## Layers of the model {titles[last]}

{report.layers_table(costs[last])}

{report.closing_sections(settings, backend)}"""
    folder.write_text("report.md", text)
    return said


def _verdict(comparison: Comparison, finals: Mapping[str, list[float]]) -> str:
    score = comparison.scores[0]
    (first, baseline), *others = finals.items()
    titles = comparison.titles
    return " ".join(
        one_difference(
            f"{titles[kind]} against {titles[first]}: the {score.title}",
            values,
            baseline,
            unit="points" if score.is_percentage else "",
            digits=score.digits,
        )
        for kind, values in others
    )


def _curves(comparison: Comparison, results: report.Results, finals: Any) -> Any:
    score, titles = comparison.scores[0], comparison.titles
    short = score.title.removeprefix("test ")
    shown = {"loss": "training loss", "val_loss": "validation loss"}
    if score.key != "loss":
        shown[f"val_{score.key}"] = f"validation {short}"
    return curves(
        {titles[kind]: [run["epochs"] for run in runs] for kind, runs in results.items()},
        shown,
        {titles[kind]: values for kind, values in finals.items()},
        f"{score.title}{', %' if score.is_percentage else ''}, one line per seed",
    )


def _notes(
    comparison: Comparison, settings: TrainingFlags, finals: Mapping[str, list[float]]
) -> list[str]:
    notes = [
        f"Scores: mean ± standard deviation over seeds ({settings.seeds}), with the weights of the "
        "last epoch. The test data were used once per model and seed, after training.",
        "All models of a seed see the same examples in the same order, for "
        f"{settings.epochs} epochs.",
        "MFLOPs: one example forward, counted from shapes by `kattn.profile.layer_costs`: 2 per "
        "multiply-add of convolutions, dense layers and attention; normalisation, activations, "
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
