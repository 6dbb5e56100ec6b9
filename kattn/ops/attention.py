"""The one entry to attention: checks a call, chooses its kernel, and says why.

Axes: B batch, T query steps, S key steps, N query heads, K key/value heads, D head width.
"""

import contextlib
import dataclasses
import numbers
from typing import Any

import keras
from keras import ops

from kattn import backend, biases, masks
from kattn.arguments import check_choice, check_fractions, check_positive, error
from kattn.ops import masking
from kattn.ops.kernels import banded, chunked, dense, fused
from kattn.ops.sizes import known_shape

# In the order in which "auto" asks them. A kernel's `unsupported(call)` says why it cannot serve a
# call, its `unprofitable(call)` why another kernel is the better choice; both None: it is taken.
KERNELS = {"banded": banded, "fused": fused, "chunked": chunked, "dense": dense}
# What takes other arguments, or gives another result, is a function of its own.
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

    A query that sees no key gets exactly 0. The softmax and the sums are computed in float32.

    Shapes: B batch, T query steps, S key steps, N query heads, K key/value heads, D and Dv head
    widths. Each key head serves N / K query heads.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        key: Keys, float, shape `(B, S, K, D)`. N must be a multiple of K.
        value: Values, float, shape `(B, S, K, Dv)`.
        mask: Which keys each query may attend to, True = may attend: a `kattn.masks.Mask`, or a
            bool array of shape `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. None allows
            everything. A masked key has a weight of 0, and 0 times NaN is NaN, so `key` and `value`
            must be finite there, too; layers see to that for padding, `ops.where` does for others.
        bias: Numbers that are added to the scaled scores: a `kattn.biases.Bias`, or a float array
            of shape `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. A key whose number is
            -inf is masked. None adds nothing.
        scale: Factor of the scores Q K^T, a number or a scalar tensor. None for 1 / sqrt(D).
        dropout_rate: Fraction of the attention weights that are dropped, in [0, 1). The weights
            that remain are multiplied by 1 / (1 - dropout_rate).
        seed: Integer or `keras.random.SeedGenerator` that decides which weights are dropped. None
            draws from the global random state of Keras.
        softcap: Positive number c; the scaled scores s become c * tanh(s / c), before bias and mask
            are applied. None for no cap.
        sinks: Score of each head that takes part in the softmax and has no value, float, shape
            `(N,)`. None for no sinks.
        implementation: Kernel that computes the result: "auto", "dense", "fused", "chunked" or
            "banded"; or a tuple of kernels to choose from. "auto" chooses from all of them.
            `explain` says which kernel a call takes, and why.

    Returns:
        Attended values, shape `(B, T, N, Dv)`, in the dtype of the query.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit, if `dropout_rate` or `softcap` is out of
            range, or if the kernel is unknown or cannot serve the call.

    Example:
        >>> x = keras.random.normal((2, 128, 8, 64))
        >>> mask = kattn.masks.Causal() & kattn.masks.Window(32)
        >>> attention(x, x, x, mask=mask).shape
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
        raise error(
            "Dropout needs to know whether the model trains, which a function in a functional "
            "model does not know; use a layer",
            dropout_rate=dropout_rate,
        )
    explain(
        query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks,
        implementation=implementation,
    )  # fmt: skip
    rules = masking.without_arrays(call.mask), masking.without_arrays(call.bias)
    number, tensor = (call.scale, None) if call.has_fixed_scale else (None, call.scale)
    operation = Attention(*rules, number, softcap, implementation)
    arrays = {"mask_arrays": call.mask, "bias_arrays": call.bias}
    arrays = {name: masking.arrays_of(rule) for name, rule in arrays.items()}
    return operation(query, key, value, sinks=sinks, scale=tensor, **arrays)


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
    """Which kernel `attention` takes for these arguments, and why it does not take the others.

    Nothing is computed: shapes and dtypes decide, so a `keras.KerasTensor` can stand for an array.

    Shapes: B batch, T query steps, S key steps, N query heads, K key/value heads, D and Dv head
    widths.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        key: Keys, float, shape `(B, S, K, D)`. N must be a multiple of K.
        value: Values, float, shape `(B, S, K, Dv)`.
        mask: Which keys each query may attend to, True = may attend: a `kattn.masks.Mask`, or a
            bool array of shape `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. None allows
            everything.
        bias: Numbers that are added to the scaled scores: a `kattn.biases.Bias`, or a float array
            of shape `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. A key whose number is
            -inf is masked. None adds nothing.
        scale: Factor of the scores Q K^T, a number or a scalar tensor. None for 1 / sqrt(D).
        dropout_rate: Fraction of the attention weights that are dropped, in [0, 1). The weights
            that remain are multiplied by 1 / (1 - dropout_rate).
        seed: Integer or `keras.random.SeedGenerator` that decides which weights are dropped. None
            draws from the global random state of Keras.
        softcap: Positive number c; the scaled scores s become c * tanh(s / c), before bias and mask
            are applied. None for no cap.
        sinks: Score of each head that takes part in the softmax and has no value, float, shape
            `(N,)`. None for no sinks.
        implementation: Kernel that computes the result: "auto", "dense", "fused", "chunked" or
            "banded"; or a tuple of kernels to choose from. "auto" chooses from all of them.

    Returns:
        An `Explanation`, with the name of the kernel and the reasons against the others.

    Raises:
        ValueError: If `attention` would raise it for the same arguments.

    Example:
        >>> x = keras.KerasTensor((1, 4096, 8, 64))
        >>> causal = kattn.masks.Causal()
        >>> print(explain(x, x, x, mask=causal, implementation=("chunked", "dense")))
        chunked
          banded passed over: implementation=('chunked', 'dense') was asked for
          fused passed over: implementation=('chunked', 'dense') was asked for
          dense passed over: chunked serves this call and comes first
    """
    call = Call.make(
        query, key, value, mask=mask, bias=bias, scale=scale, dropout_rate=dropout_rate, seed=seed,
        softcap=softcap, sinks=sinks,
    )  # fmt: skip
    return _choose(call, implementation)


