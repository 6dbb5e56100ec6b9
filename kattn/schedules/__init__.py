"""Schedules: a number for each step, as plain functions and as Keras learning rates.

A step is the number of updates made before it: the first update has step 0. As the learning rate of
an optimizer with `gradient_accumulation_steps`, though, a schedule gets from Keras the number of
batches; `kattn.callbacks.LearningRate` gives it that of updates.
"""

from kattn.schedules.composed import Joined as Joined
from kattn.schedules.composed import WarmUp as WarmUp
from kattn.schedules.cosine import Cosine as Cosine
from kattn.schedules.cosine import FlatCosine as FlatCosine
from kattn.schedules.cycles import Cyclical as Cyclical
from kattn.schedules.cycles import WarmRestarts as WarmRestarts
from kattn.schedules.decays import Constant as Constant
from kattn.schedules.decays import Exponential as Exponential
from kattn.schedules.decays import Linear as Linear
from kattn.schedules.decays import Polynomial as Polynomial
from kattn.schedules.decays import Step as Step
from kattn.schedules.inverse_square_root import InverseSquareRoot as InverseSquareRoot
from kattn.schedules.inverse_square_root import Noam as Noam
from kattn.schedules.one_cycle import OneCycle as OneCycle
from kattn.schedules.one_cycle import OneCycleMomentum as OneCycleMomentum
from kattn.schedules.one_cycle import SmithOneCycle as SmithOneCycle
from kattn.schedules.one_cycle import SmithOneCycleMomentum as SmithOneCycleMomentum
from kattn.schedules.schedule import Schedule as Schedule
from kattn.schedules.warmup_stable_decay import WarmupStableDecay as WarmupStableDecay
