"""TensorFlow's side of `kattn.backend`."""

import functools

import keras
import tensorflow as tf

from kattn.backend import generators
from kattn.backend.plain import plain_function, replaced


def compiled(function):
    """`function` as it is: `tf.function` around the model compiles it."""
    return function


def program(function, variables, jit_compile):
    """`function(*tensors)`, compiled once per shapes, whatever the values of `variables`.

    If `jit_compile`, it is by XLA, where XLA can: it has no Python functions in a graph.
    """

    def traced(**options):
        # TensorFlow counts traces by the code of a function, and would take all programs for one
        # that is traced over and over, and warn. A partial has no code.
        return tf.function(functools.partial(function), autograph=False, **options)

    ways = [traced(jit_compile=True), traced()] if jit_compile else [traced()]

    def run(*tensors):
        try:
            return ways[0](*tensors)
        except (
            tf.errors.InvalidArgumentError,
            tf.errors.UnimplementedError,
            tf.errors.NotFoundError,
        ):
            if len(ways) == 1:
                raise
            del ways[0]
            return run(*tensors)

    return run


def step_maker(function, variables):
    """A function that gives `function` as it is: it is compiled with its loop."""
    return lambda: function


def matmul(a, b, *, transpose_a=False, transpose_b=False):
    """float32 a b over the last two axes."""
    return tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)


def by_row(function, x):
    """`function(x)`, which treats all entries of all axes but the last alike."""
    return function(x)


def softmax(x):
    """Over the last axis."""
    return tf.nn.softmax(x)


def highest(x, axis=-1):
    """The maximum over an axis, or several, which stay."""
    return tf.reduce_max(x, axis=axis, keepdims=True)


def pad(x, ends, value=0):
    """X with `value` added, (before, after) each axis."""
    return tf.pad(x, ends, constant_values=value)


def running_maximum(x):
    """The highest of each step and those before it, along axis 1."""
    found = keras.ops.associative_scan(keras.ops.maximum, x, axis=1)
    return tf.ensure_shape(found, x.shape)  # in a graph it has lost its rank


def loop(lower, upper, body, state):
    """State = body(i, state) for i in [lower, upper)."""
    # One iteration at a time: run side by side, the blocks' scores would all be alive at once.
    return tf.while_loop(
        lambda i, _: i < upper,
        lambda i, state: (i + 1, body(i, state)),
        (tf.convert_to_tensor(lower), state),
        parallel_iterations=1,
    )[1]


def loop_over(lists, i, body, state):
    """State = body(j, state) for the integers j in lists[i]; i may be traced."""
    longest = max(map(len, lists))
    filled = tf.constant([[*row, *[0] * (longest - len(row))] for row in lists], "int32")
    counts = tf.constant([len(row) for row in lists], "int32")
    row = filled[i]
    return loop(0, counts[i], lambda n, state: body(row[n], state), state)


def scan(step, state, inputs):
    """The last state, and each output, of `state, output = step(state, input)`."""
    count = tf.shape(inputs)[0]

    def body(i, state, outputs):
        state, output = step(state, inputs[i])
        return i + 1, state, outputs.write(i, output)

    outputs = tf.TensorArray(state.dtype, count, element_shape=state.shape)
    # For the gradient XLA must be told how many iterations there are at most, and tf2onnx makes
    # another integer of that number, so that the condition must do without it.
    _, state, outputs = tf.while_loop(
        lambda *_: True, body, (0, state, outputs), maximum_iterations=count
    )
    return state, outputs.stack()


def unrolls_loops(x):
    """False: a loop is one operation, however many times it runs."""
    return False


def scan_trees(step, state, inputs, like):
    """`scan` whose states, inputs and outputs are structures of tensors; `like` is an output."""
    flat = [tf.convert_to_tensor(x) for x in keras.tree.flatten(inputs)]
    count = tf.shape(flat[0])[0]

    def array(x, shape):
        return tf.TensorArray(x.dtype, count, element_shape=shape, clear_after_read=False)

    # The gradient of an array that is read is written once; that of x[i] would be added up over
    # all of x in each step.
    given = [array(x, x.shape[1:]).unstack(x) for x in flat]
    shapes = [x.shape for x in keras.tree.flatten(state)]

    def body(i, state, outputs):
        now = keras.tree.pack_sequence_as(inputs, [x.read(i) for x in given])
        state, output = step(keras.tree.pack_sequence_as(first, state), now)
        state = [tf.convert_to_tensor(x) for x in keras.tree.flatten(state)]
        if not tf.executing_eagerly():
            for x, shape in zip(state, shapes, strict=True):
                x.set_shape(shape)  # which a loop must not forget
        pairs = zip(outputs, keras.tree.flatten(output), strict=True)
        return i + 1, state, [all_of.write(i, x) for all_of, x in pairs]

    first = state
    state = [tf.convert_to_tensor(x) for x in keras.tree.flatten(state)]
    outputs = [array(x, x.shape) for x in keras.tree.flatten(like)]
    _, state, outputs = tf.while_loop(
        lambda *_: True, body, (0, state, outputs), maximum_iterations=count
    )
    stacked = [x.stack() for x in outputs]
    return keras.tree.pack_sequence_as(first, state), keras.tree.pack_sequence_as(like, stacked)


