"""JAX's side of `kattn.backend`."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.interpreters.ad import JVPTracer

from kattn.backend import generators
from kattn.backend.plain import are_operations_plain, plain_function, replaced


def compiled(function):
    """`function(plan, *tensors)` compiled once per `plan`, which must be hashable."""
    return jax.jit(function, static_argnums=0)


def program(function, variables, jit_compile):
    """`function(*tensors)`, compiled once per shapes, whatever the values of `variables`."""

    @jax.jit
    def run(values, tensors):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*tensors)

    return lambda *tensors: run([v.value for v in variables], tensors)


def step_maker(function, variables):
    """A function that gives `function` as it is: it is compiled with its loop."""
    return lambda: function


def matmul(a, b, *, transpose_a=False, transpose_b=False):
    """float32 a b over the last two axes."""
    if transpose_b and not transpose_a and a.shape[-2] == 1:
        # A row times a transposed matrix: XLA on CPU writes the transpose out, but not this way.
        return jnp.matmul(b, a.mT, preferred_element_type=jnp.float32).mT
    a = a.mT if transpose_a else a
    b = b.mT if transpose_b else b
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def by_row(function, x):
    """`function(x)`, which treats all entries of all axes but the last alike.

    They become one axis, as XLA's gradients of products over several axes of rows take longer: a
    training step of attention layers takes 1.15 times as long (two CPU cores, B=8, T=64, C=128).
    """
    y = function(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def softmax(x):
    """Over the last axis."""
    return jax.nn.softmax(x)


def highest(x, axis=-1):
    """The maximum over an axis, or several, which stay."""
    return jnp.max(x, axis=axis, keepdims=True)


def pad(x, ends, value=0):
    """X with `value` added, (before, after) each axis."""
    return jnp.pad(x, ends, constant_values=value)


def running_maximum(x):
    """The highest of each step and those before it, along axis 1."""
    return jax.lax.cummax(x, axis=1)


def loop(lower, upper, body, state):
    """State = body(i, state) for i in [lower, upper)."""
    return jax.lax.fori_loop(lower, upper, body, state)


def loop_over(lists, i, body, state):
    """State = body(j, state) for the integers j in lists[i]; i may be traced."""
    longest = max(map(len, lists))
    filled = jnp.array([[*row, *[0] * (longest - len(row))] for row in lists], "int32")
    counts = jnp.array([len(row) for row in lists], "int32")
    row = filled[i]
    if not are_operations_plain():
        return loop(0, counts[i], lambda n, state: body(row[n], state), state)

    def visit(n, state):
        new = body(row[n], state)
        return jax.tree.map(lambda x, y: jnp.where(n < counts[i], y, x), state, new)

    return loop(0, longest, visit, state)


def scan(step, state, inputs):
    """The last state, and each output, of `state, output = step(state, input)`."""
    return jax.lax.scan(step, state, inputs)


def unrolls_loops(x):
    """False: a loop is one operation, however many times it runs."""
    return False


def scan_trees(step, state, inputs, like):
    """`scan` whose states, inputs and outputs are structures of tensors; `like` is an output."""
    return jax.lax.scan(step, state, inputs)


def take(x, i):
    """x[i]."""
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def put_at(x, i, value):
    """X with x[i] = value."""
    return jax.lax.dynamic_update_index_in_dim(x, value, i, 0)


def add_at(x, i, update):
    """X with x[i] += update."""
    return put_at(x, i, take(x, i) + update)


def cut(x, start, size):
    """x[start : start + size]."""
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def add_span(x, start, update):
    """X with x[start : start + len(update)] += update."""
    sums = cut(x, start, update.shape[0]) + update
    return jax.lax.dynamic_update_slice_in_dim(x, sums, start, 0)


def gather(x, index, axis):
    """The entries of x at an index of any shape on an axis >= 0."""
    return jnp.take(x, index, axis=axis)


def put_step(x, slot, value):
    """X `(B, K, L, D)` with x[b, :, slot[b]] = value[b], `(K, D)`; nothing past the last slot."""
    # By item and head: where one slice is written, XLA makes of it a dynamic-update-slice with a
    # guard, fuses that into each use and copies all of x four times (B=1, CPU).
    batch, heads = (jnp.arange(n) for n in x.shape[:2])
    return x.at[batch[:, None], heads, slot[:, None]].set(value, mode="drop")


def overwrite(x, y):
    """Y."""
    return y


def constant(numbers, like):
    """Python numbers as float32."""
    return jnp.asarray(np.asarray(numbers, "float32"))


def concrete(x):
    """X as NumPy, or None where it is traced or lies on an accelerator."""
    if isinstance(x, jax.core.Tracer) or any(d.platform != "cpu" for d in x.devices()):
        return None
    return np.asarray(x)


def is_made_up(x):
    """False: shapes are inferred with unknown sizes."""
    return False


def is_exported_to_onnx():
    """Never known, nor does it matter: all operations are exported."""
    return False


def is_computed(size):
    """False: no size is an array."""
    return False


def custom_gradient(forward, backward):
    """A function of tensors with a gradient of its own.

    `forward(*inputs)` gives `(output, residuals)`, `backward(inputs, residuals, gradient)` a
    gradient for each input, None where there is none; the output is the first of its residuals.
    The second derivative is that of `forward`, run in `plain_operations`.
    """
    slopes = _slopes(forward, backward)

    @jax.custom_vjp
    def run(*inputs):
        output, residuals = forward(*inputs)
        return output, *residuals

    def run_forward(*inputs):
        outputs = run(*inputs)  # not `forward`, so that this can be differentiated in its turn
        return outputs, (inputs, outputs)

    def run_backward(saved, gradients):
        return slopes(*saved, gradients[0])

    run.defvjp(run_forward, run_backward)
    return lambda *inputs: run(*inputs)[0]


def _slopes(forward, backward):
    """`backward` as a function that has a gradient in its turn: that of a plain `forward`."""

    @jax.custom_vjp
    def slopes(inputs, residuals, gradient):
        return tuple(backward(inputs, residuals, gradient))

    def slopes_forward(inputs, residuals, gradient):
        return slopes(inputs, residuals, gradient), (inputs, gradient)

    def slopes_backward(saved, cotangents):
        inputs, gradient = saved
        places = [i for i, x in enumerate(cotangents) if x is not None]

        def plain_slopes(gradient, *values):
            plain = plain_function(forward, inputs, places)
            return jax.vjp(plain, *values)[1](gradient)

        _, pull = jax.vjp(plain_slopes, gradient, *(inputs[i] for i in places))
        of_gradient, *values = pull(tuple(cotangents[i] for i in places))
        return tuple(replaced([None] * len(inputs), places, values)), None, of_gradient

    slopes.defvjp(slopes_forward, slopes_backward)
    return slopes


def in_forward_mode(*tensors):
    """Whether a tensor carries a tangent, as in `jax.jvp` where no `jax.jit` stands between."""
    return any(map(_has_tangent, tensors))


def _has_tangent(x):
    if isinstance(x, JVPTracer):
        return True
    # What a transformation wraps: under jax.hessian, gradients are taken of what has a tangent.
    inside = getattr(x, "primal", getattr(x, "val", None))
    return inside is not None and _has_tangent(inside)


def recomputed(function):
    """`function`, of which nothing but its inputs is kept for the gradient."""
    return jax.checkpoint(function)


def vjp(function, inputs, gradient):
    """The gradient for each input of `function`, given that of its output."""
    return jax.vjp(function, *inputs)[1](gradient)


def drop(rows, columns, threshold, weights):
    """`weights`, 0 where row times column is below the threshold."""
    return jnp.where(_keep(rows, columns, threshold), weights, 0.0)


def dropout_gradient(rows, columns, threshold, p, gradient, delta):
    """Returns p * (drop(gradient) - delta), and drop(p)."""
    keep = _keep(rows, columns, threshold)
    return p * (jnp.where(keep, gradient, 0.0) - delta), jnp.where(keep, p, 0.0)


def _keep(rows, columns, threshold):
    return rows * columns.mT >= threshold


def exp_difference(x, level):
    """exp(x - level); x may be changed in place."""
    return jnp.exp(x - level)


def softmax_gradient(p, gradient, delta):
    """Returns p * (gradient - delta); `gradient` may be changed in place."""
    return p * (gradient - delta)


def dense_pays(scores, share):
    """Whether so many scores are faster made at once than a share of them in blocks.

    Measured on two CPU cores: blocks are 1.2x to 1.9x faster, under dropout too. On an H100,
    forward + backward: at once takes 0.44 of the time where all blocks are made, 0.42 to 0.85 under
    a causal mask (T = 1024, B = 1 and 8). Of 2**26 scores one array is 256 MiB.
    """
    return _has_gpu() and share >= 0.5 and scores <= 2**26


def fused_unsupported(call):
    """Why `jax.nn.dot_product_attention` cannot take the call, or None."""
    if call.softcap is not None:
        return "jax.nn.dot_product_attention has no softcap"
    if call.sinks is not None:
        return "jax.nn.dot_product_attention has no sinks"
    if call.dropout_rate:
        return "jax.nn.dot_product_attention has no dropout"
    if call.query.shape[-1] != call.value.shape[-1]:
        return "jax.nn.dot_product_attention wants values as wide as keys"
    if call.query.dtype == "float16" and not _has_gpu():
        return "jax.nn.dot_product_attention cannot be compiled for float16 on CPU"
    return None


def fused_masks_pay(call):
    """False: on an H100 bands take 0.1 to 0.7 of the time of the scores made at once."""
    return False


def fused_unprofitable(call):
    """Why the kernel would not pay here, or None."""
    if not _has_gpu():
        return "on CPU jax.nn.dot_product_attention builds the T x S scores"
    if _implementation(call) == "xla":
        return (
            "cuDNN's kernel takes float16 and bfloat16, head widths that are multiples of 8 "
            "up to 128, and even T and S only"
        )
    return None


def native_rnn_unsupported(*tensors):
    """Why there is no loop of the framework's own for an LSTM or a GRU."""
    return "JAX compiles Keras's own loop"


