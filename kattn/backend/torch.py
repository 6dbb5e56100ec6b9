"""PyTorch's side of `kattn.backend`."""

import functools

import keras
import torch
import torch.utils.checkpoint
from torch._subclasses.fake_tensor import FakeTensorMode

from kattn.backend.plain import are_operations_plain, plain_function, plain_operations, replaced
from kattn.backend.torch_rnn import native_rnn as native_rnn
from kattn.backend.torch_rnn import native_rnn_unsupported as native_rnn_unsupported
from kattn.backend.torch_trace import Traced


def compiled(function):
    """`function` as it is."""
    return function


def program(function, variables, jit_compile):
    """`function` as it is, without gradients."""
    return torch.no_grad()(function)


def step_maker(function, variables):
    """A function that gives `function`, traced, with the values that the variables have now."""
    return Traced(function, variables).at_present


def matmul(a, b, *, transpose_a=False, transpose_b=False):
    """float32 a b over the last two axes."""
    return torch.matmul(
        a.transpose(-2, -1) if transpose_a else a,  # `a.mT` is not exported to ONNX
        b.transpose(-2, -1) if transpose_b else b,
    )


def by_row(function, x):
    """`function(x)`, which treats all entries of all axes but the last alike."""
    return function(x)


def softmax(x):
    """Over the last axis."""
    return torch.softmax(x, dim=-1)


def highest(x, axis=-1):
    """The maximum over an axis, or several, which stay."""
    return torch.amax(x, dim=axis, keepdim=True)


def pad(x, ends, value=0):
    """X with `value` added, (before, after) each axis."""
    flat = [n for pair in reversed(ends) for n in pair]
    return torch.nn.functional.pad(keras.ops.convert_to_tensor(x), flat, value=value)


def running_maximum(x):
    """The highest of each step and those before it, along axis 1."""
    return torch.cummax(x, dim=1).values


def loop(lower, upper, body, state):
    """State = body(i, state) for i in [lower, upper)."""
    for i in range(lower, upper):
        state = body(i, state)
    return state


def loop_over(lists, i, body, state):
    """State = body(j, state) for the integers j in lists[i]."""
    for j in lists[i]:
        state = body(j, state)
    return state


def scan(step, state, inputs):
    """The last state, and each output, of `state, output = step(state, input)`."""
    outputs = []
    for each in inputs:
        state, output = step(state, each)
        outputs.append(output)
    return state, torch.stack(outputs)