def take(x, i):
    """x[i]."""
    return x[i]


def put_at(x, i, value):
    """X with x[i] = value."""
    return tf.tensor_scatter_nd_update(x, [[i]], value[None])


def add_at(x, i, update):
    """X with x[i] += update."""
    return tf.tensor_scatter_nd_add(x, [[i]], update[None])


def cut(x, start, size):
    """x[start : start + size]."""
    return x[start : start + size]


def add_span(x, start, update):
    """X with x[start : start + len(update)] += update."""
    places = start + tf.range(tf.shape(update)[0])
    return tf.tensor_scatter_nd_add(x, places[:, None], update)


def gather(x, index, axis):
    """The entries of x at an index of any shape on an axis >= 0."""
    return tf.gather(x, index, axis=axis)


def put_step(x, slot, value):
    """X `(B, K, L, D)` with x[b, :, slot[b]] = value[b], `(K, D)`."""
    batch, heads = tf.shape(x)[0], tf.shape(x)[1]
    b, k = tf.meshgrid(tf.range(batch), tf.range(heads), indexing="ij")
    slots = tf.broadcast_to(tf.cast(slot, "int32")[:, None], (batch, heads))
    return tf.tensor_scatter_nd_update(x, tf.stack([b, k, slots], axis=-1), value)


def overwrite(x, y):
    """Y."""
    return y


def constant(numbers, like):
    """Python numbers as float32."""
    return tf.constant(numbers, "float32")


def concrete(x):
    """X as NumPy, or None where it is traced or lies on an accelerator."""
    x = tf.convert_to_tensor(x)
    return x.numpy() if hasattr(x, "numpy") and "CPU" in x.device else None


def is_made_up(x):
    """False: shapes are inferred with unknown sizes."""
    return False


def is_exported_to_onnx():
    """Never known, nor does it matter: all operations are exported."""
    return False


def is_computed(size):
    """Whether a size is a tensor, on which the length of a loop may depend."""
    return tf.is_tensor(size)


def custom_gradient(forward, backward):
    """A function of tensors with a gradient of its own.

    `forward(*inputs)` gives `(output, residuals)`, `backward(inputs, residuals, gradient)` a
    gradient for each input, None where there is none; the output is the first of its residuals.
    The second derivative is that of `forward`, run in `plain_operations`.
    """

    @tf.custom_gradient
    def run(*inputs):
        output, residuals = forward(*inputs)
        places = [i for i, x in enumerate(inputs) if x.dtype.is_floating]

        @tf.custom_gradient
        def slopes(gradient, *inputs):
            found = backward(inputs, (output, *residuals), gradient)
            second = functools.partial(_second, forward, places, gradient, inputs)
            return [found[i] for i in places], lambda *upstream: second(upstream)

        def gradients(gradient):
            return tuple(replaced([None] * len(inputs), places, slopes(gradient, *inputs)))

        return output, gradients

    return lambda *inputs: run(*map(tf.convert_to_tensor, inputs))


def _second(forward, places, gradient, inputs, upstream):
    """The gradient of the gradients of a plain `forward`, for `gradient` and for each input."""
    values = [inputs[i] for i in places]
    plain = plain_function(forward, inputs, places)
    with tf.GradientTape() as tape:
        tape.watch([gradient, *values])
        slopes = vjp(plain, values, gradient)
    options = {"output_gradients": upstream, "unconnected_gradients": "zero"}
    of_gradient, *found = tape.gradient(slopes, [gradient, *values], **options)
    return of_gradient, *replaced([None] * len(inputs), places, found)


def in_forward_mode(*tensors):
    """Never known: a `tf.autodiff.ForwardAccumulator` leaves no trace on a tensor."""
    return False


def recomputed(function):
    """`function`, of which nothing but its inputs is kept for the gradient."""
    return tf.recompute_grad(function)


