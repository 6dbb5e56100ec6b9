"""Functions on tensors, without weights."""

from kattn.ops.attention import Explanation as Explanation
from kattn.ops.attention import attention as attention
from kattn.ops.attention import attention_weights as attention_weights
from kattn.ops.attention import explain as explain
from kattn.ops.cache import KVCache as KVCache
from kattn.ops.cache import RingCache as RingCache
from kattn.ops.cache import empty_cache as empty_cache
from kattn.ops.decoding import decode as decode
from kattn.ops.gated_linear import gated_linear_attention as gated_linear_attention
from kattn.ops.linear import linear_attention as linear_attention
from kattn.ops.rotary import rotary_frequencies as rotary_frequencies
from kattn.ops.rotary import rotate as rotate
