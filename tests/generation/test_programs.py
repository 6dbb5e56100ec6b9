import dataclasses

import keras
import numpy as np
import pytest

from kattn.generation import GreedySampler, RandomSampler, generate, programs
from tests.generation_models import Recurrent, functional, ready, uncached


@dataclasses.dataclass(frozen=True)
class Plan:
    number: int

    def run(self, decoder, x):
        return decoder.factor * x + self.number


class Model:
    factor = 2

    def init_cache(self):
        pass

    def decode(self):
        pass


def test_found_again_and_not_without_end():
    model, x = Model(), keras.ops.ones(())
    mine = programs.programs_of(model)
    assert programs.programs_of(model) is mine
    assert [float(mine.run([], Plan(i), "run", x)) for i in (1, 2, 1)] == [3, 4, 3]
    assert len(mine._compiled) == 2
    for i in range(programs.MOST):
        mine.run([], Plan(10 + i), "run", x)
    assert len(mine._compiled) == programs.MOST


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch compiles nothing")
def test_one_compilation_per_shape_and_sampler():
    model, prompt = ready(Recurrent()), np.array([[3, 1], [4, 1]])
    generate(model, prompt, 3)
    first = model.traces
    assert first == 2  # of the prompt, and of the loop
    for tokens in (prompt, prompt[::-1]):
        generate(model, tokens, 3, seed=5)
    assert model.traces == first
    generate(model, np.array([[3, 1, 4]]), 3)
    assert model.traces == 2 * first
    generate(model, prompt, 3, sampler=RandomSampler())
    assert model.traces == 3 * first
    generate(model, prompt, 3, sampler=GreedySampler())
    assert model.traces == 3 * first


def test_other_variables_are_seen():
    """LoRA brings new ones, and int8 new kernels."""
    model = functional(keras.layers.Dense(8, name="dense"))
    first = generate(model, [[3, 1]], 3)
    layer = model.get_layer("dense")
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.random.default_rng(0).normal(0, 9, layer.lora_kernel_b.shape))
    found = generate(model, [[3, 1]], 3)
    assert (found != first).any()
    np.testing.assert_array_equal(found, uncached(model, [[3, 1]], 3, GreedySampler()))
