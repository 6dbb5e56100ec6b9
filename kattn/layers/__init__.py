"""Keras layers, by flat public names."""

from kattn.layers.attention.cross_attention import CrossAttention as CrossAttention
from kattn.layers.attention.differential_attention import (
    DifferentialAttention as DifferentialAttention,
)
from kattn.layers.attention.gated_linear_attention import (
    GatedLinearAttention as GatedLinearAttention,
)
from kattn.layers.attention.linear_attention import LinearAttention as LinearAttention
from kattn.layers.attention.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from kattn.layers.attention.self_attention import SelfAttention as SelfAttention
from kattn.layers.position.alibi import ALiBi as ALiBi
from kattn.layers.position.head_position import HeadPosition as HeadPosition
from kattn.layers.position.input_position import InputPosition as InputPosition
from kattn.layers.position.learned_positions import LearnedPositions as LearnedPositions
from kattn.layers.position.position import Position as Position
from kattn.layers.position.relative_table import RelativeTable as RelativeTable
from kattn.layers.position.rotary_embedding import RotaryEmbedding as RotaryEmbedding
from kattn.layers.position.score_bias import ScoreBias as ScoreBias
from kattn.layers.position.shaw_relative import ShawRelative as ShawRelative
from kattn.layers.position.sinusoidal_positions import SinusoidalPositions as SinusoidalPositions
from kattn.layers.position.t5_relative_bias import T5RelativeBias as T5RelativeBias
from kattn.layers.recurrent.additive_score import AdditiveScore as AdditiveScore
from kattn.layers.recurrent.attention_cell import AttentionCell as AttentionCell
from kattn.layers.recurrent.attention_rnn import AttentionRNN as AttentionRNN
from kattn.layers.recurrent.attention_score import AttentionScore as AttentionScore
from kattn.layers.recurrent.causal_depthwise_conv1d import (
    CausalDepthwiseConv1D as CausalDepthwiseConv1D,
)
from kattn.layers.recurrent.decoding_rnn import DecodingRNN as DecodingRNN
from kattn.layers.recurrent.dot_score import DotScore as DotScore
from kattn.layers.recurrent.gated_delta_net import GatedDeltaNet as GatedDeltaNet
from kattn.layers.recurrent.general_score import GeneralScore as GeneralScore
from kattn.layers.recurrent.griffin_block import GriffinBlock as GriffinBlock
from kattn.layers.recurrent.griffin_recurrence import GriffinRecurrence as GriffinRecurrence
from kattn.layers.recurrent.location_score import LocationScore as LocationScore
from kattn.layers.recurrent.lstmn import LSTMN as LSTMN
from kattn.layers.recurrent.min_gru import MinGRU as MinGRU
from kattn.layers.recurrent.min_lstm import MinLSTM as MinLSTM
from kattn.layers.recurrent.multi_head_score import MultiHeadScore as MultiHeadScore
from kattn.layers.recurrent.native_loop import explain_loops as explain_loops
from kattn.layers.recurrent.predicted_window import PredictedWindow as PredictedWindow
from kattn.layers.recurrent.r_transformer_block import RTransformerBlock as RTransformerBlock
from kattn.layers.recurrent.rglru import RGLRU as RGLRU
from kattn.layers.recurrent.self_attention_rnn import SelfAttentionRNN as SelfAttentionRNN
from kattn.layers.recurrent.sha_rnn_block import SHARNNBlock as SHARNNBlock
from kattn.layers.recurrent.sru import SRU as SRU
from kattn.layers.recurrent.sru_plus_plus import SRUPlusPlus as SRUPlusPlus
from kattn.layers.recurrent.structured_self_attention import (
    StructuredSelfAttention as StructuredSelfAttention,
)
from kattn.layers.spatial.attention_gate import AttentionGate1D as AttentionGate1D
from kattn.layers.spatial.attention_gate import AttentionGate2D as AttentionGate2D
from kattn.layers.spatial.attention_gate import AttentionGate3D as AttentionGate3D
from kattn.layers.spatial.attention_pooling import AttentionPooling as AttentionPooling
from kattn.layers.spatial.axial_attention import AxialAttention2D as AxialAttention2D
from kattn.layers.spatial.axial_attention import AxialAttention3D as AxialAttention3D
from kattn.layers.spatial.cbam import CBAM as CBAM
from kattn.layers.spatial.coordinate_attention import CoordinateAttention as CoordinateAttention
from kattn.layers.spatial.cross_covariance_attention import (
    CrossCovarianceAttention as CrossCovarianceAttention,
)
from kattn.layers.spatial.deformable_attention_2d import (
    DeformableAttention2D as DeformableAttention2D,
)
from kattn.layers.spatial.efficient_channel_attention import (
    EfficientChannelAttention as EfficientChannelAttention,
)
from kattn.layers.spatial.global_context import GlobalContext as GlobalContext
from kattn.layers.spatial.neighborhood_attention import (
    NeighborhoodAttention1D as NeighborhoodAttention1D,
)
from kattn.layers.spatial.neighborhood_attention import (
    NeighborhoodAttention2D as NeighborhoodAttention2D,
)
from kattn.layers.spatial.neighborhood_attention import (
    NeighborhoodAttention3D as NeighborhoodAttention3D,
)
from kattn.layers.spatial.self_attention_nd import SelfAttention1D as SelfAttention1D
from kattn.layers.spatial.self_attention_nd import SelfAttention2D as SelfAttention2D
from kattn.layers.spatial.self_attention_nd import SelfAttention3D as SelfAttention3D
from kattn.layers.spatial.squeeze_excite import SqueezeExcite as SqueezeExcite
from kattn.layers.spatial.window_attention import WindowAttention1D as WindowAttention1D
from kattn.layers.spatial.window_attention import WindowAttention2D as WindowAttention2D
from kattn.layers.spatial.window_attention import WindowAttention3D as WindowAttention3D
from kattn.layers.transformer.drop_path import DropPath as DropPath
from kattn.layers.transformer.feed_forward import FeedForward as FeedForward
from kattn.layers.transformer.initialization import deep_norm as deep_norm
from kattn.layers.transformer.initialization import scale_projections as scale_projections
from kattn.layers.transformer.layer_scale import LayerScale as LayerScale
from kattn.layers.transformer.transformer_decoder_block import (
    TransformerDecoderBlock as TransformerDecoderBlock,
)
from kattn.layers.transformer.transformer_encoder_block import (
    TransformerEncoderBlock as TransformerEncoderBlock,
)
