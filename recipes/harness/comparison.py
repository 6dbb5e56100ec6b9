"""The usual recipe: train a few kinds of model from several seeds, and report what differs."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.harness.cli import Job
from recipes.harness.fitting import finish, fit, unfinished
from recipes.harness.flags import TrainingFlags, make_callbacks, make_clipping
from recipes.harness.learning_rate import find_rate
from recipes.harness.run_folder import RunFolder
from recipes.harness.statistics import Score
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
        batches: Function of the name of a kind and a seed that returns the training data, a
            `kattn.data.EpochShuffled`.
        validate: Function of a model that returns results by name, "loss" among them, called after
            each epoch.
        test: Function of a trained model that returns results by name, called once.
        tested: Number of examples in the test data.
        references: Function that returns what the test gives for methods that are not trained by
            `fit`: by title of the method, results by name. It is called before the training.
        rates: Highest learning rate by name of the kind, for kinds that need another one than
            `--learning-rate`.
        learnt: Function of a trained model that returns what else to record of it: by name of a
            quantity, its value in each layer.
        notes: Remarks to print below the table of results.
        test_note: The remark on how the test data were used.
        sections: Function of the models of seed 0 and the folder that returns further sections of
            the report by heading. It may add figures to the folder. A fault in it costs these
            sections only.
    """

    title: str
    about: str
    titles: Mapping[str, str]
    scores: tuple[Score, ...]
    build: Callable[[str, int], Any]
    batches: Callable[[str, int], Any]
    validate: Callable[[Any], Mapping[str, float]]
    test: Callable[[Any], Mapping[str, float]]
    tested: int
    references: Callable[[], Mapping[str, Mapping[str, float]]] = dict
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    learnt: Callable[[Any], Mapping[str, Mapping[str, float]]] = lambda model: {}
    notes: tuple[str, ...] = ()
    test_note: str = "The test data were used once per model and seed, after training."
    sections: Callable[[Mapping[str, Any], RunFolder], Mapping[str, str]] = lambda models, to: {}


def compare(comparison: Comparison, settings: TrainingFlags) -> Job:
    """The work of training what is not trained yet, and of reporting then.

    Raises:
        ValueError: If the flags name a kind of model that there is not, or if a learning rate is to
            be found, and each kind has a rate of its own.
    """
    comparison = _of_chosen_models(comparison, settings)
    without_rate = [kind for kind in comparison.titles if kind not in comparison.rates]
    if settings.lr_find and not without_rate:
        raise ValueError(
            "`lr_find` must not be given where each kind of model has a learning rate of its own; "
            f"received: lr_find=True, rates={comparison.rates}"
        )

    def work(folder: RunFolder, backend: str) -> str:
        from recipes.harness import comparison_report

        ready = settings
        if folder.read_json("references.json") is None:
            references = dict(comparison.references())
            if references:
                folder.write_json("references.json", references)
        if settings.lr_find:
            kind = without_rate[0]
            clipping = make_clipping(settings.clip)
            callbacks = [] if clipping is None else [clipping]
            model, data = comparison.build(kind, 0), comparison.batches(kind, 0)
            rate = find_rate(model, data, folder, callbacks=callbacks)
            ready = dataclasses.replace(settings, learning_rate=rate)
        models = _train(comparison, ready, folder)
        return comparison_report.write(comparison, ready, folder, models, backend)

    return Job(f"{comparison.about}, {_budget(settings)}", work)


def compare_each(title: str, comparisons: Mapping[str, Comparison], settings: TrainingFlags) -> Job:
    """The work of several comparisons, each in a folder of its own, and of a report on all.

    Args:
        title: Heading of the report on all.
        comparisons: The comparisons by name, which is also that of the folder.
        settings: The flags.
    """
    comparisons = {
        name: _of_chosen_models(comparison, settings) for name, comparison in comparisons.items()
    }
    jobs = {name: compare(comparison, settings) for name, comparison in comparisons.items()}

    def work(folder: RunFolder, backend: str) -> str:
        from recipes.harness import comparison_report

        for name, job in jobs.items():
            part = RunFolder(folder.path / name)
            if not part.report.exists():
                print(f"{name}:", flush=True)
                part.path.mkdir(exist_ok=True)
                job.work(part, backend)
        return comparison_report.write_overview(title, comparisons, settings, folder, backend)

    first = next(iter(comparisons.values()))
    return Job(f"{first.about}, {', '.join(comparisons)}, {_budget(settings)}", work)


