"""The base class of callbacks that act in updates."""

import keras

from kattn import backend
from kattn.arguments import error
from kattn.callbacks.update.optimizer_hook import hook_of


class RuleCallback(keras.callbacks.Callback):
    """Base class of callbacks that act in each update by one rule.

    Override `signature` and `make_rule`; `begin` to make the rule act; and `synchronize` to read
    and write variables of the rule from time to time.

    Attributes:
        synchronize_every: `synchronize` is called at least once in this many updates, besides at
            the beginning of training and at the end of each epoch. None: only then.
    """

    synchronize_every: int | None = None
    _updates_left = 0  # until `synchronize` is due

    def signature(self):
        """Return what the trace of the rule depends on, as something that can be compared.

        A rule that is left from an earlier fit is used again if the signatures are equal.
        """
        raise NotImplementedError

    def make_rule(self):
        """Return a new `Rule`."""
        raise NotImplementedError

    def begin(self, rule):
        """Make the rule act, on the host, when training begins."""

    def synchronize(self, rule):
        """Read what the rule has recorded and write what it needs next, on the host."""

    @property
    def rule(self):
        """The rule in use, or None outside of `fit`.

        Reading this property brings the variables of a model on JAX up to date.
        """
        if self._model is None or getattr(self.model, "optimizer", None) is None:
            return None
        return hook_of(self.model).rule_of(self)

    def on_train_begin(self, logs=None):
        hook = hook_of(self.model)
        rule, is_new = hook.use(self, self.signature(), self.make_rule)
        if rule.sees_gradients:
            _check_replicas(self.model, type(self).__name__)
        if is_new:
            # An error in a rule would leave a model on JAX without its weights: find it before.
            backend.dry_run(self.model.optimizer)
            self.model.make_train_function(force=True)
        self._steps = getattr(self.model, "steps_per_execution", 1)
        self.begin(rule)
        self._synchronize(rule)

    def on_train_batch_begin(self, batch, logs=None):
        # Not at the end of a batch, which would keep Keras from running ahead of the device.
        if self.synchronize_every is not None:
            if self._updates_left < self._steps:
                self._synchronize(self.rule)
            self._updates_left -= self._steps

    def on_epoch_end(self, epoch, logs=None):
        self._synchronize(self.rule)

    def on_train_end(self, logs=None):
        self.release()

    def release(self):
        """Stop acting on the optimizer.

        Call it if `fit` has raised an error, as Keras calls no callback then. The next `fit` with
        any callback of kattn does the same.
        """
        rule = self.rule
        if rule is not None:
            rule.release()
            rule.owner = None

    def _synchronize(self, rule):
        self.synchronize(rule)
        self._updates_left = self.synchronize_every or 0


def _check_replicas(model, name):
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's alone
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    if replicas > 1:
        raise error(
            f"{name} must see the gradients of the whole batch, but under tf.distribute an "
            "optimizer sees those of one replica; train on one replica, or without this callback",
            num_replicas_in_sync=replicas,
        )
