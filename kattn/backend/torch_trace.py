"""A function of tensors as a graph of PyTorch's calls, without the Python that led to them.

A step of a small model spends nearly all of its time in Python, in `Layer.__call__` of Keras.
"""

import keras
import optree
import torch
from torch.fx.experimental.proxy_tensor import make_fx

MOST = 64  # graphs that a function keeps: each length of a cache makes another
aten = torch.ops.aten
# They may give their input as it is.
_CHANGES_OF_FORM = {
    aten.detach.default,
    aten.expand.default,
    aten.reshape.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.view.default,
}
# The same functions, which take half as long to be called.
_FASTER = {
    aten.add.Tensor: torch.add,
    aten.any.dims: torch.any,
    aten.cat.default: torch.cat,
    aten.embedding.default: torch.embedding,
    aten.ge.Scalar: torch.ge,
    aten.gelu.default: torch.nn.functional.gelu,
    aten.index_put_.default: torch.index_put_,
    aten.layer_norm.default: torch.layer_norm,
    aten.logical_and.default: torch.logical_and,
    aten.lt.Scalar: torch.lt,
    aten.lt.Tensor: torch.lt,
    aten.matmul.default: torch.matmul,
    aten.mul.Tensor: torch.mul,
    aten.permute.default: torch.permute,
    aten.reshape.default: torch.reshape,
    aten.select.int: torch.select,
    aten.softmax.int: torch.softmax,
    aten.sub.Tensor: torch.sub,
    aten.swapaxes.default: torch.swapaxes,
    aten.to.dtype: torch.Tensor.to,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.where.self: torch.where,
}


class Traced:
    """`function(*trees)` of trees of tensors, traced once per shapes; called where that fails.

    Tensors without numbers are traced, so that it fails if numbers decide what is computed.

    Args:
        function: Function of trees of tensors and None that gives such a tree, without gradients.
        variables: Variables that it reads, and whose values may change from call to call.
    """

    def __init__(self, function, variables):
        self._function, self._variables = function, variables
        self._graphs = {}

    def at_present(self):
        """The function, with the values that the variables have now."""
        values = [variable.value for variable in self._variables]
        kinds = tuple(map(_kind, values))

        def run(*trees):
            leaves, form = _flatten(trees)
            key = form, tuple(map(_kind, leaves)), kinds
            if key not in self._graphs:
                if len(self._graphs) == MOST:
                    del self._graphs[next(iter(self._graphs))]
                self._graphs[key] = self._trace(values, leaves, form)
            graph = self._graphs[key]
            return self._function(*trees) if graph is None else graph(values, leaves)

        return run

    def _trace(self, values, leaves, form):
        try:
            return _Graph(self._function, self._variables, values, leaves, form)
        except Exception:  # noqa: BLE001, what is wrong with the function its call will tell
            return None


class _Graph:
    """`function` of values and leaves, which must have the shapes that these have."""

    def __init__(self, function, variables, values, leaves, form):
        def flat(*tensors):
            values, rest = tensors[: len(variables)], iter(tensors[len(variables) :])
            filled = [None if x is None else next(rest) for x in leaves]
            pairs = list(zip(variables, values, strict=True))
            with keras.StatelessScope(state_mapping=pairs) as scope:
                before = dict(scope.state_mapping)
                outputs = function(*optree.tree_unflatten(form, filled))
            if any(before.get(key) is not x for key, x in scope.state_mapping.items()):
                raise ValueError("A function that is traced must not assign to variables")
            self._outputs, self._form = _flatten(outputs)
            return _tensors(self._outputs)

        # Another object for each: two leaves that are one now need not be one in the next call.
        given = [x.detach() for x in (*values, *_tensors(leaves))]
        # `torch.export`, which is built on this, takes three times as long, and its graphs spend a
        # third of their calls on checks of dtypes.
        trace = make_fx(flat, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)
        module = trace(*given)
        self._is_none = [x is None for x in self._outputs]
        del self._outputs
        self._constants = _simplified(module)
        self._run = module.forward

    def __call__(self, values, leaves):
        outputs = iter(self._run(*values, *_tensors(leaves), *self._constants))
        filled = [None if is_none else next(outputs) for is_none in self._is_none]
        return optree.tree_unflatten(self._form, filled)


def _flatten(tree):
    """Leaves and form of a tree: `keras.tree` has the former only, and takes ten times as long."""
    return optree.tree_flatten(tree, none_is_leaf=True, namespace="keras")


def _kind(x):
    """What a graph depends on."""
    return (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, torch.Tensor) else type(x)


def _tensors(leaves):
    """Those that are not None; ValueError if one is no tensor, which would be frozen."""
    found = [x for x in leaves if x is not None]
    if not all(isinstance(x, torch.Tensor) for x in found):
        raise ValueError("All leaves must be tensors, or None")
    return found


def _simplified(module):
    """The constants that a module takes behind its inputs, once it was made as short as it can."""
    graph = module.graph
    for node in graph.nodes:
        if _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    constants = _take_out_constants(module)
    for node in graph.nodes:
        node.target = _FASTER.get(node.target, node.target)
    graph.set_codegen(torch.fx.graph.CodeGen())  # without trees
    module.recompile()
    return constants


def _does_nothing(node):
    if node.target not in _CHANGES_OF_FORM or True in (*node.args, *node.kwargs.values()):
        return False  # True may ask for a copy
    x, y = node.args[0].meta.get("val"), node.meta.get("val")
    return x is not None and y is not None and _kind(x) == _kind(y)


def _take_out_constants(module):
    """Makes inputs of all that depends on no input, computed once; returns these."""
    graph = module.graph
    constants: list[torch.Tensor] = []
    values = _fixed_values(module)
    start = next(node for node in graph.nodes if node.op != "placeholder")
    for node, value in values.items():
        if any(user not in values for user in node.users):
            with graph.inserting_before(start):
                new = graph.placeholder(f"constant{len(constants)}")
            node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in values)
            constants.append(value)
    graph.eliminate_dead_code()
    return constants


def _fixed_values(module):
    """The tensors that the code of the function has, and all that follows from literals in it."""
    fixed, values = _fixed(module.graph), {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(module, node.target, None), torch.Tensor):
            values[node] = getattr(module, node.target)
        elif node in fixed:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.get)
            values[node] = node.target(*args, **kwargs)
    return values


def _fixed(graph):
    """The nodes that are the same in each call, and whose memory stays theirs."""
    fixed = set()
    for node in graph.nodes:
        is_literal = node.target is aten.lift_fresh_copy.default
        if is_literal or (_is_function(node) and all(x in fixed for x in node.all_input_nodes)):
            fixed.add(node)
    for node in reversed(graph.nodes):
        if any(user not in fixed and _may_share(user, node) for user in node.users):
            fixed.discard(node)
    return fixed


def _is_function(node):
    """Whether it gives the same for the same, and does nothing else."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _may_share(user, node):
    """Whether a node may write in another, or give some of its memory away."""
    if (
        not isinstance(user.target, torch._ops.OpOverload)
        or user.target is aten._unsafe_view.default
    ):
        return True
    given = {**dict(enumerate(user.args)), **user.kwargs}
    arguments = enumerate(user.target._schema.arguments)
    shared = [given.get(i, given.get(x.name)) for i, x in arguments if x.alias_info is not None]
    return node in keras.tree.flatten(shared)
