"""Functions on tensors, without weights."""

from kattn.ops.attention import Explanation as Explanation
from kattn.ops.attention import attention as attention
from kattn.ops.attention import attention_weights as attention_weights
from kattn.ops.attention import explain as explain
