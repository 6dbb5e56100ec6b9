"""Where a decoder looks in its source."""

import keras
import numpy as np
import pytest

from kattn import models, visualize
from recipes.harness.alignments import UNDRAWABLE, alignment_figure, alignments


def test_only_what_attends_to_the_source_counts(rng):
    model = models.TransformerSeq2Seq(11, 2, 3, 6, padding_token=0)
    source, target = rng.integers(1, 11, (2, 4)), rng.integers(1, 11, (2, 5))
    source[0, 3] = 0
    found = alignments(model, source, target)
    assert found.shape == (2, 5, 4)
    calls = visualize.capture_attention(model, (source, target))
    cross = [calls[path][0].weights for path in calls if "cross_attention" in path]
    assert len(cross) == 2
    np.testing.assert_allclose(found, np.mean(cross, axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert not found[0, :, 3].any()


def test_a_model_that_tells_its_weights(rng):
    class Model:
        def attention_weights(self, inputs):
            source, target = inputs
            assert (source, target) == ("source", "target")
            return keras.ops.convert_to_tensor(weights)

    weights = rng.random((2, 3, 4, 4)).astype("float32")  # (B, N, T, S)
    found = alignments(Model(), "source", "target")
    np.testing.assert_allclose(found, weights.mean(1), rtol=1e-6)


def test_lengths_that_tell_nothing(rng):
    model = models.TransformerSeq2Seq(11, 1, 1, 4)
    tokens = rng.integers(1, 11, (2, 4))
    with pytest.raises(
        ValueError, match=r"`source` and `target` must differ in length; .*\(4, 4\)"
    ):
        alignments(model, tokens, tokens)


class Deaf(keras.Model):
    """A language model that takes a source and does not read it."""

    def __init__(self):
        super().__init__(name="deaf")
        self.model = models.TransformerLM(11, 1, 1, 4)

    def build(self, shapes):
        self.model.build(shapes[1])
        self.built = True

    def call(self, inputs, training=None):
        return self.model(inputs[1], training=training)


def test_a_model_that_attends_to_no_source(rng):
    tokens, model = rng.integers(1, 11, (2, 4)), Deaf()
    model.build(((2, 3), (2, 4)))
    with pytest.raises(
        ValueError, match=r"`model` must have an attention layer that.*model='deaf'"
    ):
        alignments(model, tokens[:, :3], tokens)


def test_figure(rng, tmp_path):
    """Each panel has its words, and a sign for those that the font cannot draw."""
    weights = rng.random((3, 5, 4))
    words = [(["a", "b"], ["c", "d", "e"]), (["月"], ["$f$"]), (["g"] * 5, ["h"] * 4)]
    figure = alignment_figure(weights, words)
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == 3
    for panel, (target, source), each in zip(panels, words, weights, strict=True):
        labels = [tick.get_text() for tick in panel.get_yticklabels()]
        assert labels == [UNDRAWABLE if word == "月" else word for word in target]
        assert [tick.get_text() for tick in panel.get_xticklabels()] == source
        shown = panel.images[0].get_array()
        np.testing.assert_array_equal(shown, each[: len(target), : len(source)])
    figure.savefig(tmp_path / "x.png")