def attention_weights(query, key, *, mask=None, bias=None, scale=None, softcap=None, sinks=None):
    """The weights softmax(scale * Q K^T + bias) that `attention` would give to the values.

    Shapes: B batch, T query steps, S key steps, N query heads, K key heads, D head width.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        key: Keys, float, shape `(B, S, K, D)`. N must be a multiple of K.
        mask: Which keys each query may attend to, True = may attend: a `kattn.masks.Mask`, or a
            bool array of shape `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. None allows
            everything.
        bias: Numbers that are added to the scaled scores: a `kattn.biases.Bias`, or a float array
            of shape `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. A key whose number is
            -inf is masked. None adds nothing.
        scale: Factor of the scores Q K^T, a number or a scalar tensor. None for 1 / sqrt(D).
        softcap: Positive number c; the scaled scores s become c * tanh(s / c), before bias and mask
            are applied. None for no cap.
        sinks: Score of each head that takes part in the softmax and has no value, float, shape
            `(N,)`. None for no sinks. What a sink takes is missing from the sum of a row.

    Returns:
        Weights, shape `(B, N, T, S)`, float32. Each row sums to 1 if there are no sinks, and is 0
        if its query sees no key.

    Raises:
        ValueError: If ranks, sizes or dtypes do not fit, or if `softcap` is out of range.

    Example:
        >>> x = keras.ops.ones((1, 3, 2, 4))
        >>> attention_weights(x, x, mask=kattn.masks.Causal())[0, 0]
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.3333, 0.3333, 0.3333]]

    Reference:
        Vaswani et al. 2017, eq. 1, https://arxiv.org/abs/1706.03762
    """
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks}
    return dense.weights(Call.make(query, key, key, **options))


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The kernel that `attention` takes for a call, and why it does not take the others.

    Args:
        implementation: Name of the kernel that is taken.
        passed_over: Dictionary from the name of each other kernel to the reason why it is not
            taken.
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

    def call(self, query, key, value, sinks=None, scale=None, mask_arrays=(), bias_arrays=()):
        mask = masking.with_arrays(self.mask, mask_arrays)
        bias = masking.with_arrays(self.bias, bias_arrays)
        scale = self.scale if scale is None else scale
        return attention(
            query, key, value, mask=mask, bias=bias, scale=scale, softcap=self.softcap,
            sinks=sinks, implementation=self.implementation,
        )  # fmt: skip

    def compute_output_spec(
        self, query, key, value, sinks=None, scale=None, mask_arrays=(), bias_arrays=()
    ):
        return keras.KerasTensor((*query.shape[:-1], value.shape[-1]), dtype=query.dtype)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "mask": None if self.mask is None else serialize(self.mask),
            "bias": None if self.bias is None else serialize(self.bias),
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
    """Checked arguments of one call of `attention`.

    `batch`, `queries`, `heads` and `keys` are B, T, N and S, or None where one is not known.
    """

    query: Any
    key: Any
    value: Any
    mask: masks.Mask | None
    bias: biases.Bias | None
    scale: Any
    dropout_rate: float
    seed: Any
    softcap: float | None
    sinks: Any
    batch: int | None = dataclasses.field(init=False)
    queries: int | None = dataclasses.field(init=False)
    heads: int | None = dataclasses.field(init=False)
    keys: int | None = dataclasses.field(init=False)

    def __post_init__(self):
        # Once for each call: every kernel that is asked looks at them.
        (batch, queries, heads, _), keys = known_shape(self.query), known_shape(self.key)[1]
        sizes = {"batch": batch, "queries": queries, "heads": heads, "keys": keys}
        for name, size in sizes.items():
            object.__setattr__(self, name, size)

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
        mask, bias = masking.as_mask(mask), masking.as_bias(bias)
        if sinks is not None:
            sinks = _tensor(sinks)
            if tuple(sinks.shape) != (query.shape[2],):
                raise error(f"`sinks` must have shape (N,)=({query.shape[2]},)", sinks=sinks)
        if dropout_rate != 0.0:
            check_fractions(dropout_rate=dropout_rate)
        if softcap is not None:
            check_positive(softcap=softcap)
        scale = query.shape[-1] ** -0.5 if scale is None else _scale(scale)
        call = cls(query, key, value, mask, bias, scale, dropout_rate, seed, softcap, sinks)
        for rule in (mask, bias):
            if rule is not None:
                rule.check(call.batch, call.heads, call.queries, call.keys)
        return call

    @property
    def has_scores(self):
        """Whether there is a query and a key, as far as is known."""
        return 0 not in (self.batch, self.queries, self.keys)

    @property
    def has_fixed_scale(self):
        """Whether the scale is a number, and no tensor."""
        return isinstance(self.scale, float)

    @property
    def is_half(self):
        """Whether the queries are in half precision."""
        return _dtype(self.query) in ("float16", "bfloat16")

    @property
    def has_unlike_dtypes(self):
        """Whether queries, keys and values are not all of one dtype."""
        if self.query.dtype == self.key.dtype == self.value.dtype:
            return False
        # A symbolic tensor has another name for the same dtype.
        return len({_dtype(x) for x in (self.query, self.key, self.value)}) > 1

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
        tensors = (self.query, self.key, self.value, self.sinks, self.scale, *arrays)
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
    kernel = KERNELS[_choose(call, implementation).implementation]
    # Where there are no scores, none are left out: the plainest way to zeros, or to nothing.
    return (kernel if call.has_scores else dense).attend(call)


