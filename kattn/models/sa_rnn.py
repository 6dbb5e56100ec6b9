"""A recurrent network whose outputs attend to each other, for tokens, vectors and time series."""

import keras
from keras import layers, ops

from kattn import arguments
from kattn.layers.recurrent.decoding_rnn import DecodingRNN
from kattn.layers.recurrent.self_attention_rnn import SelfAttentionRNN

RNNS = {"lstm": layers.LSTM, "gru": layers.GRU}
POOLINGS = ("flatten", "last")
EPSILON = 1e-5  # added to the variance of a series, which is normalised by it


@keras.saving.register_keras_serializable("kattn")
class MeanOfSteps(layers.GlobalAveragePooling1D):
    """The mean over the real steps of `(B, T, C)`; 0 for an item that has none, not NaN."""

    def call(self, inputs, mask=None):
        if mask is None:
            return super().call(inputs)
        real = ops.cast(mask, inputs.dtype)[..., None]
        return ops.sum(inputs * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1)


def sa_rnn(
    *,
    vocabulary_size: int | None = None,
    input_width: int | None = None,
    num_classes: int | None = None,
    horizon: int | None = None,
    input_length: int | None = None,
    segment_length: int = 1,
    channel_independent: bool = True,
    pooling: str = "flatten",
    units: int = 128,
    num_layers: int = 1,
    num_heads: int | None = 4,
    window: int | None = None,
    combine: str = "add",
    rnn: str = "lstm",
    bidirectional: bool = False,
    mask_zero: bool = False,
    dropout: float = 0.0,
    name: str = "sa_rnn",
) -> keras.Model:
    """Recurrent layers, each with attention over its outputs; what comes in and out is chosen.

    Classes of tokens or of sequences of vectors (`num_classes`), the next token of a text at each
    step (`vocabulary_size` alone), or the next steps of time series (`horizon`).

    Each of the layers is a `SelfAttentionRNN`, or without attention a `DecodingRNN`. A language
    model writes by `kattn.generate`. Series are forecast channel by channel with the same weights,
    or all channels together: each is brought to mean 0 and variance 1, and cut into segments that
    are the steps of the recurrent layers; a matrix makes all steps ahead of what comes out.

    Shapes: B batch, T steps, V tokens, L input steps and M channels of series, H steps ahead.

    Args:
        vocabulary_size: Number of tokens of the vocabulary, V, if the input are tokens.
        input_width: Number of channels of each step, if the input are vectors or series.
        num_classes: Number of classes to tell apart.
        horizon: Number of steps of series that are forecast, H.
        input_length: Number of steps that the model reads. None for any number, but of series,
            of which L must be known.
        segment_length: Number of steps of series that are one step of the recurrent layers. It must
            divide `input_length`.
        channel_independent: Whether each channel of series is forecast by itself, all with the same
            weights. If False, each segment is read with all its channels, and they are forecast
            together.
        pooling: Which outputs of the recurrent layers the forecast is made of: "flatten" takes
            those of all segments side by side, "last" those of the last segment.
        units: Number of channels of the recurrent layers, in both directions together.
        num_layers: Number of recurrent layers.
        num_heads: Number of attention heads of each layer, which must divide `units`. None for no
            attention.
        window: Number of steps that attention looks at, the step's own included. None for all.
        combine: How outputs and attention become one: "add", "concat" or "gate", as in
            `SelfAttentionRNN`.
        rnn: Name of the recurrent layer, "lstm" or "gru".
        bidirectional: Whether each layer reads in both directions, and attention looks at later
            steps, too. Not for language models.
        mask_zero: Whether token 0 is padding.
        dropout: Fraction of the channels that are dropped behind the vectors of tokens and each
            recurrent layer during training, in [0, 1).
        name: Name of the model.

    Returns:
        A functional `keras.Model`: from tokens `(B, T)` or vectors `(B, T, input_width)` to logits
        `(B, num_classes)`; from tokens `(B, T)` to logits of the next ones `(B, T, V)`; or from
        series `(B, L, M)` to forecasts `(B, H, M)`; in float32. Layers are called "embedding",
        "rnn0", "rnn1" and so on, and "logits" or "forecast".

    Raises:
        ValueError: If an argument is out of range, or if those for input and output do not fit.

    Example:
        >>> writer = sa_rnn(vocabulary_size=65, units=32)
        >>> writer(np.array([[1, 2, 3]])).shape
        (1, 3, 65)
        >>> reader = sa_rnn(vocabulary_size=65, num_classes=2, units=32, bidirectional=True)
        >>> reader(np.array([[1, 2, 3]])).shape
        (1, 2)
        >>> forecaster = sa_rnn(input_width=7, input_length=96, horizon=24, segment_length=12)
        >>> forecaster(keras.random.normal((2, 96, 7))).shape
        (2, 24, 7)

    Reference:
        Segments of series as steps, and all steps ahead at once: Lin et al. 2023, sec. 4,
        https://arxiv.org/abs/2308.11200. That paper has no attention over the segments.
        Normalisation of each series: Kim et al. 2022, https://openreview.net/forum?id=cGDAkQo1C0p,
        here without learned gains.
    """
    given = {"vocabulary_size": vocabulary_size, "input_width": input_width}
    _check_ends(given, num_classes, horizon, input_length, segment_length)
    _check_unused({"mask_zero": (mask_zero, False)}, "`vocabulary_size` is given", vocabulary_size)
    of_series = {
        "segment_length": (segment_length, 1),
        "channel_independent": (channel_independent, True),
        "pooling": (pooling, "flatten"),
    }
    _check_unused(of_series, "`horizon` is given", horizon)
    of_attention = {"window": (window, None), "combine": (combine, "add")}
    _check_unused(of_attention, "there is attention", num_heads)
    sizes = {"units": units, "num_layers": num_layers, "segment_length": segment_length}
    arguments.check_integers(1, **sizes)
    arguments.check_choice(tuple(RNNS), rnn=rnn)
    arguments.check_choice(POOLINGS, pooling=pooling)
    arguments.check_fractions(dropout=dropout)
    writes = num_classes is None and horizon is None
    _check_units(units, num_heads, bidirectional, writes)

    def recurrent(h):
        for number in range(num_layers):
            made = RNNS[rnn](units // 2 if bidirectional else units, return_sequences=True)
            made = layers.Bidirectional(made) if bidirectional else made
            if num_heads is None:
                h = DecodingRNN(made, name=f"rnn{number}")(h)
            else:
                options = {"combine": combine, "window": window, "causal": not bidirectional}
                h = SelfAttentionRNN(made, num_heads, name=f"rnn{number}", **options)(h)
            h = layers.Dropout(dropout, name=f"dropout{number}")(h)
        return h

    if horizon is not None:
        inputs = layers.Input((input_length, input_width), name="series")
        x, mean, deviation = _normalized(inputs)
        h = _segments(x, segment_length, channel_independent)
        h = recurrent(layers.Dense(units, name="embedding")(h))
        h = h[:, -1] if pooling == "last" else layers.Flatten(name="flatten")(h)
        channels = inputs.shape[-1]
        together = 1 if channel_independent else channels
        h = layers.Dense(horizon * together, dtype="float32", name="forecast")(h)
        h = ops.reshape(h, (-1, channels, horizon))  # (B, M, H)
        outputs = ops.transpose(h * deviation + mean, (0, 2, 1))
    else:
        if vocabulary_size is None:
            inputs = h = layers.Input((input_length, input_width), name="vectors")
        else:
            inputs = layers.Input((input_length,), dtype="int32", name="tokens")
            h = layers.Embedding(vocabulary_size, units, mask_zero=mask_zero, name="embedding")(
                inputs
            )
            h = layers.Dropout(dropout, name="embedding_dropout")(h)
        h = recurrent(h)
        if not writes:
            h = MeanOfSteps(name="pool")(h)
        logits = layers.Dense(num_classes or vocabulary_size, dtype="float32", name="logits")
        outputs = logits(h)
    return keras.Model(inputs, outputs, name=name)


def _normalized(series):
    """Series `(B, L, M)` as `(B, M, L)` of mean 0 and variance 1; their means and deviations."""
    x = ops.transpose(ops.cast(series, "float32"), (0, 2, 1))
    mean = ops.mean(x, axis=-1, keepdims=True)
    deviation = ops.sqrt(ops.var(x, axis=-1, keepdims=True) + EPSILON)
    return (x - mean) / deviation, mean, deviation


def _segments(x, segment_length, channel_independent):
    """Series `(B, M, L)` as sequences of segments: `(B * M, L / s, s)`, or `(B, L / s, M * s)`."""
    _, channels, length = x.shape
    if channel_independent:
        return ops.reshape(x, (-1, length // segment_length, segment_length))
    x = ops.reshape(x, (-1, channels, length // segment_length, segment_length))
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (-1, length // segment_length, channels * segment_length))


def _check_unused(values, rule, needed):
    """Raises ValueError if arguments are off their defaults that only something else needs."""
    for name, (value, default) in values.items():
        if needed is None and value != default:
            raise arguments.error(f"`{name}` is for models where {rule}", **{name: value})


def _check_units(units, num_heads, bidirectional, writes):
    """Raises ValueError unless channels can be shared out to heads and directions."""
    arguments.check_optional_integers(1, num_heads=num_heads)
    if num_heads is not None and units % num_heads:
        rule = "`units` must be divisible by `num_heads`"
        raise arguments.error(rule, units=units, num_heads=num_heads)
    if bidirectional and (writes or units % 2):
        raise arguments.error(
            "`bidirectional` must be False for a language model, and `units` even without one",
            bidirectional=bidirectional,
            units=units,
        )


def _check_ends(given, num_classes, horizon, input_length, segment_length):
    """Raises ValueError unless one kind of input and of output is described."""
    sizes = {**given, "num_classes": num_classes, "horizon": horizon, "input_length": input_length}
    arguments.check_optional_integers(1, **sizes)
    tokens, width = given.values()
    if (tokens is None) == (width is None):
        rule = "One of `vocabulary_size`, for tokens, and `input_width`, for vectors, must be given"
        raise arguments.error(rule, **given)
    if num_classes is not None and horizon is not None:
        rule = "Only one of `num_classes` and `horizon` must be given"
        raise arguments.error(rule, num_classes=num_classes, horizon=horizon)
    if horizon is not None and None in (input_length, width):
        rule = "Forecasts need `input_length` and `input_width` beside `horizon`"
        raise arguments.error(rule, **{**sizes, "num_classes": num_classes})
    if width is not None and num_classes is None and horizon is None:
        rule = "`num_classes` or `horizon` must be given where the input are no tokens"
        raise arguments.error(rule, num_classes=num_classes, horizon=horizon)
    if horizon is not None and input_length % max(segment_length, 1):
        rule = "`segment_length` must divide `input_length`"
        raise arguments.error(rule, segment_length=segment_length, input_length=input_length)
