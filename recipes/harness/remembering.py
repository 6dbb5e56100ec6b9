"""What models remember: by level, by window, and how far gradients reach, for a report."""

import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from recipes.data import sequence_memory as memory
from recipes.harness import levels
from recipes.harness.fitting import read_results
from recipes.harness.run_folder import RunFolder

DRAWN = 16  # sequences that the gradients are computed for
REACHES = ("lstm", "lstm-attention")  # kinds whose gradients are in the report


class Asked(NamedTuple):
    """What models are asked for.

    Args:
        task: What there is to remember.
        tests: Sequences to test, by level.
        titles: Titles of the kinds of models by name.
        windows: Number of steps that a kind sees, for those whose windows are swept.
        seeds: Number of runs of each kind.
    """

    task: memory.MemoryTask
    tests: Mapping[int, memory.Examples]
    titles: Mapping[str, str]
    windows: Mapping[str, int]
    seeds: int


def reach(task: memory.MemoryTask, tests: Mapping[int, memory.Examples], model: Any) -> np.ndarray:
    """Norms of the gradients of what the head reads, where it must remember, by distance."""
    import keras

    from recipes.harness.reach import gradient_reach

    tokens, labels, _ = (part[:DRAWN] for part in tests[task.levels[-1]])
    last = task.length - 1 - (labels[:, ::-1] != 0).argmax(axis=1)
    embedding, norm = model.get_layer("embedding"), model.get_layer("norm")
    vectors = keras.ops.convert_to_numpy(embedding(tokens))
    return gradient_reach(keras.Model(embedding.output, norm.input), vectors, last)


def sections(
    asked: Asked, build: Callable[[str, int], Any], models: Mapping[str, Any], folder: RunFolder
) -> dict[str, str]:
    """Sections of a report with accuracies by level and by window, and how far gradients reach.

    Args:
        asked: What the models are asked for.
        build: Function of a kind and a seed that makes a model that is not trained.
        models: Trained models by the name of their kind.
        folder: Folder of the run, which gets the figures.
    """
    task, titles = asked.task, {kind: asked.titles[kind] for kind in models}
    found = levels.percentages(read_results(folder, list(models), asked.seeds))
    known = {task.guess: {level: 100 * task.guessed(level)[1] for level in task.levels}}
    told = {f"Accuracy by {task.unit}": levels.section(folder, task.unit, titles, found, known)}
    swept: dict[float, dict[float, list[float]]]
    swept = {window: found[kind] for kind, window in asked.windows.items() if kind in models}
    if len(swept) > 1:
        told["Accuracy by window"] = levels.figure(
            folder,
            "windows.png",
            "Accuracy by window",
            "steps seen",
            levels.turned(swept, task.unit),
        )
    reaches = {
        f"{titles[kind]}, {when}": reach(task, asked.tests, model)
        for kind in REACHES
        if kind in models
        for when, model in (("untrained", build(kind, 0)), ("trained", models[kind]))
    }
    if reaches:
        text = (
            f"The norm of d h_t / d x_(t - k), where h_t is what the head reads at the last step "
            f"at which there is something to remember, and x are the vectors of the tokens; "
            f"{DRAWN} sequences with {task.levels[-1]} {task.unit}, seed 0."
        )
        heading = "Where gradients reach"
        told[heading] = levels.distances_section(folder, heading, textwrap.fill(text, 100), reaches)
    return told
