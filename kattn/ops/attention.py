"""The one entry to attention: checks a call, chooses its kernel, and says why.

Axes: B batch, T query steps, S key steps, N query heads, K key/value heads, D head width.
"""

import contextlib
import dataclasses
from typing import Any

import keras
from keras import ops

from kattn import biases, masks
from kattn.ops import masking
from kattn.ops.kernels import banded, chunked, dense, fused

# In the order in which "auto" asks them. A kernel's `unsupported(call)` says why it cannot serve a
# call, its `unprofitable(call)` why another kernel is the better choice; both None: it is taken.
KERNELS = {"banded": banded, "fused": fused, "chunked": chunked, "dense": dense}
# What takes other arguments, or gives another result.
ELSEWHERE = {"decode": "kattn.ops.decode", "linear": "kattn.ops.linear_attention"}


def attention(
    query,
    key,
    value,
    *,
    mask=None,
    bias=None,
    scale=None,
    dropout_rate=0.0,
    seed=None,
    softcap=None,
    sinks=None,
    implementation="auto",
):
    """softmax(scale * Q K^T + bias) V over the keys that `mask` lets each query see.

    A query that sees no key gets exactly 0. Softmax and its sums are in float32.

    Shapes: B batch, T query steps, S key steps, N query heads, K key/value heads, D and Dv head
    widths. Each key head serves N / K query heads.

    Args:
        query: `(B, T, N, D)` float.
        key: `(B, S, K, D)` float. N must be a multiple of K.
        value: `(B, S, K, Dv)` float.
        mask: True = may attend. A `kattn.masks.Mask`, or a bool array `(T, S)` or
            `(B, N, T, S)`, any of whose axes may be 1.
        bias: Added to the scaled scores: a `kattn.biases.Bias`, or a float array `(T, S)` or
            `(B, N, T, S)`, any of whose axes may be 1. -inf in an array masks.
        scale: Factor of Q K^T; None for 1 / sqrt(D).
        dropout_rate: Fraction of attention weights dropped, in [0, 1); the rest grow by
            1 / (1 - rate).
        seed: Integer or `keras.random.SeedGenerator` for dropout.
        softcap: If c, the scaled scores s become c * tanh(s / c) before bias and mask.
        sinks: `(N,)` float: a score per head that takes part in the softmax and has no value.
        implementation: "auto", or one of "dense", "fused", "chunked", "banded", or several of them to
            choose from. `explain` says which one a call takes, and why.

    Returns:
        `(B, T, N, Dv)` of the query's dtype.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit; if the kernel is unknown or cannot
            serve the call.

    Example:
        >>> x = keras.random.normal((2, 128, 8, 64))
        >>> attention(x, x, x, mask=masks.Causal() & masks.Window(32)).shape
        (2, 128, 8, 64)

    Reference:
        Vaswani et al. 2017, eq. 1, https://arxiv.org/abs/1706.03762
        Softcap: Gemma Team 2024, sec. 2, https://arxiv.org/abs/2408.00118
        Sinks: OpenAI 2025, sec. 2.2, https://arxiv.org/abs/2508.10925
    """
    call = Call.make(
        query, key, value, mask=mask, bias=bias, scale=scale, dropout_rate=dropout_rate, seed=seed,
        softcap=softcap, sinks=sinks,
    )  # fmt: skip
    if not call.is_symbolic:
        return _run(call, implementation)
    if dropout_rate:
        raise ValueError(
            "Dropout needs to know whether the model trains, which a function in a functional "
            f"model does not; use a layer. Received: dropout_rate={dropout_rate}"
        )
    explain(
        query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks,
        implementation=implementation,
    )  # fmt: skip
    rules = masking.without_arrays(call.mask), masking.without_arrays(call.bias)
    operation = Attention(*rules, call.scale, softcap, implementation)
    arrays = {"mask_arrays": call.mask, "bias_arrays": call.bias}
    arrays = {name: masking.arrays_of(rule) for name, rule in arrays.items()}
    return operation(query, key, value, sinks=sinks, **arrays)


