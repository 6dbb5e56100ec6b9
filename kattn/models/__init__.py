"""Whole models, composed of kattn's layers."""

from kattn.models.sa_cnn import sa_cnn as sa_cnn
