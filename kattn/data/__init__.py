"""Data whose order can be found again."""

from kattn.data.epoch_shuffled import EpochShuffled as EpochShuffled
