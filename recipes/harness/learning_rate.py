"""The highest learning rate, found by a range test for the flag `--lr-find`."""

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.harness.faults import missing
from recipes.harness.run_folder import RunFolder


def find_rate(
    model: Any, data: Any, folder: RunFolder, *, callbacks: Sequence[Any] = (), low: float = 1e-6
) -> float:
    """Find a highest learning rate: the valley of a range test from `low` to 1.

    The suggestions and the plot are kept in `lr_find.json` and `lr_find.png`; a run that goes on
    reads them and tests no more.
    """
    from kattn.callbacks import LearningRateFinder

    suggestions = folder.read_json("lr_find.json")
    if suggestions is None:
        finder = LearningRateFinder(low=low, high=1.0, steps=100)
        curve = finder.run(model, data, shuffle=False, callbacks=list(callbacks))
        try:
            with folder.writing("lr_find.png") as path:
                curve.plot(path)
        except Exception as error:  # noqa: BLE001 - whatever it is, the rates are known
            missing("lr_find.png", error)
        suggestions = curve.suggestions
        folder.write_json("lr_find.json", suggestions)
    print(f"The range test suggests {_in_words(suggestions)}; the valley is used", flush=True)
    return float(suggestions["valley"])


def rate_section(folder: RunFolder, trained: str = "All") -> str:
    """Section of a report on the range test; empty if there was none.

    Args:
        folder: Folder of the run.
        trained: Which models were trained with the rate that was found, in words.
    """
    suggestions = folder.read_json("lr_find.json")
    if suggestions is None:
        return ""
    figure = "![Loss over learning rate](lr_find.png)"
    if not (folder.path / "lr_find.png").is_file():
        figure = "**lr_find.png is missing**, as making it failed. The rates do not depend on it."
    return f"""## The learning rate

{trained} trained with a peak of {suggestions["valley"]:.3g}, which a range test of the first one
suggested: {_in_words(suggestions)}; the valley of its curve was taken.

{figure}

"""


def _in_words(suggestions: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {rate:.2g}" for name, rate in suggestions.items())
