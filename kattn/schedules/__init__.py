"""Schedules: a number for each step, such as a learning rate or a momentum.

They can be called as plain functions of the step, and given to optimizers as learning rates. The
step is the number of updates that were made before: the first update has step 0. If the optimizer
has `gradient_accumulation_steps` and a schedule as its learning rate, Keras counts batches instead;
use `kattn.callbacks.LearningRate` for a schedule that counts updates.
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
