"""The recurrence of the simple recurrent unit (Lei et al., 2018), whose gate sees the state.

c_t = f_t c_{t-1} + (1 - f_t) u_t with f_t = sigmoid(z_t + v c_{t-1}). The gate depends on the
state, so that the steps come one after the other. Once all states are known, the gates follow at
once, and the gradient is a linear recurrence backwards: with J_t = f_t + (c_{t-1} - u_t) f_t
(1 - f_t) v, by which c_t changes with c_{t-1}, it is G_t = g_t + J_{t+1} G_{t+1}.
"""

from keras import ops

from kattn import backend
from kattn.arguments import error
from kattn.ops.recurrence import linear_recurrence, read_steps
from kattn.ops.sizes import has_shape, is_symbol, known_shape


def simple_recurrence(u, gate, peephole, state, *, mask=None, starts=None):
    """c_t = f_t c_{t-1} + (1 - f_t) u_t, f_t = sigmoid(z_t + v c_{t-1}), computed in float32.

    Shapes: B batch, T steps, C channels.

    Args:
        u: Candidates u, float, shape `(B, T, C)`.
        gate: The input's share of the forget gate before the sigmoid, z, float, shape `(B, T, C)`.
        peephole: Weights v of the state in its forget gate, float, shape `(C,)`.
        state: State c before the first step, float, shape `(B, C)`.
        mask: Bool, shape `(B, T)`; True = real step, False = padding, which leaves the state as it
            is. None if all steps are real.
        starts: Bool, shape `(B, T)`; True at the first real step of a segment, which does not see
            the state before it; at padding it has no effect. None if there is one segment.

    Returns:
        `(states, before)`: the states c after each step and those that each step has seen, both
        float32 `(B, T, C)`. At padding they are the state of the last real step.

    Raises:
        ValueError: If shapes do not fit, if a mask is not boolean, or if PyTorch exports it for any
            number of steps.

    Example:
        >>> x, v = keras.ops.ones((1, 3, 2)), keras.ops.zeros((2,))
        >>> states, _ = simple_recurrence(x, 0 * x, v, keras.ops.zeros((1, 2)))
        >>> states[0, :, 0]
        [0.5, 0.75, 0.875]

    Reference:
        Lei et al. 2018, eq. 1 and 2, https://arxiv.org/abs/1709.02755
    """
    _check_shapes(u, gate, peephole, state)
    if is_symbol(ops.shape(u)[1]) and backend.unrolls_loops(u):
        rule = (
            "PyTorch cannot export a gate that sees the state for any number of steps; export it "
            "for a fixed number, or use SRU(..., peephole=False)"
        )
        raise error(rule, steps=ops.shape(u)[1])
    u, gate, peephole, state = (ops.cast(x, "float32") for x in (u, gate, peephole, state))
    keep = ops.ones_like(u[..., :1])
    if starts is not None:
        keep = ops.where(read_steps(starts, "starts", u), 0.0, keep)
    if mask is not None:  # last: an open gate keeps the state, bit for bit
        is_real = read_steps(mask, "mask", u)
        keep = ops.where(is_real, keep, 1.0)
        gate, u = ops.where(is_real, gate, float("inf")), ops.where(is_real, u, 0.0)
    states = _states(None, u, gate, peephole, keep, state)
    before = ops.concatenate([state[:, None], states], axis=1)[:, :-1]
    return states, before * keep


@backend.compiled
def _states(plan, u, gate, peephole, keep, first):
    """All states `(B, T, C)`, with their gradient."""

    def forward(u, gate, peephole, keep, first):
        keep = keep + ops.zeros_like(u)
        steps = [ops.moveaxis(x, 1, 0) for x in (u, gate, keep)]
        if u.shape[1] == 0:
            return ops.copy(u), ()  # PyTorch wants no input for an output

        def step(state, each):
            state = each[2] * state
            forget = ops.sigmoid(each[1] + peephole * state)
            state = forget * state + (1.0 - forget) * each[0]
            return state, state

        states = backend.scan(step, first, ops.stack(steps, axis=1))[1]
        return ops.moveaxis(states, 0, 1), ()

    def backward(inputs, residuals, gradient):
        u, gate, peephole, keep, first = inputs
        (states,) = residuals
        before = keep * ops.concatenate([first[:, None], states], axis=1)[:, :-1]
        forget = ops.sigmoid(gate + peephole * before)
        of_gate = (before - u) * forget * (1.0 - forget)
        slope = keep * (forget + of_gate * peephole)  # of c_t with c_{t-1}
        later = ops.concatenate([slope[:, 1:], ops.ones_like(slope[:, :1])], axis=1)
        total = linear_recurrence(ops.flip(later, axis=1), ops.flip(gradient, axis=1))
        total = ops.flip(total, axis=1)
        of_gate = total * of_gate
        of_peephole = ops.sum(of_gate * before, axis=(0, 1))
        of_first = ops.sum((slope * total)[:, :1], axis=1)  # 0 without steps
        no_gradient = ops.zeros_like(keep)
        return total * (1.0 - forget), of_gate, of_peephole, no_gradient, of_first

    return backend.custom_gradient(forward, backward)(u, gate, peephole, keep, first)


def _check_shapes(u, gate, peephole, state):
    if len(u.shape) != 3:
        raise error("`u` must have rank 3, (B, T, C)", u=u)
    batch, _, channels = shape = known_shape(u)
    wanted = {
        "gate": (gate, shape, "(B, T, C)"),
        "peephole": (peephole, (channels,), "(C,)"),
        "state": (state, (batch, channels), "(B, C)"),
    }
    for name, (value, need, words) in wanted.items():
        if not has_shape(value, need):
            raise error(f"`{name}` must have shape {words}, with the sizes of `u`", **{name: value})
