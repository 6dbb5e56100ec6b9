"""Which cases the benchmark of language models has, and that its sides do what it says."""

import keras
import numpy as np
import pytest

from kattn import generation, models, profile
from recipes.benchmarks import language_model
from recipes.benchmarks.language_model import SIZES, Case, Settings, Size


@pytest.fixture
def tiny(monkeypatch):
    """The case of a model that costs nothing, on batches of 2 x 6 tokens."""
    monkeypatch.setitem(SIZES, "tiny", Size(2, 2, 8, 2, 6))
    monkeypatch.setattr(language_model, "POSITIONS", 16)
    monkeypatch.setattr(language_model, "PROMPT", 4)
    monkeypatch.setattr(language_model, "NEW", 3)
    return lambda task, peer: Case("tiny", task, 2, peer)


def test_cases():
    found = language_model.cases(Settings())
    assert [str(case) for case in found[:5]] == [
        "small, train, B=12, transformers",
        "small, write, B=1, transformers",
        "small, write, B=1, keras-hub",
        "small, write, B=8, transformers",
        "small, write, B=8, keras-hub",
    ]
    assert len(found) == len(set(found)) == 10
    assert str(found[5]) == "large, train, B=4, transformers"


@pytest.mark.parametrize(
    ("only", "count"), [("", 10), ("^large", 5), ("train", 2), ("B=8, keras-hub", 2), ("B=3", 0)]
)
def test_only(only, count):
    assert len(language_model.cases(Settings(only=only))) == count


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_nanogpt(name):
    size = SIZES[name]
    assert size[:3] == {"small": (4, 4, 128), "large": (6, 6, 384)}[name]
    found = profile.parameter_count(lambda: models.TransformerLM(65, *size[:3]), (None, None))
    in_blocks = size.layers * 12 * size.width**2
    assert in_blocks < found < 1.1 * in_blocks


def test_every_weight_has_a_name_in_transformers(tiny):
    model = language_model.make_ours(tiny("train", "transformers"))
    ours, theirs = zip(*language_model.names(model), strict=True)
    assert sorted(ours) == sorted(weight.path.partition("/")[2] for weight in model.weights)
    assert len(set(theirs)) == len(theirs)
    assert "h.1.mlp.c_proj.bias" in theirs


def test_ours_trains_on_all_batches(tiny):
    model = language_model.make_ours(tiny("train", "transformers"))
    before = [np.array(weights) for weights in model.get_weights()]
    assert language_model.run_ours(model, tiny("train", "transformers"))() > 0
    assert int(model.optimizer.iterations) == language_model.BATCHES
    changed = [not np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True)]
    assert all(changed)


def written(monkeypatch, owner, write):
    """What `owner.generate` returned while `write` ran."""
    results, generate = [], owner.generate

    def kept(*args, **options):
        results.append(generate(*args, **options))

    monkeypatch.setattr(owner, "generate", kept)
    assert write() > 0
    (result,) = results
    return result


def test_ours_writes(tiny, monkeypatch):
    case = tiny("write", "keras-hub")
    write = language_model.run_ours(language_model.make_ours(case), case)
    assert np.shape(written(monkeypatch, generation, write)) == (2, 3)


def test_keras_hub_writes_behind_the_prompts(tiny, monkeypatch):
    case = tiny("write", "keras-hub")
    pytest.importorskip("keras_hub")
    model = language_model.make_keras_hub(case)
    result = written(monkeypatch, model, language_model.run_keras_hub(model, case))
    found = keras.ops.convert_to_numpy(result["token_ids"])
    assert found.shape == (2, 7)
    np.testing.assert_array_equal(found[:, :4], language_model.tokens(2, 4))
    assert np.all(keras.ops.convert_to_numpy(result["padding_mask"]))


def test_a_record(tiny, monkeypatch):
    """Ratios are kattn's time over the peer's; each side ran once before it was timed."""
    calls = []

    def side(name, milliseconds):
        return lambda model, case: lambda: calls.append(name) or milliseconds

    monkeypatch.setattr(language_model, "run_ours", side("kattn", 6.0))
    monkeypatch.setitem(
        language_model.RUNS, "keras-hub", (lambda case: None, side("keras-hub", 2.0))
    )
    case = tiny("write", "keras-hub")
    record = language_model.measure(case, Settings(turns=3), "any")
    assert record["case"] == "tiny, write, B=2, keras-hub"
    assert (record["kattn_ms"], record["peer_ms"], record["ratio"]) == (6.0, 2.0, 3.0)
    assert calls == ["kattn", "keras-hub"] * 4
