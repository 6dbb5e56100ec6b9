import numpy as np
import pytest
from keras import ops

from kattn.ops.step_loop import Memory, loop_frames, loop_steps
from tests.compute import assert_close, differentiate, quick, run


def test_structures_and_gradients(rng):
    """States and outputs of several parts: h' = h x_t, n' = n + 1."""
    x = rng.uniform(0.5, 1.5, size=(2, 4, 3))

    def function(x):
        def step(state, now):
            h = state["h"] * now["x"]
            return {"h": h, "n": state["n"] + 1}, [h, ops.sum(h, axis=-1)]

        state = {"h": ops.ones((2, 3)), "n": ops.zeros((2,), "int32")}
        like = [ops.zeros((2, 3)), ops.zeros((2,))]
        state, (h, total) = loop_steps(step, state, {"x": x}, like)
        count = ops.cast(state["n"], "float32")[:, None, None]
        return h + total[..., None] + 0 * state["h"][:, None] + count

    upstream = rng.normal(size=x.shape)
    found, (gradient,) = differentiate(quick(function), [x], upstream)
    h = np.cumprod(x, axis=1)
    assert_close(found, h + h.sum(-1, keepdims=True) + 4)
    of_h = upstream + upstream.sum(-1, keepdims=True)
    wanted = np.zeros_like(x)
    for t in range(4):
        wanted[:, t] = (of_h[:, t:] * h[:, t:]).sum(1) / x[:, t]
    assert_close(gradient, wanted, 1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("steps", [1, 16, 33])
def test_frames(rng, steps, causal):
    """The sum of what each step sees, with the gradient for the memory; state counts real steps."""
    window, real = 3, np.ones((2, steps), bool)
    real[1, steps // 2 :] = False
    values = rng.normal(size=(2, 1, steps, 4))

    def function(values):
        def step(state, now, frame):
            seen = ops.cast(now["allowed"], "float32")[:, None, :, None]
            y = ops.sum(seen * frame.values, axis=2)[:, 0] + ops.sum(now["x"])
            return state + ops.cast(now["real"], "float32"), [y]

        inputs = {"x": ops.zeros((2, steps, 1)), "real": ops.convert_to_tensor(real)}
        memory = Memory(ops.zeros((2, 1, steps, 1)), values, ops.convert_to_tensor(real))
        like = [ops.zeros((2, 4))]
        options = {"window": window, "causal": causal}
        count, (y,) = loop_frames(step, ops.zeros((2,)), inputs, memory, like, **options)
        return y + 100 * count[:, None, None]

    gap = np.subtract.outer(np.arange(steps), np.arange(steps))
    near = (np.abs(gap) < window) & ((gap >= 0) | (not causal))
    sees = near[None] & real[:, None]
    upstream = rng.normal(size=(2, steps, 4))
    found, (gradient,) = differentiate(quick(function), [values], upstream)
    wanted = np.einsum("bts,bsd->btd", sees, values[:, 0]) + 100 * real.sum(1)[:, None, None]
    assert_close(found, wanted)
    assert_close(gradient[:, 0], np.einsum("bts,btd->bsd", sees, upstream))


def test_no_steps():
    """The state stays, and the outputs are as empty as the inputs."""
    inputs = {"x": np.zeros((2, 0, 3), "float32")}

    def step(state, now):
        return ops.where(now["real"][:, None], state + 1, state), [state]

    state, (y,) = run(loop_steps, step, ops.ones((2, 3)), inputs, [ops.zeros((2, 3))])
    assert y.shape == (2, 0, 3)
    np.testing.assert_array_equal(state, np.ones((2, 3)))
