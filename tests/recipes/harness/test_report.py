"""Tables and other parts of reports."""

from kattn.profile import LayerCost
from recipes import harness
from recipes.harness import report


def test_table():
    expected = "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert harness.table(["a", "b"], [["x", 1]]) == expected


def results():
    """Two kinds of model, two seeds."""
    return {
        kind: [
            {
                "test": {"accuracy": accuracy + seed / 10, "loss": 0.5},
                "epochs": [{"seconds": 1.0}, {"seconds": 2.0 + seed}],
                "learnt": {"gain": {"a": 0.25, "b": -0.5}} if kind == "b" else {},
            }
            for seed in (0, 1)
        ]
        for kind, accuracy in (("a", 0.5), ("b", 0.75))
    }


ACCURACY = harness.Score("accuracy", "test accuracy", is_percentage=True, digits=1)


def test_by_seed():
    text = report.by_seed_table({"a": "A", "b": "B"}, ACCURACY, results())
    assert text.splitlines() == [
        "| Seed | A | B | Difference | gain |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 0 | 50.0 | 75.0 | +25.0 | +0.250, -0.500 |",
        "| 1 | 60.0 | 85.0 | +25.0 | +0.250, -0.500 |",
    ]


def test_summary():
    cost = LayerCost("x", "Dense", (1,), 1500, 2_500_000, 0, 0)
    costs = {"a": [cost], "b": [cost, cost]}
    scores = (ACCURACY, harness.Score("loss", "test loss", digits=2))
    steps = {"a": 0.01, "b": 0.0205}
    known = {"guessing": {"accuracy": 0.125}}
    text = report.summary_table({"a": "A", "b": "B"}, scores, results(), costs, steps, known)
    assert text.splitlines()[0] == (
        "| Model | Test accuracy, % | Test loss | Parameters | MFLOPs | Step, ms | Fit, s |"
    )
    assert text.splitlines()[2:] == [
        "| guessing | 12.5 |  |  |  |  |  |",
        "| A | 55.0 ± 7.1 | 0.50 ± 0.00 | 1,500 | 2.50 | 10.0 | 3.5 |",
        "| B | 80.0 ± 7.1 | 0.50 ± 0.00 | 3,000 | 5.00 | 20.5 | 3.5 |",
    ]


def test_layers_and_bullets():
    costs = [LayerCost("x", "Dense", (4, 2), 6, 12, 0, 0), LayerCost("y", "ReLU", (2,), 0, 0, 0, 0)]
    assert report.layers_table(costs).splitlines()[2:] == ["| x | Dense | 4 x 2 | 6 | 12 |"]
    lines = report.bullets(["word " * 30, "short"]).splitlines()
    assert [line[:4] for line in lines] == ["- wo", "  wo", "- sh"]
    assert report.time_spent(results()) == "Training took 14 s in 4 fits, with compilation."