def explain(
    query,
    key,
    value,
    *,
    mask=None,
    bias=None,
    scale=None,
    dropout_rate=0.0,
    seed=None,
    softcap=None,
    sinks=None,
    implementation="auto",
):
    """Which kernel `attention` takes for these arguments, and why not the others.

    Nothing is computed: shapes and dtypes decide, so `keras.KerasTensor` will do.

    Args:
        query: As in `attention`, as is all that follows.
        key: See `attention`.
        value: See `attention`.
        mask: See `attention`.
        bias: See `attention`.
        scale: See `attention`.
        dropout_rate: See `attention`.
        seed: See `attention`.
        softcap: See `attention`.
        sinks: See `attention`.
        implementation: See `attention`.

    Returns:
        An `Explanation`: `implementation`, a name, and `passed_over`, a reason by name.

    Raises:
        ValueError: Where `attention` would.

    Example:
        >>> x = keras.KerasTensor((1, 4096, 8, 64))
        >>> print(explain(x, x, x, mask=masks.Causal() & masks.Window(256)))
        banded
          ...
    """
    call = Call.make(
        query, key, value, mask=mask, bias=bias, scale=scale, dropout_rate=dropout_rate, seed=seed,
        softcap=softcap, sinks=sinks,
    )  # fmt: skip
    return _choose(call, implementation)


