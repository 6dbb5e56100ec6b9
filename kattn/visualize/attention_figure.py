"""A figure of where the positions of an image look."""

import textwrap

import keras
import numpy as np

from kattn import arguments

ROWS = ("from high contrast", "the same, far off", "from low contrast")


def attention_figure(model, layer, images, *, positions=None, titles=None):
    """Draws where some positions of each image look, as the mean over the heads of one layer.

    The first row shows the images. Each row below shows them darkened, with a circle around the
    position that asks and in colours the attention weights of that position.

    Args:
        model: A functional Keras model of images that contains the layer.
        layer: The `SelfAttention2D` to draw, or the name of it in the model.
        images: Images as the model takes them, float, shape `(B, H, W, C)`, or `(B, C, H, W)` if
            the layer works on channels-first maps. C is 1 or 3. One column is drawn for each.
        positions: For each image a list of cells `(row, column)` of the map on which the layer
            works, all lists of one length. None takes those of `query_positions`.
        titles: A title for each image. None draws no titles.

    Returns:
        A `matplotlib.figure.Figure`. `figure.savefig("maps.png")` writes it to a file.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If `images` is not of rank 4, or if `positions` or `titles` does not have one
            entry for each image.

    Example:
        >>> model = kattn.models.sa_cnn((8, 8, 1), 10, filters=(4, 4), attention_after=(0,))
        >>> images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1))
        >>> figure = kattn.visualize.attention_figure(model, "stage0_attention", images)
        >>> len(figure.axes)  # 2 images, each alone and with 3 maps
        8
    """
    figure_class = _figure_class()
    images = np.asarray(images, "float32")
    if images.ndim != 4:
        raise arguments.error("`images` must be of rank 4, a batch of images", images=images)
    layer = model.get_layer(layer) if isinstance(layer, str) else layer
    maps, (height, width) = _maps(model, layer, images)
    pictures = _pictures(images, layer.data_format)
    if positions is None:
        positions = [query_positions(picture, height, width) for picture in pictures]
    titles = [""] * len(images) if titles is None else titles
    for name, entries in {"positions": positions, "titles": titles}.items():
        if len(entries) != len(images):
            raise arguments.error(
                f"`{name}` must have one entry for each image",
                **{name: len(entries), "images": len(images)},
            )

    rows = len(positions[0])
    figure = figure_class(
        figsize=(1.35 * len(images) + 0.6, 1.4 * (rows + 1) + 0.6), layout="constrained"
    )
    axes = figure.subplots(rows + 1, len(images), squeeze=False)
    extent = _extent(height, width, layer.key_stride)
    for column, (picture, cells, title) in enumerate(zip(pictures, positions, titles, strict=True)):
        axes[0, column].set_title(title, fontsize=9)
        _show(axes[0, column], picture)
        for row, (i, j) in enumerate(cells, start=1):
            _show(axes[row, column], 0.45 * picture)
            _overlay(axes[row, column], maps[column, i * width + j], extent)
            y, x = (i + 0.5) / height, (j + 0.5) / width
            axes[row, column].plot(x, y, "o", ms=6, mfc="none", mec="cyan", mew=1.6)
    axes[0, 0].set_ylabel("image", fontsize=9)
    for row, name in enumerate(ROWS[:rows] if rows == len(ROWS) else (), start=1):
        axes[row, 0].set_ylabel(name, fontsize=9)
    figure.suptitle(_heading(layer, maps.shape[2:], figure.get_figwidth()), fontsize=10)
    return figure


def query_positions(image, height, width):
    """Chooses three cells of an image to ask from: one of high contrast, one far off, one of low.

    The first cell has the highest contrast; the second has much contrast and is far from the first;
    the third has little contrast and is far from the first. Contrast is measured against the border
    of the image, which often is the background.

    Args:
        image: One image, float or integer, shape `(H, W, C)`.
        height: Number of rows of cells that the image is divided into.
        width: Number of columns of cells that the image is divided into.

    Returns:
        A list of three cells `(row, column)`, counted from 0.

    Example:
        >>> image = np.zeros((8, 8, 1))
        >>> image[2:4, 2:4] = 1  # an object on an empty ground
        >>> kattn.visualize.query_positions(image, height=4, width=4)[0]
        (1, 1)
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    contrast = np.abs(image - np.median(border, 0)).sum(-1)
    rows = np.arange(contrast.shape[0]) * height // contrast.shape[0]
    columns = np.arange(contrast.shape[1]) * width // contrast.shape[1]
    cells = np.zeros((height, width))
    np.add.at(cells, (rows[:, None], columns[None]), contrast)
    first = np.unravel_index(cells.argmax(), cells.shape)
    distance = np.hypot(*(np.indices(cells.shape) - np.reshape(first, (2, 1, 1))))
    on = cells >= max(np.quantile(cells, 0.8), cells.max() / 4)
    second = np.where(on, distance, -1)
    off = np.where(cells <= np.quantile(cells, 0.2), distance, -1)
    chosen = (first, *(np.unravel_index(each.argmax(), each.shape) for each in (second, off)))
    return [(int(i), int(j)) for i, j in chosen]


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("attention_figure needs Matplotlib: pip install matplotlib") from error
    return Figure


def _maps(model, layer, images):
    """Attention weights, mean over heads, by query and cell of the keys; sides of the map."""
    inputs = keras.Model(model.input, layer.input).predict(images, verbose=0)
    weights = layer.attention_weights(keras.ops.convert_to_tensor(inputs))
    weights = keras.ops.convert_to_numpy(weights).mean(1)  # (B, T, S)
    height, width = inputs.shape[1:3] if layer.data_format == "channels_last" else inputs.shape[2:4]
    keys = (-(-height // layer.key_stride), -(-width // layer.key_stride))
    return weights.reshape(*weights.shape[:2], *keys), (height, width)


def _pictures(images, data_format):
    """Images to draw, channels last, from 0 to 1 over the whole batch."""
    pictures = images if data_format == "channels_last" else np.moveaxis(images, 1, -1)
    low, high = pictures.min(), pictures.max()
    return (pictures - low) / max(high - low, 1e-12)


def _extent(height, width, stride):
    """Edges of the grid of keys in units of the sides of the image: left, right, bottom, top."""
    edges = []
    for side in (width, height):
        count = -(-side // stride)
        before = (count * stride - side) // 2  # padding "same" puts half of it before
        edges.append((-before / side, (count * stride - before) / side))
    (left, right), (top, bottom) = edges
    return left, right, bottom, top


def _heading(layer, keys, width):
    """What is drawn, in lines that fit the width of the figure in inches."""
    gain = float(keras.ops.convert_to_numpy(layer.gamma))
    heading = (
        f"Where the circled position looks ({layer.name}, mean of {layer.num_heads} heads, "
        f"{keys[0]} x {keys[1]} keys, gamma {gain:.2f}); bright = much, each map for itself"
    )
    return textwrap.fill(heading, max(int(11 * width), 20))


def _show(axes, picture):
    axes.imshow(np.broadcast_to(picture, (*picture.shape[:2], 3)), extent=(0, 1, 1, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))


def _overlay(axes, weights, extent):
    axes.imshow(weights, cmap="inferno", alpha=np.sqrt(weights / weights.max()), extent=extent)
