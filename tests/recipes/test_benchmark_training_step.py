"""Which cases the benchmark of training steps has, and that its models are what it says."""

import time
import types

import numpy as np
import pytest

from kattn.ops import recomputation
from recipes.benchmarks import training_step
from recipes.benchmarks.training_step import LAYERS, Case, Settings
from tests.compute import run


def test_cases():
    found = training_step.cases(Settings())
    assert len(found) == len(set(found)) == 4 * len(LAYERS)
    assert [str(case) for case in found[:4]] == [
        "SelfAttention, T=64, B=8, C=128, N=4, fit",
        "SelfAttention, T=64, B=8, C=128, N=4, train_on_batch",
        "SelfAttention, T=256, B=8, C=128, N=4, fit",
        "SelfAttention, T=256, B=8, C=128, N=4, train_on_batch",
    ]
    assert {case.peer for case in found} == {"keras"}


def test_cases_of_rematerialisation():
    found = training_step.cases(Settings(remat=True))
    assert [case.layer for case in found] == [*LAYERS, "TransformerDecoderBlock"]
    assert {(case.steps, case.batch, case.peer) for case in found} == {(4096, 1, "no RematScope")}


@pytest.mark.parametrize(
    ("only", "count"), [("", 32), ("^SelfAttention, T=64", 2), ("fit$", 16), ("T=12", 0)]
)
def test_only(only, count):
    assert len(training_step.cases(Settings(only=only))) == count


def test_steps_that_are_no_map():
    with pytest.raises(ValueError, match=r"must be squares, for the maps: steps=65"):
        training_step.cases(Settings(steps=(64, 65)))


@pytest.mark.parametrize("layer", ["MultiHeadAttention", "CrossAttention"])
def test_both_sides_are_the_same_model(layer):
    """Of the drop-in by the same weights, of another layer by their number."""
    case = Case(layer, 4, 1, "fit")
    sides = training_step.sides(case)
    ours = training_step.build(sides["kattn"], case)
    theirs = training_step.build(sides["peer"], case)
    assert ours.count_params() == theirs.count_params()
    if layer == "MultiHeadAttention":
        ours.set_weights(theirs.get_weights())
        x = np.random.default_rng(0).normal(size=(2, *case.sizes)).astype("float32")
        np.testing.assert_allclose(run(ours, x), run(theirs, x), atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_models_of_all_layers(layer):
    """One step of each trains on the shape that the peer's has, too."""
    case = Case(layer, 4, 1, "fit")
    ours, theirs = (training_step.build(make, case) for make in training_step.sides(case).values())
    x = np.zeros((1, *case.sizes), "float32")
    assert ours(x).shape == theirs(x).shape == x.shape
    assert len(ours.layers) == len(theirs.layers) == 1 + 3 * training_step.BLOCKS


@pytest.mark.parametrize("layer", ["SelfAttention", training_step.BLOCK])
def test_rematerialised_side(monkeypatch, layer):
    """Each of its layers runs again for the gradient, and computes the same."""
    calls = []
    recomputed = recomputation.recomputed
    monkeypatch.setattr(recomputation, "recomputed", lambda f: calls.append(f) or recomputed(f))
    case = Case(layer, 4, 1, "train_on_batch", "no RematScope")
    plain, again = (
        training_step.build(training_step.sides(case)[side], case) for side in ("peer", "kattn")
    )
    x = np.random.default_rng(0).normal(size=(1, *case.sizes)).astype("float32")
    expected = run(plain, x)
    assert not calls
    again.set_weights(plain.get_weights())
    np.testing.assert_allclose(run(again, x), expected, atol=1e-5)
    assert len(calls) >= training_step.BLOCKS


def test_record():
    """Of a measurement of a side that takes twice as long as the other."""
    case = Case("MultiHeadAttention", 4, 2, "train_on_batch")
    models = {"kattn": Trained(2e-3), "peer": Trained(1e-3)}
    record = training_step.measure(case, models, Settings(turns=3, batches=2), "any")
    assert record["case"] == str(case)
    assert record["kattn_ms"] >= 2.0
    assert record["peer_ms"] >= 1.0
    low, high = record["ratio_quartiles"]
    assert low <= record["ratio"] <= high
    assert record["kattn_mib"] is record["peer_mib"] is None
    for model in models.values():
        assert model.shapes == [(2, 4, training_step.WIDTH)] * 2 * 4  # once more before the turns


class Trained:
    """What the benchmark asks of a model."""

    def __init__(self, seconds):
        self.seconds, self.shapes = seconds, []

    def train_on_batch(self, x, y):
        assert x.shape == y.shape
        self.shapes.append(x.shape)
        time.sleep(self.seconds)


def test_fit_has_all_batches_in_an_epoch():
    """And no callbacks, nor output, nor shuffling."""
    given = {}
    model = types.SimpleNamespace(fit=lambda x, y, **options: given.update(options, shape=x.shape))
    training_step.trainer(model, Case("SelfAttention", 4, 2, "fit"), 3)()
    assert given == {
        "shape": (6, 4, training_step.WIDTH), "batch_size": 2, "verbose": 0, "shuffle": False
    }  # fmt: skip
