"""Tools to see what a model attends to."""

from kattn.visualize.capture import AttentionCall as AttentionCall
from kattn.visualize.capture import attention_layers as attention_layers
from kattn.visualize.capture import capture_attention as capture_attention
