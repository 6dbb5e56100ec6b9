"""How callbacks act on updates: a hook into the optimizer, and rules that run in it.

Weights change inside a compiled step, which no callback can enter. A callback that acts there
derives from `RuleCallback` and hands the hook of the optimizer a `Rule`. What a rule may touch in
an update:

- the numbers of the optimizer, such as the learning rate or the momentum (`Rule.numbers`);
- the gradients, and whether the weights are updated at all (`Rule.change_gradients`);
- the size of the change of each weight (`Rule.multiplier`);
- its own variables, which it makes with `OptimizerHook.add_variable` (`Rule.build`).

A rule never assigns a weight or a variable of the optimizer that is not its own. `Update` is what
a rule is shown of an update. The other modules here are the rules of single callbacks, and the
pieces that these are made of.
"""

from kattn.callbacks.update.hooks import hook_of as hook_of
from kattn.callbacks.update.optimizer_hook import OptimizerHook as OptimizerHook
from kattn.callbacks.update.rule import Rule as Rule
from kattn.callbacks.update.rule_callback import RuleCallback as RuleCallback
from kattn.callbacks.update.update import Update as Update
