"""The package as a whole: what it imports, what it exports, how it is documented."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import keras
import pytest

import kattn

SOURCE = pathlib.Path(kattn.__file__).parent
TESTS = pathlib.Path(__file__).parent
FRAMEWORKS = {"tensorflow", "jax", "torch"}
# What a folder may import of kattn: dependencies point one way.
MAY_IMPORT = {
    "arguments": set(),
    "backend": {"backend"},
    "grid": {"arguments"},
    "paths": set(),
    "spans": {"backend"},
    "block_rule": {"arguments", "spans"},
    "masks": {"arguments", "backend", "grid", "spans", "block_rule", "masks"},
    "biases": {"arguments", "backend", "grid", "spans", "block_rule", "biases"},
    "ops": {"arguments", "backend", "grid", "spans", "block_rule", "masks", "biases", "ops"},
    "layers": {"arguments", "grid", "masks", "biases", "ops", "layers"},
    "models": {"arguments", "grid", "layers", "models"},
    "generation": {"arguments", "backend", "ops", "layers", "models", "generation"},
    "presets": {"arguments", "layers", "models", "presets"},
    "visualize": {"arguments", "paths", "ops", "layers", "visualize"},
    "profile": {"arguments", "ops", "layers", "profile"},
    "schedules": {"arguments", "schedules"},
    "data": {"arguments", "data"},
    "text": {"arguments", "text"},
    "callbacks": {
        "arguments",
        "backend",
        "paths",
        "schedules",
        "data",
        "visualize",
        "callbacks",
    },
}


def test_no_operation_that_the_compiler_of_pytorch_stops_at():
    """Keras counts the calls of `ops.pad` by name; in a layer no graph can hold that."""
    found = [path.name for path in SOURCE.rglob("*.py") if "ops.pad(" in path.read_text()]
    assert not found


def exports():
    """Every public name: (module, name, object)."""
    found = []
    modules = (
        "biases",
        "block_rule",
        "callbacks",
        "data",
        "generation",
        "grid",
        "layers",
        "masks",
        "models",
        "ops",
        "presets",
        "profile",
        "schedules",
        "spans",
        "text",
        "visualize",
    )
    for module in modules:
        space = importlib.import_module(f"kattn.{module}")
        for name, value in vars(space).items():
            if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if value.__module__.startswith(f"kattn.{module}"):
                found.append((module, name, value))
    return found


EXPORTS = exports()
NAMES = [f"{module}.{name}" for module, name, _ in EXPORTS]


def sections(docstring):
    """Google-style sections of a docstring: title to text."""
    parts = re.split(r"^([A-Z][A-Za-z ]+):$", inspect.cleandoc(docstring or ""), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text):
    """The entries `name: text` of a section, by name."""
    parts = re.split(r"^ {4}\**(\w+): ", text, flags=re.MULTILINE)
    words = [" ".join(part.split()) for part in parts[2::2]]
    return dict(zip(parts[1::2], words, strict=True))


def is_sentence(text):
    """Whether an entry makes sense alone: no telegraph style, and no word of another place."""
    if re.match(r"(Of|As|See|The same|Likewise|Those) ", text) or text.startswith("As in"):
        return False
    return bool(re.match(r"[A-Z`\"(\d-]", text)) and text.endswith((".", ".)", ":")) and " " in text


def parameters(function):
    names = list(inspect.signature(function).parameters)
    return {name for name in names if name not in ("self", "cls", "kwargs")}


def wanted_sections(value):
    """Titles, and the names that each must explain."""
    if inspect.isfunction(value):
        return {"Args": parameters(value), "Returns": None, "Example": None}
    if issubclass(value, keras.layers.Layer):
        return {
            "Args": parameters(value.__init__),
            "Call args": parameters(value.call),
            **dict.fromkeys(("Returns", "Raises", "Reference", "Example")),
        }
    wanted = {"Args": parameters(value)} if parameters(value) else {}
    if value.__module__.startswith(("kattn.callbacks", "kattn.data", "kattn.schedules")):
        wanted |= {"Example": None} if wanted else {}
    if value.__module__.startswith(("kattn.masks", "kattn.biases", "kattn.grid")):
        wanted["Example"] = None
    if issubclass(value, keras.callbacks.Callback):
        wanted["Raises"] = None
    return wanted


def explained(value):
    """The sections of a docstring, and of the one of the layer whose arguments are the same."""
    text = sections(value.__doc__)
    same = re.search(r"The arguments are those of `(\w+)`", text[""])
    if same is None:
        return text
    other = getattr(kattn.layers, same[1])
    assert other.__init__ is value.__init__, f"{same[1]} has other arguments"
    assert other.call is value.call, f"{same[1]} has another call"
    return {**sections(other.__doc__), **text}


def faults(value):
    """What a docstring lacks."""
    found = []
    text = explained(value)
    if not text[""].strip():
        return ["no docstring"]
    for title, names in wanted_sections(value).items():
        if title not in text:
            found.append(f"no section {title!r}")
        elif names and names - set(entries(text[title])):
            found.append(f"{title!r} lacks {sorted(names - set(entries(text[title])))}")
    for title in ("Args", "Call args"):
        for name, words in entries(text.get(title, "")).items():
            if not is_sentence(words):
                found.append(f"{title!r} has no sentence for {name!r}: {words!r}")
    return found


def methods(value):
    """The public methods that a class defines itself, and that have a docstring."""
    if not inspect.isclass(value):
        return
    for name, method in vars(value).items():
        function = inspect.unwrap(getattr(method, "__func__", method))
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield name, function


def faults_of_methods(value):
    """What the docstrings of methods lack: each argument that is named has a sentence."""
    found = []
    for name, function in methods(value):
        text = sections(function.__doc__)
        given = entries(text.get("Args", ""))
        if given and parameters(function) - set(given):
            found.append(f"{name} lacks {sorted(parameters(function) - set(given))}")
        found += [f"{name}: {word}: {x!r}" for word, x in given.items() if not is_sentence(x)]
    return found


def mirror(value):
    """The test file of the source file that defines a public name."""
    relative = pathlib.Path(inspect.getsourcefile(value)).relative_to(SOURCE)
    return TESTS / relative.with_name(f"test_{relative.name}")


@pytest.mark.parametrize(("module", "name", "value"), EXPORTS, ids=NAMES)
def test_docstrings_are_complete(module, name, value):
    assert not faults(value)
    assert not faults_of_methods(value)


@pytest.mark.parametrize(("module", "name", "value"), EXPORTS, ids=NAMES)
def test_every_export_has_a_test(module, name, value):
    path = mirror(value)
    assert path.exists(), f"{path} is missing"
    assert re.search(rf"\b{name}\b", path.read_text()), f"{path} does not mention {name}"


def test_exports_are_found():
    assert {
        "layers.SelfAttention",
        "ops.attention",
        "masks.Causal",
        "models.sa_cnn",
        "callbacks.LearningRate",
        "visualize.capture_attention",
    } <= set(NAMES)


class _Undocumented(keras.layers.Layer):
    """Says little.

    Args:
        units: A number.
    """

    def __init__(self, units, other, **kwargs):
        super().__init__(**kwargs)

    def call(self, x):
        return x


class _OfAnother(keras.layers.Layer):
    """A layer of its own. The arguments are those of `LayerScale`."""

    def __init__(self, units):
        super().__init__()


def test_arguments_of_another_layer_are_the_same():
    with pytest.raises(AssertionError, match="LayerScale has other arguments"):
        faults(_OfAnother)
    assert "hidden_dim" in entries(explained(kattn.layers.AttentionGate1D)["Args"])


def test_a_poor_docstring_is_found():
    found = faults(_Undocumented)
    assert "'Args' lacks ['other']" in found
    assert "no section 'Call args'" in found
    assert "no section 'Reference'" in found
    assert is_sentence("Number of attention heads.")
    assert is_sentence("`name`, `dtype` and `trainable`, as for any Keras layer.")
    for poor in ("Of queries.", "As in the call.", "See `attention`.", "N.", "number of heads."):
        assert not is_sentence(poor)


def imports(path):
    """Absolute names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.relative_to(SOURCE))
