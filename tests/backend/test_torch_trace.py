"""What PyTorch traces, and what it must leave as it is."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn import backend
from kattn.generation import GreedySampler, RandomSampler, generate
from kattn.layers import RotaryEmbedding
from tests.compute import run
from tests.generation_models import Decoder, Recurrent, ready, uncached

if keras.backend.backend() != "torch":
    pytest.skip("JAX and TensorFlow compile whole loops", allow_module_level=True)

import torch

from kattn.backend import torch_trace

PROMPTS = [[3, 1, 4], [1], [5, 9]]


def tensor(*numbers):
    return ops.convert_to_tensor(np.array(numbers, "float32"))


def steps_of(function, variables=(), state=(), count=3):
    """The outputs of `y, state = function(x, state)` for x = 0, 1, ..., and how often it ran."""
    calls = []

    def counted(x, state):
        calls.append(1)
        return function(x, state)

    maker, outputs = backend.step_maker(counted, list(variables)), []
    for i in range(count):
        with torch.no_grad():
            y, state = maker()(tensor(i, i + 1), state)
        outputs.append(run(lambda y=y: y).tolist())
    return outputs, len(calls)


def test_numbers_of_inputs_and_variables_are_not_frozen():
    """Nor those of tensors that are no variables, also where they are replaced in place."""
    scale, shift = keras.Variable([2.0, 3.0]), torch.nn.Parameter(tensor(0, 0))

    def function(x, total):
        scale_of_now = scale * ops.ones_like(x)
        return scale_of_now * x + shift + total, total + 1

    step = backend.step_maker(function, [scale])
    with torch.no_grad():
        assert [x.tolist() for x in step()(tensor(1, 1), tensor(0, 0))] == [[2, 3], [1, 1]]
        scale.assign([5.0, 7.0])
        shift += 1
        assert [x.tolist() for x in step()(tensor(1, 2), tensor(1, 2))] == [[7, 17], [2, 3]]
        scale._value = torch.nn.Parameter(tensor(0, 0))
        assert step()(tensor(1, 2), tensor(1, 2))[0].tolist() == [2, 3]


def test_a_trace_for_each_form_shape_and_dtype():
    calls = []

    def function(tree):
        calls.append(1)
        return keras.tree.map_structure(lambda x: None if x is None else x + 1, tree)

    step, x = backend.step_maker(function, [])(), tensor(1, 2)
    for tree in ((x, x), [x, x], (x, (x, None)), (x, x[:1]), (x, x.double())):
        for _ in range(2):
            found = step(tree)
            assert type(found) is type(tree)
        assert found[0].tolist() == [2, 3]
    assert len(calls) == 5


def test_graphs_are_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(torch_trace, "MOST", 2)
    traced = torch_trace.Traced(lambda x: x + 1, [])
    for steps in (1, 2, 3, 1):
        assert traced.at_present()(tensor(*range(steps))).tolist() == [*range(1, steps + 1)]
    assert len(traced._graphs) == 2


def test_leaves_that_are_one_at_first():
    found, calls = steps_of(lambda x, s: (s[0] - s[1], (s[0] + x, s[1])), state=(tensor(0, 0),) * 2)
    assert found == [[0, 0], [0, 1], [1, 3]]
    assert calls == 1


def test_what_is_written_in_is_new_in_each_step():
    def function(x, _):
        zeros = torch.zeros(2, 3, device=x.device)
        zeros[:, 1] += x
        return zeros.sum(1), torch.zeros(2, device=x.device)

    found, calls = steps_of(function, state=tensor(0, 0))
    assert (found, calls) == ([[0, 1], [1, 2], [2, 3]], 1)


def test_a_constant_that_is_given_away_is_new_in_each_step():
    def function(x, state):
        state += x
        return state + 0, torch.zeros(2, device=x.device)

    assert steps_of(function, state=tensor(0, 0)) == ([[0, 1], [1, 2], [2, 3]], 1)


def by_item(x, state):
    return x * (1 if float(x[0]) < 1 else 10), state


def by_numpy(x, state):
    return x * int(ops.convert_to_numpy(x)[0]), state


def by_python_number(x, state):
    return x + state["step"], {"step": state["step"] + 1}


UNTRACEABLE = {
    "item": (by_item, (), [[0, 1], [10, 20], [20, 30]]),
    "numpy": (by_numpy, (), [[0, 0], [1, 2], [4, 6]]),
    "number": (by_python_number, {"step": 5}, [[5, 6], [7, 8], [9, 10]]),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_is_called_where_it_cannot_be_traced(name):
    function, state, expected = UNTRACEABLE[name]
    found, calls = steps_of(function, state=state)
    assert found == expected
    assert calls >= 3


def test_is_called_where_it_changes_a_variable():
    count = keras.Variable(0.0)

    def function(x, state):
        count.assign_add(1.0)
        return x + count, state

    assert steps_of(function, [count])[0] == [[1, 2], [3, 4], [5, 6]]
    count.assign(0.0)
    assert steps_of(function)[0] == [[1, 2], [3, 4], [5, 6]], "it is not among the variables"


def test_errors_are_those_of_the_function():
    def function(x, state):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        steps_of(function)


@pytest.mark.parametrize("sampler", [GreedySampler, RandomSampler])
def test_a_rule_with_a_state_of_its_own_sees_every_step(sampler):
    """Samplers are not traced."""
    model, lengths = ready(Decoder(RotaryEmbedding())), []

    def rule(logits, history):
        lengths.append(history.length.tolist())
        return logits + 1e4 * (ops.arange(11) == 7) if len(lengths) == 3 else logits

    found = generate(model, PROMPTS, 5, sampler=sampler([rule]), seed=1)
    assert lengths == [[3 + i, 1 + i, 2 + i] for i in range(5)]
    assert (found[:, 2] == 7).all()
    lengths.clear()
    np.testing.assert_array_equal(found, uncached(model, PROMPTS, 5, sampler([rule]), seed=1))


def test_a_model_that_cannot_be_traced():
    class Branching(Recurrent):
        def _outputs(self, tokens, h, mask=None):
            y, state = super()._outputs(tokens, h, mask)
            return (y if float(h.abs().sum()) < 4 else -y), state

    model = ready(Branching())
    wanted = generate(model, PROMPTS, 5, seed=1)
    assert model.traces.count(1) > 3
    assert (wanted != generate(ready(Recurrent()), PROMPTS, 5, seed=1)).any()
