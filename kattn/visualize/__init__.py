"""What attention layers look at: captured from a model, and drawn.

Figures need Matplotlib (`pip install matplotlib`); capturing does not.
"""

from kattn.visualize.attention_figure import attention_figure as attention_figure
from kattn.visualize.attention_figure import query_positions as query_positions
from kattn.visualize.capture import AttentionCall as AttentionCall
from kattn.visualize.capture import attention_layers as attention_layers
from kattn.visualize.capture import capture_attention as capture_attention
