"""Which operations of Keras (`x + y`, `keras.ops.softmax(x)` ...) act on each step alone.

Operations of a functional model are objects of classes that Keras does not export. They are told
by the names of their classes, which are those of the functions in `keras.ops`.
"""

import keras
import numpy as np

# They act on each number; or on the numbers at the same place of several tensors.
_ELEMENTWISE = """
    Absolute Add Subtract Multiply Divide TrueDivide DivideNoNan FloorDivide Mod Power Negative
    Reciprocal Square Sqrt Rsqrt Cbrt Exp Exp2 Expm1 Log Log10 Log1p Log2 Logaddexp Maximum Minimum
    Sign Floor Ceil Round Trunc Sin Cos Tan Arcsin Arccos Arctan Arctan2 Sinh Cosh Tanh Arcsinh
    Arccosh Arctanh Erf Erfc Sigmoid HardSigmoid LogSigmoid SparseSigmoid Silu HardSilu Relu Relu6
    LeakyRelu Elu Selu Celu Gelu Softplus Softsign SoftShrink HardShrink TanhShrink HardTanh
    Squareplus SparsePlus Threshold Where Equal NotEqual Greater GreaterEqual Less LessEqual
    LogicalAnd LogicalOr LogicalXor LogicalNot Isfinite Isinf Isnan OnesLike ZerosLike Copy Cast
    SaturateCast StopGradient
"""
# They act along an axis, or several, that they have as an attribute.
_ALONG_AXIS = """
    Softmax LogSoftmax Sparsemax Glu Sum Mean Var Std Prod Max Min Logsumexp All Any Argmax Argmin
    Cumsum Cumprod Sort Argsort Flip Normalize RMSNorm LayerNorm Concatenate Split Squeeze
"""
ELEMENTWISE, ALONG_AXIS = (frozenset(names.split()) for names in (_ELEMENTWISE, _ALONG_AXIS))
# They add an axis to their input.
ADDS_AXIS = frozenset({"ExpandDims", "Stack", "OneHot"})


def operation_is_known(operation, args, kwargs):
    """Whether an operation that is no layer is known to act on each step alone.

    Args:
        operation: The operation.
        args: Its positional arguments, with a `keras.KerasTensor` for each tensor.
        kwargs: Its arguments by name, likewise.

    Returns:
        A bool.
    """
    name = type(operation).__name__
    given = keras.tree.flatten((args, kwargs))
    tensors = [x for x in given if isinstance(x, keras.KerasTensor)]
    if not type(operation).__module__.startswith("keras.") or not tensors:
        return False
    rank = len(tensors[0].shape)
    if any(len(x.shape) != rank for x in tensors):  # which would be aligned at their last axes
        return False
    if name in ELEMENTWISE:
        others = [x for x in given if not isinstance(x, keras.KerasTensor)]
        return all(_is_same_for_all_steps(x, rank) for x in others)
    if name in ALONG_AXIS:
        return axes_spare_steps(getattr(operation, "axis", None), rank)
    if name in ADDS_AXIS:
        return axes_spare_steps(operation.axis, rank + 1)
    rule = RULES.get(name)
    return rule is not None and rule(operation, given, rank)


def axes_spare_steps(axes, rank):
    """Whether none of these axes, of a tensor of this rank, is that of the batch or of the steps.

    Args:
        axes: An integer, or several, counted from the first axis or from the last; None for all.
        rank: Number of axes.

    Returns:
        A bool.
    """
    if axes is None:
        return False
    axes = axes if isinstance(axes, list | tuple) else [axes]
    return all(axis % rank > 1 for axis in axes)


def einsum_spares_steps(subscripts, rank):
    """Whether a product keeps the first two axes of its first operand, of this rank, as they are.

    Args:
        subscripts: Equation such as "btc,cd->btd". An ellipsis of the first operand stands for all
            its axes that have no letter.
        rank: Number of axes of the first operand.

    Returns:
        A bool.
    """
    subscripts = subscripts.replace(" ", "")
    if "->" not in subscripts:
        return False
    operands, output = subscripts.split("->")
    first, *others = operands.split(",")
    if first.startswith("...") and output.startswith("..."):
        letters = first.removeprefix("...")
        return rank - len(letters) >= 2 and not any("..." in x for x in others)
    kept = first[:2]
    spares = "." not in first and output[:2] == kept and len(set(kept)) == 2
    return spares and not any(set(kept) & set(x) for x in others)


def _is_same_for_all_steps(x, rank):
    """Whether something that is no tensor of the model has no axis of steps, of several entries."""
    shape = (1,) * rank + tuple(getattr(x, "shape", None) or np.shape(x))
    return set(shape[len(shape) - rank :][:2]) <= {1}


def _multiplies_width(operation, given, rank):
    x, y = given
    return isinstance(x, keras.KerasTensor) and rank > 2 and len(getattr(y, "shape", ())) == 2


def _multiplies_by_letters(operation, given, rank):
    first, *others = given
    if not isinstance(first, keras.KerasTensor):
        return False
    # Of two tensors of the model each has steps.
    has_one = not any(isinstance(x, keras.KerasTensor) for x in others)
    return has_one and einsum_spares_steps(operation.subscripts, rank)


def _transposes_behind(operation, given, rank):
    return tuple(operation.axes or ())[:2] == (0, 1)


def _swaps_behind(operation, given, rank):
    return axes_spare_steps((operation.axis1, operation.axis2), rank)


def _takes_all_steps(operation, given, rank):
    key = given[1:]  # a key that is a tuple was flattened with the arguments
    if any(x is None or isinstance(x, keras.KerasTensor) for x in key):
        return False
    if Ellipsis in key:
        at, whole = key.index(Ellipsis), [slice(None)] * (rank + 1 - len(key))
        key = [*key[:at], *whole, *key[at + 1 :]]
    return all(x == slice(None) for x in key[:2])


RULES = {
    "Matmul": _multiplies_width,
    "Einsum": _multiplies_by_letters,
    "Transpose": _transposes_behind,
    "Swapaxes": _swaps_behind,
    "GetItem": _takes_all_steps,
    "TopK": lambda operation, given, rank: rank > 2,
}
