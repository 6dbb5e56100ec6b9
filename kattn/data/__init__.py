"""Data whose order can be drawn again."""

from kattn.data.epoch_shuffled import EpochShuffled as EpochShuffled