def attention_weights(query, key, *, mask=None, bias=None, scale=None, softcap=None, sinks=None):
    """The weights softmax(scale * Q K^T + bias) that `attention` would give the values.

    Args:
        query: `(B, T, N, D)` float.
        key: `(B, S, K, D)` float.
        mask: See `attention`.
        bias: See `attention`.
        scale: See `attention`.
        softcap: See `attention`.
        sinks: See `attention`; what a sink takes is missing from a row's sum.

    Returns:
        `(B, N, T, S)` float32. Rows sum to 1, or are 0 where a query sees no key.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit.

    Example:
        >>> x = keras.random.normal((1, 3, 2, 4))
        >>> attention_weights(x, x, mask=masks.Causal())[0, 0, 0]
        [1.0, 0.0, 0.0]
    """
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks}
    return dense.weights(Call.make(query, key, key, **options))


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` returns.

    Args:
        implementation: Name of the kernel that is taken.
        passed_over: Name of each other kernel to the reason it is not taken.
    """

    implementation: str
    passed_over: dict[str, str]

    def __str__(self):
        reasons = (f"  {name} passed over: {why}" for name, why in self.passed_over.items())
        return "\n".join([self.implementation, *reasons])


@keras.saving.register_keras_serializable("kattn")
class Attention(keras.Operation):
    """`attention` as a node of a functional model; `attention` makes it for symbolic tensors."""

    def __init__(self, mask, bias, scale, softcap, implementation, *, name=None):
        super().__init__(name=name)
        self.mask, self.bias, self.implementation = mask, bias, implementation
        self.scale, self.softcap = scale, softcap

    def call(self, query, key, value, sinks=None, mask_arrays=(), bias_arrays=()):
        mask = masking.with_arrays(self.mask, mask_arrays)
        bias = masking.with_arrays(self.bias, bias_arrays)
        options = {
            "scale": self.scale,
            "softcap": self.softcap,
            "implementation": self.implementation,
        }
        return attention(query, key, value, mask=mask, bias=bias, sinks=sinks, **options)

    def compute_output_spec(self, query, key, value, sinks=None, mask_arrays=(), bias_arrays=()):
        return keras.KerasTensor((*query.shape[:-1], value.shape[-1]), dtype=query.dtype)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "mask": self.mask and serialize(self.mask),
            "bias": self.bias and serialize(self.bias),
            "scale": self.scale,
            "softcap": self.softcap,
            "implementation": self.implementation,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        rules = {name: config[name] and deserialize(config[name]) for name in ("mask", "bias")}
        return cls(**{**config, **rules})


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Checked arguments of one call of `attention`."""

    query: Any
    key: Any
    value: Any
    mask: masks.Mask | None
    bias: biases.Bias | None
    scale: float
    dropout_rate: float
    seed: Any
    softcap: float | None
    sinks: Any

    @classmethod
    def make(
        cls,
        query,
        key,
        value,
        *,
        mask=None,
        bias=None,
        scale=None,
        dropout_rate=0.0,
        seed=None,
        softcap=None,
        sinks=None,
    ):
        """Raises ValueError for what does not fit."""
        query, key, value = (_tensor(x) for x in (query, key, value))
        check_sizes(query, key, value)
        batch, queries, heads, width = query.shape
        mask = masking.as_mask(mask)
        if mask is not None:
            mask.check(batch, heads, queries, key.shape[1])
        bias = masking.as_bias(bias)
        if bias is not None:
            bias.check(batch, heads, queries, key.shape[1])
        if sinks is not None:
            sinks = _tensor(sinks)
            if tuple(sinks.shape) != (heads,):
                raise ValueError(
                    f"`sinks` must have shape (N,)=({heads},); received: {tuple(sinks.shape)}"
                )
        if not 0.0 <= dropout_rate < 1.0:
            raise ValueError(f"`dropout_rate` must be in [0, 1); received: {dropout_rate}")
        if softcap is not None and not softcap > 0.0:
            raise ValueError(f"`softcap` must be positive; received: {softcap}")
        scale = width**-0.5 if scale is None else float(scale)
        return cls(query, key, value, mask, bias, scale, dropout_rate, seed, softcap, sinks)

    @property
    def key_heads(self):
        return self.key.shape[2]

    @property
    def groups(self):
        """Query heads per key head."""
        return self.query.shape[2] // self.key_heads

    @property
    def reach(self):
        """How many keys (before, after) its own position a query can see."""
        return (masks.UNBOUNDED, masks.UNBOUNDED) if self.mask is None else self.mask.reach

    @property
    def is_symbolic(self):
        arrays = (*masking.arrays_of(self.mask), *masking.arrays_of(self.bias))
        tensors = (self.query, self.key, self.value, self.sinks, *arrays)
        return any(isinstance(x, keras.KerasTensor) for x in tensors)


@contextlib.contextmanager
def observed(look):
    """For the length of a block, look(call) is called with each `Call` that is computed."""
    _observers.append(look)
    try:
        yield
    finally:
        _observers.remove(look)


_observers: list = []


def _run(call, implementation):
    for look in _observers:
        look(call)
    return KERNELS[_choose(call, implementation).implementation].attend(call)


def _choose(call, implementation):
    """The Explanation; raises ValueError for a kernel that is unknown or cannot serve."""
    asked = (
        tuple(KERNELS)
        if implementation == "auto"
        else (implementation,)
        if isinstance(implementation, str)
        else implementation
    )
    for name in asked:
        if name not in KERNELS:
            known = ", ".join(["auto", *KERNELS])
            if name in ELSEWHERE:
                raise ValueError(
                    f"implementation={name!r} is a function of its own, {ELSEWHERE[name]}; "
                    f"`implementation` must be one of {known}"
                )
            raise ValueError(
                f"`implementation` must be one of {known}; received: implementation={implementation!r}"
            )
    reasons = {
        name: f"implementation={implementation!r} was asked for"
        for name in KERNELS
        if name not in asked
    }
    unsupported = {name: KERNELS[name].unsupported(call) for name in KERNELS if name in asked}
    serving = [name for name, why in unsupported.items() if not why]
    if not serving:
        raise ValueError(
            f"implementation={implementation!r} cannot serve this call: {_listed(unsupported)}"
        )
    reasons |= {name: why for name, why in unsupported.items() if why}
    unprofitable = {name: KERNELS[name].unprofitable(call) for name in serving}
    # Where all of those asked for hesitate, the last of them, the plainest, serves.
    taken = next((name for name in serving if not unprofitable[name]), serving[-1])
    later = f"{taken} serves this call and comes first"
    reasons |= {name: unprofitable[name] or later for name in serving if name != taken}
    return Explanation(taken, reasons)


def _listed(unsupported):
    return "; ".join(f"{name}: {why}" for name, why in unsupported.items())


def _tensor(x):
    return x if isinstance(x, keras.KerasTensor) else ops.convert_to_tensor(x)


def check_sizes(query, key, value):
    """Raises ValueError unless these are queries, keys and values of one another."""
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    received = ", ".join(f"{name}.shape={tuple(shape)}" for name, shape in shapes.items())
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ValueError(f"`{name}` must have rank 4, (B, steps, heads, width); {received}")
    pairs = (
        ("The batch sizes", query.shape[0], key.shape[0]),
        ("The batch sizes", key.shape[0], value.shape[0]),
        ("The widths of query and key heads", query.shape[3], key.shape[3]),
        ("The steps of key and value", key.shape[1], value.shape[1]),
        ("The heads of key and value", key.shape[2], value.shape[2]),
    )
    for what, left, right in pairs:
        if left != right and left is not None and right is not None:
            raise ValueError(f"{what} must be equal; received: {received}")
    if query.shape[2] % key.shape[2]:
        raise ValueError(
            "The number of query heads must be a multiple of the number of key heads; "
            f"received: {query.shape[2]} and {key.shape[2]} ({received})"
        )
