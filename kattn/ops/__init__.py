"""Functions on tensors, without weights."""

from kattn.ops.attention import Explanation as Explanation
from kattn.ops.attention import attention as attention
from kattn.ops.attention import attention_weights as attention_weights
from kattn.ops.attention import explain as explain
from kattn.ops.cache import KVCache as KVCache
from kattn.ops.cache import RingCache as RingCache
from kattn.ops.cache import empty_cache as empty_cache
from kattn.ops.decoding import decode as decode
from kattn.ops.feature_maps import elu_plus_one as elu_plus_one
from kattn.ops.feature_maps import orthogonal_projection as orthogonal_projection
from kattn.ops.feature_maps import positive_random_features as positive_random_features
from kattn.ops.feature_maps import rectified_random_features as rectified_random_features
from kattn.ops.feature_maps import softmax_features as softmax_features
from kattn.ops.feature_maps import softmax_steps as softmax_steps
from kattn.ops.gated_linear import GatedLinearState as GatedLinearState
from kattn.ops.gated_linear import decode_gated_linear_attention as decode_gated_linear_attention
from kattn.ops.gated_linear import gated_linear_attention as gated_linear_attention
from kattn.ops.gated_linear import initial_gated_linear_state as initial_gated_linear_state
from kattn.ops.linear import LinearState as LinearState
from kattn.ops.linear import decode_linear_attention as decode_linear_attention
from kattn.ops.linear import initial_linear_state as initial_linear_state
from kattn.ops.linear import linear_attention as linear_attention
from kattn.ops.linear import linear_attention_weights as linear_attention_weights
from kattn.ops.rotary import rotary_frequencies as rotary_frequencies
from kattn.ops.rotary import rotate as rotate