def native_rnn(kind, x, mask, states, weights):
    """Nothing: `native_rnn_unsupported` says so."""
    raise NotImplementedError


def step_attention(query, key, value, keep, scale):
    """None: plain operations are compiled to what is as fast."""
    return


MOST_AXES = 64
FUSED_RULES = frozenset({"causal", "window", "lengths"})


def fused_attention(call, mask, rules):
    """`jax.nn.dot_product_attention`: cuDNN on a GPU where it can, else XLA."""
    window = rules.get("window")
    bias = call.bias if call.bias is None else call.bias.astype(call.query.dtype)
    return jax.nn.dot_product_attention(
        call.query,
        call.key,
        call.value,
        bias=bias,
        mask=mask,
        scale=call.scale,
        is_causal=rules.get("causal", False),
        key_value_seq_lengths=rules.get("lengths"),
        local_window_size=None if window is None else (window - 1, 0),
        implementation=_implementation(call),
    )


def devices():
    """Names of the devices here, as `keras.device` takes them."""
    return ("cpu:0", "gpu:0") if _has_gpu() else ("cpu:0",)


def is_on_gpu(x):
    """Whether a tensor would lie on a GPU: where steps of a loop wait for their kernels."""
    return _has_gpu()


@functools.cache
def _has_gpu():
    return any(device.platform == "gpu" for device in jax.devices())


