"""When TensorFlow compiles a generation with XLA, and what it does where XLA cannot."""

import dataclasses

import keras
import numpy as np
import pytest

from kattn.generation import RandomSampler, generate
from kattn.generation.generate import LONG
from tests.generation_models import Recurrent, ready

if keras.backend.backend() != "tensorflow":
    pytest.skip("JAX always compiles with XLA, and PyTorch never", allow_module_level=True)

import tensorflow as tf

PROMPTS = [[3, 1, 4], [1], [5, 9]]


@pytest.fixture(scope="module")
def model():
    return ready(Recurrent())


@pytest.mark.parametrize("count", [2, LONG - 1, LONG])
def test_many_tokens_are_worth_it(count, monkeypatch):
    asked, function = [], tf.function

    def recorded(*args, **options):
        asked.append(options.get("jit_compile", False))
        return function(*args, **options)

    model = ready(Recurrent())
    monkeypatch.setattr(tf, "function", recorded)
    generate(model, PROMPTS, count)
    assert any(asked) == (count == LONG)


@dataclasses.dataclass(frozen=True)
class PythonRule:
    """Forbids token 5, by a function that no compiler can have."""

    def __call__(self, logits, history):
        def without(x):
            x = np.array(x)
            x[:, 5] = -np.inf
            return x

        return tf.ensure_shape(tf.numpy_function(without, [logits], "float32"), logits.shape)


def test_what_xla_cannot_compile(model):
    found = generate(model, PROMPTS, LONG, sampler=RandomSampler([PythonRule()]), seed=3)
    assert (found != 5).all()
    assert (generate(model, PROMPTS, LONG, sampler=RandomSampler(), seed=3) == 5).any()
