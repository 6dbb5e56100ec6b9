"""Names from data are shown as they are, wherever a report has them."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from recipes import harness
from recipes.harness import report

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
NAMES = [
    *(r"$\frac$", "a|b", "`a`", "``", "`", "*a* _b_ __init__", "<b>&amp;", "[x](y)", "![x](y)"),
    *("1. x", "- x", "# x", "a  b", " a ", " ", "~~a~~", "a\\|b", "a\\", "image_classification"),
    *("folder:/tmp/x_1-2/é 日本", ":smile:", "a\nb", "a`|`b", "x@y", "  `", "==", "&lt;"),
    "a\n```\nb",
]


def shown(markdown):
    """The texts of a document, as a reader sees them, by block."""
    texts = []
    for token in MARKDOWN.parse(markdown):
        if token.type == "inline":
            kinds = {"softbreak": " ", "hardbreak": " "}
            parts = [kinds.get(child.type, child.content) for child in token.children]
            assert {child.type for child in token.children} <= {"text", "code_inline", *kinds}
            texts.append("".join(parts))
    return texts


def named(test):
    """Try all names above, and some more that are made of what Markdown reads."""
    characters = st.sampled_from([*"\\`*_[]()<>&|~$#!@:-+=1. a", "é", "\udcff", "\n", "\x1b"])
    test = given(st.text(characters, max_size=6))(test)
    for name in NAMES:
        test = example(name)(test)
    return settings(derandomize=True, max_examples=200, deadline=None)(test)


@named
def test_in_lines(name):
    plain = harness.printable(name)
    assert shown(f"# Names of {harness.in_markdown(name)}, all\n") == [f"Names of {plain}, all"]
    text = f"{harness.in_markdown(name)}: 3 images"
    assert shown(harness.bullets([text])) == [f"{plain}: 3 images"]


@named
def test_in_a_table(name):
    table = harness.table(["Name", "Value"], [[harness.in_markdown(name), 1]])
    assert shown(table) == ["Name", "Value", harness.printable(name), "1"]


@named
def test_in_a_block(name):
    (token,) = MARKDOWN.parse(harness.block(name))
    assert (token.type, token.info) == ("fence", "text")
    assert token.content == harness.printable(name, keep="\n") + "\n"


@pytest.mark.parametrize("name", ["digits", "tfds:mnist", "zip:/a/b-1_2.zip", "(32, 64)", "ETTh1"])
def test_plain_names_are_no_code(name):
    assert harness.in_markdown(name) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("\x1b[31m\r\x00\x85", r"\x1b[31m\r\x00\x85"),
        ("a\nb\u2028", r"a\nb\u2028"),
        ("\ud800", r"\ud800"),
        ("é 日本 \\n 👩‍🔬", "é 日本 \\n 👩‍🔬"),
    ],
)
def test_what_cannot_be_written(name, text):
    assert harness.printable(name) == text
    text.encode()


def test_lines_of_a_list_do_not_break_names():
    name = "folder:/" + "a-long name/" * 12 + "  ."
    text = harness.bullets([f"{harness.in_markdown(name)}: " + "word " * 30])
    assert f"- `{name}`:" in text
    assert max(map(len, text.splitlines()[1:])) <= 100
    path = "folder:/" + "a-long-name/" * 12
    assert f"- {path}:\n" in harness.bullets([f"{harness.in_markdown(path)}: word"])


@dataclass(frozen=True)
class Flags(harness.RunFlags):
    """With the path of a file."""

    text: Path | None = None  # a file


def test_settings_are_shown_as_they_are():
    path = Path(os.fsdecode(b"/a|b/$\\frac$\xe9"))
    texts = shown(report.closing_sections(Flags(text=path), "torch"))
    assert texts[texts.index("text") + 1] == r"/a|b/$\frac$\xe9"
