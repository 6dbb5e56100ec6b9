"""PyTorch's own loops over the steps of an LSTM or a GRU, for weights and masks as Keras has them.

`torch.lstm` and `torch.gru` know no masks but lengths, which must lie on the CPU. Here padding may
stand anywhere: the real steps of each item are taken first, and the outputs put back to where they
belong. The c of an LSTM must pass the padding behind them: a further channel of the input is 1
there, and its weights shut the gates, so that c stays what it is, exactly. Nothing waits for the
device, and no size depends on the mask.
"""

import warnings

import torch

# Keras runs both directions of a `Bidirectional` without a mask by one call of cuDNN, with weights
# in several pieces, which cuDNN then copies. What the warning advises, no user of Keras can do. It
# is silenced for calls that Keras makes only; `_call` below gives weights in one piece.
warnings.filterwarnings(
    "ignore", "RNN module weights are not part of single contiguous chunk", module="keras"
)

# What drives a gate to exactly 0 or 1 in any dtype: float16 ends at 65504.
SHUT = 1e4


def native_rnn_unsupported(*tensors):
    """Why PyTorch's own loops cannot take these tensors, or None."""
    if torch.compiler.is_compiling():
        return None
    functorch = torch._C._functorch
    kinds = [each.key() for each in functorch.get_interpreter_stack() or ()]
    if functorch.TransformType.Vmap in kinds:
        return "torch.vmap has no rule for PyTorch's own loop"
    unpack = torch.autograd.forward_ad.unpack_dual
    if functorch.TransformType.Jvp in kinds or any(unpack(x).tangent is not None for x in tensors):
        return "PyTorch's own loop has no derivative in forward mode"
    return None


def native_rnn(kind, x, mask, states, weights):
    """The outputs `(B, T, U)` of an LSTM or a GRU, and the states after the last step.

    Args:
        kind: "lstm" or "gru", the latter with `reset_after`.
        x: Inputs, `(B, T, C)`.
        mask: `(B, T)` bool, True = real step; None if all steps are real. At padding the output is
            that of the last real step, or 0 if there is none before.
        states: Tuple of states before the first step, `(B, U)` each: (h, c) or (h,).
        weights: Keras's kernel, recurrent kernel and bias, or None for the last.
    """
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16) and not x.is_cuda:
        # Not all processors have the kernel for these dtypes, and none is faster with them.
        x, states, weights = _cast((x, states, weights), torch.float32)
    if x.shape[1] == 0:
        return x.new_zeros((x.shape[0], 0, states[0].shape[1]), dtype=dtype), _cast(states, dtype)
    weights = _torch_weights(kind, *weights)
    if mask is None:
        y, *states = _loop(kind, x, states, weights)
    else:
        x = torch.where(mask[..., None], x, 0)  # NaN at padding would pass a gate that is 0
        y, *states = _MASKED[kind](x, mask, states, weights)
    return y.to(dtype), _cast(tuple(states), dtype)


def _cast(tree, dtype):
    if isinstance(tree, tuple):
        return tuple(_cast(x, dtype) for x in tree)
    return None if tree is None else tree.to(dtype)


def _masked_lstm(x, mask, states, weights):
    """Real steps come first, then padding, through which the last c stays.

    h does not, as an output gate would have to know it; but it is the output of the last real step.
    """
    x, count = _real_first(x, mask)
    index = torch.arange(x.shape[1], device=x.device)
    x, weights = _with_padding(x, index >= count, weights)
    y, _, c = _loop("lstm", x, states, weights)
    y, h = _behind_real(y, mask, states[0])
    return y, h, c


def _masked_gru(x, mask, states, weights):
    """Real steps come first; what the loop makes of the padding behind them is not looked at."""
    y, _ = _loop("gru", _real_first(x, mask)[0], states, weights)
    return _behind_real(y, mask, states[0])


def _real_first(x, mask):
    """The real steps of each item in their order, and then its padding; and how many are real."""
    index = torch.arange(x.shape[1], device=x.device)
    behind = torch.where(mask, index, index + x.shape[1])
    return _at_steps(x, torch.argsort(behind, dim=1)), mask.sum(dim=1, keepdim=True)


def _behind_real(y, mask, first):
    """Outputs at the places of the steps, of outputs with the real steps first; and the last h.

    At padding it is that of the last real step, and 0 where there is none before.
    """
    last = torch.cumsum(mask.to(torch.int64), dim=1) - 1  # among the real steps; -1: none yet
    y = _at_steps(y, last.clamp(min=0))
    y = torch.where(last[..., None] >= 0, y, 0)
    return y, torch.where(last[:, -1:] >= 0, y[:, -1], first)


_MASKED = {"lstm": _masked_lstm, "gru": _masked_gru}


