"""Biases as objects: what is added to a score, for any block of scores, without an array of T x S.

A bias is a rule over positions with a few numbers, learned or not. Biases add up: `a + b`.
Positions are those of `kattn.masks`: query i stands at position i + (S - T) on the key axis.
"""

from kattn.biases.alibi import ALiBi as ALiBi
from kattn.biases.arrays import Dense as Dense
from kattn.biases.bias import Bias as Bias
from kattn.biases.clipped import Clipped as Clipped
from kattn.biases.grid_table import GridTable as GridTable
from kattn.biases.sum import Sum as Sum
from kattn.biases.t5 import T5 as T5
