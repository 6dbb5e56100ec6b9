"""The code of the README runs, and what it names exists."""

import pathlib
import re

import keras

import kattn

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALLER = {  # each must be there, and is replaced to save time
    "epochs=10": "epochs=1",
    "steps=10 * len": "steps=1 * len",
    "load_digits(return_X_y=True)": "(part[:128] for part in load_digits(return_X_y=True))",
    '"\\n".join(topics.values())': '"\\n".join(topics.values())[:4000]',
    '"Llama-3.2-1B"': repr(str(ROOT / "tests" / "fixtures" / "huggingface" / "llama")),
    "(1, 4096, 64)": "(1, 300, 64)",
    "(1, 4096, 8, 64)": "(1, 300, 2, 8)",
}


def blocks():
    """The Python code of the README with small settings, block by block."""
    code = README
    for text, smaller in SMALLER.items():
        assert text in code, f"README.md no longer has {text}"
        code = code.replace(text, smaller)
    return re.findall(r"^```python\n(.*?)^```", code, flags=re.MULTILINE | re.DOTALL)


def test_code_runs(tmp_path, monkeypatch, capsys):
    """In the order of the page, as later blocks use names of earlier ones."""
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = {}
    for number, block in enumerate(blocks()):
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert len(blocks()) == 7
    assert names["written"].shape == (1, 150)
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "backups").is_dir()
    assert (tmp_path / "Llama-3.2-1B-tuned" / "config.json").exists()
    assert tuple(names["maps"].shape) == (1, 4, 12, 12)
    assert tuple(names["h"].shape) == (1, 1, 64)
    assert "passed over" in capsys.readouterr().out


SPACES = (
    *("callbacks", "data", "generation", "layers", "masks", "models", "ops"),
    *("presets", "profile", "schedules", "text", "visualize"),
)


def test_names_exist():
    named = re.findall(rf"(?<!keras\.)\b({'|'.join(SPACES)})\.([A-Za-z_]\w*)", README)
    assert len(named) > 20
    missing = [f"{a}.{b}" for a, b in named if not hasattr(getattr(kattn, a), b)]
    assert not missing


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
