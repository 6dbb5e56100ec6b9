"""What models make of some texts, and what their decoders looked at, for a report."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.data.encoded_pairs import BEGIN, EncodedPairs
from recipes.harness.names import block
from recipes.harness.run_folder import RunFolder
from recipes.harness.translators import RNN

SHOWN = 4  # texts in a report


def sections(
    task: EncodedPairs, titles: Mapping[str, str], models: Mapping[str, Any], folder: RunFolder
) -> dict[str, str]:
    """Sections of a report with some translations, and figures of what was attended to.

    Args:
        task: Texts, of which the first to test are translated.
        titles: Titles of the kinds of models by name.
        models: Trained models by the name of their kind.
        folder: Folder of the run, which gets the figures.
    """
    from recipes.harness.alignments import alignment_figure, alignments

    source = task.test[0][:SHOWN]
    found = {kind: task.translate(model, source) for kind, model in models.items()}
    lines, figures = [], []
    for i, text in enumerate(task.texts.test.sources[:SHOWN]):
        said = {"source": text, "reference": task.texts.test.targets[i]}
        said |= {titles[kind]: task.text(rows[i]) for kind, rows in found.items()}
        lines.append(block("\n".join(f"{who}: {what}" for who, what in said.items())))
    for kind, rows in found.items():
        if kind == RNN:
            continue  # it attends to nothing
        begin: np.ndarray = np.full((len(source), 1), BEGIN, "int32")
        read = np.concatenate([begin, rows], axis=1)  # a step more than the source
        weights = alignments(models[kind], source, read)
        words = [(task.pieces(rows[i]), task.pieces(source[i])) for i in range(len(source))]
        draw = functools.partial(alignment_figure, weights, words)
        title = f"Alignments of {titles[kind]}"
        figures.append(folder.add_figure(f"alignments-{kind}.png", title, draw))
    about = (
        "Rows: what was written, greedily; columns: the source. Dark: much attention, the mean "
        "over all heads and layers that attend to the source. Models of seed 0."
    )
    return {"Translations": "\n\n".join(lines), "Alignments": "\n\n".join([about, *figures])}
