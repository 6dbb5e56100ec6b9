"""Whole models, composed of kattn's layers, and models of Keras with kattn's layers in them."""

from kattn.models.replace_attention import replace_attention as replace_attention
from kattn.models.sa_cnn import sa_cnn as sa_cnn