def vjp(function, inputs, gradient):
    """The gradient for each input of `function`, given that of its output."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = function(*inputs)
    gradients = tape.gradient(output, inputs, gradient, unconnected_gradients="zero")
    return [tf.convert_to_tensor(x) for x in gradients]  # of slices, where an array was looked up


# Compiled by XLA even where the model is not: one pass over the weights in place of seven.
@tf.function(jit_compile=True, autograph=False)
def drop(rows, columns, threshold, weights):
    """`weights`, 0 where row times column is below the threshold."""
    return tf.where(_keep(rows, columns, threshold), weights, 0.0)


@tf.function(jit_compile=True, autograph=False)
def dropout_gradient(rows, columns, threshold, p, gradient, delta):
    """Returns p * (drop(gradient) - delta), and drop(p)."""
    keep = _keep(rows, columns, threshold)
    return p * (tf.where(keep, gradient, 0.0) - delta), tf.where(keep, p, 0.0)


def _keep(rows, columns, threshold):
    return rows * tf.linalg.matrix_transpose(columns) >= threshold


def exp_difference(x, level):
    """exp(x - level); x may be changed in place."""
    return tf.exp(x - level)


def softmax_gradient(p, gradient, delta):
    """Returns p * (gradient - delta); `gradient` may be changed in place."""
    return p * (gradient - delta)


def dense_pays(scores, share):
    """Whether so many scores are faster made at once than a share of them in blocks.

    Measured on two CPU cores, where no block is left out: 1.25x at T = 1024 to 4096. Of 2**27
    scores one array is 512 MiB.
    """
    return share > 0.9 and scores <= 2**27


def fused_unsupported(call):
    """TensorFlow has no attention kernel of its own."""
    return "TensorFlow has no fused attention kernel"


def fused_masks_pay(call):
    """False: there is no such kernel."""
    return False


def fused_unprofitable(call):
    """Never reached: every call is refused."""
    return


def native_rnn_unsupported(*tensors):
    """Why there is no loop of the framework's own for an LSTM or a GRU."""
    return "TensorFlow compiles Keras's own loop"


def native_rnn(kind, x, mask, states, weights):
    """Nothing: `native_rnn_unsupported` says so."""
    raise NotImplementedError


def step_attention(query, key, value, keep, scale):
    """None: plain operations are compiled to what is as fast."""
    return


MOST_AXES = 8
FUSED_RULES: frozenset[str] = frozenset()


def fused_attention(call, mask, rules):
    """Never reached: every call is refused."""
    raise NotImplementedError(fused_unsupported(call))


def devices():
    """Names of the devices here, as `keras.device` takes them."""
    return ("cpu:0", "gpu:0") if tf.config.list_physical_devices("GPU") else ("cpu:0",)


def is_on_gpu(x):
    """Whether a tensor would lie on a GPU: where steps of a loop wait for their kernels."""
    return len(devices()) > 1


def dense_gradient(gradient):
    """A gradient as a tensor: that of an embedding holds a row for each time it was looked up."""
    return tf.convert_to_tensor(gradient)


def norms(tensors):
    """Of each tensor: `(len(tensors),)` float32."""
    # One operation for each, which counts where there are hundreds.
    return tf.sqrt(2.0 * tf.stack([tf.nn.l2_loss(tf.cast(x, "float32")) for x in tensors]))


def scaled(tensors, factors):
    """Each tensor times its float32 factor, in its own dtype."""
    pairs = zip(tensors, factors, strict=True)
    return [tf.cast(tf.cast(x, "float32") * factor, x.dtype) for x, factor in pairs]


def update_if(condition, update, variables):
    """Call update() if the condition is True; `variables` are those that it changes."""
    if tf.distribute.has_strategy():  # replicas may not meet inside of a condition
        before = [tf.identity(variable.value) for variable in variables]
        update()
        for variable, old in zip(variables, before, strict=True):
            variable.assign(tf.where(condition, variable.value, old))
        return

    def changed():
        update()
        return tf.constant(0)

    tf.cond(condition, changed, lambda: tf.constant(0))


def attribute(value):
    """A scalar, maybe traced, as what an optimizer's code takes for one of its numbers."""
    return value


def can_trace(function):
    """Whether compiled code can have this function of a float32 scalar."""
    traced = tf.function(function, autograph=False)  # as Keras traces a training step
    try:
        traced.get_concrete_function(tf.TensorSpec((), "float32"))
    except (TypeError, ValueError, AttributeError, LookupError):
        return False
    return True


def dry_run(optimizer):
    """Nothing: a fault in an update leaves the weights as they are."""


def try_shapes(function):
    """Run `function()` for what it raises: nothing is computed or allocated."""
    tf.function(function, autograph=False).get_concrete_function()


# Those of TensorFlow cannot be read.
random_state, set_random_state = generators.random_state, generators.set_random_state


def shuffling_seed():
    """With which arrays are shuffled in the same order each time; None if there is none."""
    unset = 87654321  # what TensorFlow returns then
    seed = tf.compat.v1.get_seed(0)[0]
    return None if seed == unset else seed