def _of_chosen_models(comparison: Comparison, settings: TrainingFlags) -> Comparison:
    """The comparison of the kinds of model that `--models` names, in the order of the recipe."""
    from kattn import arguments

    titles = comparison.titles
    if not set(settings.models) <= set(titles):
        raise arguments.error(
            f"`models` must name some of {', '.join(titles)}", models=settings.models
        )
    chosen = {kind: titles[kind] for kind in titles if kind in (settings.models or titles)}
    return dataclasses.replace(comparison, titles=chosen)


def _budget(settings: TrainingFlags) -> str:
    each = f"{settings.epochs} epochs" if settings.minutes is None else f"{settings.minutes:g} min"
    return f"{settings.seeds} seed(s) x {each}"


def _train(comparison: Comparison, settings: TrainingFlags, folder: RunFolder) -> dict[str, Any]:
    """Fit what has no result yet; the models of seed 0 by kind."""
    import keras

    models = {}
    epochs = _epochs(comparison, settings, folder)
    for kind, seed, name in unfinished(folder, list(comparison.titles), settings.seeds):
        model = comparison.build(kind, seed)
        _fit_one(comparison, model, kind, seed, name, epochs[kind], settings, folder)
        if seed == 0:
            models[kind] = model
    for kind in comparison.titles:
        if kind not in models:
            models[kind] = keras.saving.load_model(folder.path / f"checkpoints/{kind}-seed0.keras")
    return {kind: models[kind] for kind in comparison.titles}


def _epochs(comparison: Comparison, settings: TrainingFlags, folder: RunFolder) -> dict[str, int]:
    """Number of epochs by kind: that of the flags, or as many as fit in the minutes.

    The latter are kept in `epochs.json`; a run that goes on reads them and measures no more.
    """
    if settings.minutes is None:
        return dict.fromkeys(comparison.titles, settings.epochs)
    epochs = folder.read_json("epochs.json")
    if epochs is None:
        models = {kind: comparison.build(kind, 0) for kind in comparison.titles}
        data = {kind: comparison.batches(kind, 0) for kind in comparison.titles}
        steps = measure_steps(models, {kind: each[0] for kind, each in data.items()})
        epochs = {
            kind: max(round(60 * settings.minutes / (steps[kind] * len(data[kind]))), 1)
            for kind in comparison.titles
        }
        folder.write_json("epochs.json", epochs)
    return epochs


def _fit_one(
    comparison: Comparison,
    model: Any,
    kind: str,
    seed: int,
    name: str,
    epochs: int,
    settings: TrainingFlags,
    folder: RunFolder,
) -> None:
    data = comparison.batches(kind, seed)
    total = len(data) * epochs
    warm_up = min(len(data), total // 4)
    rate = comparison.rates.get(kind, settings.learning_rate)
    history = fit(
        model,
        data,
        make_callbacks(settings, rate, total, warm_up),
        folder,
        name=name,
        epochs=epochs,
        every=settings.checkpoint_every,
        label=f"{comparison.titles[kind]}, seed {seed} ({seed + 1} of {settings.seeds})",
        validate=comparison.validate,
        keep=settings.keep,
    )
    result = {
        "model": kind,
        "seed": seed,
        "epochs": history,
        "test": dict(comparison.test(model)),
        "learnt": dict(comparison.learnt(model)),
    }
    with folder.writing(f"checkpoints/{name}.keras") as path:
        model.save(path)
    finish(folder, name, result)
