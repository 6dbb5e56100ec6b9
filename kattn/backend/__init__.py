"""What differs between frameworks, behind the same few functions.

`tensorflow.py`, `jax.py` and `torch.py` each define

    compiled(function)            function(plan, *tensors), compiled once per hashable plan
    program(function, variables, jit_compile)
                                  function(*tensors), compiled once per shapes, whatever the values
                                  of the variables that it reads; on TensorFlow by XLA if asked to
    step_maker(function, variables)
                                  a function that gives `function` as a loop repeats it: PyTorch,
                                  which compiles no loop, has it traced once per shapes
    matmul(a, b)                  float32 product; transpose_a, transpose_b
    by_row(f, x)                  f(x), which acts along the last axis of x only
    softmax(x)                    over the last axis; Keras's warns where it has size 1
    highest(x, axis)              the maximum, where PyTorch's compiler stops at Keras's
    pad(x, ends, value)           x with `value` at the ends of each axis; likewise
    running_maximum(x)            along axis 1; Keras's scan leaves PyTorch's GPU
    loop(lower, upper, body, x)   x = body(i, x) for i in [lower, upper); not differentiable
    loop_over(lists, i, body, x)  x = body(j, x) for the integers j in lists[i]; likewise
    scan(step, x, inputs)         x, y = step(x, input) for each input; the last x and all y
    unrolls_loops(x)              whether a loop over x is traced turn by turn
    scan_trees(step, x, inputs, like)
                                  likewise for structures of tensors, differentiable in O(T)
    take(x, i)                    x[i]
    add_at(x, i, update)          x with x[i] += update; x may be changed in place
    put_at(x, i, value)           x with x[i] = value; x may be changed in place
    cut(x, start, size)           x[start : start + size]; start may be traced
    add_span(x, start, update)    x with x[start : start + len(update)] += update; x may be changed
    gather(x, index, axis)        the entries of x at an index of any shape
    put_step(x, slot, value)      x `(B, K, L, D)` with x[b, :, slot[b]] = value[b]; likewise
    overwrite(x, y)               y; in place of x where that can be
    constant(numbers, like)       Python numbers as float32, on the device of `like`
    concrete(x)                   x as NumPy where that costs nothing, or None
    is_made_up(x)                 whether x only stands for shapes that Keras infers
    is_exported_to_onnx()         whether the call is traced for it, where this makes a difference
    is_computed(size)             whether a size is a tensor, over which a loop may run
    custom_gradient(f, g)         f with the gradient g
    in_forward_mode(*x)           whether one of them carries a tangent
    recomputed(f)                 f, run again for its gradient
    vjp(f, inputs, gradient)      f's gradient for each input, given that of its output
    drop(rows, columns, t, x)     x, 0 where row times column is below t; may change x
    exp_difference(x, level)      exp(x - level); x may be changed in place
    dropout_gradient(rows, columns, t, p, dp, d)
                                  p * (drop(dp) - d), and drop(p); p and dp may be changed
    softmax_gradient(p, dp, d)    p * (dp - d); dp may be changed in place
    dense_pays(scores, share)     whether dense is faster at so many, of which blocks make a share
    fused_unsupported(call)       why the framework's own attention cannot take a call, or None
    fused_unprofitable(call)      why it would not pay here, or None
    fused_masks_pay(call)         whether its kernel with a T x S mask is faster than bands
    fused_attention(call, mask, rules)
                                  the framework's own attention under an array, and under rules
    step_attention(query, key, value, keep, scale)
                                  the framework's own on heads-first tensors, for few queries; where
                                  a row of the mask is empty, its output means nothing; or None
    native_rnn_unsupported(*x)    why the framework has no loop of its own over the steps of an LSTM
                                  or a GRU for such tensors, or None
    native_rnn(kind, x, mask, states, weights)
                                  outputs `(B, T, U)` and states of this loop, under any mask
    MOST_AXES                     number of axes of a tensor that can be padded and cut
    FUSED_RULES                   those that it knows, see `kattn.ops.kernels.fused.native_rules`
    devices()                     names of the devices that `keras.device` takes here
    is_on_gpu(x)                  whether a tensor lies on a GPU, or would
    dense_gradient(g)             a gradient as a tensor
    norms(tensors)                l2 norms, `(len(tensors),)` float32
    scaled(tensors, factors)      each times its factor
    update_if(ok, f, variables)   f(), which changes `variables`, only if ok
    attribute(x)                  a scalar as what an optimizer may hold as one of its numbers
    can_trace(function)           of a float32 scalar, in compiled code
    dry_run(optimizer)            trace an update, where a fault in one would cost the weights
    try_shapes(function)          function() for what it raises, without computing anything
    random_state()                of generators for all, the framework's and PyTorch's where it is
                                  loaded (its DataLoader draws from it), as NumPy arrays in a list
    set_random_state(state)       what random_state() has returned
    shuffling_seed()              of the order in which arrays are shuffled, if there is one

No other folder imports a framework, and this one imports only the framework that Keras runs on.
"""

import keras

_NAME = keras.backend.backend()

if _NAME == "tensorflow":
    from kattn.backend import tensorflow as _framework
elif _NAME == "jax":
    from kattn.backend import jax as _framework  # type: ignore[no-redef]
elif _NAME == "torch":
    from kattn.backend import torch as _framework  # type: ignore[no-redef]
else:
    raise ImportError(
        "kattn runs on the Keras backends tensorflow, jax and torch; "
        f"received: keras.backend.backend()={_NAME!r}"
    )

compiled = _framework.compiled
program = _framework.program
step_maker = _framework.step_maker
matmul = _framework.matmul
by_row = _framework.by_row
softmax = _framework.softmax
highest = _framework.highest
pad = _framework.pad
running_maximum = _framework.running_maximum
loop = _framework.loop
loop_over = _framework.loop_over
scan = _framework.scan
unrolls_loops = _framework.unrolls_loops
scan_trees = _framework.scan_trees
take = _framework.take
add_at = _framework.add_at
put_at = _framework.put_at
cut = _framework.cut
add_span = _framework.add_span
gather = _framework.gather
put_step = _framework.put_step
overwrite = _framework.overwrite
constant = _framework.constant
concrete = _framework.concrete
is_made_up = _framework.is_made_up
is_exported_to_onnx = _framework.is_exported_to_onnx
is_computed = _framework.is_computed
custom_gradient = _framework.custom_gradient
in_forward_mode = _framework.in_forward_mode
recomputed = _framework.recomputed
vjp = _framework.vjp
drop = _framework.drop
exp_difference = _framework.exp_difference
dropout_gradient = _framework.dropout_gradient
softmax_gradient = _framework.softmax_gradient
dense_pays = _framework.dense_pays
fused_unsupported = _framework.fused_unsupported
fused_unprofitable = _framework.fused_unprofitable
fused_masks_pay = _framework.fused_masks_pay
fused_attention = _framework.fused_attention
step_attention = _framework.step_attention
native_rnn_unsupported = _framework.native_rnn_unsupported
native_rnn = _framework.native_rnn
FUSED_RULES = _framework.FUSED_RULES
MOST_AXES = _framework.MOST_AXES
devices = _framework.devices
is_on_gpu = _framework.is_on_gpu
dense_gradient = _framework.dense_gradient
norms = _framework.norms
scaled = _framework.scaled
update_if = _framework.update_if
attribute = _framework.attribute
can_trace = _framework.can_trace
dry_run = _framework.dry_run
try_shapes = _framework.try_shapes
random_state = _framework.random_state
set_random_state = _framework.set_random_state
shuffling_seed = _framework.shuffling_seed
