"""What a callback may do in an update of the weights."""

from typing import Any


class Rule:
    """What one callback does in each update. Override the methods that it needs.

    The methods run inside the compiled step, in the order in which they are listed here: first
    `numbers` of all rules, then `change_gradients` of all rules, and so on. All numbers and all
    state of a rule must be variables made with `hook.add_variable`, so that a new value does not
    need a new trace and JAX carries the state along. After `release` a rule must change nothing.

    Attributes:
        order: Place among the rules of an optimizer: those with a smaller number come first.
        sees_gradients: Whether the rule reads gradients. Under `tf.distribute` these are the
            gradients of one replica only, so such a rule is refused there.
        sees_changes: Whether the rule reads `update.changes()` in `after_update`.
        signature: What the trace of the rule depends on. A released rule is used again for a
            callback with an equal signature.
        sets: Name of the number that the rule sets, if no other rule may set it in the same fit.
        owner: The callback that uses the rule now, or None.
        last_owner: Weak reference to the callback that used the rule last.
    """

    order = 0
    sees_gradients = False
    sees_changes = False
    signature: object = None
    sets: str | None = None
    owner: Any = None
    last_owner: Any = staticmethod(lambda: None)

    def build(self, hook):
        """Make the variables of the rule with `hook.add_variable`. Runs once, on the host."""

    def numbers(self, update):
        """Return the numbers of the optimizer to use in this update, as a dict by attribute.

        The learning rate has the name "learning_rate". This method must assign nothing: it also
        runs when `optimizer.learning_rate` is read.
        """
        return {}

    def change_gradients(self, update):
        """Change `update.gradients`, or call `update.require` to skip the update."""

    def multiplier(self, variable):
        """Return a factor for the change of a variable, a number or a tensor; None means 1."""
        return

    def after_update(self, update):
        """Read what the update has done to the weights."""

    def release(self):
        """Change nothing from now on, as the callback has ended. Runs on the host."""
