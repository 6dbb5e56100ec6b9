"""What the Transformer blocks of a model are made of: arguments of the model, as one value."""

import dataclasses
from typing import Any

import keras

from kattn import arguments
from kattn.layers.attention.cross_attention import CrossAttention
from kattn.layers.attention.self_attention import SelfAttention
from kattn.layers.initializers import numbered
from kattn.layers.transformer.feed_forward import FeedForward
from kattn.layers.transformer.norms import norm_config, read_norm
from kattn.layers.transformer.transformer_decoder_block import TransformerDecoderBlock
from kattn.layers.transformer.transformer_encoder_block import TransformerEncoderBlock

SEEDS = 10  # that a block has of its own, for all that it drops


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What the models have in common; each says in its docstring what the arguments mean."""

    num_layers: int
    num_heads: int
    width: int
    num_key_value_heads: int | None = None
    key_dim: int | None = None
    hidden_dim: int | None = None
    activation: Any = "gelu"
    norm: Any = "layer"
    placement: str = "pre"
    window: Any = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    drop_path: float = 0.0
    use_bias: bool = True
    use_qkv_bias: bool | None = None
    use_feed_forward_bias: bool | None = None
    use_qk_norm: bool = False
    qk_norm_epsilon: float = 1e-6
    kernel_initializer: Any = None
    remat: bool = False
    seed: int | None = None

    def __post_init__(self):
        sizes = {"num_layers": self.num_layers, "num_heads": self.num_heads, "width": self.width}
        arguments.check_integers(1, **sizes)
        if self.key_dim is None and self.width % self.num_heads:
            raise arguments.error(
                "`width` must be divisible by `num_heads` where `key_dim` is None", **sizes
            )
        arguments.check_fractions(dropout=self.dropout, drop_path=self.drop_path)
        window = tuple(self.window) if isinstance(self.window, list) else self.window
        if window == ():
            raise arguments.error(
                "`window` must be an integer, None, or a tuple of one or more of them",
                window=window,
            )
        for name, value in (
            ("norm", read_norm(self.norm)),
            ("kernel_initializer", keras.initializers.get(self.kernel_initializer)),
            ("window", window),
        ):
            object.__setattr__(self, name, value)

    @property
    def final_norm(self):
        """The argument `norm` for the norm behind the last block; None where it ends with one."""
        return None if self.placement == "post" else self.norm

    def encoder_blocks(self, policy, *, position=None):
        """New blocks whose attention is not causal.

        Args:
            policy: Dtype policy of the blocks.
            position: Position layer that all of them share, or None.

        Returns:
            A list of `num_layers` blocks that are not built.
        """
        return [
            TransformerEncoderBlock(**self._parts(i, position, policy))
            for i in range(self.num_layers)
        ]

    def decoder_blocks(self, policy, *, position=None, attends_to_context=False):
        """New blocks whose attention is causal.

        Args:
            policy: Dtype policy of the blocks.
            position: Position layer that all of them share, or None.
            attends_to_context: Whether they have `cross_attention`, too.

        Returns:
            A list of `num_layers` blocks that are not built.
        """
        connections = 3 if attends_to_context else 2
        blocks = []
        for i in range(self.num_layers):
            parts = self._parts(i, position, policy, causal=True, connections=connections)
            if attends_to_context:
                options = self._attention(i, 8, policy, connections)
                parts["cross_attention"] = CrossAttention(**options)
            blocks.append(TransformerDecoderBlock(**parts))
        return blocks

    def seed_of(self, layer, place):
        """The seed of one of the places, below `SEEDS`, at which a layer of a stack drops."""
        return None if self.seed is None else self.seed + SEEDS * layer + place

    def get_config(self):
        """The options as the arguments of a model, for its config."""
        activation = self.activation
        if not isinstance(activation, str | dict):
            activation = keras.activations.serialize(activation)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **fields,
            "activation": activation,
            "norm": norm_config(self.norm),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

    def _parts(self, i, position, policy, *, causal=False, connections=2):
        """The arguments of block i, which takes the seeds of places 0 to 5 for itself."""
        window = (
            self.window[i % len(self.window)] if isinstance(self.window, tuple) else self.window
        )
        attention = SelfAttention(
            **self._attention(i, 6, policy, connections),
            causal=causal,
            window=window,
            position=position,
        )
        feed_forward = FeedForward(
            self.hidden_dim,
            self.activation,
            dropout=self.hidden_dropout,
            use_bias=self._bias_of(self.use_feed_forward_bias),
            seed=self.seed_of(i, 7),
            dtype=policy,
            **self._initializers(i, 7, connections),
        )
        return {
            "attention": attention,
            "feed_forward": feed_forward,
            "norm": self.norm,
            "placement": self.placement,
            "dropout": self.dropout,
            "drop_path": self.drop_path * i / max(self.num_layers - 1, 1),
            "remat": self.remat,
            "seed": self.seed_of(i, 0),
            "dtype": policy,
            "name": f"block{i}",
        }

    def _attention(self, i, place, policy, connections):
        """The arguments that self-attention and cross-attention have in common."""
        return {
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "num_key_value_heads": self.num_key_value_heads,
            "use_qk_norm": self.use_qk_norm,
            "qk_norm_epsilon": self.qk_norm_epsilon,
            "dropout": self.attention_dropout,
            "use_bias": self._bias_of(self.use_qkv_bias),
            "use_output_bias": self.use_bias,
            "seed": self.seed_of(i, place),
            "dtype": policy,
            **self._initializers(i, place, connections),
        }

    def _bias_of(self, choice):
        return self.use_bias if choice is None else choice

    def _initializers(self, i, place, connections):
        """GPT-2's: what is added to the stream is smaller the more is added, in all blocks."""
        if self.kernel_initializer is not None:
            number = SEEDS * (SEEDS * i + place)  # each layer counts on for its own matrices
            return {"kernel_initializer": numbered(self.kernel_initializer, number)}
        normal = keras.initializers.RandomNormal
        smaller = 0.02 * (connections * self.num_layers) ** -0.5
        return {
            "kernel_initializer": normal(stddev=0.02),
            "output_initializer": normal(stddev=smaller),
        }