def _implementation(call):
    half = call.query.dtype in ("float16", "bfloat16")
    width, steps = call.query.shape[-1], (call.queries, call.keys)
    fits = width % 8 == 0 and width <= 128 and all(n is not None and n % 2 == 0 for n in steps)
    return "cudnn" if half and fits and _has_gpu() else "xla"


def dense_gradient(gradient):
    """A gradient as a tensor."""
    return gradient


def norms(tensors):
    """Of each tensor: `(len(tensors),)` float32."""
    squares = [jnp.sum(jnp.square(x.astype("float32"))) for x in tensors]
    return jnp.sqrt(jnp.stack(squares))


def scaled(tensors, factors):
    """Each tensor times its float32 factor, in its own dtype."""
    return [(x * factor).astype(x.dtype) for x, factor in zip(tensors, factors, strict=True)]


def update_if(condition, update, variables):
    """Call update(), and undo what it does to `variables` unless the condition is True."""
    before = [variable.value for variable in variables]
    update()
    for variable, old in zip(variables, before, strict=True):
        if variable.value is not old:
            variable.assign(jnp.where(condition, variable.value, old))


def attribute(value):
    """A scalar, maybe traced, as what an optimizer's code takes for one of its numbers."""
    return value


def can_trace(function):
    """Whether compiled code can have this function of a float32 scalar."""
    try:
        jax.eval_shape(function, jax.ShapeDtypeStruct((), "float32"))
    except (TypeError, ValueError, AttributeError, LookupError):
        return False
    return True


def dry_run(optimizer):
    """Trace one update: what is wrong in it raises here, before `fit` has taken the weights."""

    def shapes(variables):
        return [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]

    weights = shapes(optimizer._trainable_variables)
    jax.eval_shape(optimizer.stateless_apply, shapes(optimizer.variables), weights, weights)


def try_shapes(function):
    """Run `function()` for what it raises: nothing is computed or allocated."""
    jax.eval_shape(function)


# JAX has no generator for all.
random_state, set_random_state = generators.random_state, generators.set_random_state


def shuffling_seed():
    """None: Keras shuffles arrays by NumPy's generator."""
    return
