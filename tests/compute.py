"""Running Keras functions on the backend at hand and leaving it at once: NumPy in, NumPy out."""

import contextlib

import keras
import numpy as np


def run(function, *args, **kwargs):
    """The result as NumPy."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, function(*args, **kwargs))


def as_input(x):
    """A NumPy array as an input: float32, or int32 if it holds integers, which are tokens."""
    x = np.asarray(x)
    return x.astype("int32" if x.dtype.kind == "i" else "float32")


def differentiate(function, inputs, upstream):
    """The output, and the gradients of sum(upstream * output) with respect to `inputs`."""
    backend = keras.backend.backend()
    inputs = [keras.ops.convert_to_tensor(np.asarray(x, "float32")) for x in inputs]
    upstream = keras.ops.convert_to_tensor(np.asarray(upstream, "float32"))
    if backend == "jax":
        import jax

        output, pull = jax.vjp(function, *inputs)
        gradients = pull(upstream)
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = function(*inputs)
        gradients = tape.gradient(output, inputs, output_gradients=upstream)
    else:
        for x in inputs:
            x.requires_grad_(True)
        output = function(*inputs)
        output.backward(upstream)
        gradients = [x.grad for x in inputs]
        output = output.detach()
    to_numpy = keras.ops.convert_to_numpy
    return to_numpy(output), [to_numpy(x) for x in gradients]


def second_derivatives(function, inputs, upstream, directions):
    """The gradients of sum over inputs of <gradient of sum(upstream * output), direction>."""
    backend = keras.backend.backend()
    to_tensor = keras.ops.convert_to_tensor
    inputs, directions = (
        [to_tensor(np.asarray(x, "float32")) for x in y] for y in (inputs, directions)
    )
    upstream = to_tensor(np.asarray(upstream, "float32"))

    def slope(gradients):
        return sum(keras.ops.sum(x * y) for x, y in zip(gradients, directions, strict=True))

    if backend == "jax":
        import jax

        def first(inputs):
            return slope(jax.vjp(function, *inputs)[1](upstream))

        found = jax.jit(jax.grad(first))(inputs)  # one by one, operations take longer to compile
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(inputs)
            with tf.GradientTape() as inner:
                inner.watch(inputs)
                output = function(*inputs)
            total = slope(inner.gradient(output, inputs, upstream))
        found = outer.gradient(total, inputs)
    else:
        import torch

        for x in inputs:
            x.requires_grad_(True)
        gradients = torch.autograd.grad(function(*inputs), inputs, upstream, create_graph=True)
        found = torch.autograd.grad(slope(gradients), inputs)
    return [keras.ops.convert_to_numpy(x) for x in found]


def no_gradients():
    """Where torch records no gradients; elsewhere nothing."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def compiled(function):
    """The function under the backend's compiler: XLA, or torch's tracer.

    On torch the graph is traced by TorchDynamo and AOTAutograd and run eagerly: that finds what
    cannot be traced, without the minutes that generated C++ takes on a CPU.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    import torch

    torch._dynamo.reset()  # which runs a function eagerly that it has compiled eight times
    return torch.compile(function, backend="aot_eager")


def quick(function):
    """The function; compiled on JAX, which else compiles each of its operations, for longer.

    The weights of a layer are constants of the compiled function: change them before its first
    call. It may not change variables, as dropout does.
    """
    return compiled(function) if keras.backend.backend() == "jax" else function


def result(function, *args, **kwargs):
    """The result of the quick function as NumPy."""
    return run(quick(function), *args, **kwargs)


def assert_close(actual, expected, tolerance=1e-5):
    """Equal within `tolerance`, relative to the largest value expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all(), "not finite"
    size = max(np.abs(expected).max(initial=0.0), 1e-30)
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= tolerance * size, f"error {error:.2e}, largest value {size:.2e}"