def _with_padding(x, is_padding, weights):
    """Inputs with a channel that is 1 at padding, and weights with its column, of an LSTM."""
    x = torch.cat([x, is_padding[..., None].to(x.dtype)], dim=-1)
    of_input, *rest = weights
    # Made of weights: the exporter to ONNX cannot join weights on a GPU and constants, which it
    # keeps on the CPU.
    i, f, g, o = (0 * of_input[:, :1].detach()).chunk(4)
    column = torch.cat([i - SHUT, f + SHUT, g, o])
    return x, [torch.cat([of_input, column], dim=1), *rest]


def _at_steps(x, index):
    """x[b, index[b, t]]."""
    return torch.gather(x, 1, index[..., None].expand(-1, -1, x.shape[2]))


def _torch_weights(kind, kernel, recurrent, bias):
    """Keras's weights as PyTorch has them: by row, its order of gates, two biases."""
    if bias is None:
        bias = kernel.new_zeros((2, kernel.shape[1]))
    elif bias.dim() == 1:
        # Its halves, and not itself and zeros: the exporter to ONNX cannot join those on a GPU.
        bias = torch.stack([bias / 2, bias / 2])
    tensors = [kernel, recurrent, bias]
    if kind == "gru":
        tensors = [_reset_first(x) for x in tensors]
    kernel, recurrent, bias = tensors
    return [kernel.t().contiguous(), recurrent.t().contiguous(), *bias.unbind()]


def _reset_first(x):
    """Gates r, z, n of z, r, n."""
    update, reset, new = x.chunk(3, dim=-1)
    return torch.cat([reset, update, new], dim=-1)


def _loop(kind, x, states, weights):
    """The outputs, and the states after the last step."""
    if _is_traced(x):
        # Else the compiler would write one step after the other into its graph.
        return torch.ops.kattn.native_rnn(kind, [x, *states, *weights])
    return _call(kind, x, states, weights)


def _is_traced(x):
    """Whether the loop must be one node of a graph, of a kind that this file defines.

    A file has PyTorch's own node, so that it needs no kattn to run; but that is for one T only.
    """
    if torch.onnx.is_in_onnx_export():
        return False
    if torch.compiler.is_exporting():
        return not isinstance(x.shape[1], int)
    return torch.compiler.is_compiling() or type(x) is not torch.Tensor or x.is_meta


def _call(kind, x, states, weights):
    states = [state[None].contiguous() for state in states]
    options = True, 1, 0.0, torch.is_grad_enabled(), False, True
    if x.is_cuda:
        weights = _in_one_piece(weights)
    function = torch.lstm if kind == "lstm" else torch.gru
    given = states if kind == "lstm" else states[0]
    y, *states = function(x, given, weights, *options)
    return [y, *(state[0] for state in states)]


def _in_one_piece(weights):
    """The weights one behind the other in memory, as cuDNN wants them; it would copy them else."""
    flat = torch.cat([x.reshape(-1) for x in weights])
    parts = flat.split([x.numel() for x in weights])
    return [part.view(x.shape) for part, x in zip(parts, weights, strict=True)]


def _read(kind, tensors):
    """Inputs, states and weights of their list."""
    count = 2 if kind == "lstm" else 1
    return tensors[0], tensors[1 : 1 + count], tensors[1 + count :]


def _copies(tensors):
    """What an operation of a graph may return: no views of one another, in the usual layout."""
    return [x.clone(memory_format=torch.contiguous_format) for x in tensors]


@torch.library.custom_op("kattn::native_rnn", mutates_args=())
def _native_rnn(kind: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """`_call` as one node of a graph."""
    with torch.no_grad():
        return _copies(_call(kind, *_read(kind, tensors)))


@_native_rnn.register_fake
def _(kind, tensors):
    x, states, _ = _read(kind, tensors)
    y = x.new_empty((x.shape[0], x.shape[1], states[0].shape[1]))
    return [y, *(state.new_empty(state.shape) for state in states)]


@torch.library.custom_op("kattn::native_rnn_gradient", mutates_args=())
def _native_rnn_gradient(
    kind: str, tensors: list[torch.Tensor], gradients: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The gradient for each tensor, for which the loop runs again: it keeps nothing in a graph."""
    # Not `torch.autograd`, which records nothing inside of an operation.
    with torch.enable_grad():
        _, pull = torch.func.vjp(lambda *x: tuple(_call(kind, *_read(kind, x))), *tensors)
    return _copies(pull(tuple(gradients)))


@_native_rnn_gradient.register_fake
def _(kind, tensors, gradients):
    return [x.new_empty(x.shape) for x in tensors]


def _keep_inputs(ctx, inputs, output):
    kind, tensors = inputs
    ctx.kind = kind
    ctx.save_for_backward(*tensors)
    ctx.shapes = [(x.shape, x.dtype, x.device) for x in output]


def _gradient(ctx, gradients):
    filled = [
        torch.zeros(shape, dtype=dtype, device=device) if x is None else x
        for x, (shape, dtype, device) in zip(gradients, ctx.shapes, strict=True)
    ]
    return None, torch.ops.kattn.native_rnn_gradient(ctx.kind, list(ctx.saved_tensors), filled)


_native_rnn.register_autograd(_gradient, setup_context=_keep_inputs)
