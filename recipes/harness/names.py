"""Names and texts that come from data, written as they are: on a terminal, in Markdown."""

import dataclasses
import re
import unicodedata
from typing import Any, TypeVar

Data = TypeVar("Data", bound=Any)

UNWRITABLE = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of characters, ends of lines
# What Markdown, or GitHub's kind of it, would not show as it is.
MARKS = re.compile(
    r"[\\`*\[\]<>&|~$#!@]|(?<![^\W_])_|_(?![^\W_])|:[\w+-]+:"  # anywhere
    r"|^[-+=]|^\d+[.)](?: |$)"  # at the start of a line
    r"|^ | $|  "  # spaces that would be lost
)
BACKTICKS = re.compile("`+")
LINES = "\n\t"  # what stays in a text of several lines


def printable(text: str, keep: str = "") -> str:
    r"""Write what no terminal and no file takes as escapes; all else stays as it is.

    A byte of a file's name that is no UTF-8, which Python holds as half of a character, is written
    as `\xff`, and a line feed as `\n`.

    Args:
        text: Any text.
        keep: Characters that stay in any case.
    """
    return "".join(
        char if char in keep or unicodedata.category(char) not in UNWRITABLE else _escape(char)
        for char in text
    )


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def in_markdown(name: str) -> str:
    """One line of Markdown that shows a name as it is; as code, where it must be."""
    name = printable(name)
    if not MARKS.search(name):
        return name
    mark = "`" * (_longest_run(name) + 1)
    ends = name[0], name[-1]
    # One space at either end of code is not shown.
    space = " " if "`" in ends or (ends == (" ", " ") and name.strip()) else ""
    return f"{mark}{space}{name}{space}{mark}"


def announced(data: Data) -> Data:
    """Say how a dataset was read; return it with names that a report shows as they are.

    Args:
        data: A dataclass with a `name`, a `split` and `classes`.
    """
    print(printable(f"{data.name}: {data.split}"), flush=True)
    return dataclasses.replace(
        data,
        name=in_markdown(data.name),
        split=in_markdown(data.split),
        classes=tuple(map(printable, data.classes)),
    )


def block(text: str) -> str:
    """A block of Markdown that shows a text as it is, in lines."""
    fence = "`" * max(_longest_run(text) + 1, 3)
    return f"{fence}text\n{printable(text, keep=LINES)}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, BACKTICKS.findall(text)), default=0)
