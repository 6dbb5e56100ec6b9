import dataclasses

import keras
import numpy as np

from kattn.generation import GreedySampler, RandomSampler, generate, programs
from tests.generation_models import Recurrent, functional, ready, uncached


@dataclasses.dataclass(frozen=True)
class Plan:
    number: int

    def run(self, decoder, x):
        return decoder.decode(x) + self.number


class Model:
    variables = ()

    def init_cache(self):
        pass

    def decode(self, x):
        return 2 * x


def test_found_again_and_not_without_end():
    model, x = Model(), keras.ops.ones(())
    mine = programs.programs_of(model)
    assert programs.programs_of(model) is mine
    assert [float(mine.run(model, i == 2, Plan(i), "run", x)) for i in (1, 2, 1)] == [3, 4, 3]
    assert len(mine._compiled) == 2
    for i in range(programs.MOST):
        mine.run(model, False, Plan(10 + i), "run", x)
    assert len(mine._compiled) == programs.MOST


def test_one_compilation_per_shape_and_sampler():
    """PyTorch compiles the step of the model alone, whatever the sampler."""
    model, prompt = ready(Recurrent()), np.array([[3, 1], [4, 1]])
    all_compiled = keras.backend.backend() != "torch"

    def traces():
        """How often a prompt was compiled, and how often a step."""
        steps = model.traces.count(1)
        return (len(model.traces) - steps, steps) if all_compiled else (1, steps)

    generate(model, prompt, 3)
    assert traces() == (1, 1)
    for tokens in (prompt, prompt[::-1]):
        generate(model, tokens, 3, seed=5)
    assert traces() == (1, 1)
    generate(model, np.array([[3, 1, 4]]), 3)
    assert traces() == ((2, 2) if all_compiled else (1, 2))
    generate(model, prompt, 3, sampler=RandomSampler())
    assert traces() == ((3, 3) if all_compiled else (1, 2))
    generate(model, prompt, 3, sampler=GreedySampler())
    assert traces() == ((3, 3) if all_compiled else (1, 2))


def test_other_variables_are_seen():
    """LoRA brings new ones, and int8 new kernels."""
    model = functional(keras.layers.Dense(8, name="inner"))
    first = generate(model, [[3, 1]], 3)
    layer = model.get_layer("inner")
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.random.default_rng(0).normal(0, 9, layer.lora_kernel_b.shape))
    found = generate(model, [[3, 1]], 3)
    assert (found != first).any()
    np.testing.assert_array_equal(found, uncached(model, [[3, 1]], 3, GreedySampler()))
