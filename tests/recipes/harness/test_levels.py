"""Tables of accuracies by level, and of norms by distance."""

import numpy as np

from recipes.harness import levels

RESULTS = {
    "a": [{"test": {"loss": 1.0, "accuracy_2": 0.5, "accuracy_16": 0.25}}],
    "b": [
        {"test": {"loss": 1.0, "accuracy_2": 0.75, "accuracy_16": 1.0}},
        {"test": {"loss": 1.0, "accuracy_2": 0.25, "accuracy_16": 1.0}},
    ],
}


def test_table():
    found = levels.percentages(RESULTS)
    assert found == {"a": {2: [50.0], 16: [25.0]}, "b": {2: [75.0, 25.0], 16: [100.0, 100.0]}}
    text = levels.table("pairs", {"a": "A", "b": "B"}, found, {"guess": {2: 50.0, 16: 6.25}})
    assert text.splitlines() == [
        "| Pairs | guess | A | B |",
        "| --- | ---: | ---: | ---: |",
        "| 2 | 50.00 | 50.00 | 50.00 ± 35.36 |",
        "| 16 | 6.25 | 25.00 | 100.00 ± 0.00 |",
    ]


def test_distances():
    text = levels.distances_table({"x": np.arange(9) / 10, "y": np.arange(12.0)})
    assert text.splitlines() == [
        "| Distance | 1 | 2 | 4 | 8 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| x | 1.0e-01 | 2.0e-01 | 4.0e-01 | 8.0e-01 |",
        "| y | 1.0e+00 | 2.0e+00 | 4.0e+00 | 8.0e+00 |",
    ]
    assert "| Distance | 0 |" in levels.distances_table({"x": np.ones(1)})
