"""A classifier of images by Transformer encoder blocks over patches (Dosovitskiy et al., 2020)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.transformer.block_stack import BlockStack
from kattn.layers.transformer.patch_embedding import PatchEmbedding
from kattn.models.published_sizes import VISION_MODELS
from kattn.models.transformer_model import TransformerModel, new_dense

POOLING = ("class_token", "mean")


@keras.saving.register_keras_serializable("kattn")
class VisionTransformer(TransformerModel):
    """Logits of classes for an image, each of whose patches attends to all others.

    The image is cut into patches; their pixels pass a projection, get learned positions and pass
    `num_layers` blocks and a norm. One vector of what comes out is compared with each class.

    Published sizes, for `from_size`, which needs `num_classes`, too: "vit-tiny-16", "vit-small-16",
    "vit-base-16", "vit-base-32", "vit-large-16", "vit-huge-14", all for images of 224 x 224.

    Shapes: B batch, H and W image sides, M classes.

    Args:
        image_size: Height and width of the images, `(H, W)`, or one integer for both.
        patch_size: Height and width of a patch, or one integer for both. They must divide those of
            the images.
        num_classes: Number of classes, M.
        num_layers: Number of blocks.
        num_heads: Number of attention heads of each block.
        width: Number of channels of the vectors that the blocks read and give.
        channels: Number of channels of the images, such as 3 for colours.
        pooling: Where the vector that is classified comes from: "class_token", a learned vector
            that stands before those of the patches and passes the blocks with them; or "mean", the
            mean over the patches, without such a vector.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        **kwargs: Arguments of the blocks, and `name`, `dtype` and `trainable`, as for any Keras
            layer. The arguments of the blocks are those of `TransformerLM`, of which `dropout` is
            applied before the logits, too.

    Call args:
        images: Images, float, shape `(B, H, W, channels)`, or `(B, channels, H, W)` for
            `"channels_first"`; scaled to about [-1, 1].
        training: Whether anything is dropped.

    Returns:
        Logits `(B, M)`.

    Raises:
        ValueError: If an argument is out of range; when built or called, if `images` do not have
            rank 4, the sides of `image_size` and so many `channels`.

    Example:
        >>> model = kattn.models.VisionTransformer(32, 8, 10, num_layers=2, num_heads=4, width=64)
        >>> model(keras.random.normal((2, 32, 32, 3))).shape
        (2, 10)

    Reference:
        Dosovitskiy et al. 2020, sec. 3.1, https://arxiv.org/abs/2010.11929
        The mean in place of a class token: Beyer et al. 2022, https://arxiv.org/abs/2205.01580
    """

    sizes = VISION_MODELS

    def __init__(
        self,
        image_size,
        patch_size,
        num_classes,
        num_layers,
        num_heads,
        width,
        *,
        channels=3,
        pooling="class_token",
        data_format=None,
        **kwargs,
    ):
        super().__init__(num_layers, num_heads, width, **kwargs)
        self.supports_masking = False
        arguments.check_integers(1, num_classes=num_classes, channels=channels)
        arguments.check_choice(POOLING, pooling=pooling)
        data_format = data_format or keras.config.image_data_format()
        arguments.check_choice(("channels_last", "channels_first"), data_format=data_format)
        self.image_size = _read_sides(image_size=image_size)
        self.patch_size = _read_sides(patch_size=patch_size)
        if any(side % part for side, part in zip(self.image_size, self.patch_size, strict=True)):
            raise arguments.error(
                "The sides of `image_size` must be divisible by those of `patch_size`",
                image_size=self.image_size,
                patch_size=self.patch_size,
            )
        self.num_classes = num_classes
        self.channels = channels
        self.pooling = pooling
        self.data_format = data_format
        options, policy = self.options, self.dtype_policy
        grid = tuple(a // b for a, b in zip(self.image_size, self.patch_size, strict=True))
        self._embedding = PatchEmbedding(
            grid,
            self.patch_size,
            channels,
            width,
            use_class_token=pooling == "class_token",
            data_format=data_format,
            dropout=options.dropout,
            seed=options.seed_of(0, 9),
            dtype=policy,
            name="embedding",
        )
        self.position = self._embedding.position
        blocks = options.encoder_blocks(policy)
        self._stack = BlockStack(blocks, options.final_norm, dtype=policy, name="encoder")
        seed = options.seed_of(options.num_layers, 0)
        self._dropout = keras.layers.Dropout(options.dropout, seed=seed, dtype=policy)
        self._head = new_dense("head", num_classes, policy)

    def build(self, images_shape):
        self._check(images_shape)
        self._embedding.build(images_shape)
        self._stack.build(self._embedding.compute_output_shape(images_shape))
        self._dropout.build((images_shape[0], self.options.width))
        self._head.build((images_shape[0], self.options.width))
        self.built = True

    def call(self, images, training=None):
        self._check(images.shape)
        h = self._embedding(images, training=training)  # (B, T, C)
        h = self._stack(h, training=training)
        h = h[:, 0] if self.pooling == "class_token" else ops.mean(h, axis=1)  # (B, C)
        return self._head(self._dropout(h, training=training))  # (B, M)

    def compute_output_shape(self, images_shape):
        return (images_shape[0], self.num_classes)

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_classes": self.num_classes,
            "channels": self.channels,
            "pooling": self.pooling,
            "data_format": self.data_format,
        }

    def _check(self, shape):
        """Raises ValueError unless the shape is that of images of the right size."""
        shape = tuple(shape)
        wanted = (*self.image_size, self.channels)
        if self.data_format == "channels_first":
            wanted = (self.channels, *self.image_size)
        fits = len(shape) == 4 and all(
            a in (None, b) for a, b in zip(shape[1:], wanted, strict=True)
        )
        if not fits:
            sizes = ", ".join(map(str, wanted))
            raise ValueError(
                f"`images` must have shape (batch, {sizes}) by image_size={self.image_size}, "
                f"channels={self.channels} and data_format={self.data_format!r}; received: "
                f"images.shape={shape}"
            )


def _read_sides(**value):
    """Height and width, as a tuple."""
    ((name, sides),) = value.items()
    sides = tuple(sides) if isinstance(sides, tuple | list) else (sides, sides)
    if len(sides) != 2 or not all(arguments.is_integer(side) and side >= 1 for side in sides):
        raise arguments.error(
            f"`{name}` must be an integer >= 1 or two of them, height and width", **value
        )
    return sides
