"""What the blocks of Transformers share: parts, residual connections and decoding."""

import contextlib

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.mask_object_layer import MaskObjectLayer
from kattn.layers.attention.mask_reader import (
    read_new_masks,
    read_padding,
    set_keras_mask,
)
from kattn.layers.nested_layers import layer_config
from kattn.layers.transformer.feed_forward import FeedForward
from kattn.layers.transformer.norms import new_norm, norm_config, normalize, read_norm
from kattn.layers.transformer.residual import PLACEMENTS, Residual

# The arguments that say how the parts of a block are joined.
ARGUMENTS = (
    "placement",
    "residual_scale",
    "dropout",
    "drop_path",
    "layer_scale",
    "remat",
    "seed",
)


class TransformerBlock(MaskObjectLayer):
    """Base of the blocks: their arguments, the residual connections, and step-by-step decoding.

    A subclass builds its parts and calls them. It has the arguments of `TransformerEncoderBlock`.
    """

    def __init__(
        self,
        attention,
        feed_forward=None,
        *,
        norm="layer",
        placement="pre",
        residual_scale=1.0,
        dropout=0.0,
        drop_path=0.0,
        layer_scale=None,
        remat=False,
        seed=None,
        **kwargs,
    ):
        with keras.RematScope(mode="full") if remat else contextlib.nullcontext():
            super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_choice(PLACEMENTS, placement=placement)
        arguments.check_positive(residual_scale=residual_scale)
        arguments.check_fractions(dropout=dropout, drop_path=drop_path)
        arguments.check_optional_positive(layer_scale=layer_scale)
        self.placement = placement
        self.residual_scale = residual_scale
        self.dropout = dropout
        self.drop_path = drop_path
        self.layer_scale = layer_scale
        self.remat = remat
        self.seed = seed
        self.norm = read_norm(norm)
        self.attention = read_part("attention", attention)
        if feed_forward is None:
            feed_forward = FeedForward(dtype=self.dtype_policy)
        self.feed_forward = read_part("feed_forward", feed_forward)

    def compute_mask(self, x, previous_mask):
        """Padding of the input is padding of the output, whatever else is given."""
        return read_padding(x, previous_mask, query_by_key=True)

    def compute_output_shape(self, x_shape):
        return x_shape

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """An empty cache for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the block attends to its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of one cache, that of `attention`.

        Raises:
            ValueError: If `attention` cannot decode, if it is not causal or not built, if a size is
                not an integer >= 1, or if there is a context.
        """
        check_part_decodes(self.attention)
        return (self.attention.init_cache(batch_size, length, context, context_mask),)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side. Or a `kattn.masks.Mask` over the positions of the whole sequence, if
                `attention` takes one. It is combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, C)`, which means nothing at padding; and the
            cache with the new steps. The old cache must not be used any more.

        Raises:
            ValueError: If the steps do not fit into the cache, where that can be seen.
        """
        x, padding, _ = read_new_masks(x, mask)
        pairs = zip(self._mixers(), cache, strict=True)
        steps = [_Step(layer, own_cache, padding) for layer, own_cache in pairs]
        for step in steps:
            step.mask = mask if step.layer is self.attention else None  # others read padding only
        y = self._through(x, (*steps, self.feed_forward), training=False)
        return y, tuple(step.cache for step in steps)

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            "norm": norm_config(self.norm),
            "attention": part_config(self.attention),
            "feed_forward": part_config(self.feed_forward),
        }

    def _mixers(self):
        """The parts that mix steps, in their order."""
        return [self.attention]

    def _build_part(self, part, *shapes):
        if not part.built:  # it may be a part of another block, too
            part.build(*shapes)

    def _build_residuals(self, x_shape, *roles):
        """The residual connections of the parts, by their roles and in their order."""
        self._shared_norm = None
        if self.placement == "parallel":
            self._shared_norm = new_norm(self.norm, "norm", self.dtype_policy)
            self._shared_norm.build(x_shape)
        self._residuals = [self._residual(i, role) for i, role in enumerate(roles)]
        for residual in self._residuals:
            residual.build(x_shape)
        self.built = True

    def _residual(self, i, role):
        return Residual(
            placement=self.placement,
            norm=self.norm,
            scale=1.0 if i and self.placement == "parallel" else self.residual_scale,
            dropout=self.dropout,
            drop_path=self.drop_path,
            layer_scale=self.layer_scale,
            seed=None if self.seed is None else self.seed + 2 * i,
            dtype=self.dtype_policy,
            name=f"{role}_residual",
        )

    def _attend(self, padding, mask, positions):
        """The attention as a function of what it reads; with those arguments that are given."""
        given = {} if positions is None else {"positions": positions}
        if mask is not None:
            given["mask"] = mask
        return lambda h, training: self.attention(
            set_keras_mask(h, padding), training=training, **given
        )

    def _read(self, x, training):
        """What the first part reads of steps x."""
        if self._shared_norm is None:
            return self._residuals[0].read(x, training=training)
        return normalize(self._shared_norm, x, training)

    def _through(self, x, parts, *, training):
        """The output for x `(B, T, C)`: each part is a function of what it reads, and `training`.

        That is handed on, as Keras does not know it any more when `remat` runs the block again.
        """
        x = ops.convert_to_tensor(x, self.compute_dtype)
        shared = None if self._shared_norm is None else self._read(x, training)
        for residual, part in zip(self._residuals, parts, strict=True):
            h = residual.read(x, training=training) if shared is None else shared
            x = residual.join(x, part(h, training=training), training=training)
        return x


class _Step:
    """An attention layer that decodes, as a function of what it reads; it keeps its new cache."""

    def __init__(self, layer, cache, padding):
        self.layer, self.cache, self.padding = layer, cache, padding
        self.mask = None

    def __call__(self, h, training):
        h = set_keras_mask(h, self.padding)
        y, self.cache = self.layer.decode(h, self.cache, mask=self.mask)
        return y


def read_part(role, layer):
    """An argument of a block that is a layer, or its config; the layer gets the role's name."""
    if isinstance(layer, dict):
        layer = keras.saving.deserialize_keras_object(layer)
    if not isinstance(layer, keras.layers.Layer):
        raise arguments.error(f"`{role}` must be a Keras layer, not its class", **{role: layer})
    if not layer.built:
        layer.name = role
    return layer


def part_config(layer):
    """The config of an argument of a block that is a layer.

    It has no shapes to build the layer with, as the block does that, under its own name.
    """
    config = layer_config(layer)
    return config and {name: x for name, x in config.items() if name != "build_config"}


def check_part_decodes(layer):
    """Raises ValueError unless a layer has the methods of what decodes step by step."""
    if not hasattr(layer, "decode"):
        raise arguments.error(
            "`attention` must be a layer that can decode step by step, such as "
            "kattn.layers.SelfAttention(8, causal=True)",
            attention=layer,
        )
