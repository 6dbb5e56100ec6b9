"""Figures of attention show the weights of the layer, at the right places."""

import doctest
import importlib
import sys

import keras
import numpy as np
import pytest

import kattn
from kattn.visualize import attention_figure, query_positions


def images_and_model(rng, *, data_format="channels_last", key_stride=1):
    """Two images of 6 x 4 pixels in colour, and a model whose attention is not symmetric."""
    shape = (6, 4, 3) if data_format == "channels_last" else (3, 6, 4)
    inputs = keras.Input(shape)
    layer = kattn.layers.SelfAttention2D(
        2, 3, key_stride=key_stride, data_format=data_format, name="maps"
    )
    x = layer(keras.layers.Rescaling(2.0)(inputs))  # so that the layer does not see the images
    return rng.uniform(0, 1, (2, *shape)).astype("float32"), keras.Model(inputs, x)


@pytest.mark.parametrize("key_stride", [1, 2])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_maps_are_the_weights_of_the_layer(rng, data_format, key_stride):
    images, model = images_and_model(rng, data_format=data_format, key_stride=key_stride)
    positions = [[(4, 1), (0, 3)], [(5, 0), (2, 2)]]
    figure = attention_figure(model, "maps", images, positions=positions, titles=["a", "b"])
    axes = np.array(figure.axes).reshape(3, 2)
    assert [panel.get_title() for panel in axes[0]] == ["a", "b"]
    weights = model.get_layer("maps").attention_weights(keras.ops.convert_to_tensor(2 * images))
    weights = keras.ops.convert_to_numpy(weights).mean(1).reshape(2, 6, 4, 6 // key_stride, -1)
    for column, row in np.ndindex(2, 2):
        i, j = positions[column][row]
        picture, drawn = axes[row + 1, column].images
        np.testing.assert_allclose(drawn.get_array(), weights[column, i, j], rtol=1e-4, atol=1e-6)
        (circle,) = axes[row + 1, column].lines
        x, y = circle.get_xdata()[0], circle.get_ydata()[0]
        assert (x, y) == pytest.approx(((j + 0.5) / 4, (i + 0.5) / 6))
        assert drawn.get_extent() == [0, 1, 1, 0]
        assert picture.get_array().max() < 0.5  # darkened
    shown = images if data_format == "channels_last" else np.moveaxis(images, 1, -1)
    scaled = (shown - shown.min()) / (shown.max() - shown.min())
    np.testing.assert_allclose(axes[0, 1].images[0].get_array(), scaled[1], atol=1e-6)


def test_pooled_keys_that_do_not_divide_reach_over_the_edge(rng):
    images, model = images_and_model(rng, key_stride=3)
    figure = attention_figure(model, "maps", images)
    # 6 rows are two windows of 3. 4 columns are two windows of 3, one padded column on each side.
    extent = figure.axes[2].images[1].get_extent()
    assert extent == pytest.approx([-1 / 4, 5 / 4, 1, 0])


def test_positions_and_rows_by_default(rng):
    images, model = images_and_model(rng)
    layer = model.get_layer("maps")
    figure = attention_figure(model, layer, images)
    axes = np.array(figure.axes).reshape(4, 2)
    circle = axes[1, 1].lines[0]
    i, j = query_positions(images[1], 6, 4)[0]
    assert (circle.get_xdata()[0], circle.get_ydata()[0]) == ((j + 0.5) / 4, (i + 0.5) / 6)
    assert [panel.get_ylabel() for panel in axes[:, 0]][:2] == ["image", "from high contrast"]
    heading = figure.get_suptitle()
    assert "(maps, mean of 2 heads, 6 x 4 keys, gamma 0.00)" in " ".join(heading.split())
    assert max(map(len, heading.splitlines())) < 40  # as narrow as the figure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"titles": ["a"]}, "`titles` must have one entry for each image; received: titles=1, im"),
        (
            {"positions": [[(0, 0)]] * 3},
            "`positions` must have one entry .*: positions=3, images=2",
        ),
    ],
)
def test_bad_arguments(rng, options, message):
    images, model = images_and_model(rng)
    with pytest.raises(ValueError, match=message):
        attention_figure(model, "maps", images, **options)


def test_one_image_is_no_batch(rng):
    images, model = images_and_model(rng)
    message = r"`images` must be of rank 4, a batch of images; received: images.shape=\(6, 4, 3\)"
    with pytest.raises(ValueError, match=message):
        attention_figure(model, "maps", images[0])


def test_without_matplotlib(rng, monkeypatch):
    images, model = images_and_model(rng)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="needs Matplotlib: pip install matplotlib"):
        attention_figure(model, "maps", images)


def test_query_positions():
    image = np.full((8, 8, 1), 200, "uint8")
    image[2:4, 2:4] = 0  # a small object on a bright ground
    image[6:8, 6] = 50
    on, far, off = query_positions(image, 4, 4)
    assert on == (1, 1)
    assert far == (3, 3)
    assert off not in (on, far)


def test_query_positions_of_an_empty_image():
    assert len(query_positions(np.zeros((5, 7, 3)), 5, 7)) == 3


def test_examples():
    module = importlib.import_module("kattn.visualize.attention_figure")
    outcome = doctest.testmod(module, extraglobs={"np": np, "kattn": kattn})
    assert outcome.attempted > 0
    assert outcome.failed == 0
