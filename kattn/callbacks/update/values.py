"""Values of variables, read and set on the host, between two steps."""

import numpy as np
from keras import ops


def number(variable):
    """The value of a scalar variable as a Python number.

    It also reads a variable that has a copy on each of several devices.
    """
    return ops.convert_to_numpy(ops.convert_to_tensor(variable)).item()


def copies(variables):
    """The values of variables, as a list of NumPy arrays that later steps do not change.

    They must be copies: JAX hands the buffers of variables to the next step, and PyTorch changes
    them in place.
    """
    return [np.array(ops.convert_to_numpy(variable), copy=True) for variable in variables]


def assign(variables, values):
    """Set each variable to the value at the same place in the other list."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
