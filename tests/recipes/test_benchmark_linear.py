import pytest

from recipes.benchmarks import linear


@pytest.mark.parametrize(
    ("ratios", "wanted"),
    [
        ({256: 2.0, 512: 1.1, 1024: 0.9, 2048: 0.3}, 1024),
        ({2048: 0.3, 1024: 0.9, 512: 1.1, 256: 2.0}, 1024),  # in any order
        ({256: 0.9, 512: 1.0, 1024: 0.8}, 1024),  # an early win that does not last
        ({256: 0.9, 512: 0.8}, 256),
        ({256: 0.9, 512: 1.2}, None),
        ({256: float("nan")}, None),
        ({}, None),
    ],
)
def test_crossing(ratios, wanted):
    assert linear.crossing(ratios) == wanted


def test_crossings_keep_directions_and_forms_apart():
    short, long = linear.Case(256, "forward"), linear.Case(512, "forward")
    back = linear.Case(512, "forward + backward")
    measured = [(short, "elu", 2.0), (long, "elu", 0.5), (long, "gated", 1.5), (back, "elu", 0.9)]
    assert linear.crossings(measured) == [
        ("forward", "elu", 512),
        ("forward", "gated", None),
        ("forward + backward", "elu", 512),
    ]


def test_only_picks_cases():
    settings = linear.Settings(only=r"T=512,.*backward", steps=(256, 512))
    assert linear.cases(settings) == [linear.Case(512, "forward + backward")]
