"""Masks as objects: which key a query may attend to, without an array of T x S.

A mask is a rule. It can say what it allows for any block of queries and keys, and how far a query
can reach at all, so that a kernel visits only the blocks that matter. Masks combine:

    Causal() & Window(256)              each query sees the last 256 steps
    Padding(keys) & ~Dense(array)       real keys, except those that `array` names

T query steps, S key steps. Query i stands at position i + (S - T) on the key axis: the last
query and the last key are aligned, so that one query against a cache sees the whole cache.
True means that a query may attend to a key.
"""

from kattn.masks.algebra import And as And
from kattn.masks.algebra import Not as Not
from kattn.masks.algebra import Or as Or
from kattn.masks.algebra import intersect as intersect
from kattn.masks.arrays import Dense as Dense
from kattn.masks.bands import Causal as Causal
from kattn.masks.bands import Dilated as Dilated
from kattn.masks.bands import Window as Window
from kattn.masks.grids import Neighborhood as Neighborhood
from kattn.masks.keys import Global as Global
from kattn.masks.keys import Padding as Padding
from kattn.masks.keys import Prefix as Prefix
from kattn.masks.keys import Segments as Segments
from kattn.masks.mask import ALL as ALL
from kattn.masks.mask import NONE as NONE
from kattn.masks.mask import SOME as SOME
from kattn.masks.mask import UNBOUNDED as UNBOUNDED
from kattn.masks.mask import Mask as Mask
