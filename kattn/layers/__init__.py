"""Keras layers, by flat public names."""

from kattn.layers.attention.cross_attention import CrossAttention as CrossAttention
from kattn.layers.attention.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from kattn.layers.attention.self_attention import SelfAttention as SelfAttention
from kattn.layers.vision.self_attention_2d import SelfAttention2D as SelfAttention2D