def unrolls_loops(x):
    """Whether what is computed of x is traced, and each turn of a loop becomes a part of it."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return is_traced or type(x) is not torch.Tensor


def scan_trees(step, state, inputs, like):
    """`scan` whose states, inputs and outputs are structures of tensors; `like` is an output."""
    outputs = []
    # The gradient of `unbind` is one `stack`; that of x[i] would be zeros for all but step i.
    for each in zip(*(x.unbind() for x in keras.tree.flatten(inputs)), strict=True):
        state, output = step(state, keras.tree.pack_sequence_as(inputs, each))
        outputs.append(keras.tree.flatten(output))
    return state, keras.tree.pack_sequence_as(
        like, [torch.stack(column) for column in zip(*outputs, strict=True)]
    )


def take(x, i):
    """x[i]."""
    return x[i]


def put_at(x, i, value):
    """X with x[i] = value, in place if it can."""
    if are_operations_plain():
        return torch.select_scatter(x, value, 0, i)
    x[i] = value
    return x


def add_at(x, i, update):
    """X with x[i] += update, in place."""
    x[i] += update
    return x


def cut(x, start, size):
    """x[start : start + size]."""
    return x[start : start + size]


def add_span(x, start, update):
    """X with x[start : start + len(update)] += update, in place."""
    x[start : start + len(update)] += update
    return x


def _is_recorded(*tensors):
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def gather(x, index, axis):
    """The entries of x at an index of any shape on an axis >= 0."""
    # Not `ops.take`, which calls `ravel`, and that is not exported to ONNX.
    x, index = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(index)
    found = torch.index_select(x, axis, torch.reshape(index, (-1,)))
    return torch.reshape(found, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def put_step(x, slot, value):
    """X `(B, K, L, D)` with x[b, :, slot[b]] = value[b], `(K, D)`: in place outside of gradient."""
    batch, heads = (torch.arange(n, device=x.device) for n in x.shape[:2])
    x = x.clone() if _is_recorded(x, value) else x
    return x.index_put_((batch[:, None], heads[None], slot.long()[:, None]), value)


def overwrite(x, y):
    """Y: in the place of x outside of gradient."""
    return y if _is_recorded(x, y) else x.copy_(y)


def constant(numbers, like):
    """Python numbers as float32. Keras would look into each for a symbolic tensor, in Python."""
    return torch.tensor(numbers, dtype=torch.float32, device=getattr(like, "device", None))


def concrete(x):
    """X as NumPy, or None where it is traced or lies on an accelerator."""
    is_traced = torch.compiler.is_compiling() or type(x) is not torch.Tensor
    return None if is_traced or not x.is_cpu else x.numpy()


def is_made_up(x):
    """Whether x has a shape alone. Keras infers shapes with sizes of its own for unknown ones."""
    return isinstance(x, torch.Tensor) and x.is_meta


def is_exported_to_onnx():
    """Whether the call is traced for `torch.onnx.export`."""
    return torch.onnx.is_in_onnx_export()


def is_computed(size):
    """False: what `torch.jit.trace` makes of sizes are tensors, but loops over them are fixed."""
    return False


class _CustomGradient(torch.autograd.Function):
    @staticmethod
    def forward(forward, backward, *inputs):
        output, residuals = forward(*inputs)
        return output, *residuals

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.forward_function, ctx.backward_function, *tensors = inputs
        ctx.count = len(tensors)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx, gradient, *_):
        saved = ctx.saved_tensors  # a checkpoint gives them once
        inputs, residuals = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled():  # the gradient may be differentiated in its turn
            gradients = _plain_gradients(ctx.forward_function, inputs, gradient)
        else:
            gradients = ctx.backward_function(inputs, residuals, gradient)
        return None, None, *gradients

    @staticmethod
    def vmap(info, in_dims, forward, backward, *inputs):
        def plain(*inputs):
            with plain_operations():
                output, residuals = forward(*inputs)
            return output, *residuals

        outputs = torch.vmap(plain, in_dims[2:], randomness=info.randomness)(*inputs)
        return outputs, (0,) * len(outputs)


def _plain_gradients(forward, inputs, gradient):
    """A gradient for each input, which PyTorch has recorded and can differentiate."""
    places = [i for i, x in enumerate(inputs) if x.is_floating_point()]
    plain = plain_function(forward, inputs, places)
    _, pull = torch.func.vjp(plain, *(inputs[i] for i in places))
    return replaced([None] * len(inputs), places, pull(gradient))


def custom_gradient(forward, backward):
    """A function of tensors with a gradient of its own.

    `forward(*inputs)` gives `(output, residuals)`, `backward(inputs, residuals, gradient)` a
    gradient for each input, None where there is none; the output is the first of its residuals.
    The second derivative is that of `forward`, run in `plain_operations`.
    """
    return lambda *inputs: _CustomGradient.apply(forward, backward, *inputs)[0]


def in_forward_mode(*tensors):
    """Whether a tensor carries a tangent, or may do so inside `torch.func.jvp`."""
    if torch.compiler.is_compiling():
        return False
    # No public function names the transformations around a call, and under torch.func.hessian
    # the tangents lie inside of tensors that show none.
    functorch = torch._C._functorch
    around = functorch.get_interpreter_stack() or ()
    if any(each.key() == functorch.TransformType.Jvp for each in around):
        return True
    unpack = torch.autograd.forward_ad.unpack_dual
    return any(unpack(x).tangent is not None for x in tensors if torch.is_tensor(x))


def recomputed(function):
    """`function`, of which nothing but its inputs is kept for the gradient."""
    return functools.partial(torch.utils.checkpoint.checkpoint, function, use_reentrant=False)


def vjp(function, inputs, gradient):
    """The gradient for each input of `function`, given that of its output."""
    return torch.func.vjp(function, *inputs)[1](gradient)


def drop(rows, columns, threshold, weights):
    """`weights`, 0 where row times column is below the threshold; in place if it can."""
    keep = _keep(rows, columns, threshold)
    if are_operations_plain():
        return weights * keep
    weights.view(torch.int32).mul_(keep)
    return weights


def dropout_gradient(rows, columns, threshold, p, gradient, delta):
    """Returns p * (drop(gradient) - delta), and drop(p), in the place of both."""
    keep = _keep(rows, columns, threshold)
    gradient.view(torch.int32).mul_(keep)
    gradient.sub_(delta).mul_(p)
    p.view(torch.int32).mul_(keep)
    return gradient, p


def _keep(rows, columns, threshold):
    """1 where a weight stays and 0 elsewhere, for the bits of the weights."""
    # A comparison to bool, or a choice by bool, takes as long as four operations on integers.
    return (rows * columns.mT).ge_(threshold)


def exp_difference(x, level):
    """exp(x - level), in the place of x if it can."""
    return torch.exp(x - level) if are_operations_plain() else x.sub_(level).exp_()


def softmax_gradient(p, gradient, delta):
    """Returns p * (gradient - delta), in the place of `gradient`."""
    return gradient.sub_(delta).mul_(p)


def dense_pays(scores, share):
    """Whether so many scores are faster made at once than a share of them in blocks.

    Measured on two CPU cores: blocks are 1.2x to 1.6x faster at T = 1024 and 2048.
    """
    return False


def fused_unsupported(call):
    """Why `scaled_dot_product_attention` cannot take the call, or None."""
    if is_exported_to_onnx():
        return "the model is exported to ONNX, whose operators are plain"
    if call.softcap is not None:
        return "scaled_dot_product_attention has no softcap"
    if call.sinks is not None:
        return "scaled_dot_product_attention has no sinks"
    if call.mask is not None and call.queries is None and _is_exported_for_gpu(call.query):
        return "its mask for a GPU cannot be exported for any T and S"
    if call.dropout_rate and isinstance(call.seed, int):
        return "scaled_dot_product_attention draws from PyTorch's generator, whatever the seed"
    return None


def _is_exported_for_gpu(x):
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # from 2.7
    return is_exporting() and x.device.type == "cuda"


def fused_unprofitable(call):
    """Why the kernel would not pay here, or None."""
    if call.dropout_rate and not is_on_gpu(call.query):
        return "on CPU scaled_dot_product_attention builds the T x S scores under dropout"
    return None


def fused_masks_pay(call):
    """Whether the kernel with a T x S mask is faster than with the keys of a window alone.

    Measured on an H100, forward + backward, Window(256): at T = 4096 and 8192 it takes 0.3 and 0.6
    of the time of bands in float32, at T = 16384 2.2 times as long; in bfloat16 0.1 to 0.4.
    """
    if None in (call.queries, call.keys) or not is_on_gpu(call.query):
        return False
    return call.queries * call.keys <= (2**28 if call.is_half else 2**26)


def is_on_gpu(x):
    """Whether a tensor lies on a GPU, or would: where steps of a loop wait for their kernels."""
    device = getattr(x, "device", None)  # symbolic tensors have none
    return torch.cuda.is_available() if device is None else device.type == "cuda"


MOST_AXES = 64
FUSED_RULES = frozenset({"causal"})


def fused_attention(call, mask, rules):
    """`scaled_dot_product_attention` on heads-first tensors."""
    if call.bias is not None:
        bias = call.bias.to(call.query.dtype)  # float32, or float64 of queries in that
        mask = bias if mask is None else torch.where(mask, bias, float("-inf"))
    tensors = [x.transpose(1, 2) for x in (call.query, call.key, call.value)]
    if tensors[0].device.type == "cpu":  # whose kernel takes 4 % longer over the strides of a QKV
        tensors = [x.contiguous() for x in tensors]
    output = torch.nn.functional.scaled_dot_product_attention(
        *tensors,
        attn_mask=mask,
        dropout_p=call.dropout_rate,
        is_causal=rules.get("causal", False),
        scale=call.scale,
        enable_gqa=call.groups > 1,
    )
    _explain_second_derivatives(output)
    return output.transpose(1, 2)


def step_attention(query, key, value, keep, scale):
    """`scaled_dot_product_attention` without gradients: one call in place of eight."""
    tensors = query, key, value
    kinds = {(x.dtype, x.shape[1]) for x in tensors}  # it would copy the keys of grouped heads
    if len(kinds) > 1 or is_exported_to_onnx():
        return None
    if _is_recorded(*tensors) or in_forward_mode(*tensors):  # NaN, where a row of the mask is empty
        return None
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, keep, scale=scale)


def _explain_second_derivatives(output):
    """Lets a second derivative through the output of a fused kernel raise an error that helps."""
    # Where no kernel serves, as for values of another width than keys, PyTorch computes by plain
    # operations, which have second derivatives.
    if torch.compiler.is_compiling() or "ScaledDotProduct" not in type(output.grad_fn).__name__:
        return

    def explained(gradients, _):
        """The kernel's gradients, whose own gradients raise."""
        differentiable = [x is not None and x.requires_grad for x in gradients]
        pairs = zip(gradients, differentiable, strict=True)
        return tuple(_OnceDifferentiable.apply(x) if known else x for x, known in pairs)

    output.grad_fn.register_hook(explained)