def _choose(call, implementation):
    """The Explanation; raises ValueError for a kernel that is unknown or cannot serve."""
    asked = _asked(implementation)
    unsupported = {name: kernel.unsupported(call) for name, kernel in asked.items()}
    if backend.in_forward_mode(call.query, call.key, call.value):
        forward = "forward-mode differentiation goes through dense alone"
        unsupported |= {name: forward for name in asked if name != "dense"}
    serving = [name for name, why in unsupported.items() if not why]
    if not serving:
        reasons = "; ".join(f"{name}: {why}" for name, why in unsupported.items())
        raise error(
            f"The implementation cannot serve this call ({reasons})", implementation=implementation
        )
    unprofitable = {name: KERNELS[name].unprofitable(call) for name in serving}
    # If another kernel is better than each of those asked for, the last of them, the plainest,
    # serves.
    taken = next((name for name in serving if not unprofitable[name]), serving[-1])
    passed_over = {
        name: f"implementation={implementation!r} was asked for"
        for name in KERNELS
        if name not in asked
    }
    passed_over |= {name: why for name, why in unsupported.items() if why}
    later = f"{taken} serves this call and comes first"
    passed_over |= {name: why or later for name, why in unprofitable.items() if name != taken}
    return Explanation(taken, passed_over)


def _asked(implementation):
    """The kernels to choose from, by name, in the order of KERNELS."""
    if implementation == "auto":
        return KERNELS
    names = implementation if isinstance(implementation, tuple | list) else (implementation,)
    for name in names:
        if name in ELSEWHERE:
            rule = f"For {name!r} call {ELSEWHERE[name]}, which is a function of its own"
            raise error(rule, implementation=implementation)
        check_choice(("auto", *KERNELS), implementation=name)
    return {name: kernel for name, kernel in KERNELS.items() if name in names}


