"""Which tensors of another library make which weight of a model, and in what layout."""

import dataclasses
import functools

import numpy as np
from keras import ops

from kattn.presets.layouts import AS_IT_IS, TRANSPOSED, Layout
from kattn.presets.safetensors_file import StoredTensor
from kattn.presets.weights import dtype_of


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor as a part of a weight: some of the channels of the last axis.

    Args:
        name: Name of the tensor.
        width: Number of those channels. None for all of them.
        layout: How the tensor lies in the weight.
        scale: Number that the tensor times it is what the weight holds.
    """

    name: str
    width: int | None = None
    layout: Layout = AS_IT_IS
    scale: float = 1.0

    def laid_out(self, tensors):
        """The tensor as it stands in the weight."""
        tensor = tensors[self.name].read()
        if self.scale != 1:
            tensor = tensor.astype("float32") * self.scale
        return self.layout.read(tensor)


@dataclasses.dataclass(frozen=True)
class Link:
    """A weight and the tensors that lie side by side in it.

    Args:
        weight: Path of the weight below the model, such as "decoder/block0/attention/qkv/kernel".
        parts: The tensors.
        optional: Whether the weight may keep its random numbers if there is no such tensor.
        resized_by: Argument of the model by which the caller asks for more or fewer rows than the
            tensor has. None if there is no such argument.
    """

    weight: str
    parts: tuple[Part, ...]
    optional: bool = False
    resized_by: str | None = None

    def pieces(self, shape):
        """For each part of a weight of this shape: itself, its place, the shape of its tensor."""
        start = 0
        for part in self.parts:
            width = shape[-1] if part.width is None else part.width
            place = slice(start, start + width)
            yield part, place, part.layout.shape((*shape[:-1], width))
            start += width

    def gather(self, weight, tensors):
        """The numbers of a weight: those of its tensors, and its own where these have no rows."""
        pieces = list(self.pieces(tuple(weight.shape)))
        is_resized = any(tensors[part.name].shape != shape for part, _, shape in pieces)
        if len(pieces) == 1 and not is_resized:  # without a copy, as the largest tables are
            return self.parts[0].laid_out(tensors)
        whole = np.empty(weight.shape, dtype_of(weight))
        if is_resized:
            whole[...] = ops.convert_to_numpy(weight)
        for part, place, _ in pieces:
            _fill(whole[..., place], part.laid_out(tensors))
        return whole

    def split(self, weight):
        """Its tensors, by name, each of which is made when it is read."""
        for part, place, shape in self.pieces(tuple(weight.shape)):
            make = functools.partial(_piece, weight, part, place)
            yield part.name, StoredTensor(dtype_of(weight), shape, make)


def equal(weight, tensor, scale=1.0, resized_by=None, layout=AS_IT_IS):
    """The link of a weight that is one tensor."""
    return Link(weight, (Part(tensor, layout=layout, scale=scale),), resized_by=resized_by)


def dense(layer, tensors, *, widths=(None,), scales=None, transposed=True, **options):
    """The links of a Dense layer that is one or several layers there, side by side.

    Args:
        layer: Path of the Dense layer below the model.
        tensors: Names of the layers there: one, or one for each of `widths`.
        widths: Number of channels of each.
        scales: Number that each is multiplied by. None for 1.
        transposed: Whether their matrices are `(out, in)`.
        **options: The other fields of `Link`.

    Yields:
        A `Link` for the matrix, and one for the bias, which the layer may not have.
    """
    scales = scales or (1.0,) * len(widths)
    for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
        parts = zip(tensors, widths, scales, strict=True)
        layout = TRANSPOSED if transposed and ours == "kernel" else AS_IT_IS
        yield Link(
            f"{layer}/{ours}",
            tuple(Part(f"{name}.{theirs}", width, layout, x) for name, width, x in parts),
            **options,
        )


def norm(layer, tensor):
    """The links of a normalisation: of the weights of an RMS norm, and of those of a layer norm."""
    for ours, theirs in (("scale", "weight"), ("gamma", "weight"), ("beta", "bias")):
        yield equal(f"{layer}/{ours}", f"{tensor}.{theirs}")


def _fill(piece, array):
    """Writes what both have; a function, so that the array is gone before the next is read."""
    both = tuple(slice(min(sides)) for sides in zip(piece.shape, array.shape, strict=True))
    piece[both] = array[both]


def _piece(weight, part, place):
    """The tensor of a part of a weight."""
    piece = ops.convert_to_numpy(weight)[..., place]
    if part.scale != 1:
        piece = piece.astype("float32") / part.scale
    return part.layout.write(piece)
