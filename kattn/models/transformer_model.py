"""What the models of Transformer blocks have in common: their options, sizes and fine-tuning."""

import dataclasses
from collections.abc import Callable, Mapping

import keras

from kattn import arguments
from kattn.layers.attention.mask_object_layer import MaskObjectLayer
from kattn.layers.attention.positions import read_position
from kattn.layers.position.input_position import InputPosition
from kattn.layers.transformer.token_embedding import new_initializer
from kattn.layers.transformer.transformer_block import read_part
from kattn.models.block_options import BlockOptions


class TransformerModel(MaskObjectLayer, keras.Model):
    """Base of the models: the arguments that say what their blocks are made of.

    Args:
        num_layers: Number of blocks of a stack.
        num_heads: Number of attention heads of a block.
        width: Number of channels between the blocks.
        **kwargs: The other fields of `BlockOptions`, and `name`, `dtype` and `trainable`.

    Attributes:
        sizes: Functions that give the arguments of a published size, by its name.
    """

    sizes: Mapping[str, Callable] = {}

    def __init__(self, num_layers, num_heads, width, **kwargs):
        names = [field.name for field in dataclasses.fields(BlockOptions)]
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        super().__init__(**kwargs)
        self.supports_masking = True
        self.options = BlockOptions(num_layers, num_heads, width, **given)

    @classmethod
    def from_size(cls, size, **overrides):
        """A model of a published size, with random weights.

        Args:
            size: Name of the size; the docstring of the class lists them.
            **overrides: Arguments of the class that differ from those of the size, such as
                `dropout=0.1`.

        Returns:
            A model that is not built.

        Raises:
            ValueError: If there is no such size.
        """
        arguments.check_choice(tuple(cls.sizes), size=size)
        return cls(**{**cls.sizes[size](dtype=overrides.get("dtype")), **overrides})

    @property
    def blocks(self):
        """All blocks of the model, such as `scale_projections` takes them."""
        return [block for stack in self._stacks() for block in stack.blocks]

    def enable_lora(self, rank, lora_alpha=None):
        """Freezes all weights, and adds ones of low rank to the projections of the blocks.

        As with any change of what is trained, compile the model afterwards.

        Args:
            rank: Rank of the products that are added, an integer >= 1.
            lora_alpha: Number that the products are multiplied by, times 1 / rank. None for
                `rank`.

        Raises:
            ValueError: If the model is not built, or if its projections have such weights already.

        Reference:
            Hu et al. 2021, sec. 4, https://arxiv.org/abs/2106.09685; they leave the biases alone,
            and so does this.
        """
        arguments.check_integers(1, rank=rank)
        if not self.built:
            raise arguments.error(
                "A model must be built before weights of low rank are added: call it, or its "
                "`build`, first",
                model=self.name,
            )
        for weight in self.weights:
            weight.trainable = False
        for block in self.blocks:
            for part in block._flatten_layers():
                if isinstance(part, keras.layers.Dense):
                    part.enable_lora(rank, lora_alpha)

    def rematerialized_call(self, layer_call, *args, **kwargs):
        return layer_call  # the blocks run again one by one; all at once would save no memory

    def get_config(self):
        return {**super().get_config(), **self.options.get_config()}

    def _stacks(self):
        return [self._stack]


def read_model_position(position, role="position"):
    """A position layer that is an argument of a model, which gets the role's name; or None."""
    position = read_position(position)
    return None if position is None else read_part(role, position)


def heads_position(position):
    """The position layer that the attention layers of a model share, or None.

    One that is added to inputs is added to the vectors of the tokens instead.
    """
    return None if isinstance(position, InputPosition) else position


def new_dense(name, units, policy, **options):
    """A Dense layer outside of the blocks, with initial weights as in GPT-2 and BERT."""
    initializer = new_initializer()
    return keras.layers.Dense(
        units, kernel_initializer=initializer, dtype=policy, name=name, **options
    )


def check_tokens(name, shape):
    """Raises ValueError unless the shape is (batch, steps)."""
    if len(shape) != 2:
        raise ValueError(
            f"`{name}` must have rank 2, (batch, steps); for one sequence (steps,) write "
            f"{name}[None]; received: {name}.shape={tuple(shape)}"
        )
