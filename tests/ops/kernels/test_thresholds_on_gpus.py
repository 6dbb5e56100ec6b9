"""Which algorithm "auto" takes on a GPU, by sizes; told here as if there were one."""

import importlib
import types

import keras
import pytest

from kattn import backend

NAME = keras.backend.backend()


@pytest.fixture
def gpu(monkeypatch):
    """The backend's module, which takes every tensor for one on a GPU."""
    module = importlib.import_module(f"kattn.backend.{NAME}")
    seen = {"torch": "is_on_gpu", "jax": "_has_gpu"}[NAME]
    monkeypatch.setattr(module, seen, lambda *_: True)


def call(steps, *, is_half=False):
    return types.SimpleNamespace(queries=steps, keys=steps, query=None, is_half=is_half)


@pytest.mark.skipif(NAME != "torch", reason="others have no kernel with masks that pays")
def test_masks_of_the_fused_kernel(gpu):
    assert backend.fused_masks_pay(call(2**13))
    assert not backend.fused_masks_pay(call(2**13 + 1))
    assert backend.fused_masks_pay(call(2**14, is_half=True))
    assert not backend.fused_masks_pay(call(2**14 + 1, is_half=True))
    assert not backend.fused_masks_pay(call(None))


@pytest.mark.skipif(NAME != "jax", reason="others do not ask whether there is a GPU")
def test_all_scores_at_once(gpu):
    assert backend.dense_pays(2**26, share=0.5)
    assert not backend.dense_pays(2**26 + 1, share=0.5)
    assert not backend.dense_pays(2**20, share=0.49)
