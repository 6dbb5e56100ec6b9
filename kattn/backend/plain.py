"""When the operations of a backend must be plain: ones that its framework can differentiate.

What a kernel does in its forward pass is never differentiated as it stands: the kernel brings its
own gradient. So it may write in place and loop as often as a number says that is computed on the
way. For second derivatives, and for transformations such as `torch.vmap`, the same forward pass
runs once more inside `plain_operations`, and the framework does the rest.
"""

import contextlib
import threading

_here = threading.local()


@contextlib.contextmanager
def plain_operations():
    """For the length of a block, nothing is written in place and no loop is of unknown length."""
    before = are_operations_plain()
    _here.plain = True
    try:
        yield
    finally:
        _here.plain = before


def are_operations_plain():
    """Whether the call happens inside `plain_operations`."""
    return getattr(_here, "plain", False)


def plain_function(forward, inputs, places):
    """The output of `forward(*inputs)` in `plain_operations`, as a function of some inputs.

    Args:
        forward: Function of tensors that returns `(output, residuals)`.
        inputs: All its arguments.
        places: Which of them the function takes; the others stay as they are.
    """

    def plain(*values):
        with plain_operations():
            return forward(*replaced(inputs, places, values))[0]

    return plain


def replaced(items, places, values):
    """A list of the items, with the values at these places."""
    given = dict(zip(places, values, strict=True))
    return [given.get(i, item) for i, item in enumerate(items)]
