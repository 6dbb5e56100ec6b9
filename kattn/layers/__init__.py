"""Keras layers, by flat public names."""

from kattn.layers.attention.cross_attention import CrossAttention as CrossAttention
from kattn.layers.attention.differential_attention import (
    DifferentialAttention as DifferentialAttention,
)
from kattn.layers.attention.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from kattn.layers.attention.self_attention import SelfAttention as SelfAttention
from kattn.layers.position.learned_positions import LearnedPositions as LearnedPositions
from kattn.layers.position.position import Position as Position
from kattn.layers.position.rotary_embedding import RotaryEmbedding as RotaryEmbedding
from kattn.layers.position.sinusoidal_positions import SinusoidalPositions as SinusoidalPositions
from kattn.layers.vision.self_attention_2d import SelfAttention2D as SelfAttention2D
