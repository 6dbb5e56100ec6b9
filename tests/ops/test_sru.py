import numpy as np
import pytest
from keras import ops

from kattn.ops import simple_recurrence
from tests.compute import assert_close, compiled, differentiate, quick, run, second_derivatives
from tests.recurrent_oracle import KEEP, STARTS, sigmoid

MASKS = {"mask": KEEP, "starts": STARTS}


def inputs(rng, steps=5):
    shapes = (3, steps, 4), (3, steps, 4), (4,), (3, 4)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def expected(u, gate, peephole, state, keep, starts):
    """Lei et al. 2018, eq. 1 and 2: the states, and those that each step has seen."""
    states, before = np.zeros(u.shape), np.zeros(u.shape)
    for i in range(len(u)):
        c = np.array(state[i], np.float64)
        for t in range(u.shape[1]):
            if keep[i, t]:
                seen = np.zeros(u.shape[2]) if starts[i, t] else c
                forget = sigmoid(gate[i, t] + peephole * seen)
                before[i, t], c = seen, forget * seen + (1 - forget) * u[i, t]
            else:
                before[i, t] = c
            states[i, t] = c
    return states, before


def function(*arrays):
    masks = {name: ops.convert_to_tensor(mask) for name, mask in MASKS.items()}
    return simple_recurrence(*arrays, **masks)


def test_matches_the_equation(rng):
    arrays = inputs(rng)
    for have, want in zip(
        run(quick(function), *arrays), expected(*arrays, KEEP, STARTS), strict=True
    ):
        assert_close(have, want)
    found, _ = run(quick(simple_recurrence), *arrays)
    assert_close(found, expected(*arrays, np.ones_like(KEEP), np.zeros_like(STARTS))[0])
    found, _ = run(quick(function), *arrays)
    assert (found[2] == arrays[3][2]).all()  # bit for bit: it is all padding


def test_gradients(rng):
    """By differences of the equation in float64."""
    arrays, upstream = inputs(rng), rng.normal(size=(3, 5, 4))
    _, found = differentiate(quick(lambda *x: function(*x)[0]), arrays, upstream)
    for place, array in enumerate(arrays):
        slopes = np.zeros(array.shape)
        for j in np.ndindex(array.shape):
            ends = []
            for move in (1e-5, -1e-5):
                moved = [np.array(a, np.float64) for a in arrays]
                moved[place][j] += move
                ends.append((expected(*moved, KEEP, STARTS)[0] * upstream).sum())
            slopes[j] = (ends[0] - ends[1]) / 2e-5
        assert_close(found[place], slopes, 1e-4)


def test_second_derivatives(rng):
    """By differences of the first ones."""
    arrays, upstream, directions = inputs(rng), rng.normal(size=(3, 5, 4)), inputs(rng)

    def states(*x):
        return function(*x)[0]

    found = second_derivatives(states, arrays, upstream, directions)
    ends = []
    for move in (1e-2, -1e-2):
        moved = [a + move * d for a, d in zip(arrays, directions, strict=True)]
        ends.append(differentiate(quick(states), moved, upstream)[1])
    for have, more, less in zip(found, *ends, strict=True):
        assert_close(have, (more - less) / 2e-2, 1e-2)


def test_compiled(rng):
    arrays = [ops.convert_to_tensor(x) for x in inputs(rng)]
    for have, want in zip(run(compiled(function), *arrays), run(function, *arrays), strict=True):
        assert_close(have, want)


def test_what_stands_at_padding_is_without_effect(rng):
    arrays = inputs(rng)
    wanted, _ = run(quick(function), *arrays)
    arrays[0][~KEEP] = arrays[1][~KEEP] = np.nan
    assert_close(run(quick(function), *arrays)[0], wanted)


@pytest.mark.parametrize("name", ["mask", "starts"])
def test_bad_masks(rng, name):
    arrays = [ops.convert_to_tensor(x) for x in inputs(rng)]
    with pytest.raises(ValueError, match=rf"`{name}` must have shape \(B, T\)=\(3, 5\).*\(3, 4\)"):
        simple_recurrence(*arrays, **{name: ops.convert_to_tensor(KEEP[:, :4])})
    with pytest.raises(ValueError, match=rf"`{name}` must be boolean"):
        simple_recurrence(*arrays, **{name: ops.ones((3, 5))})


def test_no_steps(rng):
    states, before = run(simple_recurrence, *inputs(rng, 0))
    assert states.shape == before.shape == (3, 0, 4)


BAD = {
    "u": (lambda u, z, v, c: (u[0], z, v, c), r"`u` must have rank 3, \(B, T, C\).*\(5, 4\)"),
    "gate": (lambda u, z, v, c: (u, z[:, :2], v, c), r"`gate` must have shape \(B, T, C\).*2, 4"),
    "peephole": (lambda u, z, v, c: (u, z, v[:3], c), r"`peephole` must have shape \(C,\).*\(3,\)"),
    "state": (lambda u, z, v, c: (u, z, v, c[:2]), r"`state` must have shape \(B, C\).*\(2, 4\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(rng, name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        simple_recurrence(*map(ops.convert_to_tensor, make(*inputs(rng))))
