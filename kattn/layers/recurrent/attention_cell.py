"""A Keras cell that attends to a memory in each step."""

import functools
from typing import Any

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.mask_reader import read_padded
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.nested_layers import layer_config
from kattn.layers.recurrent.additive_score import AdditiveScore
from kattn.layers.recurrent.attention_score import AttentionScore
from kattn.layers.recurrent.dot_score import DotScore
from kattn.layers.recurrent.general_score import GeneralScore
from kattn.layers.recurrent.location_score import LocationScore
from kattn.layers.recurrent.predicted_window import PredictedWindow
from kattn.layers.recurrent.recurrent_cells import Cell, read_cell
from kattn.layers.recurrent.split_steps import JoinedSteps
from kattn.layers.transformer.transformer_block import part_config, read_part
from kattn.ops.alignment import count_positions, joined, mix, weights_of
from kattn.ops.step_loop import Memory

SCORES: dict[str, type[AttentionScore]] = {
    "dot": DotScore,
    "general": GeneralScore,
    "additive": AdditiveScore,
    "location": LocationScore,
}
ORDERS = ("before", "after")
OUTPUTS = ("state", "context", "both", "attentional")
ARGUMENTS = ("attend", "output", "input_feeding", "memory_width")


@keras.saving.register_keras_serializable("kattn")
class AttentionCell(QuantizableLayer):
    """A cell whose state asks a memory, and gets a context c_t = sum_s a_ts h_s, in each step.

    attend="before": the state before the step asks, and the context enters the state,
    s_t = cell([x_t; c_t], s_{t-1}). attend="after": the state after the step asks,
    s_t = cell(x_t, s_{t-1}), and the context enters the output; with `input_feeding` the output
    y_t is a part of the next input, s_t = cell([x_t; y_{t-1}], s_{t-1}).

    `AttentionRNN` is what to use in a model. This cell is for those who have a loop of their own,
    such as `keras.layers.RNN`: the keys and values of the memory, computed once by `initial_state`,
    are a part of its state. With input feeding, and an output that holds the context, call
    `initial_state` or `build` before `keras.layers.RNN` is made: the layer asks for the sizes of
    the states, which are not known before. In a functional model `initial_state` takes the symbolic
    tensor of the memory; `keras.models.load_model` cannot read a file of such a model, so call
    `initial_state` and the loop in a layer of your own there, or use `AttentionRNN`.

    Shapes: B batch, C channels of the input, S steps and E channels of the memory, U channels of
    the cell's hidden state.

    Args:
        cell: Keras cell: a layer with a `state_size`, such as `keras.layers.LSTMCell(64)`. Its
            first state is the hidden state that asks; of `keras.layers.StackedRNNCells` it is that
            of the last cell.
        attention: Name of the score, "dot", "general", "additive" or "location", or one such as
            `MultiHeadScore(4)` or `AdditiveScore(32)`.
        attend: Whether the state asks "before" or "after" it changes.
        output: What a step gives: the cell's output, "state"; the "context"; "both" side by side;
            or "attentional", tanh([context; state] W). None for "state" where it attends before,
            and "attentional" where it attends after.
        input_feeding: Whether the output of a step is a part of the input of the next, for
            attend="after".
        window: `PredictedWindow`, or None to attend to all steps of the memory.
        memory_width: Number of channels of the memory, E. None for that of the input.
        kernel_initializer: Initializer of W.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        inputs: Input of one step, float, shape `(B, C)`.
        states: List of tensors: the states of the cell; the last output if it is fed; the last
            weights if the score reads them; then keys, values and mask of the memory.
        training: Whether this is a step of training, for which the cell must have no dropout.

    Returns:
        `(output, states)`: the output, shape `(B, output_size)`; and the next states.

    Raises:
        ValueError: If an argument is out of range, if `cell` is no cell or `attention` no score; if
            there is no memory, or `memory_width` is not its width; in training, if the cell has
            dropout, as nothing can be drawn inside of a loop. `AttentionRNN` draws it before.

    Example:
        >>> cell = kattn.layers.AttentionCell(keras.layers.GRUCell(8), "additive", memory_width=6)
        >>> rnn = keras.layers.RNN(cell, return_sequences=True)
        >>> states = cell.initial_state(keras.random.normal((2, 5, 6)))
        >>> rnn(keras.random.normal((2, 7, 4)), initial_state=states).shape
        (2, 7, 8)

    Reference:
        "before": Bahdanau et al. 2014, sec. 3.1, https://arxiv.org/abs/1409.0473
        "after", "attentional", input feeding: Luong et al. 2015, sec. 3,
        https://arxiv.org/abs/1508.04025
    """

    def __init__(
        self,
        cell,
        attention="additive",
        *,
        attend="before",
        output=None,
        input_feeding=False,
        window=None,
        memory_width=None,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        arguments.check_choice(ORDERS, attend=attend)
        arguments.check_choice((None, *OUTPUTS), output=output)
        arguments.check_optional_integers(1, memory_width=memory_width)
        _check_order(attend, output, input_feeding)
        self.cell = read_cell(cell)
        self.attention = read_score(attention, self.dtype_policy)
        self.attend = attend
        self.output_kind = output or ("state" if attend == "before" else "attentional")
        self.input_feeding = input_feeding
        self.window = read_window(window)
        self.memory_width = memory_width
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self._given_output = output
        self.wrapped = Cell(self.cell)
        self._combine = None
        self._width: int | None = None  # of the memory

    @property
    def state_size(self):
        """Sizes of the states: those of the cell, of what is fed on, and of the memory."""
        sizes = list(self.wrapped.sizes) + ([self.output_size] if self.input_feeding else [])
        return [*sizes, *[None] * (4 if self.attention.reads_weights else 3)]

    @property
    def output_size(self):
        """Number of channels of the output; that of contexts is known once the cell is built."""
        units = self.wrapped.output_size
        if self.output_kind in ("state", "attentional"):
            return units
        return self._context_width + (units if self.output_kind == "both" else 0)

    @property
    def _context_width(self):
        if not self.attention.built:
            raise arguments.error(
                "A cell must be built before the width of its context is known: call its `build` "
                "or `initial_state` before keras.layers.RNN is made",
                cell=self.name,
                built=False,
            )
        return self.attention.context_width(self._width)

    def build(self, inputs_shape):
        units, width = self.wrapped.units, self.memory_width or inputs_shape[-1]
        if self._width not in (None, width):
            raise arguments.error(
                "`memory_width` must be the number of channels of the memory that `initial_state` "
                "got, as it is not that of the input",
                memory_width=None,
                memory_channels=self._width,
                input_channels=width,
            )
        self._width = width
        if not self.attention.built:
            self.attention.build((None, None, units), (None, None, self._width))
        if self.window is not None and not self.window.built:
            self.window.build((None, None, units))
        if self.output_kind == "attentional":
            self._combine = keras.layers.Dense(
                self.wrapped.output_size,
                activation="tanh",
                use_bias=False,
                kernel_initializer=self.kernel_initializer,
                dtype=self.dtype_policy,
                name="combine",
            )
            self._combine.build((None, self._context_width + self.wrapped.output_size))
        if not self.cell.built:
            self.cell.build((inputs_shape[0], inputs_shape[-1] + self.fed_width))
            self.cell.built = True
        self.built = True

    @property
    def fed_width(self):
        """Number of channels that the cell reads beside the input: the context, or the output."""
        if self.attend == "before":
            return self._context_width
        return self.output_size if self.input_feeding else 0

    def get_initial_state(self, batch_size=None):
        """Raises ValueError, as a cell without a memory has nothing to attend to.

        Args:
            batch_size: Number of sequences.
        """
        raise arguments.error(
            "`initial_state` of the recurrent layer must be given, as it holds the memory: pass "
            "`initial_state=cell.initial_state(memory)`, or use kattn.layers.AttentionRNN",
            initial_state=None,
        )

    def initial_state(self, memory, memory_mask=None):
        """The states before the first step, with the keys and values of a memory.

        Args:
            memory: Sequence to attend to, float, shape `(B, S, E)`.
            memory_mask: Padding of the memory, bool, shape `(B, S)`, True = real step; False is
                never attended to. It is combined with the Keras mask of `memory`.

        Returns:
            List of tensors with the batch axis first.

        Raises:
            ValueError: If the memory is of another rank or width than the cell is for.
        """
        memory, real = read_padded(memory, memory_mask, "memory_mask")
        width = self._width or self.memory_width or memory.shape[-1]
        check_memory(memory, width)
        if not self.attention.built:
            self.attention.build((None, None, self.wrapped.units), (None, None, width))
        self._width = width
        keys, values = self.project(memory)
        real = ops.ones_like(memory[..., 0], "bool") if real is None else real
        return [*self._first_states_of(memory, keys), keys, values, ops.cast(real, "float32")]

    def _first_states_of(self, memory, keys):
        """The states before the first step, without the memory: a list.

        Those of one item are added to zeros of the memory, as no more may be known of a symbolic
        tensor than that it has a batch axis.
        """
        states = self.first_states(1, 1)
        if "weights" in states:
            states["weights"] = ops.zeros_like(keys[:, :1, :, 0]) + states["weights"]  # (B, N, S)
        zeros = ops.sum(ops.zeros_like(memory), axis=1)[:, :1]  # (B, 1)
        own = keras.tree.map_structure(
            lambda x: ops.cast(zeros, x.dtype) + x, [states["cell"], states.get("fed", [])]
        )
        return keras.tree.flatten([*own, states.get("weights", [])])

    def call(self, inputs, states, training=None):
        if training and self.wrapped.drops:
            raise arguments.error(
                "`cell` must have no dropout here, as it would be drawn in the loop; use "
                "kattn.layers.AttentionRNN",
                cell=self.cell.name,
            )
        like = self.state_template()
        own, (keys, values, real) = states[: len(states) - 3], states[-3:]
        own = keras.tree.pack_sequence_as(like, list(own))
        positions = None
        if self.window is not None:
            positions = count_positions(real > 0.5, real)
        float_keys, float_values = (ops.cast(x, "float32") for x in (keys, values))
        memory = Memory(float_keys, float_values, real > 0.5, positions)
        steps = JoinedSteps(self.wrapped, training=bool(training))
        own, y, _ = self.step(steps, own, inputs, memory, memory.real[:, None, None])
        return y, [*keras.tree.flatten(own), keys, values, real]

    def project(self, memory):
        """The keys and values of a memory, float32."""
        return self.attention.project(ops.cast(memory, self.compute_dtype))

    def state_template(self):
        """The structure of the states that change: a dictionary of what there is."""
        template: dict[str, Any] = {"cell": [0] * len(self.wrapped.sizes)}
        if self.input_feeding:
            template["fed"] = 0
        if self.attention.reads_weights:
            template["weights"] = 0
        return template

    def first_states(self, batch_size, memory_steps, cell_states=None, fed=None):
        """The states before the first step, without the memory: a dictionary."""
        if cell_states is None:
            cell_states = self.wrapped.initial_states(batch_size)
        states = {"cell": cell_states}
        if self.input_feeding:
            zeros = functools.partial(ops.zeros, (batch_size, self.output_size))
            states["fed"] = zeros(self.compute_dtype) if fed is None else fed
        if self.attention.reads_weights:
            shape = (batch_size, self.attention.num_heads, memory_steps)
            states["weights"] = ops.zeros(shape, "float32")
        return states

    def step(self, steps, states, x, memory, allowed=None, counts=None):
        """One step, as a pure function.

        Args:
            steps: How the cell is called, see `kattn.layers.recurrent.split_steps`.
            states: Dictionary of states, see `first_states`.
            x: What `steps.prepare` made of the input of the step.
            memory: `Memory` to attend to.
            allowed: Bool, `(B, 1, 1, S)` or what can be broadcast to it, True = may be attended to;
                or None.
            counts: Number of steps that a predicted window may lie on, `(B, 1)` or `(1, 1)`. None
                for the real steps of the memory.

        Returns:
            `(states, output, weights)`: the next states; the output `(B, output_size)`; and the
            weights `(B, N, S)`.
        """
        cell_states, new = states["cell"], dict(states)
        attend = functools.partial(
            self._attend_once, memory=memory, allowed=allowed, counts=counts, states=states
        )
        if self.attend == "before":
            context, weights = attend(cell_states[self.wrapped.hidden])
            state, cell_states = steps.step(x, context, cell_states)
        else:
            state, cell_states = steps.step(x, states.get("fed"), cell_states)
            context, weights = attend(cell_states[self.wrapped.hidden])
        y = self.outputs(state, context)
        new["cell"] = cell_states
        if "fed" in states:
            new["fed"] = y
        if "weights" in states:
            new["weights"] = weights
        return new, y, weights

    def outputs(self, state, context):
        """The output, by the cell's output and the context, `(B, ..., channels)` each."""
        state = ops.cast(state, self.compute_dtype)  # the cell may have a policy of its own
        if self.output_kind == "state":
            return state
        if self.output_kind == "context":
            return context
        parts = [state, context] if self.output_kind == "both" else [context, state]
        both = ops.concatenate(parts, axis=-1)
        return both if self._combine is None else self._combine(both)

    def attend_all(self, query, memory, allowed=None, counts=None, weights=None):
        """Contexts `(B, T, E')` and weights `(B, N, T, S)` of states `(B, T, U)`."""
        scores = self.attention.score(query, memory.keys, weights)
        if self.window is None:
            weights = weights_of(scores, allowed)
        else:
            counts = count_real(memory) if counts is None else counts
            distances = self.window.distances(query, memory.positions, counts)
            near = ops.abs(distances) <= self.window.reach
            weights = weights_of(scores, joined(allowed, near))
            weights = weights * self.window.gaussian(distances)
        return ops.cast(mix(weights, memory.values), self.compute_dtype), weights

    def _attend_once(self, query, *, memory, allowed, counts, states):
        """The context `(B, E')` and the weights `(B, N, S)` of one state `(B, U)`."""
        before = states.get("weights")
        context, weights = self.attend_all(query[:, None], memory, allowed, counts, before)
        return context[:, 0], weights[:, :, 0]

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS if name != "output"},
            "output": self._given_output,
            "cell": part_config(self.cell),
            "attention": part_config(self.attention),
            "window": layer_config(self.window) and part_config(self.window),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def read_score(attention, policy):
    """The argument `attention` as a score, by name, by config or as it is."""
    if isinstance(attention, str):
        arguments.check_choice(tuple(SCORES), attention=attention)
        return SCORES[attention](dtype=policy, name="attention")
    if not isinstance(attention, (dict, AttentionScore)):
        names = ", ".join(map(repr, SCORES))
        raise arguments.error(
            f"`attention` must be one of {names}, or a score such as "
            "kattn.layers.MultiHeadScore(4)",
            attention=attention,
        )
    return read_part("attention", attention)