def _scale(scale):
    if isinstance(scale, numbers.Real):
        return float(scale)
    scale = _tensor(scale)
    if len(scale.shape):
        raise error("`scale` must be a number or a scalar tensor", scale=scale)
    return ops.cast(scale, "float32")


def _dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def _tensor(x):
    return x if isinstance(x, keras.KerasTensor) else ops.convert_to_tensor(x)


def check_sizes(query, key, value):
    """Raises ValueError unless these are queries, keys and values of one another.

    Args:
        query: Queries, float, shape `(B, T, N, D)`.
        key: Keys, float, shape `(B, S, K, D)`.
        value: Values, float, shape `(B, S, K, Dv)`.

    Raises:
        ValueError: If a rank is not 4, or if sizes that must be equal are not.
    """
    tensors = {"query": query, "key": key, "value": value}
    for name, x in tensors.items():
        if len(x.shape) != 4:
            raise error(_rank_rule(name, len(x.shape)), **tensors)
    of_query, of_key, of_value = (known_shape(x) for x in (query, key, value))
    pairs = (
        ("The batch sizes", of_query[0], of_key[0]),
        ("The batch sizes", of_key[0], of_value[0]),
        ("The widths of query and key heads", of_query[3], of_key[3]),
        ("The steps of key and value", of_key[1], of_value[1]),
        ("The heads of key and value", of_key[2], of_value[2]),
    )
    for what, left, right in pairs:
        if left != right and left is not None and right is not None:
            raise error(f"{what} must be equal", **tensors)
    if query.shape[2] % key.shape[2]:
        rule = "The number of query heads must be a multiple of the number of key heads"
        raise error(rule, query_heads=query.shape[2], key_heads=key.shape[2], **tensors)


def _rank_rule(name, rank):
    rule = f"`{name}` must have rank 4, (B, steps, heads, width)"
    if rank != 3:
        return rule
    return (
        f"{rule}; without a batch axis write {name}[None], without an axis of heads "
        f"{name}[:, :, None] for one head, or reshape it to (B, steps, heads, width / heads)"
    )
