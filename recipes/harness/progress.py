"""How far a fit is, for whoever watches."""

from collections.abc import Mapping

from tqdm import tqdm


class Progress:
    """A bar over the steps of one fit; a line for each epoch where nobody watches a terminal."""

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
        """Count one more training step."""
        self.bar.update()

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Show what epoch `number`, counted from 1, has measured."""
        shown = in_words(values)
        if self.bar.disable:
            print(f"{self.label}: epoch {number}/{self.epochs}  {shown}", flush=True)
        else:
            self.bar.set_postfix_str(shown)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()


def in_words(values: Mapping[str, float]) -> str:
    """Names and values in one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
