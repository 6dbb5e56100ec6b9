"""Functions that the backend at hand traces once for any length."""

import keras


def traced_for_any_length(function, inputs, shapes):
    """The function, traced by the means with which the backend exports models.

    Args:
        function: Function of tensors.
        inputs: NumPy arrays of some length, for a backend that traces by an example.
        shapes: The shapes of the inputs, with a string for a size that is not known.
    """
    trace = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
    return trace[keras.backend.backend()](function, inputs, shapes)


def _by_tensorflow(function, inputs, shapes):
    import tensorflow as tf

    known = [tuple(None if isinstance(n, str) else n for n in shape) for shape in shapes]
    signature = [tf.TensorSpec(shape) for shape in known]
    return tf.function(lambda *x: function(*x), input_signature=signature, autograph=False)


def _by_jax(function, inputs, shapes):
    import jax
    from jax import export

    scope = export.SymbolicScope()
    texts = (", ".join(map(str, shape)) for shape in shapes)
    sizes = (export.symbolic_shape(text, scope=scope) for text in texts)
    structures = [jax.ShapeDtypeStruct(shape, "float32") for shape in sizes]
    return export.export(jax.jit(lambda *x: function(*x)))(*structures).call


def _by_torch(function, inputs, shapes):
    import torch

    class Module(torch.nn.Module):
        def forward(self, *x):
            return function(*x)

    length = torch.export.Dim("length", min=2, max=512)
    dims = [{i: length for i, n in enumerate(shape) if isinstance(n, str)} for shape in shapes]
    examples = tuple(map(keras.ops.convert_to_tensor, inputs))
    with torch.no_grad():
        program = torch.export.export(Module(), examples, dynamic_shapes=(tuple(dims),))
    module = program.module()
    return lambda *x: module(*map(keras.ops.convert_to_tensor, x))
