"""Whole models, composed of kattn's layers, and models of Keras with kattn's layers in them."""

from kattn.models.attention_seq2seq import AttentionSeq2Seq as AttentionSeq2Seq
from kattn.models.replace_attention import replace_attention as replace_attention
from kattn.models.sa_cnn import sa_cnn as sa_cnn
from kattn.models.sa_rnn import sa_rnn as sa_rnn
from kattn.models.time_series_transformer import TimeSeriesTransformer as TimeSeriesTransformer
from kattn.models.transformer_classifier import TransformerClassifier as TransformerClassifier
from kattn.models.transformer_lm import TransformerLM as TransformerLM
from kattn.models.transformer_seq2seq import TransformerSeq2Seq as TransformerSeq2Seq
from kattn.models.vision_transformer import VisionTransformer as VisionTransformer
