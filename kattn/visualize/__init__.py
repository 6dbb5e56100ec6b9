"""Pictures of what attention does. They need Matplotlib: `pip install matplotlib`."""

from kattn.visualize.attention_figure import attention_figure as attention_figure
from kattn.visualize.attention_figure import query_positions as query_positions
