"""A fault in a part of a report costs that part, not what was trained for hours before."""

import sys
import textwrap
import traceback

from recipes.harness.names import in_markdown, printable


def missing(what: str, error: Exception) -> str:
    """Say on the terminal why a part of a report is missing; returns a paragraph that says it.

    Args:
        what: The part, for example the name of a figure.
        error: What went wrong.
    """
    traceback.print_exception(error)
    reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))
    print(f"warning: {what} is missing in the report", file=sys.stderr)
    return (
        f"**{what} is missing**, as making it failed: {in_markdown(textwrap.shorten(reason, 300))}."
        " The results do not depend on it. Where this report is deleted, the same command with "
        "`--resume` writes it anew and trains nothing."
    )