class _OnceDifferentiable(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Nothing is needed: `torch.func` wants the two apart."""

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError(
            "PyTorch's scaled_dot_product_attention has no second derivative; use "
            "implementation='chunked', 'banded' or 'dense', which have one; received: "
            "implementation='fused', or 'auto', which took it"
        )


def devices():
    """Names of the devices here, as `keras.device` takes them."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def dense_gradient(gradient):
    """A gradient as a tensor."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def norms(tensors):
    """Of each tensor: `(len(tensors),)` float32."""
    return torch.stack(torch._foreach_norm([x.float() for x in tensors]))


def scaled(tensors, factors):
    """Each tensor times its float32 factor, in its own dtype."""
    if len({id(factor) for factor in factors}) == 1:
        scaled = torch._foreach_mul([x.float() for x in tensors], factors[0])
    else:
        scaled = torch._foreach_mul([x.float() for x in tensors], list(factors))
    return [y.to(x.dtype) for x, y in zip(tensors, scaled, strict=True)]


def update_if(condition, update, variables):
    """Call update(), and undo what it does to `variables` unless the condition is True."""
    if condition.device.type == "cpu":
        if condition:
            update()
        return
    values = [variable.value.detach() for variable in variables]  # no wait for the device
    before = [value.clone() for value in values]
    update()
    for variable, old in zip(variables, before, strict=True):
        variable.value.detach().copy_(torch.where(condition, variable.value, old))


def attribute(value):
    """A scalar as what an optimizer's code takes for one of its numbers: a float, here."""
    return value.item()


def can_trace(function):
    """Whether compiled code can have this function of a float32 scalar."""
    return True  # Keras runs it as it stands


def dry_run(optimizer):
    """Nothing: a fault in an update leaves the weights as they are."""


def try_shapes(function):
    """Run `function()` for what it raises: nothing is computed or allocated."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        function()


def random_state():
    """Of the generators of CPU and GPUs: NumPy arrays."""
    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return [state.numpy().copy() for state in states]


def set_random_state(state):
    """Set what `random_state` has returned."""
    cpu, *gpus = (torch.from_numpy(each.copy()) for each in state)
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(gpus)


def shuffling_seed():
    """None: arrays are shuffled from the generator's state."""
    return
