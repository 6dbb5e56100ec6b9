"""Which cases the benchmark of recurrent layers has, and that each side can be made."""

import keras
import pytest

from recipes.benchmarks import recurrent
from recipes.benchmarks.recurrent import Case, Settings


def test_cases():
    found = recurrent.cases(Settings(), "jax", (128, 1024))
    assert [str(case) for case in found[:2]] == [
        "MinGRU, T=128, B=8, C=256, forward + backward",
        "MinGRU, T=1024, B=8, C=256, forward + backward",
    ]
    assert len(found) == 2 * 7
    on_torch = recurrent.cases(Settings(), "torch", (128, 1024))
    assert [case for case in on_torch if case not in found] == [
        Case("LSTM", 128),
        Case("LSTM", 1024),
    ]


def test_only():
    found = recurrent.cases(Settings(only="^MinGRU|window, T=128"), "tensorflow", (128, 1024))
    wanted = [Case("MinGRU", 128), Case("MinGRU", 1024), Case("AttentionRNN window", 128)]
    assert found == wanted


@pytest.mark.parametrize("name", sorted({*recurrent.PEERS, *recurrent.PEERS.values()}))
def test_every_side_has_the_same_output_shape(name):
    if name == "torch.nn.LSTM":
        pytest.skip("a layer of PyTorch, which is not installed beside every backend")
    shape = recurrent.make_layer(name).compute_output_shape((8, 4, recurrent.WIDTH))
    assert tuple(shape) == (8, 4, recurrent.WIDTH)
    assert isinstance(recurrent.make_layer(name), keras.layers.Layer)