def test_dependencies_point_one_way(path):
    folder = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    names = set(imports(path))
    assert not any(name.startswith("keras.src") for name in names)
    if folder != "backend":
        assert not {name.split(".")[0] for name in names} & FRAMEWORKS
    if folder in MAY_IMPORT:
        own = {name.split(".")[1] for name in names if re.match(r"kattn\.\w", name)}
        assert own <= MAY_IMPORT[folder]


def python(code):
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_no_other_framework_is_imported():
    loaded = python("import kattn, sys; print(*{m.split('.')[0] for m in sys.modules})")
    assert set(loaded) & FRAMEWORKS == FRAMEWORKS & set(
        python("import keras, sys; print(*{m.split('.')[0] for m in sys.modules})")
    )
    assert keras.backend.backend() in loaded


def test_what_training_needs_is_there_when_asked_for():
    code = (
        "import sys, kattn; before = 'kattn.callbacks' in sys.modules; "
        "kattn.callbacks.LearningRate(kattn.schedules.Constant(1.0)); "
        "print(before, set(kattn.ON_DEMAND) <= set(dir(kattn)), hasattr(kattn, 'x'))"
    )
    assert python(code) == ["False", "True", "False"]


def test_generate_is_there_when_asked_for():
    code = (
        "import sys, kattn; before = 'kattn.generation' in sys.modules; "
        "print(before, kattn.generate is kattn.generation.generate, 'generate' in dir(kattn))"
    )
    assert python(code) == ["False", "True", "True"]


def test_import_costs_a_tenth_of_keras_at_most():
    code = (
        "import time; a = time.perf_counter(); import keras; b = time.perf_counter(); "
        "import kattn; print((time.perf_counter() - b) / (b - a))"
    )
    shares: list[float] = []
    while len(shares) < 3 and min(shares, default=1.0) > 0.10:  # a busy machine may say otherwise
        shares.append(float(python(code)[0]))
    assert min(shares) <= 0.10, f"import kattn costs {shares} of import keras"