def read_window(window):
    """The argument `window` that is a layer, or its config, or None."""
    if window is None:
        return None
    if not isinstance(window, (dict, PredictedWindow)):
        raise arguments.error(
            "`window` must be None or a kattn.layers.PredictedWindow(10)", window=window
        )
    return read_part("window", window)


def check_memory(memory, width, batch_size=None, name="memory"):
    """Raises ValueError unless a memory has the rank, the width and the batch that are wanted."""
    shape = tuple(memory.shape)
    if len(shape) != 3:
        rule = f"`{name}` must have rank 3, (batch, steps, channels)"
        raise arguments.error(rule, **{name: memory})
    if shape[-1] != width:
        rule = f"`{name}` must have as many channels as the layer is built for"
        raise arguments.error(rule, **{name: memory}, channels=width)
    sizes = shape[0], batch_size
    if all(map(arguments.is_integer, sizes)) and sizes[0] != sizes[1]:
        rule = f"`{name}` must be an array with one item for each sequence"
        raise arguments.error(rule, **{name: memory}, batch_size=batch_size)


def count_real(memory):
    """How many real steps a memory has, `(B, 1)`."""
    if memory.real is None:
        return ops.full((1, 1), ops.shape(memory.keys)[2], "int32")
    return ops.sum(ops.cast(memory.real, "int32"), axis=1, keepdims=True)


def _check_order(attend, output, input_feeding):
    if input_feeding and attend == "before":
        raise arguments.error(
            '`input_feeding` must be False for attend="before", where the context is a part of the '
            "input already",
            input_feeding=input_feeding,
            attend=attend,
        )
    if attend == "after" and output == "state":
        raise arguments.error(
            '`output` must have the context in it for attend="after", where it enters nothing '
            "else: use 'context', 'both' or 'attentional'",
            output=output,
            attend=attend,
        )
